"""Every fenced block of the documentation: quick ones are run, the others are checked, and long ones are on record."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import docs_blocks
from docs_blocks import ROOT, Block, Untrue, blocks, check, compare, outside_fences, pages

PAGES = [page for page in pages() if page.name != "README.md" or page.parent.name == "decisions"]
EVERY = [block for page in PAGES for block in blocks(page)]
WITH_CODE = [page for page in PAGES if any(block.fate == "quick" for block in blocks(page))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def block(code: str, language: str = "sh", note: str = "") -> Block:
    return Block("page.md", 1, language, code, note, "")


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """No network, a cache and a folder of the test's own."""
    for name, value in docs_blocks.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a page's blocks may leave a process for the next block to end
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_quick_blocks_of_a_page_run_and_print_what_it_shows(page, quiet):
    assert docs_blocks.run_page(page, quiet) == sum(block.fate == "quick" for block in blocks(page))


def test_what_is_not_run_is_parsed_by_the_real_command_line_or_compiled():
    for each in EVERY:
        if each.fate not in {"quick", "compared"}:
            check(each)


def test_every_long_block_is_on_record_as_it_stands():
    record = docs_blocks.read_record()
    long = {each.hash: each for each in EVERY if each.fate == "long"}
    missing = [f"{each.page}:{each.line}" for hash_, each in long.items() if hash_ not in record]
    assert not missing, "run python scripts/docs_blocks.py --long on these pages"
    assert not set(record) - set(long), "the record has blocks that are gone"
    for entry in record.values():
        assert entry.keys() >= {"date", "seconds", "version"} or entry["not_run"]


def test_no_command_stands_outside_a_fenced_block():
    for page in PAGES:
        shown = [
            line
            for line in outside_fences(page).splitlines()
            if re.match(r"( {4,}|\t)\$? ?(saeflow|python|pip) ", line)
        ]
        assert not shown, f"{name_of(page)}: {shown}"


def test_every_note_stands_below_a_block():
    for page in PAGES:
        notes = re.findall(r"^\s*\*(?:Takes|Not run here:) ", page.read_text(encoding="utf-8"), flags=re.M)
        assert len(notes) == sum(bool(each.note) for each in blocks(page)), name_of(page)


def test_commands_of_the_readme_exist():
    """Its listings have the command on the left and words on the right."""
    for each in blocks(ROOT / "README.md"):
        if each.language == "python":
            compile(each.code, "README.md", "exec")
            continue
        for line in each.code.splitlines():
            words = re.split(r"\s{2,}|\s#", line.strip())[0].split()
            if words[:1] == ["saeflow"]:
                assert _exists(words[1:]), line
            elif words:
                docs_blocks.check_command(each, words)


def _exists(words: list[str]) -> bool:
    """Whether the commands that a line names, with | between, are commands: at the top, or below the one before."""
    group, alternatives = [], " ".join(words).split(" | ")
    for each in alternatives:
        names = [word for word in each.split() if re.fullmatch(r"[a-z]+", word) and word not in {"demo", "info"}]
        for name in names[:2]:
            if "Unknown command" not in docs_blocks.refused([name]):
                group = [name]
            elif "Unknown command" in docs_blocks.refused([*group[:1], name]) or not group:
                return False
    return True


@pytest.mark.parametrize(
    ("code", "language", "said"),
    [
        ("saeflow grph demo 4/res/1", "sh", "Unknown command"),
        ("saeflow graph demo 4/res/1 --t-rez 1", "sh", "Unknown option"),
        ("saeflow graph demo", "sh", "is missing"),
        ("saeflow graph demo 4/res/1 \\\n    --kk 2", "sh", "Unknown option"),
        ("X=1 saeflow atlas bild demo", "sh", "Unknown command"),
        ("python scripts/nothing.py", "sh", "there is no scripts/nothing.py"),
        ("make everything", "sh", "the Makefile has no everything"),
        ("pip install 'saeflow[nothing]'", "sh", "no extra nothing"),
        ("rm -rf /", "sh", "no command these pages use"),
        ("{", "json", "no json"),
        ("a =", "toml", "no toml"),
        ("saeflow graph demo 4/res/1", "text", "looks like a command"),
        ("saeflow graph demo 4/res/1", "", "no language"),
        ("saeflow graph demo 4/res/1", "bash", "a block of bash"),
    ],
)
def test_a_block_that_is_wrong_is_caught(code, language, said):
    with pytest.raises(Untrue, match=re.escape(said)):
        check(block(code + "\n", language, "Not run here:"))


def test_python_that_does_not_compile_is_caught():
    with pytest.raises(SyntaxError):
        check(block("for x in\n", "python", "Takes"))


@pytest.mark.parametrize(
    ("code", "language", "said"),
    [
        ("1 / 0", "python", "ZeroDivisionError"),
        ("saeflow graph demo 9/res/1", "sh", "ended with 2"),
        ("make demo", "sh", "is not run here"),
    ],
)
def test_a_block_that_fails_is_caught(code, language, said, quiet, monkeypatch):
    monkeypatch.chdir(quiet)
    with pytest.raises(Untrue, match=said):
        docs_blocks.run_block(block(code, language), {})


def test_output_is_compared_and_dots_stand_for_any_lines():
    compare(block("a\n...\nd\n", "output"), "a\nb\nc\nd\n")
    compare(block("a  \n", "output"), "a\n")
    for shown in ("a\nd\n", "a\n...\ne\n", "b\n...\n"):
        with pytest.raises(Untrue, match="this was printed"):
            compare(block(shown, "output"), "a\nb\nc\nd\n")


def test_a_note_below_a_block_decides_what_becomes_of_it(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\nsaeflow demo\n```\n\n*Takes minutes.*\n\n- in a list:\n\n    ```sh\n    saeflow info demo\n    ```\n\n"
        "```python\nx\n```\n\n*Not run here: needs\na GPU.*\n\n```output\ny\n```\nwords\n"
    )
    monkeypatch.setattr(docs_blocks, "ROOT", tmp_path)
    found = blocks(page)
    assert [each.fate for each in found] == ["long", "quick", "checked", "compared"]
    assert [each.code for each in found] == ["saeflow demo\n", "saeflow info demo\n", "x\n", "y\n"]
    assert [each.line for each in found] == [1, 9, 13, 20]


def test_another_text_is_another_block():
    assert block("a\n").hash != block("b\n").hash
    assert block("a\n").hash != block("a\n", "python").hash
