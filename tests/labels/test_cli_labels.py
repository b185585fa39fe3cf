"""The commands: fetch, make, show, search, on a planted release and a service on this machine."""

import json

import pytest

from saeflow.ids import FeatureId, Site
from saeflow.labels import FeatureWords, WordsFolder, words_folder, words_for, write_words

from .test_exports import add_source
from .test_neuronpedia import FEATURE, PATH

PATTERN = "gpt2-small/{layer}-{part}"


@pytest.fixture
def run(monkeypatch, stdout, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: stdout("labels", *arguments)


@pytest.fixture
def exports(service):
    for source in ("0-res", "0-mlp"):
        add_source(service, source)
    return service


def test_fetch_says_what_it_will_fetch_and_fetches_it(run, exports):
    arguments = (
        "fetch",
        "mine",
        "--sites",
        "0/res,0/mlp,1/res",
        "--neuronpedia-source",
        PATTERN,
        "--bucket",
        exports.url,
    )
    told = json.loads(run(*arguments, "--dry-run", "--json"))
    assert (told["files"], told["sites"], told["missing"]) == (8, ["0/mlp", "0/res"], ["1/res"])
    assert told["to_fetch"] == told["bytes"] > 0
    assert exports.paths("batch") == []
    out = run(*arguments)
    assert "gpt2-small/0-res" in out
    assert words_for("mine").get(FeatureId.parse("0/res/3")).label == "label 3 of 0-res"
    told = json.loads(run(*arguments, "--json"))
    assert told["written"]["0/res"]["labelled"] == 12


def test_fetch_knows_the_sites_of_a_release_by_name(run, service):
    add_source(service, "0-res")
    for key in list(service.files):
        service.files[key.replace("gpt2-small/0-res", "gemma-2-2b/20-gemmascope-res-16k")] = service.files.pop(key)
    told = json.loads(run("fetch", "gemma-scope-2b", "--sites", "res", "--bucket", service.url, "--json"))
    assert told["sites"] == ["20/res"]
    assert len(told["missing"]) == 25
    assert words_for("gemma-scope-2b").get(FeatureId.parse("20/res/3")).by == "gpt-4o-mini"
    assert "label 3 of 0-res" in run("show", "gemma-scope-2b", "20/res/3")
    assert "20/res/3" in run("search", "gemma-scope-2b", "label 3")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kinds", "labels"], "--kinds names labels"),
        (["--sites", "0/res", "--neuronpedia-source", "x"], "{layer}"),
        (["--sites", "0/res"], "mine"),
        (["--neuronpedia-source", PATTERN], "Name its sites one by one"),
        (["--sites", "0/res", "--neuronpedia-source", PATTERN, "--offline"], "offline"),
    ],
)
def test_fetch_refuses(refusal, arguments, said):
    assert said in refusal("labels", "fetch", "mine", *arguments)


def test_make_show_and_search_on_the_demo(run, tmp_path):
    (tmp_path / "t.txt").write_text("\n\n".join(f"The king of {i} said that 2 + 2 is {i}." for i in range(30)))
    told = json.loads(run("make", "demo", "--texts", "t.txt", "--sites", "4/res", "--contexts", 3, "--json"))
    assert told["sites"][0]["features"] == 768
    assert told["sites"][0]["tokens"] > 300
    made = [row for row in WordsFolder(words_folder("demo", "local")).site(Site.parse("4/res")) if row]
    assert made
    assert any(" king" in row.tokens for row in made)
    assert {context.source for row in made for context in row.contexts} == {"t.txt"}
    shown = json.loads(run("show", "demo", "4/res/72", "--json"))
    assert shown["words"]["label"] == words_for("demo").get(FeatureId.parse("4/res/72")).label
    assert "strongest on" in run("show", "demo", "4/res/72")
    found = json.loads(run("search", "demo", "replied cri", "--json"))["features"]
    assert "4/res/72" in [row["feature"] for row in found]
    assert all("replied" in [token.strip() for token in row["tokens"]] for row in found)
    assert run("search", "demo", "replied cri").count("/res/") >= 1
    found = json.loads(run("search", "demo", "said", "--sites", "5/res", "--json"))["features"]
    assert found
    assert all(row["feature"].startswith("5/res") for row in found)


def test_make_reads_the_demo_texts_and_goes_on(run):
    texts = ("--texts", "demo:stories", "--texts", "demo:maths", "--n-texts", 5)
    arguments = ("make", "demo", *texts, "--sites", "0/att", "--json")
    told = json.loads(run(*arguments))
    rows = WordsFolder(words_folder("demo", "local")).site(Site.parse("0/att"))
    assert {context.source for row in rows if row for context in row.contexts} == {"stories", "maths"}
    assert json.loads(run(*arguments)) == told


def test_show_asks_neuronpedia_for_what_is_not_here_and_keeps_it(run, refusal, service):
    service.features[PATH] = FEATURE
    assert "royalty  [claude]" in run("show", "gemma-scope-2b", "20/res/7", "--neuronpedia-url", service.url)
    assert "royalty" in run("show", "gemma-scope-2b", "20/res/7", "--offline")
    assert len(service.asked) == 1
    run("show", "gemma-scope-2b", "20/res/7", "--neuronpedia-url", service.url, "--refresh")
    assert len(service.asked) == 2
    assert "nothing is known" in run("show", "gemma-scope-2b", "20/res/8", "--neuronpedia-url", service.url)
    assert json.loads(run("show", "demo", "4/res/767", "--json"))["feature"] == "4/res/767"
    assert "offline" in refusal("labels", "show", "gemma-scope-2b", "20/res/8", "--offline")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("show", "demo", "4/res/9999"),
            "4/res/9999 does not exist: the dictionary at 4/res has 768 features, 0 to 767.",
        ),
        (("show", "demo", "99/res/1"), "demo has no dictionary at 99/res"),
        (("show", "nowhere", "4/res/1"), "'nowhere' is neither a release nor a path that exists"),
        (("search", "demo", " "), "WORDS is empty. Give words to look for."),
    ],
)
def test_what_does_not_exist_is_refused(refusal, arguments, said):
    assert said in refusal("labels", *arguments)


def test_what_others_wrote_cannot_steer_a_terminal(run):
    evil = FeatureWords("a \x1b[2J label", ("\x1b]0;x\x07",), ("\u202e",), by="\x1b[31m")
    write_words(words_folder("gemma-scope-2b", "local"), Site.parse("0/res"), [evil])
    for printed in (run("show", "gemma-scope-2b", "0/res/0"), run("search", "gemma-scope-2b", "label")):
        assert "\x1b" not in printed
        assert "\u202e" not in printed
        assert "label" in printed


def test_search_without_words_says_what_to_do(refusal):
    assert "saeflow labels fetch gemma-scope-9b" in refusal("labels", "search", "gemma-scope-9b", "king")
