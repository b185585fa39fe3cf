"""MkDocs hooks: list the pages of folders in the navigation, insert the API reference, and style notes on blocks.

The pages are plain Markdown that also reads well on a forge. There, `<!-- api: NAME -->` is invisible, and the italic
line below a block is just that. On this site the former becomes the documentation of NAME from its docstrings
(mkdocstrings), and the latter a styled note; for a long block it includes the last run from docs/executed.json.
"""

from __future__ import annotations

import html
import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import docs_blocks

os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")

_API = re.compile(r"^<!-- api: (\S+) -->$", re.M)
_SOURCE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+((?:examples|src|scripts|tests|benchmarks|faults)/[^)#]*|[A-Z]\w*\.(?:md|cff))\)"
)
_NOTE = re.compile(r"<p><em>(Takes|Not run here:) (.*?)</em></p>", re.S)
_PICTURE = re.compile(r'<p>(<img [^>]*src="([^"]+)"[^>]*/?>)</p>')
FIRST = {"reference": ["index.md", "cli.md", "saeflow.md"], "decisions": ["README.md"]}


def on_config(config: Any) -> Any:
    """Replace the folders of reference pages and decisions in the navigation by their pages, in order."""
    for item in config["nav"]:
        for title, folder in list(item.items()):
            if isinstance(folder, str) and folder in FIRST:
                item[title] = [f"{folder}/{name}" for name in _pages(Path(config["docs_dir"]) / folder)]
    return config


def _pages(folder: Path) -> list[str]:
    """The names of a folder's pages: those in FIRST, then the others sorted."""
    first = FIRST[folder.name]
    return first + sorted(page.name for page in folder.glob("*.md") if page.name not in first)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert mkdocstrings directives for the objects a page names; links to source files become plain names."""
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation", "toc"]
    return _API.sub(r"::: \1", _SOURCE.sub(r"`\2`", markdown))


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Style the notes below blocks, saying when long blocks were last run; pictures link to themselves."""
    source = docs_blocks.ROOT / "docs" / page.file.src_uri
    noted = iter([block for block in docs_blocks.blocks(source) if block.note])
    record = docs_blocks.read_record()

    def mark(match: re.Match[str]) -> str:
        block = next(noted)
        if match[1] == "Takes":
            said = html.escape(docs_blocks.said_of(block, record))
            return f'<p class="block-note long"><b>Takes</b> {match[2]} <span>{said}</span></p>'
        return f'<p class="block-note never"><b>Not run here:</b> {match[2]}</p>'

    linked = _PICTURE.sub(r'<p class="picture"><a href="\2" title="Open the picture">\1</a></p>', content)
    return _NOTE.sub(mark, linked)
