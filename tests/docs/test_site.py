"""The pages of the site: all are listed, links lead somewhere, the reference is that of the code."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

import saeflow

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import docs_blocks
import docs_raises
import docs_reference
from docs_blocks import ROOT

DOCS = ROOT / "docs"

PAGES = sorted(DOCS.rglob("*.md"))
SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def listed(item) -> list[str]:
    """The pages and folders that a part of the navigation names."""
    if isinstance(item, str):
        return [item]
    below = item.values() if isinstance(item, dict) else item
    return [page for part in below for page in listed(part)]


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in addresses."""
    text = docs_blocks.outside_fences(page)
    heads = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


def test_every_page_is_in_the_navigation_once():
    names = listed(yaml.safe_load(SITE)["nav"])
    folders = {name for name in names if (DOCS / name).is_dir()}
    pages = [name for name in names if name not in folders]
    assert len(pages) == len(set(pages))
    there = {page.relative_to(DOCS).as_posix() for page in PAGES}
    assert set(pages) == {page for page in there if page.split("/")[0] not in folders}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = docs_blocks.outside_fences(page)
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_no_page_and_no_setting_of_the_site_names_another_address_to_load_from():
    theme = (DOCS / "theme" / "site.css").read_text(encoding="utf-8")
    assert "font: false" in SITE
    assert not re.search(r"https?://|@import|//", re.sub(r"/\*.*?\*/", "", theme, flags=re.S))
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(script|iframe|link)\b", page.read_text(encoding="utf-8")), page


def test_every_picture_has_words_for_who_does_not_see_it():
    for page in PAGES:
        for words, image in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert len(words) > 10, f"{page.name}: {image}"


def test_the_reference_is_that_of_the_code():
    for name, text in docs_reference.written().items():
        path = DOCS / "reference" / name
        found = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert found == text, f"{name} is out of date: python scripts/docs_reference.py"


def test_every_public_name_and_all_that_pages_import_is_in_the_reference():
    seen: set[str] = set()
    entries = [entry for page in docs_reference.PAGES for entry in docs_reference.objects(page, seen)]
    documented = {name for entry in entries for name in entry[:2]}
    assert {f"saeflow.{name}" for name in saeflow.__all__ if name != "__version__"} <= documented
    undocumented = {name for name in imported() if name not in documented}
    assert not undocumented


def imported() -> set[str]:
    """What the Python blocks of the pages import from saeflow, by the module that defines it."""
    found = set()
    for page in PAGES:
        for block in docs_blocks.blocks(page):
            if block.language == "python":
                for node in ast.walk(ast.parse(block.code)):
                    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("saeflow"):
                        for alias in node.names:
                            found.add(f"{docs_reference.home_of(node.module, alias.name)}.{alias.name}")
    return {name for name in found if docs_reference.source_of(name) is None}


def test_every_documented_name_says_what_it_is():
    seen: set[str] = set()
    entries = [entry for page in docs_reference.PAGES for entry in docs_reference.objects(page, seen)]
    assert not [called for _, called, said in entries if not said]


@pytest.mark.parametrize(
    ("written", "becomes"),
    [
        ("One.\n\nRaises:\n    BadFile: when.\n", "One.\n\nRaises:\n    BadFile: when.\n"),
        ("One.\n\nRaises:\n    Nothing.\n", "One.\n"),
        ("One.\n\nRaises:\n    As `match` does.\n", "One.\n\nRaises as `match` does.\n"),
        (
            "One.\n\nRaises:\n    BadFile: when\n        it is.\n    Whatever it\n        raises.\n",
            "One.\n\nRaises whatever it raises.\n\nRaises:\n    BadFile: when\n        it is.\n",
        ),
    ],
)
def test_raises_in_words_become_sentences(written, becomes):
    assert docs_raises.with_sentences(written) == becomes
