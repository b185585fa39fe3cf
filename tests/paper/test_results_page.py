"""The page of a results folder: one file that loads nothing, says what the numbers say, and lets nothing in."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from saeflow.errors import BadFile
from saeflow.experiments.results import SummaryTable
from saeflow.paper import reading
from saeflow.paper.results import MOST_ROWS, write_page

from .sample_results import deactivation_tables, drawn, every_table, origins_tables, results_folder

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on this machine's PATH")
VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = "<script>alert(1)</script>\"'&\u202e"


class Outline(HTMLParser):
    """Tags with their attributes; fails on a tag that is closed out of order or never."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag != "span":
            self.words.append(" ")

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.words.append(data)

    def said(self) -> str:
        return " ".join("".join(self.words).split())


def small_origins():
    return list(origins_tables(range(2), ["cosine"], ["fineweb"]))


def every(name):
    """Tables by name; one of origins with two methods, for its tabs."""
    if name == "deactivation":
        return {table.name: table for table in deactivation_tables(range(1, 3))}
    return {table.name: table for table in small_origins()} | {"transition": every_table()["transition"]}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("results")
    made = {
        "origins": results_folder(folder / "o", tables=list(every("origins").values())),
        "deactivation": results_folder(folder / "d", "deactivation", tables=list(every("deactivation").values())),
    }
    return {name: drawn(place) for name, place in made.items()}


EVERY_PAGE = pytest.mark.parametrize("name", ["origins", "deactivation"])


@EVERY_PAGE
def test_the_page_is_well_formed_and_names_no_other_place(pages, name):
    text = pages[name].read_text(encoding="utf-8")
    outline = Outline(text)
    assert not re.search(r"https?:|//[a-z]+\.|@import|src=|<link|<iframe", text)
    assert set(re.findall(r"url\(([^)])", text)) <= {"#"}
    links = {a["href"] for _, a in outline.tags if "href" in a}
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    inside = {link for link in links if link.startswith("#")}
    assert {link[1:] for link in inside} <= set(ids)
    files = links - inside
    assert files
    assert all((pages[name].parent / link).is_file() for link in files)


@EVERY_PAGE
def test_the_policy_lets_only_the_two_inlined_blocks_run(pages, name):
    outline = Outline(pages[name].read_text(encoding="utf-8"))
    policy = next(a["content"] for _, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert [tag for tag, _ in outline.tags].count("style") == 1
    assert [tag for tag, _ in outline.tags].count("script") == 1
    assert not [tag for tag, a in outline.tags if "style" in a or any(key.startswith("on") for key in a)]


@EVERY_PAGE
def test_every_table_has_its_figure_sentence_paper_and_rows(pages, name):
    tables = json.loads((pages[name].parent / "summary.json").read_text())["tables"]
    outline = Outline(pages[name].read_text(encoding="utf-8"))
    ids = {a.get("id") for tag, a in outline.tags if tag == "section"}
    assert {f"t-{table}" for table in tables} <= ids
    for table, told in tables.items():
        assert told["title"] in outline.said()
        assert f"{told['paper']} of arXiv 2502.03032" in outline.said() or not told["paper"]
        sentence = " ".join(reading(every(name)[table]).split())
        assert sentence
        assert sentence in outline.said()
    rows = sum(tag == "tr" for tag, _ in outline.tags)
    assert rows >= sum(min(MOST_ROWS, len(told["rows"])) for told in tables.values())


@EVERY_PAGE
def test_every_figure_is_a_file_too(pages, name):
    drawn = {path.stem for path in (pages[name].parent / "figures").iterdir()}
    assert {stem.removesuffix("-cosine").removesuffix("-pearson") for stem in drawn} == set(every(name))


def test_the_head_says_what_was_run(pages):
    said = Outline(pages["origins"].read_text(encoding="utf-8")).said()
    for words in (
        "model demo",
        "seed 7",
        "20 texts, 5 tokens a text",
        "texts done 3 of 3",
        "saeflow 0.1.0",
        "numpy 2.0",
    ):
        assert words in said


def test_the_same_folder_gives_the_same_page(pages):
    before = pages["deactivation"].read_bytes()
    assert drawn(pages["deactivation"].parent).read_bytes() == before


def test_names_from_files_become_text(tmp_path):
    tables = [
        SummaryTable(
            "shares_by_dataset", HOSTILE, HOSTILE, HOSTILE, ("dataset", "group", "share"), ((HOSTILE, "RES", 1.0),)
        ),
        SummaryTable("weather", HOSTILE, "", HOSTILE, (HOSTILE,), ((HOSTILE,),)),
    ]
    text = write_page(results_folder(tmp_path / "r", model=HOSTILE, tables=tables)).read_text(encoding="utf-8")
    outline = Outline(text)
    assert [tag for tag, _ in outline.tags].count("script") == 1
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script>" in outline.said()


def test_missing_tables_are_named_and_the_rest_is_there(tmp_path):
    tables = [table for table in small_origins() if table.name in {"transition", "scores"}]
    said = Outline(write_page(results_folder(tmp_path / "r", tables=tables)).read_text(encoding="utf-8")).said()
    missing = re.search(r"Not in this summary: ([^.]*)\.", said)[1].split(", ")
    assert "shares_by_layer" in missing
    assert not {"transition", "scores"} & set(missing)
    assert "Groups in other contexts" in said


def test_a_table_that_does_not_suit_its_figure_is_shown_with_the_reason(tmp_path):
    table = SummaryTable("shares_by_dataset", "Shares", "", "", ("dataset", "group"), (("all", "RES"),))
    said = Outline(write_page(results_folder(tmp_path / "r", tables=[table])).read_text(encoding="utf-8")).said()
    assert "lacks the column share" in said
    assert "Table: 1 row" in said


def test_a_run_that_goes_on_says_so(tmp_path):
    folder = results_folder(tmp_path / "r", tables=small_origins()[:1])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"finished": None, "done": 0}))
    assert "The run is not finished" in write_page(folder).read_text(encoding="utf-8")


def test_tables_already_there_are_left_alone_and_missing_ones_written(tmp_path):
    folder = results_folder(tmp_path / "r", tables=small_origins()[:2])
    kept, gone = folder / "tables" / "shares_by_layer.csv", folder / "tables" / "shares_by_dataset.csv"
    kept.write_text("mine\n")
    whole = gone.read_bytes()
    gone.unlink()
    write_page(folder)
    assert kept.read_text() == "mine\n"
    assert gone.read_bytes() == whole


def test_a_name_that_leads_out_of_the_folder_is_not_written_to(tmp_path):
    folder = results_folder(tmp_path / "r", tables=small_origins()[:1])
    told = {"title": "Out", "paper": "", "note": "", "columns": ["a"], "rows": [[1]]}
    (folder / "summary.json").write_text(json.dumps({"tables": {"../../out": told}}))
    outline = Outline(write_page(folder).read_text(encoding="utf-8"))
    assert not list(tmp_path.rglob("out*"))
    assert not [a for _, a in outline.tags if "out" in (a.get("href") or "")]
    assert "Out" in outline.said()


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(BadFile, match="manifest"):
        write_page(tmp_path)


# In a browser


@NEEDS_BROWSER
@EVERY_PAGE
def test_the_page_starts_in_a_browser(pages, name, tmp_path):
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=4000 --dump-dom"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}", pages[name].as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    root = re.search(r"<html[^>]*>", done.stdout)[0]
    assert "data-error" not in root
    assert int(re.search(r'data-figures="(\d+)"', root)[1]) >= 2 * len(every(name))
    assert ('role="tab"' in done.stdout) == (name == "origins")
    assert '<th scope="col" class="number"><button type="button">' in done.stdout
