"""Themes: what is shipped, what the paper's tables say, and what a bad file is told."""

import subprocess
import sys

import pytest

from saeflow.errors import BadFile, InvalidArgument, UnknownRelease
from saeflow.ids import FeatureId, Part
from saeflow.matching.atlas import open_atlas
from saeflow.steering.theme import Task, Theme, load_theme, themes

FILE = """
subject = "rivers and lakes"
release = "demo"
starts = ["3/res/541", "1/res/2"]
note = "made for a test"
examples = ['''
The river rose
in the night.''', "A lake lay still."]
[activate]
prompt = "I think "
asked = "Rivers. I think"
max_new_tokens = 12
"""

TABLE_2 = (
    "3/res/9811 18/res/14053 18/res/1336 20/res/4506 21/res/13226 22/res/9002 22/res/15105 23/res/4086 24/res/7017 "
    "24/res/14548"
)
TABLE_4 = (
    "12/res/6778 16/res/13806 18/res/1056 18/res/7505 23/res/10746 24/res/11794 24/res/1027 24/res/7391 24/res/1714 "
    "25/res/6821"
)
TABLE_3 = {
    "anger": "12/res/4111",
    "mental-health": "12/res/16226",
    "weddings": "12/res/4230",
    "religion": "12/res/5483",
    "london": "12/res/14455",
}


@pytest.fixture
def write(tmp_path):
    def made(text, name="water.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return made


def test_every_shipped_theme_is_named_by_its_file_and_lies_with_its_release():
    found = themes()
    assert [(theme.release, theme.name) for theme in found] == sorted((t.release, t.name) for t in found)
    for theme in found:
        assert load_theme(theme.name, theme.release) == theme
        assert theme.note
        assert theme.starts
        assert theme.activate or theme.suppress
        for task in (theme.activate, theme.suppress):
            if task:
                assert task.prompt != task.asked
                assert task.asked.endswith(task.prompt)
                assert "\n\n" not in task.prompt


def test_themes_of_the_demo_pack_have_what_they_need():
    found, atlas = themes("demo"), open_atlas("demo")
    assert len(found) >= 8
    rows = {source: table.n_source for (source, _), table in atlas.items()}
    for theme in found:
        assert 24 <= len(theme.examples) <= 40
        assert len(set(theme.examples)) == len(theme.examples)
        assert 2 <= len(theme.starts) <= 6
        assert all(s.part is Part.RES and 1 <= s.layer <= 4 and s.index < rows[s.site] for s in theme.starts)
        assert len({start.layer for start in theme.starts}) >= 2
        assert {start.layer for start in theme.starts} & {2, 3}
        assert theme.activate is not None
        assert (theme.activate.prompt, theme.activate.max_new_tokens) == ("I think", 36)
        assert theme.suppress is not None
        assert 36 <= theme.suppress.max_new_tokens <= 64
        assert f"saeflow find demo --theme {theme.name}" in theme.note


def test_no_two_themes_of_the_demo_pack_share_an_example_or_a_start():
    for kind in ("examples", "starts"):
        everything = [one for theme in themes("demo") for one in getattr(theme, kind)]
        assert len(everything) == len(set(everything)), kind


def test_the_paper_s_recipes_are_its_tables():
    suppressed = load_theme("scientific-concepts", "gemma-scope-2b")
    assert " ".join(map(str, suppressed.starts)) == TABLE_2
    assert suppressed.suppress is not None
    assert suppressed.activate is None
    prompt = "I think that the biggest problem of contemporary theoretical physics is "
    assert (suppressed.suppress.prompt, suppressed.suppress.max_new_tokens) == (prompt, 96)
    assert len(suppressed.subjects) == 3
    assert suppressed.subjects[0].startswith("** Scientific concepts and entities **")
    for name, start in TABLE_3.items():
        theme = load_theme(name, "gemma-scope-2b")  # SmolLM2 has one of religion too
        assert [str(one) for one in theme.starts] == [start]
        assert theme.activate is not None
        assert (theme.activate.prompt, theme.activate.max_new_tokens) == ("I think ", 36)
    method = load_theme("research-methodology")
    assert " ".join(map(str, method.starts)) == TABLE_4
    assert method.activate is not None
    assert (method.activate.prompt, method.activate.max_new_tokens) == (prompt, 96)
    for theme in themes("gemma-scope-2b"):
        assert "never run on the weights" in " ".join(theme.note.split())
        assert len(set(theme.examples)) == len(theme.examples) >= 8


def test_a_file_of_the_user_is_a_theme(write):
    theme = load_theme(write(FILE))
    assert theme == Theme(
        "water",
        "rivers and lakes",
        "demo",
        (FeatureId.parse("3/res/541"), FeatureId.parse("1/res/2")),
        ("The river rose\nin the night.", "A lake lay still."),
        Task("I think ", "Rivers. I think", 12),
        None,
        "made for a test",
    )
    assert theme.task("activate") is theme.activate
    with pytest.raises(InvalidArgument, match=r"'water' has no task to suppress .* activate it"):
        theme.task("suppress")
    with pytest.raises(InvalidArgument, match="'raise' is no direction"):
        theme.task("raise")


def test_a_file_that_changed_is_read_again(write):
    import os

    path = write(FILE)
    assert load_theme(path).subject == "rivers and lakes"
    write(FILE.replace("rivers and lakes", "the sea"))
    os.utime(path, ns=(1, 1))
    assert load_theme(path).subject == "the sea"


def test_lengths_of_the_paper_stand_where_a_file_says_none(write):
    text = 'subject = "x"\n[activate]\nprompt = "a"\n[suppress]\nprompt = "b"'
    theme = load_theme(write(text))
    assert theme.activate == Task("a", "", 36)
    assert theme.suppress == Task("b", "", 96)
    assert (theme.starts, theme.examples, theme.release) == ((), (), "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('subject = "rivers and lakes"', ""), "subject is missing or empty"),
        (('subject = "rivers and lakes"', "subject = 3"), "subject is 3"),
        (('"1/res/2"', '"1/raw/2"'), "starts: '1/raw/2' is no feature"),
        (('"1/res/2"', '"3/res/541"'), "starts: starts names 3/res/541 more than once"),
        (('"1/res/2"', "7"), "starts holds 7 as number 2"),
        (('"A lake lay still."', '" "'), "examples holds ' ' as number 2"),
        (("note =", "notes ="), "notes is no key of a theme. Keys are activate"),
        (("max_new_tokens = 12", "max_new_tokens = 0"), "activate: max_new_tokens = 0 asks for no text"),
        (("max_new_tokens = 12", "max_new_tokens = true"), "activate.max_new_tokens is True"),
        (("max_new_tokens = 12", "max_tokens = 12"), "activate.max_tokens is no key"),
        (('prompt = "I think "', 'prompt = ""'), "activate: the prompt of a task is empty"),
        (('prompt = "I think "', "prompt = []"), "activate.prompt is []"),
        (("[activate]", 'activate = "now"\n[suppress]'), "activate is 'now'. Make it a table"),
        (("note =", 'subjects = ["the sea"]\nnote ='), "subjects: the first of subjects is 'the sea'"),
        (('release = "demo"', 'release = "demo'), "is no TOML file"),
    ],
)
def test_a_bad_file_is_told_with_its_name_and_the_key(write, change, words):
    assert change[0] in FILE
    path = write(FILE.replace(*change))
    with pytest.raises(BadFile) as caught:
        load_theme(path)
    assert str(caught.value).startswith(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["../demo/physics", "demo/physics", "physics.toml", "/", "", "phys"])
def test_a_name_is_looked_up_and_never_becomes_a_path(name):
    with pytest.raises(InvalidArgument, match=r"neither a theme nor a file .* physics"):
        load_theme(name, "demo")


def test_a_release_without_themes_is_told_which_have_some():
    for call in (lambda: themes("gemma-scope-9b"), lambda: load_theme("anger", "gemma-scope-9b")):
        with pytest.raises(UnknownRelease, match=r"gemma-scope-9b.* demo, gemma-scope-2b"):
            call()
    with pytest.raises(InvalidArgument, match="neither a theme nor a file"):
        load_theme("anger", "demo")


def test_a_file_wins_where_its_release_ships_no_themes(write):
    assert load_theme(write(FILE), "a/folder").name == "water"


def test_a_name_of_several_releases_needs_the_release(tmp_path, monkeypatch):
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "water.toml").write_text(FILE.replace('"demo"', f'"{release}"'))
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("saeflow.steering.theme._SHIPPED", tmp_path)
    with pytest.raises(InvalidArgument, match="belongs to one and to two"):
        load_theme("water")
    assert load_theme("water", "two").release == "two"
    assert [theme.release for theme in themes()] == ["one", "two"]


def test_themes_open_without_torch():
    code = (
        "from saeflow.steering.theme import themes; import saeflow.steering.starts; assert themes()\n"
        "import sys; assert 'torch' not in sys.modules; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
