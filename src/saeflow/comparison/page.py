"""The page of a comparison: the figures of its tables, the flow graph of a chain, and a record of what was compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saeflow.comparison.results import Comparison
from saeflow.experiments.results import SummaryTable
from saeflow.files import write_atomic
from saeflow.flow.graph import FlowGraph
from saeflow.ids import FeatureId, Site
from saeflow.labels.words import FeatureWords
from saeflow.paper import reading
from saeflow.paper.results import Section, section_of, sections_html
from saeflow.report.svg import figure_svg

if TYPE_CHECKING:
    from markupsafe import Markup

_ORDER: Final = (
    "compare_steps",
    "compare_kinds",
    "compare_scores",
    "compare_cosines",
    "compare_density",
    "compare_matrix",
    "compare_presence",
    "lineages",
    "pairs",
    "splits",
    "only",
    "duplicates",
    "words",
    "nulls",
    "features",
)
_LEADS: Final = ("compare_steps", "compare_scores")


def write_page(comparison: Comparison, folder: Path) -> Path:
    """Write `index.html` and its figures into a folder; returns the path of the page.

    Raises:
        OSError: when the folder cannot be written.
    """
    tables = comparison.tables
    names = [name for name in _ORDER if name in tables and tables[name].rows]
    blocks = {
        name: Section(tables[name], said, block=listed(tables)) for name, said, listed in _LISTED if name in names
    }
    if comparison.graph is not None and "lineages" in names:
        blocks["lineages"] = Section(tables["lineages"], _GRAPH, block=_flow(comparison.graph, tables))
    sections = [blocks.get(name) or section_of(tables[name], folder / "figures") for name in names]
    leads = [reading(tables[name]) for name in _LEADS if name in tables]
    whole = sections_html(
        " against ".join(str(name) for name in comparison.settings["names"]),
        next((lead for lead in leads if lead), ""),
        [*_facts(comparison)],
        [*_record(comparison)],
        sections,
        styles=("graph.css", "figure.css", "cards.css"),
    )
    path = folder / "index.html"
    write_atomic(path, whole.encode("utf-8", "replace"))
    return path


FIRST: Final = 8
"""How many features of each side the page lists with their words; the tables have all of them."""


def _known(tables: Mapping[str, SummaryTable]) -> Mapping[tuple[str, str], str]:
    """The label of every feature by (dictionary, row), "" if it has none."""
    rows = tables["features"].dicts()
    return {(str(row["of"]), str(row["feature"]).rpartition("/")[2]): str(row["words"] or "") for row in rows}


def _first(table: SummaryTable) -> Iterable[dict[str, Any]]:
    seen: dict[str, int] = {}
    for row in table.dicts():
        seen[str(row["of"])] = seen.get(str(row["of"]), 0) + 1
        if seen[str(row["of"])] <= FIRST:
            yield row


def _split(tables: Mapping[str, SummaryTable]) -> Markup:
    """Cards of split features, each with its parts and the labels of both."""
    known, cards = _known(tables), list[str]()
    for row in _first(tables["splits"]):
        other = str(row["in"])
        parts = [
            f"<li><b>{part}</b> <i>{cosine}</i> {escape(known.get((other, part), ''))}</li>"
            for part, cosine in zip(str(row["parts"]).split(), str(row["cosines"]).split(), strict=True)
        ]
        told = f"{row['best']:.2f} of it in the best match, {row['span']:.2f} in all"
        cards.append(_card(row, f"{told}; {row['chance']:.2f} more by chance", parts))
    return _cards(cards)


def _alone(tables: Mapping[str, SummaryTable]) -> Markup:
    """Cards of features found in one dictionary only, each with its nearest feature in the other."""
    cards = list[str]()
    for row in _first(tables["only"]):
        nearest = escape(f"{row['words of the best'] or ''}")
        part = f"<li><b>{str(row['best']).rpartition('/')[2]}</b> <i>{row['cosine']:.2f}</i> {nearest}</li>"
        fires = row["density"]
        cards.append(_card(row, "nearest" if fires is None else f"fires on {fires:.3%} of tokens; nearest", [part]))
    return _cards(cards)


def _card(row: Mapping[str, Any], said: str, parts: Iterable[str]) -> str:
    named = (
        f"<b>{escape(str(row['of']))}/{str(row['feature']).rpartition('/')[2]}</b> {escape(str(row['words'] or ''))}"
    )
    return f"<li>{named}<p>{escape(said)}</p><ul>{''.join(parts)}</ul></li>"


def _cards(cards: Iterable[str]) -> Markup:
    from markupsafe import Markup

    return Markup(f'<ul class="cards">{"".join(cards)}</ul>')  # noqa: S704 escaped where it is made


_LISTED: Final[tuple[tuple[str, str, Callable[[Mapping[str, SummaryTable]], Markup]], ...]] = (
    ("splits", "The features that several of the other dictionary explain best together, with their parts.", _split),
    ("only", "Those that match worst, with the nearest of the other dictionary.", _alone),
)
"""Tables shown as lists of features with their words: name, introduction, renderer."""
_GRAPH: Final = (
    "A few features over the steps, which stand in place of layers: some that were carried all the way and turned "
    "most, some born late, some lost early."
)


@dataclass(frozen=True)
class _NodeWords:
    """The labels of the features in a chain's graph, from the table `compare_nodes`."""

    labels: Mapping[str, str]

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """The label of a feature of the graph."""
        label = self.labels.get(str(feature))
        return FeatureWords(label) if label else None

    def site(self, site: Site) -> list[FeatureWords | None]:  # noqa: ARG002 - the protocol's signature
        """An empty list: a graph looks up single features with `get`."""
        return []


def _flow(graph: FlowGraph, tables: Mapping[str, SummaryTable]) -> Markup:
    from markupsafe import Markup

    words = _NodeWords({str(row["node"]): str(row["words"] or "") for row in tables["compare_nodes"].dicts()})
    legend = "".join(
        f'<span class="key"><i class="swatch case-{case}"><b>{letter}</b></i>{said}</span>'
        for case, letter, said in (("translated", "A", "carried from the step before"), ("unexplained", "D", "born"))
    )
    drawn = figure_svg(graph, words)
    return Markup(  # noqa: S704 escaped where it is made
        f'<div class="graph"><div class="bar"><div class="legend">{legend}</div></div>'
        f'<div class="frame" tabindex="0" role="region" aria-label="{escape(_GRAPH)}">{drawn}</div></div>'
    )


def _facts(comparison: Comparison) -> Iterable[tuple[str, str]]:
    asked = comparison.settings
    for one in comparison.dictionaries[:6]:
        yield str(one["name"]), f"{one['features']:,} features of width {one['width']}"
    pairs = comparison.tables["pairs"].dicts()
    if len(pairs) == 1 and pairs[0]["pw_mcc"] is not None:
        chance = pairs[0].get("rotated")
        yield "PW-MCC", f"{pairs[0]['pw_mcc']:.3f}" + ("" if chance is None else f", {chance:.3f} after rotations")
    empty = [str(table.title) for name in _ORDER if (table := comparison.tables.get(name)) and not table.rows]
    if empty:
        yield "not found", "; ".join(empty)
    yield "rows", f"{asked['method']}, at unit norm"
    yield "shared from", f"{asked['shared']:g}"
    yield "null", f"{asked['null']}, false-discovery rate {asked['fdr']:g}"
    yield "made by", comparison.made_by


def _record(comparison: Comparison) -> Iterable[tuple[str, str]]:
    yield "Settings", ""
    for key, value in comparison.settings.items():
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for one in comparison.dictionaries:
        yield str(one["name"]), ""
        for key, value in one.items():
            if key != "name" and value not in (None, ""):
                yield key, str(value)
