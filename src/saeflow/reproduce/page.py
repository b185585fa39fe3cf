"""The page of a report: the claims, each figure and table in the paper's order, the record of the run. No torch.

`report/templates/reproduction.html.j2` is the page; what it shows is gathered here. Of steering at most three themes
are drawn; the stage's own page has all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from saeflow.errors import InvalidArgument, SaeflowError
from saeflow.experiments.results import SUMMARY, Results, SummaryTable
from saeflow.flow.graph import FlowGraph
from saeflow.labels import Words, words_for
from saeflow.labels.words import no_words
from saeflow.matching.atlas import open_atlas
from saeflow.paper import reading
from saeflow.paper.frame import Frame
from saeflow.paper.results import ShownPlate, moment, shown_plates
from saeflow.paper.saving import stylesheet
from saeflow.report.document import document, templates
from saeflow.report.html import legend_html
from saeflow.report.svg import figure_svg
from saeflow.report.tables import duration
from saeflow.reproduce.claims import Claim
from saeflow.reproduce.evidence import GraphsRun
from saeflow.reproduce.items import GRAPH, INPUT, SCHEMA, Item, Shown, items
from saeflow.reproduce.record import Record
from saeflow.reproduce.verdicts import Contrast, Kind, Outcome, Verdict
from saeflow.reproduce.wording import interval, told
from saeflow.reproduce.wording import sentence as verdict_sentence

if TYPE_CHECKING:
    from markupsafe import Markup

STYLES: Final = ("palette.css", "page.css", "results.css", "graph.css", "figure.css", "reproduce.css")
MOST_GRAPHS: Final = 2
MOST_THEMES: Final = 3
WIDTH, EDGE = 132.0, 8.0
"""Of the strip that shows an interval, in pixels."""


@dataclass(frozen=True, eq=False)
class Material:
    """What the page is made from.

    Attributes:
        out: the folder of the reproduction.
        record: of the run.
        claims: all of them, in order.
        verdicts: by claim.
        tables: of each stage that has a summary, by name.
        graphs: by seed, and the comparison with Table 5.
        words: of the release's features.
    """

    out: Path
    record: Record
    claims: Sequence[Claim]
    verdicts: Mapping[str, Verdict]
    tables: Mapping[str, Mapping[str, SummaryTable]]
    graphs: GraphsRun
    words: Words


@dataclass(frozen=True, slots=True)
class Figure:
    """A table of a stage as figures, with its sentence and its note; `problem` says why it is not drawn."""

    title: str
    table: str
    note: str = ""
    said: str = ""
    plates: tuple[ShownPlate, ...] = ()
    left_out: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """The section of an item of the paper.

    Attributes:
        item: which one.
        claims: those about it.
        page: whether its stage has a page of its own.
        none: why nothing of ours belongs here.
        notice: what is missing of ours.
        reading: what stands over the graphs.
        figures, graphs: what is shown: graphs as label, legend and SVG.
        compared: Table 5 beside the grown graph.
    """

    item: Item
    claims: tuple[Claim, ...]
    page: bool
    none: str = ""
    notice: str = ""
    reading: str = ""
    figures: tuple[Figure, ...] = ()
    graphs: tuple[tuple[str, Markup, Markup], ...] = ()
    compared: Mapping[str, Any] | None = None


def page_html(material: Material) -> str:
    """The page as one HTML document."""
    record = material.record
    filters: dict[str, Any] = {"section": _section, "duration": _seconds, "memory": _memory, "plain": _plain}
    templates().filters.update(filters)
    counts = {o: sum(v.outcome is o for v in material.verdicts.values()) for o in Outcome}
    groups = {"Hardware": "hardware", "Versions": "versions", "Revisions": "revisions", "Sizes": "arguments"}
    return document(
        "reproduction.html.j2",
        f"The paper on {record.words('release') or 'a release'}",
        styles=STYLES,
        more_style=stylesheet(),
        scripts=("results.js", "reproduce.js"),
        kind="results reproduction",
        in_words=in_words(material.verdicts),
        notices=[*_notices(record)],
        note=" ".join(record.words("note").split()),
        facts=[*_facts(record)],
        entries=[_entry(item, material) for item in items()],
        claims=material.claims,
        verdicts=material.verdicts,
        names={item.id: item.name for item in items()},
        counts=counts,
        bars=[*_bars(counts)],
        stages=record.stages,
        took=_took(record),
        groups=[(name, record.group(key)) for name, key in groups.items()],
        interval=interval,
        told=told,
        verdict_sentence=verdict_sentence,
        strip_of=strip_of,
    )


def read_tables(out: Path, stages: Sequence[str]) -> dict[str, dict[str, SummaryTable]]:
    """The tables of each stage that has a summary; a stage whose summary cannot be read has none."""
    found: dict[str, dict[str, SummaryTable]] = {}
    for stage in stages:
        if (out / stage / SUMMARY).is_file():
            with suppress(SaeflowError):
                found[stage] = Results.open(out / stage).tables()
    return found


def words_of(release: str) -> Words:
    """What is known of the features of a release; nothing where no words are here."""
    folder: Path | None = None
    with suppress(SaeflowError, OSError):
        folder = open_atlas(release).folder
    try:
        return words_for(release, beside=folder)
    except (SaeflowError, OSError):
        return no_words


# --- the head ---------------------------------------------------------------------------------------------------------


def _notices(record: Record) -> Iterable[str]:
    if not record.words("finished"):
        yield "The run is not finished: this is what there was."
    only = record.told.get("only")
    if isinstance(only, list) and only:
        yield f"Only {', '.join(map(str, cast('list[Any]', only)))} was asked for."


def _facts(record: Record) -> Iterable[tuple[str, str]]:
    yield "recipe", record.words("recipe")
    yield "what", record.words("title")
    yield "model", record.words("model")
    yield "seed", record.words("seed")
    hardware = record.group("hardware")
    yield "on", ", ".join(str(hardware[key]) for key in ("cpu", "gpu") if hardware.get(key))
    yield "started", moment(record.words("started"))
    yield "took", duration(_took(record))
    yield "saeflow", str(record.group("versions").get("saeflow", ""))


def _took(record: Record) -> float:
    return sum(stage.seconds or 0.0 for stage in record.stages)


def in_words(verdicts: Mapping[str, Verdict]) -> str:
    """How many claims hold, as a sentence."""
    held, failed, left = (sum(v.outcome is outcome for v in verdicts.values()) for outcome in Outcome)
    unmeasured = sum(not v.measured for v in verdicts.values())
    rest = f", {unmeasured} of them for want of a measurement" if unmeasured else ""
    return (
        f"Of {len(verdicts)} claims {held} {'holds' if held == 1 else 'hold'}, {failed} "
        f"{'does' if failed == 1 else 'do'} not, and of {left} it cannot be said{rest}."
    )


def _bars(counts: Mapping[Outcome, int]) -> Iterable[tuple[Outcome, float, float]]:
    """Each outcome as a length out of 100: where it begins, and how long it is."""
    at, total = 0.0, sum(counts.values()) or 1
    for outcome, n in counts.items():
        width = 100 * n / total
        if n:
            yield outcome, at, max(0.0, width - 0.25)
        at += width


def _section(section: str) -> str:
    parts = section.split(", ")
    if all(part[0].isalpha() for part in parts):
        return f"appendix {section}"
    return f"section {section}" if len(parts) == 1 else f"sections {section}"


def strip_of(contrast: Contrast) -> dict[str, Any] | None:
    """Where the interval, the bounds of the claim and the sides that it claims lie on a strip; None without a value."""
    found, rule = contrast.found, contrast.rule
    if found.value is None:
        return None
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    bounds = [-rule.bound, rule.bound] if rule.kind in (Kind.WITHIN, Kind.APART) else [rule.bound]
    least, most = min(low, *bounds), max(high, *bounds)
    margin = 0.18 * ((most - least) or 1.0)
    least, most = least - margin, most + margin

    def x(value: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * (value - least) / (most - least)

    claimed = {
        Kind.ABOVE: [(x(rule.bound), WIDTH)],
        Kind.BELOW: [(0.0, x(rule.bound))],
        Kind.WITHIN: [(x(-rule.bound), x(rule.bound))],
        Kind.APART: [(0.0, x(-rule.bound)), (x(rule.bound), WIDTH)],
    }[rule.kind]
    at = {"low": x(low), "high": x(high), "value": x(found.value)}
    return {**at, "claimed": claimed, "bounds": [x(bound) for bound in bounds]}


# --- an item ----------------------------------------------------------------------------------------------------------


def _entry(item: Item, material: Material) -> Entry:
    """What is shown of an item, or why there is nothing."""
    claims = tuple(claim for claim in material.claims if claim.item == item.id)
    page = (material.out / item.stage / "index.html").is_file()
    why = material.record.unanswered.get(item.id, "")
    if item.kind == SCHEMA:
        return Entry(item, claims, page, none="A drawing of the method: nothing to measure.")
    if item.kind == INPUT:
        more = f" {why[:1].upper()}{why[1:].rstrip('.')}." if why else ""
        return Entry(item, claims, page, none=f"An input, not a result.{more}")
    entry = Entry(item, claims, page)
    if item.kind == GRAPH:
        entry = _with_graphs(entry, material)
    else:
        tables = material.tables.get(item.stage, {})
        shown = [(one, tables[one.table]) for one in item.shows if one.table in tables]
        entry = replace(entry, figures=tuple(_figure(item, one, table) for one, table in shown if table.rows))
    there = bool(entry.figures or entry.graphs or entry.compared)
    notice = ""
    if why:
        notice = f"Not answered by this recipe: {why.rstrip('.')}."
    elif (item.shows or item.kind == GRAPH) and (missing := material.record.missing(item.stage)):
        notice = missing if there else f"{missing} Nothing is drawn."
    elif not there and (item.shows or item.kind == GRAPH):
        notice = f"The stage {item.stage} has nothing to show here."
    return replace(entry, notice=notice)


def _figure(item: Item, shown: Shown, table: SummaryTable) -> Figure:
    """A table as figures, with the rows that the item shows."""
    frame = Frame.of(table)
    for column, value in shown.where.items():
        known = frame.distinct(column)
        if known:  # of a method or pair that the table lacks, the first it has; of a direction, no row
            frame = frame.where(**{column: value if value in known or column == "direction" else known[0]})
    said, title, left_out = reading(frame), table.title or table.name, 0
    if frame.name in ("steering_by_layer", "steering_by_value"):  # every theme is a figure of its own
        themes, place = frame.distinct("theme"), frame.columns.index("theme")
        left_out = max(0, len(themes) - MOST_THEMES)
        frame = replace(frame, rows=tuple(row for row in frame.rows if row[place] in themes[:MOST_THEMES]))
    try:
        plates = shown_plates(frame, said, prefix=f"{item.id}-")
    except InvalidArgument as error:
        return Figure(title, table.name, problem=str(error))
    return Figure(title, table.name, table.note, said, plates, left_out)


def _with_graphs(entry: Entry, material: Material) -> Entry:
    """The graph of the item's seed, or for figure 2 graphs of this release; for table 5 the comparison."""
    item, graphs = entry.item, material.graphs.graphs
    if item.id == "table5":
        return replace(entry, compared=_compared(material.graphs.acceptance))
    if item.seed in graphs:
        return replace(entry, graphs=(_graph(graphs[item.seed], material.words),))
    named = {other.seed for other in items() if other.seed}
    others = [graph for seed, graph in graphs.items() if seed not in named][:MOST_GRAPHS]
    if item.id != "fig2" or not others:
        return entry
    shown = tuple(_graph(graph, material.words) for graph in others)
    return replace(entry, graphs=shown, reading="Graphs of this release, from features of its own.")


def _graph(graph: FlowGraph, words: Words) -> tuple[str, Markup, Markup]:
    """A flow graph with its label and legend, without the keyboard's way through its nodes.

    That needs the script of the graph's own page.
    """
    from markupsafe import Markup

    svg = figure_svg(graph, words).replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    still = svg.replace(' tabindex="0" role="button"', ' role="img"')
    return f"Feature flow of {graph.seed}", Markup("".join(legend_html(graph))), Markup(still)  # noqa: S704 escaped


def _compared(acceptance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Table 5 beside the grown graph, site by site."""
    rows = acceptance.get("rows") if acceptance else None
    if acceptance is None or not isinstance(rows, list):
        return None
    found: list[tuple[bool, tuple[str, ...]]] = []
    for row in cast("list[Any]", rows):
        if isinstance(row, dict):
            site = cast("dict[str, Any]", row)
            score = site.get("score")
            shown = f"{score:.3f}" if isinstance(score, int | float) else ""
            cells = (f"{site.get('layer')}/{site.get('part')}", _index(site.get("paper")), _index(site.get("found")))
            found.append((site.get("same") is True, (*cells, shown)))
    said = f"{acceptance.get('agree')} of {acceptance.get('of')} features agree."
    return {"said": said, "rows": found}


def _index(value: Any) -> str:
    return "\u2013" if value is None else _plain(value)


# --- the run ----------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(one)}" for key, one in cast("dict[str, Any]", value).items())
    if isinstance(value, list):
        return ", ".join(_plain(one) for one in cast("list[Any]", value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _seconds(seconds: float | None) -> str:
    return "\u2013" if seconds is None else duration(seconds)


def _memory(megabytes: float | None) -> str:
    if megabytes is None:
        return "\u2013"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
