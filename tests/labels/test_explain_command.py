"""`saeflow labels explain` against a server on this machine: counts first, kept answers cost none, no key in a file."""

import json
import os
import re
from types import SimpleNamespace

import pytest

from saeflow.errors import Unreachable
from saeflow.ids import FeatureId
from saeflow.labels import WordsFolder, words_folder
from saeflow.labels.explain import Chat, explain
from saeflow.llm.endpoint import Endpoint, Pacing, Secret

from ..steering.judges.server import KEY, Reply, after, says, serving
from .test_explain import FRUIT, KING, SITE, folder

__all__ = ["folder"]


def reads(asked):
    """Names the marked word, and says a passage fires where the word stands."""
    text = asked.messages[1]["content"]
    if "The feature fires on:" not in text:
        return says(json.dumps({"explanation": f"the word {re.search('<<(.*?)>>', text)[1]}"}))
    word = re.search("fires on: the word (.*)", text)[1]
    return says(json.dumps({"fires": [int(word in passage) for passage in text.split("Passage ")[1:]]}))


@pytest.fixture(autouse=True)
def _settings(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "SAEFLOW_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def run(saeflow_here, folder):
    """Run the command; returns its exit code, stdout and stderr."""

    def call(*arguments, words=folder):
        ran = saeflow_here("labels", "explain", "mine", *arguments, *(["--words-folder", words] if words else []))
        return SimpleNamespace(**dict(zip(("code", "stdout", "stderr"), ran, strict=True)))

    return call


@pytest.fixture
def refused(run):
    """Run the command, which must be refused with exit code 2; returns stderr."""

    def call(*arguments, **more):
        ran = run(*arguments, **more)
        assert ran.code == 2
        return ran.stderr

    return call


@pytest.fixture
def server():
    with serving(reads) as found:
        yield found


def test_labels_and_scores_are_written_and_requests_are_told_first(run, server, folder, tmp_path):
    result = run(KING, FRUIT, "--llm-url", server.url, "--llm-model", "reader")
    assert "2 features: 4 requests to reader at http://127.0.0.1" in result.stderr
    assert len(server.asked) == 4
    for words in ("the word king", "the word fruit", "1.00", "2 labels written"):
        assert words in result.stdout
    known = WordsFolder(folder).get(KING)
    assert (known.label, known.by, known.score) == ("the word king", "reader", 1.0)
    assert {asked.body["model"] for asked in server.asked} == {"reader"}
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written


def test_what_was_answered_costs_nothing_again(run, server):
    run(KING, "--llm-url", server.url)
    again = run(KING, "--llm-url", server.url)
    assert "1 feature: 0 requests to gpt-4o-mini" in again.stderr
    assert "2 answers are kept" in again.stderr
    assert "the word king" in again.stdout
    assert len(server.asked) == 2


def test_a_dry_run_counts_and_asks_nobody(run, server, folder, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    told = json.loads(run("--sites", "res", "--dry-run", "--json").stdout)
    assert (told["requests"], told["cached"], told["features"], told["written"]) == (5, 0, [], 0)
    assert "5 requests to gpt-4o-mini at the OpenAI API" in run("--sites", "4/res", "--dry-run").stderr
    assert server.asked == []
    assert WordsFolder(folder).get(KING).label == "king"


def test_a_limit_takes_those_that_fire_most_and_json_has_every_number(run, server):
    told = json.loads(run("--sites", "res", "--n-features", 1, "--llm-url", server.url, "--json").stdout)
    [row] = told["features"]
    assert row == {
        "feature": str(KING),
        "label": "the word king",
        "score": 1.0,
        "found": 1.0,
        "left": 1.0,
        "silent from": "controls",
        "problem": "",
    }
    assert (told["requests"], told["written"]) == (2, 1)


def test_the_address_and_the_model_of_the_environment_are_taken(run, server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("SAEFLOW_JUDGE_MODEL", "mine-7b")
    monkeypatch.delenv("OPENAI_API_KEY")
    run(KING)
    assert {asked.body["model"] for asked in server.asked} == {"mine-7b"}


def test_what_came_before_an_error_is_written_and_kept(run, refused, folder):
    def fails_late(asked):
        return reads(asked) if asked.number < 2 else Reply("{}", 401)

    many = ["--sites", "res", "--concurrency", 1]
    with serving(fails_late) as server:
        assert "401" in refused(*many, "--llm-url", server.url)
        first = len(server.asked)
    with serving(reads) as server:
        result = run(*many, "--llm-url", server.url)
        assert first + len(server.asked) - 1 <= 5 + 2
    assert "3 labels written" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one of the two"),
        ((KING, "--sites", "res"), "one of the two"),
        (("9/res/1",), "no words of 9/res"),
        (("--sites", "mlp"), "--sites names mlp"),
        (("--sites", "res", "--n-features", -1), "--n-features: -1"),
        ((KING, "--llm-url", "ftp://x"), "no http"),
        ((KING, "--concurrency", 0), "--concurrency: 0 is out of range"),
    ],
)
def test_what_cannot_be_asked_is_refused(refused, arguments, words):
    assert words in refused(*arguments)


def test_without_a_key_or_words_it_says_what_is_missing(refused, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "Set OPENAI_API_KEY" in refused(KING)
    assert "labels make mine --contexts 20" in refused(KING, words=None)


def test_words_that_were_made_are_found_by_the_name_of_the_release(run, server, folder):
    made = words_folder("mine", "local")
    made.parent.mkdir(parents=True)
    folder.rename(made)
    run(KING, "--llm-url", server.url, words=None)
    assert WordsFolder(made).get(KING).by == "gpt-4o-mini"


def test_an_endpoint_is_a_chat_and_answers_in_order():
    def echo(asked):
        return says(f"{asked.messages[0]['content']} {asked.body['seed']}")

    with serving(echo) as server:
        pacing = Pacing(concurrency=3)
        with Endpoint("echo", base_url=server.url, secret=Secret(KEY), temperature=0, seed=7, pacing=pacing) as chat:
            assert isinstance(chat, Chat)
            said = chat.complete([[{"role": "user", "content": str(i)}] for i in range(20)])
            assert said == [f"{i} 7" for i in range(20)]
            assert chat.complete([]) == []
    assert FeatureId(SITE, 0) == KING


def test_what_an_endpoint_answered_before_it_failed_is_kept(folder, tmp_path):
    refuses = after(says('{"explanation": "kept"}'), then=lambda _: Reply(status=401))
    with serving(refuses) as server:
        pacing = Pacing(concurrency=1)
        with (
            Endpoint("echo", base_url=server.url, secret=Secret(KEY), temperature=0, seed=7, pacing=pacing) as chat,
            pytest.raises(Unreachable),
        ):
            list(explain(folder, chat, [KING, FRUIT], cache=tmp_path / "answers"))
    assert len(list((tmp_path / "answers").rglob("*.json"))) == 1
