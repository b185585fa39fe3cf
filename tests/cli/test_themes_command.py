"""`saeflow themes` and `saeflow find`: tables, JSON, and what is refused."""

import json

import pytest

from saeflow.steering.theme import load_theme
from saeflow.steering.theme import themes as known

MINE = """
subject = "swimming"
examples = ["She swam across the lake.", "He dived in.", "The water was cold.", "They raced to the island."]
"""


@pytest.fixture
def run(monkeypatch, saeflow_here, tmp_path):
    """Run the command; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "220")
    return saeflow_here


def test_themes_lists_every_release_or_one(run):
    code, out, _ = run("themes")
    assert code == 0
    for words in ("physics", "3/res/541", "scientific-concepts", "24/res/14548", "activate, suppress"):
        assert words in out
    code, out, _ = run("themes", "gemma-scope-2b", "--json")
    told = json.loads(out)["themes"]
    assert {theme["release"] for theme in told} == {"gemma-scope-2b"}
    assert [theme["starts"] for theme in told if theme["name"] == "london"] == [["12/res/14455"]]


def test_one_theme_is_shown_in_full(run):
    theme = load_theme("physics", "demo")
    code, out, _ = run("themes", "demo", "physics")
    assert code == 0
    assert theme.examples[-1] in out
    assert theme.note in out
    assert "suppress prompt: " in out
    told = json.loads(run("themes", "demo", "physics", "--json")[1])
    assert told["examples"] == list(theme.examples)
    assert told["activate"] == {"prompt": "I think", "asked": theme.activate.asked, "max_new_tokens": 36}
    assert told["keywords"] == []
    code, out, _ = run("themes", "smollm2-135m", "sea")
    assert "\nkeywords: sea, seas, ocean, ship, " in out


def test_a_theme_of_a_file_is_shown_and_one_task_may_be_missing(run, tmp_path):
    (tmp_path / "swim.toml").write_text(MINE)
    told = json.loads(run("themes", "demo", "swim.toml", "--json")[1])
    assert (told["name"], told["activate"], told["starts"]) == ("swim", None, [])
    assert run("themes", "demo", "swim.toml")[0] == 0


def test_themes_find_says_why_there_are_none(run):
    code, out, _ = run("themes", "find", "demo", "--sites", "2/res", "--n-texts", 8, "--json")
    assert code == 1
    told = json.loads(out)
    assert told["found"] == []
    assert sum(told["left_out"].values()) == told["features looked at"] == 768
    assert run("themes", "find", "gemma-scope-2b")[0] == 2


def test_find_by_words_says_why(run):
    code, out, _ = run("find", "demo", "--words", "force velocity", "--sites", "3/res", "--limit", 2)
    assert code == 0
    assert "3/res/541" in out
    assert "fires on 'velocity'" in out
    told = json.loads(run("find", "demo", "--words", "whale", "--limit", 5, "--json")[1])
    assert len(told["found"]) == 5
    assert {row["feature"].split("/")[1] for row in told["found"]} == {"res"}
    assert told["found"][0]["p"] is None


def test_find_by_the_examples_of_a_theme(run):
    code, out, _ = run("find", "demo", "--theme", "physics", "--sites", "3/res", "--limit", 4, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["texts"] == 28
    others = [theme for theme in known("demo") if theme.name != "physics"]
    assert told["background"] == 5 * 80 + sum(len(theme.examples) for theme in others)
    assert told["check"]["auc"] > 0.9
    assert "3/res/541" in [row["feature"] for row in told["found"]]
    assert all(row["label"] for row in told["found"])


def test_find_by_texts_of_a_file_against_a_file(run, tmp_path):
    physics, novels = load_theme("physics").examples, load_theme("playtime").examples
    (tmp_path / "on.txt").write_text("\n\n".join(physics))
    (tmp_path / "off.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in novels))
    code, out, _ = run("find", "demo", "--texts", "on.txt", "--background", "off.jsonl", "--sites", "3/res,2/res")
    assert code == 0
    assert "AUC" in out
    assert "held out" in out
    assert "3/res/541" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("themes", "gemma-scope-9b"), "demo, gemma-scope-2b"),
        (("themes", "demo", "happiness"), "neither a theme nor a file"),
        (("find", "demo"), "one of --words, --texts and --theme"),
        (("find", "demo", "--words", "a", "--theme", "physics"), "one of --words, --texts and --theme"),
        (("find", "demo", "--words", "king", "--sites", "3/raw"), "'3/raw' is no site"),
        (("find", "demo", "--words", "king", "--sites", "9/res"), "--sites names 9/res"),
        (("find", "demo", "--texts", "gone.txt"), "there is no file gone.txt"),
        (("find", "demo", "--theme", "happiness"), "neither a theme nor a file"),
        (("find", "gemma-scope-2b", "--texts", "mine.txt"), "no background for 'gemma-scope-2b'"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(run, arguments, words, tmp_path):
    (tmp_path / "mine.txt").write_text("one\n\ntwo")
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err


def test_a_theme_without_examples_is_refused(run, tmp_path):
    (tmp_path / "bare.toml").write_text('subject = "swimming"')
    code, _, err = run("find", "demo", "--theme", "bare.toml")
    assert code == 2
    assert "has no examples" in err


def test_found_themes_are_listed_by_their_group_and_shortened_in_messages(run):
    code, out, _ = run("themes", "demo", "found")
    assert (code, out.count("found/")) == (0, 16)
    code, _, err = run("themes", "demo", "found/army")
    assert (code, "Did you mean 'found/army-emperor'?" in err, "found/army-emperor and 15 more" in err) == (
        2,
        True,
        True,
    )
