"""The page of a results folder: figures, what they say in a sentence, and every table. One file, no network.

    manifest.json, summary.json  ->  figures/NAME.svg, tables/NAME.csv, index.html

Each figure stands twice in the page, laid out for a window and for a phone, and a stylesheet shows the
one that fits. Words from files (names of models, data sets, arguments) are escaped here, and a
Content-Security-Policy lets only the two inlined blocks run, by their hashes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from saeflow.errors import InvalidArgument
from saeflow.experiments.records import RunRecord
from saeflow.experiments.results import Results, SummaryTable
from saeflow.paths import write_atomic
from saeflow.report.document import document, safe, sentence
from saeflow.report.figures import FIGURES, PAGE, PHONE, Frame, Plate, draw, svg_text
from saeflow.report.figures.readings import reading
from saeflow.report.figures.saving import printed_svg, stylesheet
from saeflow.report.samples import samples_html
from saeflow.report.tables import duration
from saeflow.report.tokens import one_line

PAPER: Final = "arXiv 2502.03032"
MOST_ROWS: Final = 400
"""How many rows of a table the page holds; the CSV file has all."""

_EXPECTED: Final[Mapping[str, Sequence[str]]] = {
    "origins": (
        "shares_by_layer", "shares_by_dataset", "scores", "separability", "activity_differences",
        "transition", "most_probable", "methods", "agreement",
    ),
    "deactivation": (
        "by_strategy_layer", "table_1", "by_strategy", "one_predecessor", "by_rescale", "new_group",
        "groups_by_strategy", "paired", "remaining", "counts", "control_match",
    ),
    "steering": (
        "steering_by_layer", "steering_by_value", "steering_features", "steering_best", "steering_paired",
        "steering_by_share", "steering_sensitivity", "steering_samples", "steering_cells",
    ),
    "transition": (
        "transition_permutations", "transition_top_k", "transition_loss", "transition_paired", "transition_fits",
    ),
}  # fmt: skip
_TITLES: Final = {
    "origins": "Where active features come from",
    "deactivation": "Removing predecessors",
    "steering": "Steering along the flow",
    "transition": "A match as a transcoder",
}
_LEADS: Final = (
    "shares_by_dataset",
    "table_1",
    "by_strategy_layer",
    "steering_best",
    "transition_permutations",
)
_SAMPLES: Final = "steering_samples"
_PICKED: Final = ("theme", "direction")
"""What the reader picks once for all figures of the page."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A section of the page: a table with its figures on a window and on a phone, or why it has none.

    `printed` holds the wide figures as SVG by name: for the page, and for files of their own. `block` is what stands
    in their place where a table is shown as words, as HTML.
    """

    table: SummaryTable
    wide: tuple[Plate, ...] = ()
    narrow: tuple[Plate, ...] = ()
    printed: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    problem: str = ""
    block: str = ""

    @property
    def shown(self) -> bool:
        """Whether it has a place of its own on the page."""
        return bool(self.wide or self.block)


def write_page(folder: Path) -> Path:
    """Draw the figures and the page of a results folder, finished or not; the path of `index.html`.

    Tables of the experiment that the summary lacks are named on the page; a table whose columns do not
    suit its figure is shown without one, with the reason.

    Raises:
        BadFile: when `manifest.json` or `summary.json` is missing or cannot be read.
        OSError: when the folder cannot be written.
    """
    results = Results.open(folder)
    tables = results.tables()
    experiment = results.record.request.experiment
    expected = _EXPECTED.get(experiment, ())
    names = [name for name in expected if name in tables]
    names += [name for name in tables if name not in names]
    parts: list[_Part] = []
    for name in names:
        part = _part(tables[name], tables)
        parts.append(part)
        for plate in part.wide:
            text = svg_text(part.printed[plate.name], alone=True)
            write_atomic(folder / "figures" / f"{plate.name}.svg", text.encode("utf-8", "replace"))
        csv = folder / "tables" / f"{name}.csv"
        if _names_a_file(name) and not csv.is_file():
            write_atomic(csv, tables[name].to_csv().encode("utf-8", "replace"))
    text = page_html(results.record, parts, [name for name in expected if name not in tables])
    path = folder / "index.html"
    # Lone surrogates, which a name can hold after a bad decoding, have no UTF-8.
    write_atomic(path, text.encode("utf-8", "replace"))
    return path


def _names_a_file(name: str) -> bool:
    """Whether a name from a summary is safe to write under: no folders, nothing hidden."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", name) is not None


def _part(table: SummaryTable, tables: Mapping[str, SummaryTable]) -> _Part:
    if table.name == _SAMPLES:
        return _Part(table, block=samples_html(table, tables.get("steering_best")))
    if table.name not in FIGURES:
        return _Part(table)
    try:
        wide = draw(table, medium=PAGE)
        printed = {plate.name: printed_svg(plate.figure) for plate in wide}
        return _Part(table, wide, draw(table, medium=PHONE), printed)
    except InvalidArgument as error:
        return _Part(table, problem=str(error))


def page_html(record: RunRecord, parts: Sequence[_Part], missing: Sequence[str]) -> str:
    """The page as one HTML document. `missing` are tables of the experiment that there are none of."""
    title = _title(record)
    drawn = [part for part in parts if part.shown]
    rest = [part for part in parts if not part.shown]
    body = (
        f"{_header(record, title, parts)}\n{_navigation(drawn, rest)}\n<main>\n"
        f"{''.join(_section(part) for part in drawn)}{_rest(rest, missing)}\n</main>"
    )
    return document(
        title, styles=("palette.css", "page.css", "results.css"), more_style=stylesheet(), scripts=("results.js",),
        body=body, kind="results",
    )  # fmt: skip


def _title(record: RunRecord) -> str:
    asked = record.request
    what = _TITLES.get(asked.experiment, f"Results of {asked.experiment}")
    return f"{what}: {asked.release}"


def _header(record: RunRecord, title: str, parts: Sequence[_Part]) -> str:
    lead = next(
        (said for name in _LEADS for p in parts if p.table.name == name and (said := reading(p.table))), ""
    )
    notice = ""
    if record.finished is None:
        notice = '<p class="notice">The run is not finished: these are the tables of what there was.</p>'
    subtitle = f'<p class="subtitle">{sentence(lead)}</p>' if lead else ""
    pairs = "".join(f"<div><dt>{safe(k)}</dt><dd>{safe(v)}</dd></div>" for k, v in _facts(record))
    return (
        f"<header><h1>{safe(title)}</h1>{subtitle}{notice}<dl>{pairs}</dl>"
        f'<details class="record"><summary>The run in full</summary>{_record(record)}</details></header>'
    )


def _facts(record: RunRecord) -> Iterable[tuple[str, str]]:
    asked = record.request
    yield "model", asked.model
    yield "release", asked.release
    yield "seed", str(asked.seed)
    steering = asked.experiment == "steering"
    yield "themes" if steering else "datasets", ", ".join(asked.datasets)
    sizes = [
        f"{asked.arguments[k]} {k}" for k in ("texts", "tokens") if isinstance(asked.arguments.get(k), int)
    ]
    if steering and isinstance(asked.arguments.get("samples"), int):
        again = asked.arguments.get("confirm")
        confirmed = f", {again} to confirm the best" if isinstance(again, int) else ""
        yield "samples of a setting", f"{asked.arguments['samples']}{confirmed}"
    if sizes:
        yield "sample of each", f"{sizes[0]}, {sizes[1]} a text" if len(sizes) == 2 else sizes[0]
    yield (
        "units done" if steering else "texts done",
        f"{record.done or 0} of {record.total}" if record.finished else f"some of {record.total}",
    )
    yield "started", _moment(record.started)
    if record.finished and (took := _took(record.started, record.finished)):
        yield "took", took
    yield "saeflow", str(record.versions.get("saeflow", "unknown"))


def _moment(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _took(started: str, finished: str) -> str:
    try:
        seconds = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    except (ValueError, TypeError):
        return ""
    return duration(seconds)


def _record(record: RunRecord) -> str:
    """Everything of the manifest that the header leaves out."""
    asked = record.request
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Arguments", asked.arguments), ("Matches", asked.atlases), ("Versions", record.versions)
    ]  # fmt: skip
    told = [
        f'<tr><th scope="row">{safe(key)}</th><td>{safe(_plain(value))}</td></tr>'
        for name, group in groups
        for key, value in [(name, ""), *group.items()]
    ]
    return f'<div class="scroll"><table><tbody>{"".join(told)}</tbody></table></div>'


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _navigation(drawn: Sequence[_Part], rest: Sequence[_Part]) -> str:
    links = [f'<li><a href="#{_id(p)}">{safe(_short(p.table))}</a></li>' for p in drawn]
    if rest:
        links.append('<li><a href="#more">More tables</a></li>')
    return f'<nav aria-label="Figures"><ul>{"".join(links)}</ul></nav>'


def _short(table: SummaryTable) -> str:
    return (table.title or table.name).split(",")[0]


def _id(part: _Part) -> str:
    """An id from a name that a file gave."""
    return "t-" + "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in part.table.name)


def _section(part: _Part) -> str:
    table = part.table
    said = reading(table)
    cited = ""
    if table.paper:
        cited = "Beyond the paper" if "beyond" in table.paper else f"Cf. {table.paper} of {PAPER}"
    told = f'<p class="reading">{sentence(said)}</p>' if said else ""
    source = f'<span class="cited">{safe(cited)}.</span> ' if cited else ""
    plates = "".join(
        _plate(part, wide, narrow, said) for wide, narrow in zip(part.wide, part.narrow, strict=True)
    )
    label = f' aria-label="{safe(table.title or table.name)}"'
    shown = part.block or f'<div class="plates">{plates}</div>'
    return (
        f'<section id="{_id(part)}" class="result"><h2>{safe(table.title or table.name)}</h2>{told}'
        f"<figure{label}>{shown}"
        f"<figcaption>{source}{safe(table.note)}</figcaption></figure>{_fold(table)}</section>\n"
    )


def _plate(part: _Part, wide: Plate, narrow: Plate, said: str) -> str:
    """A figure twice; of several the page shows one at a time where scripts run.

    One of a theme or a direction says what its own rows say, unless the section has said it.
    """
    own = reading(Frame.of(part.table).where(**wide.keys)) if _of_steering(wide) else ""
    label = one_line(". ".join(word for word in (part.table.title, wide.of, own or said) if word))
    forms: list[str] = []
    for kind, figure in (("on-page", part.printed[wide.name]), ("on-phone", narrow.figure)):
        svg = svg_text(figure, prefix=f"{wide.name}-{kind}-", label=label, captioned=False)
        forms.append(f'<div class="{kind}">{svg}</div>')
    several = len(part.wide) > 1
    name = f'<p class="of">{safe(wide.of)}</p>' if several else ""
    told = f'<p class="reading">{sentence(own)}</p>' if own and own not in said else ""
    keys = "".join(f' data-{key}="{safe(wide.keys[key])}"' for key in _PICKED if key in wide.keys)
    return f'<div class="plate" data-of="{safe(wide.of)}"{keys}>{name}{told}{"".join(forms)}</div>'


def _of_steering(plate: Plate) -> bool:
    return any(key in plate.keys for key in _PICKED)


def _rest(rest: Sequence[_Part], missing: Sequence[str]) -> str:
    """Tables without a figure, and the names of those that the summary lacks."""
    told = "".join(
        f'<section id="{_id(part)}"><h3>{safe(part.table.title or part.table.name)}</h3>'
        f"{f'<p class={chr(34)}notice{chr(34)}>{safe(part.problem)}</p>' if part.problem else ''}"
        f'<p class="note">{safe(part.table.note)}</p>{_fold(part.table)}</section>'
        for part in rest
    )
    more = f'<section id="more"><h2>More tables</h2>{told}</section>' if rest else ""
    if missing:
        more += f'<p class="missing">Not in this summary: {safe(", ".join(missing))}.</p>'
    return more


def _fold(table: SummaryTable) -> str:
    """The rows under a line that opens them, with the way to the CSV file."""
    n = len(table.rows)
    shown = f", the first {MOST_ROWS} here" if n > MOST_ROWS else ""
    link = ""
    if _names_a_file(table.name):
        link = f'<p class="download"><a href="tables/{table.name}.csv" download>{table.name}.csv</a></p>'
    # Lists of numbers are for machines: the CSV file has them.
    columns = [i for i, name in enumerate(table.columns) if name != "histogram"]
    head = "".join(f'<th scope="col">{safe(table.columns[i])}</th>' for i in columns)
    body = "".join(f"<tr>{''.join(_cell(row[i]) for i in columns)}</tr>" for row in table.rows[:MOST_ROWS])
    label = safe(table.title or table.name)
    return (
        f'<details class="rows"><summary>Table: {n:,} {"row" if n == 1 else "rows"}{shown}</summary>'
        f'{link}<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
    )


def _cell(cell: Any) -> str:
    if isinstance(cell, bool):
        return f"<td>{'yes' if cell else 'no'}</td>"
    if isinstance(cell, int):
        return f'<td class="number">{cell}</td>'
    if isinstance(cell, float):
        shown = f"{cell:.4g}" if math.isfinite(cell) else ""
        return f'<td class="number" data-value="{cell!r}">{shown}</td>'
    return f"<td>{safe('' if cell is None else cell)}</td>"
