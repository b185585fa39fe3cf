"""The report of a reproduction: claims, each figure and table in the paper's order, the record of the run. No torch.

    OUT/reproduction.json + the stages' folders  ->  verdicts  ->  OUT/index.html, claims.json, claims.csv

The page, from `report/templates/reproduction.html.j2`, has a table of all claims, then each figure and table of the
paper with the paper's statements, the verdicts and our figure, and finally the record of the run. It loads nothing and
opens offline. It is made from whatever exists, so a run of some figures, or one that was killed, has a report too. For
steering, at most three themes are drawn; the stage's own page has all of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from saeflow.errors import SaeflowError
from saeflow.experiments.results import SUMMARY, Results, SummaryTable, significant
from saeflow.experiments.statistics import Estimate
from saeflow.files import write_atomic
from saeflow.flow.graph import FlowGraph
from saeflow.labels import Words, words_for
from saeflow.labels.words import no_words
from saeflow.matching.atlas import open_atlas
from saeflow.paper import reading
from saeflow.paper.claims import GRAPH, INPUT, SCHEMA, Claim, Item, claims, items
from saeflow.paper.evidence import STAGES, Evidence, GraphsRun
from saeflow.paper.frame import Frame
from saeflow.paper.results import Section, drawn_section, moment
from saeflow.paper.saving import stylesheet
from saeflow.paper.verdicts import OPEN, OUTCOMES, ClaimNumber, NotMeasured, Verdict, finding_text, interval
from saeflow.paper.verdicts import sentence as verdict_sentence
from saeflow.report.document import document, templates
from saeflow.report.html import legend_html
from saeflow.report.svg import figure_svg
from saeflow.report.tables import duration
from saeflow.reproduce.record import Reproduction

if TYPE_CHECKING:
    from markupsafe import Markup

_HEAD: Final = ("id", "item", "section", "said_of", "statement", "verdict")
_NUMBERS: Final = ("value", "low", "high", "rule", "bound", "control", "control_low", "control_high", "n")
COLUMNS: Final = (*_HEAD, "number", *_NUMBERS, "sentence")
STYLES: Final = ("palette.css", "page.css", "results.css", "graph.css", "figure.css", "reproduce.css")
MOST_GRAPHS: Final = 2
MOST_THEMES: Final = 3
WIDTH, EDGE = 132.0, 8.0
"""Width and side margin of the strip that shows an interval, in pixels."""


@dataclass(frozen=True, slots=True)
class ItemSection:
    """The section on one item of the paper.

    Attributes:
        item: the figure or table.
        claims: the claims about it.
        page: whether its stage has its own page.
        none: why this item has no result of ours.
        notice: what is missing from our results.
        reading: the text above the graphs.
        figures, graphs: what is shown; each graph as label, legend and SVG.
        compared: Table 5 compared with the grown graph.
    """

    item: Item
    claims: tuple[Claim, ...]
    page: bool
    none: str = ""
    notice: str = ""
    reading: str = ""
    figures: tuple[Section, ...] = ()
    graphs: tuple[tuple[str, Markup, Markup], ...] = ()
    compared: Mapping[str, Any] | None = None


def write_report(out: Path | str) -> Path:
    """Judge every claim from the results in a folder, write the page and the verdicts, return the path of `index.html`.

    Args:
        out: the folder of a reproduction, finished or not.

    Raises:
        BadFile: when `reproduction.json` is missing or cannot be read.
        OSError: when the folder cannot be written.
    """
    out = Path(out)
    run = Reproduction.open(out)
    verdicts = judge(run)
    write_atomic(out / "claims.json", claims_json(run, verdicts).encode("utf-8", "replace"))
    write_atomic(out / "claims.csv", claims_csv(verdicts).encode("utf-8", "replace"))
    path = out / "index.html"
    # UTF-8 cannot encode lone surrogates, which a badly decoded name can contain
    write_atomic(path, page_html(run, verdicts).encode("utf-8", "replace"))
    return path


def judge(run: Reproduction) -> dict[str, Verdict]:
    """The verdict on every claim, by id; for items that the recipe does not answer, an open one with its reason."""
    why = {stage: missing for stage in (*STAGES, "graphs") if (missing := run.missing(stage))}
    evidence, found = Evidence(run.folder, why=why), dict[str, Verdict]()
    for claim in claims():
        reason = run.unanswered.get(claim.item)
        if reason is not None:
            found[claim.id] = Verdict(OPEN, why=f"Not answered by this recipe: {reason.rstrip('.')}.")
        else:
            found[claim.id] = claim.check(evidence)
    return found


# --- verdicts as data -------------------------------------------------------------------------------------------------


def claims_json(run: Reproduction, verdicts: Mapping[str, Verdict]) -> str:
    """JSON of every claim with its verdict and all of its numbers."""
    rows: list[dict[str, Any]] = []
    for claim in claims():
        verdict = verdicts[claim.id]
        numbers = [
            {
                "what": one.words,
                **_estimate(one.found),
                "n": one.found.n,
                "unit": one.unit,
                "rule": one.rule.kind,
                "bound": one.rule.bound,
                "verdict": one.outcome,
                "decides": one is verdict.deciding,
                **_estimate(one.control, "control"),
                "beside": one.beside,
            }
            for one in verdict.findings
        ]
        rows.append(
            {
                "id": claim.id,
                "item": claim.item,
                "section": claim.section,
                "said_of": claim.said_of,
                "statement": claim.statement,
                "verdict": verdict.outcome,
                "sentence": verdict_sentence(verdict, any_of=claim.any_of),
                "why": verdict.why,
                "any_of": claim.any_of,
                "numbers": numbers,
            }
        )
    found = {
        "paper": "arXiv 2502.03032",
        "recipe": run.words("recipe"),
        "release": run.words("release"),
        "counts": _counts(verdicts),
        "claims": rows,
    }
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def claims_csv(verdicts: Mapping[str, Verdict]) -> str:
    """CSV with one line per claim and the number that decides it; shares are between 0 and 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for claim in claims():
        verdict = verdicts[claim.id]
        one, numbers = verdict.deciding, [""] * 10
        if one is not None:
            found, control = ([*_estimate(e).values()] for e in (one.found, one.control))
            numbers = [one.words, *found, one.rule.kind, one.rule.bound, *control, one.found.n]
        head = [claim.id, claim.item, claim.section, claim.said_of, claim.statement, verdict.outcome]
        writer.writerow([*head, *numbers, verdict_sentence(verdict, any_of=claim.any_of)])
    return text.getvalue()


def _estimate(found: Estimate, name: str = "") -> dict[str, float | None]:
    names = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    values = found.interval
    return {key: None if value is None else significant(value) for key, value in zip(names, values, strict=True)}


def _counts(verdicts: Mapping[str, Verdict]) -> dict[str, int]:
    return {outcome: sum(v.outcome == outcome for v in verdicts.values()) for outcome in OUTCOMES}


# --- the page ---------------------------------------------------------------------------------------------------------


def page_html(run: Reproduction, verdicts: Mapping[str, Verdict]) -> str:
    """The page as one HTML document."""
    # 1. the results of the stages: tables, graphs, words of the release's features; skip what cannot be read
    tables: dict[str, Mapping[str, SummaryTable]] = {}
    for stage in STAGES:
        if (run.folder / stage / SUMMARY).is_file():
            with suppress(SaeflowError):
                tables[stage] = Results.open(run.folder / stage).tables()
    graphs, words, folder = GraphsRun(), no_words, None
    with suppress(NotMeasured):
        graphs = Evidence(run.folder).run("graphs")
    with suppress(SaeflowError, OSError):
        folder = open_atlas(run.words("release")).folder
    with suppress(SaeflowError, OSError):
        words = words_for(run.words("release"), beside=folder)
    # 2. the counts of verdicts, in words and as a bar
    filters: dict[str, Any] = {"section": _section, "duration": duration, "memory": _memory, "plain": _plain}
    templates().filters.update(filters)
    counts, took = _counts(verdicts), sum(stage.seconds for stage in run.stages.values())
    held, failed, left = counts.values()
    unmeasured = sum(not v.measured for v in verdicts.values())
    rest = f", {unmeasured} of them for want of a measurement" if unmeasured else ""
    in_words = (
        f"Of {len(verdicts)} claims {held} {'holds' if held == 1 else 'hold'}, {failed} "
        f"{'does' if failed == 1 else 'do'} not, and of {left} it cannot be said{rest}."
    )
    bars: list[tuple[str, float, float]] = []  # segments of a bar of length 100: outcome, start, length
    at = 0.0
    for outcome, n in counts.items():
        width = 100 * n / (len(verdicts) or 1)
        bars += [(outcome, at, max(0.0, width - 0.25))] if n else []
        at += width
    groups = {"Hardware": "hardware", "Versions": "versions", "Revisions": "revisions", "Sizes": "arguments"}
    return document(
        "reproduction.html.j2",
        f"The paper on {run.words('release') or 'a release'}",
        styles=STYLES,
        more_style=stylesheet(),
        scripts=("results.js", "reproduce.js"),
        kind="results reproduction",
        in_words=in_words,
        notices=[*_notices(run)],
        note=" ".join(run.words("note").split()),
        facts=[*_facts(run, took)],
        entries=[_item(item, run, tables.get(item.stage, {}), graphs, words) for item in items().values()],
        claims=claims(),
        verdicts=verdicts,
        names={item.id: item.name for item in items().values()},
        counts=counts,
        bars=bars,
        stages=[*run.stages.values()],
        took=took,
        groups=[(name, run.group(key)) for name, key in groups.items()],
        interval=interval,
        finding_text=finding_text,
        verdict_sentence=verdict_sentence,
        strip_of=strip_of,
    )


def _notices(run: Reproduction) -> Iterable[str]:
    if not run.words("finished"):
        yield "The run is not finished: this is what there was."
    only = run.record.get("only")
    if isinstance(only, list) and only:
        yield f"Only {', '.join(map(str, cast('list[Any]', only)))} was asked for."


def _facts(run: Reproduction, took: float) -> Iterable[tuple[str, str]]:
    yield "recipe", run.words("recipe")
    yield "what", run.words("title")
    yield "model", run.words("model")
    yield "seed", run.words("seed")
    hardware = run.group("hardware")
    yield "on", ", ".join(str(hardware[key]) for key in ("cpu", "gpu") if hardware.get(key))
    yield "started", moment(run.words("started"))
    yield "took", duration(took)
    yield "saeflow", str(run.group("versions").get("saeflow", ""))


def _section(section: str) -> str:
    parts = section.split(", ")
    if all(part[0].isalpha() for part in parts):
        return f"appendix {section}"
    return f"section {section}" if len(parts) == 1 else f"sections {section}"


def strip_of(finding: ClaimNumber) -> dict[str, Any] | None:
    """Positions on a strip of the interval, the claim's bounds and the ranges it asserts; None without a value."""
    found, rule = finding.found, finding.rule
    if found.value is None:
        return None
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    bounds = [-rule.bound, rule.bound] if rule.kind in ("within", "apart") else [rule.bound]
    least, most = min(low, *bounds), max(high, *bounds)
    margin = 0.18 * ((most - least) or 1.0)
    least, most = least - margin, most + margin

    def x(value: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * (value - least) / (most - least)

    claimed = {
        "above": [(x(rule.bound), WIDTH)],
        "below": [(0.0, x(rule.bound))],
        "within": [(x(-rule.bound), x(rule.bound))],
        "apart": [(0.0, x(-rule.bound)), (x(rule.bound), WIDTH)],
    }[rule.kind]
    at = {"low": x(low), "high": x(high), "value": x(found.value)}
    return {**at, "claimed": claimed, "bounds": [x(bound) for bound in bounds]}


# --- an item ----------------------------------------------------------------------------------------------------------


def _item(
    item: Item, run: Reproduction, tables: Mapping[str, SummaryTable], made: GraphsRun, words: Words
) -> ItemSection:
    """The section on an item: what is shown, or why nothing is."""
    found = tuple(claim for claim in claims() if claim.item == item.id)
    entry = ItemSection(item, found, (run.folder / item.stage / "index.html").is_file())
    why = run.unanswered.get(item.id, "").rstrip(".")
    if item.kind == SCHEMA:
        return replace(entry, none="A drawing of the method: nothing to measure.")
    if item.kind == INPUT:
        return replace(entry, none=f"An input, not a result.{f' {why[:1].upper()}{why[1:]}.' if why else ''}")
    if item.id == "table5":
        entry = replace(entry, compared=_compared(made.acceptance))
    elif item.kind == GRAPH and item.seed in made.graphs:
        entry = replace(entry, graphs=(_graph(made.graphs[item.seed], words),))
    elif item.id == "fig2":
        named = {other.seed for other in items().values() if other.seed}
        others = [graph for seed, graph in made.graphs.items() if seed not in named][:MOST_GRAPHS]
        if others:
            graphs = tuple(_graph(graph, words) for graph in others)
            entry = replace(entry, graphs=graphs, reading="Graphs of this release, from features of its own.")
    elif item.kind != GRAPH:
        shown = [(tables[name], where) for name, where in item.shows if name in tables and tables[name].rows]
        entry = replace(entry, figures=tuple(_table(item, table, where) for table, where in shown))
    there = bool(entry.figures or entry.graphs or entry.compared)
    if why:
        return replace(entry, notice=f"Not answered by this recipe: {why}.")
    if not (item.shows or item.kind == GRAPH):
        return entry
    if missing := run.missing(item.stage):
        return replace(entry, notice=missing if there else f"{missing} Nothing is drawn.")
    return entry if there else replace(entry, notice=f"The stage {item.stage} has nothing to show here.")


def _table(item: Item, table: SummaryTable, where: Mapping[str, str]) -> Section:
    """A table drawn as figures, restricted to the rows that the item shows."""
    frame = Frame.read(table)
    for column, value in where.items():
        known = frame.distinct(column)
        if known:  # if the table lacks a method or pair, take its first; if a direction, no rows
            frame = frame.where(**{column: value if value in known or column == "direction" else known[0]})
    said, left_out = reading(frame), 0
    if frame.name in ("steering_by_layer", "steering_by_value"):  # one figure per theme
        themes, place = frame.distinct("theme"), frame.columns.index("theme")
        left_out = max(0, len(themes) - MOST_THEMES)
        frame = replace(frame, rows=tuple(row for row in frame.rows if row[place] in themes[:MOST_THEMES]))
    return replace(drawn_section(frame, said, prefix=f"{item.id}-"), left_out=left_out)


def _graph(graph: FlowGraph, words: Words) -> tuple[str, Markup, Markup]:
    """A flow graph with its label and legend, without keyboard navigation, which needs the script of its own page."""
    from markupsafe import Markup

    svg = figure_svg(graph, words).replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    still = svg.replace(' tabindex="0" role="button"', ' role="img"')
    return f"Feature flow of {graph.seed}", Markup("".join(legend_html(graph))), Markup(still)  # noqa: S704 escaped


def _compared(acceptance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Table 5 compared with the grown graph, site by site."""
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


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(one)}" for key, one in cast("dict[str, Any]", value).items())
    if isinstance(value, list):
        return ", ".join(_plain(one) for one in cast("list[Any]", value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _memory(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
