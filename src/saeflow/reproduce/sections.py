"""The body of a report: each figure and table in the paper's order, and the record of the run. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

from saeflow.errors import SaeflowError
from saeflow.experiments.results import SUMMARY, Results, SummaryTable
from saeflow.flow.graph import FlowGraph
from saeflow.labels import Words
from saeflow.report.document import safe, sentence
from saeflow.report.tables import duration
from saeflow.reproduce.claims import Claim
from saeflow.reproduce.evidence import GraphsRun
from saeflow.reproduce.items import GRAPH, INPUT, SCHEMA, Item, by_id, items
from saeflow.reproduce.plates import figure_html, graph_html
from saeflow.reproduce.record import Record
from saeflow.reproduce.summary import chip, plot
from saeflow.reproduce.verdicts import Verdict
from saeflow.reproduce.wording import sentence as verdict_sentence
from saeflow.reproduce.wording import told

MOST_GRAPHS: Final = 2


@dataclass(frozen=True, eq=False)
class Material:
    """What sections are made from.

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


def read_tables(out: Path, stages: Sequence[str]) -> dict[str, dict[str, SummaryTable]]:
    """The tables of each stage that has a summary; a stage whose summary cannot be read has none."""
    found: dict[str, dict[str, SummaryTable]] = {}
    for stage in stages:
        if (out / stage / SUMMARY).is_file():
            try:
                found[stage] = Results.open(out / stage).tables()
            except SaeflowError:
                continue
    return found


def items_html(material: Material) -> str:
    """The section of every item."""
    return "".join(_item(item, material) for item in items())


def navigation_html(material: Material) -> str:
    """The way through: the summary, every item, the run."""
    marks: list[str] = []
    for item in items():
        own = [material.verdicts[claim.id] for claim in material.claims if claim.item == item.id]
        signs = "".join(f'<i class="{_kind(verdict)}"></i>' for verdict in own)
        dots = f' <span class="dots" aria-hidden="true">{signs}</span>' if signs else ""
        marks.append(f'<li><a href="#{item.id}">{item.name}</a>{dots}</li>')
    return (
        '<nav aria-label="Figures and tables"><ul><li><a href="#summary">What holds</a></li>'
        f'{"".join(marks)}<li><a href="#run">The run</a></li></ul></nav>'
    )


def _kind(verdict: Verdict) -> str:
    return verdict.outcome.name.lower()


def _item(item: Item, material: Material) -> str:
    says = (
        f'<p class="states"><span class="paper">The paper.</span> {sentence(item.states)}</p>'
        if item.states
        else ""
    )
    claims = [claim for claim in material.claims if claim.item == item.id]
    checked = "".join(_claim(claim, material.verdicts[claim.id]) for claim in claims)
    verdicts = f'<ul class="checked">{checked}</ul>' if checked else ""
    untested = "".join(f"<li>{sentence(text)}</li>" for text in item.untested)
    aside = (
        f'<div class="untested"><p>Said as well, and not put to a test:</p><ul>{untested}</ul></div>'
        if untested
        else ""
    )
    also = ", ".join(f'<a href="#{other}">{by_id()[other].name}</a>' for other in item.also)
    see = f'<p class="see">See also {also}.</p>' if also else ""
    return (
        f'<section id="{item.id}" class="result item"><h2><span class="which">{item.name}</span> '
        f"{safe(item.title)}</h2>"
        f"{says}{verdicts}{_shown(item, material)}{aside}{see}</section>\n"
    )


def _claim(claim: Claim, verdict: Verdict) -> str:
    of = f' <span class="of-release">Said of {safe(claim.said_of)}.</span>' if claim.said_of else ""
    parts = ""
    if len(verdict.contrasts) > 1:
        rows = "".join(
            f'<li>{plot(part, part.outcome)}<span><b class="{part.outcome.name.lower()}">{part.outcome.value}</b> '
            f"{sentence(told(part))}</span></li>"
            for part in verdict.contrasts
        )
        n = len(verdict.contrasts)
        name = "Both numbers" if n == 2 else f"All {n} numbers"
        parts = f'<details><summary>{name}</summary><ul class="numbers">{rows}</ul></details>'
    found = verdict_sentence(verdict, any_of=claim.any_of)
    why = f" {verdict.why}" if verdict.why and verdict.why not in found and not verdict.measured else ""
    return (
        f'<li id="c-{claim.id}" class="{_kind(verdict)}">{chip(verdict.outcome)}<div>'
        f'<p class="statement">{sentence(claim.statement)}{of}</p>'
        f'<p class="finding">{sentence(found + why)}</p>{parts}</div></li>'
    )


# --- what is shown ----------------------------------------------------------------------------------------------------


def _shown(item: Item, material: Material) -> str:
    """Our figures of an item, or why there are none."""
    if item.kind == SCHEMA:
        return '<p class="none">A drawing of the method: nothing to measure.</p>'
    why = material.record.unanswered.get(item.id, "")
    if item.kind == INPUT:
        return (
            f'<p class="none">An input, not a result. {_capital(why)}</p>'
            if why
            else '<p class="none">An input, not a result.</p>'
        )
    shown = _graphs(item, material) if item.kind == GRAPH else _figures(item, material)
    notice = ""
    if why:
        notice = f"Not answered by this recipe: {why.rstrip('.')}."
    elif (item.shows or item.kind == GRAPH) and (missing := material.record.missing(item.stage)):
        notice = missing if shown else f"{missing} Nothing is drawn."
    elif not shown and (item.shows or item.kind == GRAPH):
        notice = f"The stage {item.stage} has nothing to show here."
    return (f'<p class="notice">{sentence(notice)}</p>' if notice else "") + shown


def _capital(text: str) -> str:
    return sentence(f"{text[:1].upper()}{text[1:].rstrip('.')}.") if text else ""


def _figures(item: Item, material: Material) -> str:
    tables = material.tables.get(item.stage, {})
    page = (material.out / item.stage / "index.html").is_file()
    drawn: list[str] = []
    for shown in item.shows:
        table = tables.get(shown.table)
        if table is not None and table.rows:
            drawn.append(figure_html(item, shown, table, item.stage, page=page))
    return "".join(drawn)


def _graphs(item: Item, material: Material) -> str:
    """The graph of the item's seed, or for figure 2 graphs of this release; for table 5 the comparison."""
    if item.id == "table5":
        return _acceptance(material.graphs.acceptance)
    graphs = material.graphs.graphs
    if item.seed in graphs:
        return graph_html(graphs[item.seed], material.words)
    if item.id != "fig2":
        return ""
    named = {other.seed for other in items() if other.seed}
    others: list[FlowGraph] = [graph for seed, graph in graphs.items() if seed not in named][:MOST_GRAPHS]
    lead = '<p class="reading">Graphs of this release, from features of its own.</p>' if others else ""
    return lead + "".join(graph_html(graph, material.words) for graph in others)


def _acceptance(told: Mapping[str, Any] | None) -> str:
    """Table 5 beside the grown graph, site by site."""
    rows = told.get("rows") if told else None
    if told is None or not isinstance(rows, list):
        return ""
    body = "".join(
        _compared(cast("dict[str, Any]", row)) for row in cast("list[Any]", rows) if isinstance(row, dict)
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("site", "the paper", "found", "cosine", ""))
    said = f"{told.get('agree')} of {told.get('of')} features agree."
    return (
        f'<p class="reading">{safe(said)}</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table 5 compared">'
        f'<table class="compared"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _compared(row: Mapping[str, Any]) -> str:
    score = row.get("score")
    shown = f"{score:.3f}" if isinstance(score, int | float) else ""
    same = row.get("same") is True
    cells = (
        f"{row.get('layer')}/{row.get('part')}",
        _index(row.get("paper")),
        _index(row.get("found")),
        shown,
    )
    return (
        f'<tr class="{"same" if same else "differs"}">{"".join(f"<td>{safe(cell)}</td>" for cell in cells)}'
        f"<td>{'same' if same else 'differs'}</td></tr>"
    )


def _index(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[Any]", value)))
    return "\u2013" if value is None else str(value)


# --- the run ----------------------------------------------------------------------------------------------------------


def run_html(record: Record) -> str:
    """The record of the run: stages with their time and memory, and everything it was made with."""
    rows = "".join(
        f'<tr><th scope="row">{safe(s.name)}</th><td>{safe(s.state)}{f": {safe(s.why)}" if s.why else ""}</td>'
        f'<td class="number">{_seconds(s.seconds)}</td><td class="number">{_memory(s.peak_mb)}</td>'
        f"<td>{safe(', '.join(by_id()[i].name for i in s.items if i in by_id()))}</td></tr>"
        for s in record.stages
    )
    total = sum(s.seconds or 0.0 for s in record.stages)
    groups = "".join(
        _group(name, record.group(key))
        for name, key in (
            ("Hardware", "hardware"), ("Versions", "versions"), ("Revisions", "revisions"), ("Sizes", "arguments"),
        )
    )  # fmt: skip
    return (
        '<section id="run" class="result"><h2>The run</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Stages"><table class="stages"><thead><tr>'
        '<th scope="col">stage</th><th scope="col">state</th><th scope="col" class="number">time</th>'
        '<th scope="col" class="number">most memory</th><th scope="col">answers</th></tr></thead>'
        f'<tbody>{rows}</tbody><tfoot><tr><th scope="row">all</th><td></td><td class="number">{duration(total)}</td>'
        "<td></td><td></td></tr></tfoot></table></div>"
        f'<div class="groups">{groups}</div></section>\n'
    )


def _group(name: str, told: Mapping[str, Any]) -> str:
    if not told:
        return ""
    rows = "".join(
        f"<div><dt>{safe(key)}</dt><dd>{safe(_plain(value))}</dd></div>"
        for key, value in told.items()
        if value not in ("", None)
    )
    return f"<h3>{name}</h3><dl>{rows}</dl>"


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


def moment(text: str) -> str:
    """A time of the record as people write it."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text
