"""The page of a comparison: the figures of its tables, the flow graph of a chain, and what exactly was compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
    names = [name for name in _ORDER if name in tables]
    sections = [section_of(tables[name], folder / "figures") for name in names]
    if comparison.graph is not None and "lineages" in tables:
        place = names.index("lineages")
        sections[place] = Section(tables["lineages"], _GRAPH, block=_flow(comparison.graph, tables))
    leads = [reading(tables[name]) for name in _LEADS if name in tables]
    whole = sections_html(
        " against ".join(str(name) for name in comparison.settings["names"]),
        next((lead for lead in leads if lead), ""),
        [*_facts(comparison)],
        [*_record(comparison)],
        sections,
        styles=("graph.css", "figure.css"),
    )
    path = folder / "index.html"
    write_atomic(path, whole.encode("utf-8", "replace"))
    return path


_GRAPH: Final = (
    "A few features over the steps, which stand in place of layers: some that were carried all the way and turned "
    "most, some born late, some lost early."
)


@dataclass(frozen=True)
class _NodeWords:
    """Words of the features of a chain's graph, from its table of nodes."""

    labels: Mapping[str, str]

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """The label of a feature of the graph."""
        label = self.labels.get(str(feature))
        return FeatureWords(label) if label else None

    def site(self, site: Site) -> list[FeatureWords | None]:  # noqa: ARG002 - the protocol's signature
        """None: a graph asks for single features."""
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
