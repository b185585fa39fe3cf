"""One word has one meaning in every command, one thing has one word, and the words of the last release still work."""

import json
import sys
from collections import defaultdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from docs_reference import commands, declared_by, meaning_of
from saeflow.cli.app import app
from saeflow.cli.vocabulary import NUMBER_OF_TEXTS, OLD, RANGES, SHORT, TURNED, modern, repeated

OPTIONS = {
    " ".join(words): {one.name: one for one in declared_by(app, words) if one.index is None and one.show}
    for words, _ in commands(app)
}


def test_a_word_has_one_meaning_in_every_command():
    meanings = defaultdict(lambda: defaultdict(list))
    for command, options in OPTIONS.items():
        for word, option in options.items():
            meanings[word][meaning_of(option.parameter.help)].append(command)
    assert {word: dict(found) for word, found in meanings.items() if len(found) > 1} == {}
    assert len(meanings) > 100


def test_an_argument_has_one_meaning_in_every_command():
    meanings = defaultdict(set)
    for words, _ in commands(app):
        for one in declared_by(app, words):
            if one.index is not None:
                meanings[one.name].add(meaning_of(one.parameter.help))
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}


def test_a_meaning_has_one_word():
    words = defaultdict(set)
    for options in OPTIONS.values():
        for word, option in options.items():
            words[meaning_of(option.parameter.help)].add(word.removesuffix("s"))
    assert {meaning: found for meaning, found in words.items() if len(found) > 1} == {}


def test_a_word_of_one_letter_stands_for_one_word():
    letters = defaultdict(set)
    for options in OPTIONS.values():
        for word, option in options.items():
            for name in option.names:
                if not name.startswith("--"):
                    letters[name].add(word.removesuffix("s"))
    assert dict(letters) == {letter: {word.removesuffix("s")} for letter, word in SHORT.items()}


def test_every_range_is_that_of_an_option():
    assert set(RANGES) <= {word for options in OPTIONS.values() for word in options}


@pytest.mark.parametrize(("old", "new", "named"), OLD)
def test_an_old_word_is_now_one_that_the_command_has(old, new, named):
    for command in named:
        known = OPTIONS[command]
        assert old not in known
        assert new in known
        assert modern(command, ["demo", f"{old}=2", old, "2"], known) == (
            ["demo", f"{new}=2", new, "2"],
            [f"{old} is now {new}"],
        )


def test_old_words_whose_value_decides():
    for command in NUMBER_OF_TEXTS:
        words = ["demo", "--texts", "3", "--texts=demo:maths", "--datasets", "demo"]
        told = ["demo", "--n-texts", "3", "--texts=demo:maths", "--texts", "demo"]
        assert modern(command, words, OPTIONS[command])[0] == told
    for (command, was), now in TURNED.items():
        assert modern(command, ["demo", "--direction", was, "--json"], OPTIONS[command])[0] == ["demo", *now, "--json"]
    assert modern("graph", ["demo", "--direction", "both"], OPTIONS["graph"]) == (["demo", "--direction", "both"], [])


def test_a_singular_is_its_plural_and_what_follows_two_hyphens_is_left_alone():
    assert modern("doctor", ["demo", "--site", "3/res"], OPTIONS["doctor"]) == (["demo", "--sites", "3/res"], [])
    assert modern("match", ["demo", "--methods", "cosine"], OPTIONS["match"])[0] == ["demo", "--method", "cosine"]
    assert modern("steer", ["demo", "--", "--n"], OPTIONS["steer"]) == (["demo", "--", "--n"], [])


def test_values_that_follow_the_first_of_a_list_are_more_of_it_and_nothing_else_is():
    words = ["demo", "--sites", "res", "mlp", "att", "--json"]
    now = ["demo", "--sites", "res", "--sites", "mlp", "--sites", "att", "--json"]
    assert repeated(words, ["mlp", "att"], {"--sites"}) == now
    assert repeated(["--sites", "res", "mlp", "demo"], ["demo"], {"--sites"}) is None
    assert repeated(words, ["mlp", "att"], {"--parts"}) is None


def test_old_words_do_what_the_new_ones_do_and_say_so_once_on_stderr(saeflow, tmp_path):
    code, out, err = saeflow("find", "demo", "--words", "whale", "--site", "3/res", "4/res", "--limit", 3, "--json")
    assert (code, err) == (0, "")
    assert {row["feature"][:5] for row in json.loads(out)["found"]} <= {"3/res", "4/res"}
    old = saeflow(
        "plan", "demo", "--start", "3/res/541", "--direction", "suppress", "--s-end", 2, "--no-shares", "--json"
    )
    new = saeflow("plan", "demo", "--starts", "3/res/541", "--suppress", "--strength-end", 2, "--no-shares", "--json")
    assert old[:2] == new[:2]
    assert new[2] == ""
    assert old[2] == (
        "saeflow: --direction suppress is now --suppress, --s-end is now --strength-end: "
        "the old words go with the next release.\n"
    )


@pytest.mark.parametrize(("command", "options"), OPTIONS.items())
def test_every_list_takes_commas_repeats_and_several_words(command, options):
    """Read by the real parser, without running anything."""
    for word, option in options.items():
        if not option.token_count()[1]:
            continue
        value = {
            "--pairs": "0/res>1/res",
            "--map": "0/res>1/res",
            "--starts": "1/res/2",
            "--drop": "1/res/2",
            "--parts": "res",
        }.get(word, "3")
        other = {
            "--pairs": "1/res>2/res",
            "--map": "1/res>2/res",
            "--starts": "1/res/3",
            "--drop": "1/res/3",
            "--parts": "mlp",
        }.get(word, "4")
        needed = [text for one in options.values() if one.required and one.name != word for text in (one.name, "x")]
        arguments = {"FEATURE": "1/res/2", "FEATURES": "1/res/2", "SOURCE": "1/res", "TARGET": "1/res"}
        places = [
            arguments.get(one.name, "demo") for one in declared_by(app, tuple(command.split())) if one.index is not None
        ]
        found = []
        for words in ([word, f"{value},{other}"], [word, value, word, other], [word, value, other]):
            whole = [*command.split(), *places, *needed, *words]
            again = repeated(whole, [other], {word}) or whole
            _, bound, _ = app.parse_args(again, exit_on_error=False, print_error=False)
            found.append(str(bound.arguments))
        assert found[0] == found[1] == found[2], (command, word)
