"""The figures of a report: tables of a stage drawn for a window and for a phone, and flow graphs. No torch.

    SummaryTable, filtered as the paper shows it  ->  draw  ->  two SVG elements in one figure

Each is drawn once a medium. Of steering at most three themes are drawn; the stage's own page has all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from saeflow.errors import InvalidArgument, SaeflowError
from saeflow.experiments.results import SummaryTable
from saeflow.flow.graph import FlowGraph
from saeflow.labels import Words, words_for
from saeflow.labels.words import no_words
from saeflow.matching.atlas import open_atlas
from saeflow.report.document import safe, sentence
from saeflow.report.figures import PAGE, PHONE, Plate, draw, svg_text
from saeflow.report.figures.frame import Frame
from saeflow.report.figures.readings import reading
from saeflow.report.html import legend_html
from saeflow.report.svg import figure_svg
from saeflow.reproduce.items import Item, Shown

MOST_THEMES: Final = 3
THEME: Final = "theme"
_PICKED: Final = (THEME, "direction")


def figure_html(item: Item, shown: Shown, table: SummaryTable, folder: str, *, page: bool) -> str:
    """A table as a figure with its sentence, its note and the way to the whole of it.

    Args:
        item: whose it is; names the ids within.
        shown: which rows.
        table: as `summary.json` has it.
        folder: of the stage, relative to the report.
        page: whether the stage has a page of its own.
    """
    whole = _shown(Frame.of(table), shown.where)
    frame, left_out = _first_themes(whole)
    title = table.title or table.name
    try:
        wide, narrow = draw(frame, medium=PAGE), draw(frame, medium=PHONE)
    except InvalidArgument as error:
        return f'<p class="notice">{safe(title)} cannot be drawn: {safe(error)}</p>'
    said = reading(whole)
    beside = dict(zip((plate.name for plate in wide), narrow, strict=True))
    plates = "".join(_plate(item, frame, plate, beside[plate.name], said) for plate in wide)
    told = f'<p class="reading">{sentence(said)}</p>' if said else ""
    cited = "" if item.name.lower() in title.lower() else f"<h3>{safe(title)}</h3>"
    return (
        f'<figure aria-label="{safe(title)}">{cited}{told}<div class="plates">{plates}</div>'
        f"<figcaption>{safe(table.note)}{_ways(table.name, folder, left_out, page=page)}</figcaption></figure>"
    )


def _shown(frame: Frame, where: Mapping[str, str]) -> Frame:
    """The rows that an item shows; for a method or pairs that the table does not have, those of the first it has.

    A direction that it does not have leaves no row.
    """
    for column, value in where.items():
        known = frame.distinct(column)
        if known:
            frame = frame.where(**{column: value if value in known or column == "direction" else known[0]})
    return frame


def _first_themes(frame: Frame) -> tuple[Frame, int]:
    """The rows of as many themes as are drawn, and how many are left out."""
    themes = frame.distinct(THEME) if THEME in frame.columns else ()
    if len(themes) <= MOST_THEMES or "method_a" in frame.columns or not _by_theme(frame):
        return frame, 0
    place = frame.columns.index(THEME)
    rows = tuple(row for row in frame.rows if row[place] in themes[:MOST_THEMES])
    return replace(frame, rows=rows), len(themes) - MOST_THEMES


def _by_theme(frame: Frame) -> bool:
    """Whether every theme is a figure of its own."""
    return frame.name in ("steering_by_layer", "steering_by_value")


def _ways(name: str, folder: str, left_out: int, *, page: bool) -> str:
    links = [f'<a href="{folder}/tables/{name}.csv" download>{name}.csv</a>']
    if page:
        links.append(f'<a href="{folder}/index.html">all of {folder}</a>')
    more = f" {left_out} more themes are on the page of {folder}." if left_out else ""
    return f'{safe(more)} <span class="ways">{" ".join(links)}</span>'


def _plate(item: Item, frame: Frame, wide: Plate, narrow: Plate, said: str) -> str:
    """A figure twice; of several the page shows one at a time where scripts run."""
    label = safe(". ".join(word for word in (frame.title, wide.of, said) if word))
    forms: list[str] = []
    for kind, figure in (("on-page", wide.figure), ("on-phone", narrow.figure)):
        svg = svg_text(figure, prefix=f"{item.id}-{wide.name}-{kind}-", label=label, captioned=False)
        forms.append(f'<div class="{kind}">{svg}</div>')
    keys = {key: wide.keys[key] for key in _PICKED if key in wide.keys}
    data = "".join(f' data-{key}="{safe(value)}"' for key, value in keys.items())
    name = f'<p class="of">{safe(wide.of)}</p>' if THEME in keys else ""
    return f'<div class="plate" data-of="{safe(wide.of)}"{data}>{name}{"".join(forms)}</div>'


def graph_html(graph: FlowGraph, words: Words) -> str:
    """A flow graph in a frame that scrolls, with its legend."""
    label = safe(f"Feature flow of {graph.seed}")
    return (
        f'<figure class="graph" aria-label="{label}"><div class="bar">'
        f'<div class="legend">{"".join(legend_html(graph))}</div></div>'
        f'<div class="frame" tabindex="0" role="region" aria-label="{label}">{_still(figure_svg(graph, words))}</div>'
        "<figcaption>Layers run from left to right; the wider an edge, the higher its cosine.</figcaption></figure>"
    )


def _still(svg: str) -> str:
    """The figure without the keyboard's way through its nodes, which needs the script of the graph's own page."""
    plain = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    return plain.replace(' tabindex="0" role="button"', ' role="img"')


def words_of(release: str) -> Words:
    """What is known of the features of a release; nothing where no words are here."""
    folder: Path | None = None
    with suppress(SaeflowError, OSError):
        folder = open_atlas(release).folder
    try:
        return words_for(release, beside=folder)
    except (SaeflowError, OSError):
        return no_words
