"""The page of a results folder: figures, a sentence on each, and every table. One file, no network.

    manifest.json, summary.json  ->  figures/NAME.svg, tables/NAME.csv, index.html

The page has each figure twice, laid out for a window and for a phone, and a stylesheet shows the one
that fits. `templates/results.html.j2` is its template, which escapes words from files (names of models,
data sets, arguments).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saeflow.errors import InvalidArgument, nearest
from saeflow.experiments.results import Results, RunRecord, SummaryTable
from saeflow.files import write_atomic
from saeflow.paper import FIGURES, PAGE, PHONE, Frame, draw, reading, svg_text
from saeflow.paper.samples import samples_html
from saeflow.paper.saving import stylesheet
from saeflow.report.document import document, templates
from saeflow.report.tables import duration
from saeflow.report.tokens import one_line

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

PAPER: Final = "arXiv 2502.03032"
MOST_ROWS: Final = 400
"""How many rows of a table the page shows; the CSV file has all."""

_EXPECTED: Final[Mapping[str, Sequence[str]]] = {
    "origins": (
        "shares_by_layer",
        "shares_by_dataset",
        "scores",
        "separability",
        "activity_differences",
        "transition",
        "most_probable",
        "methods",
        "agreement",
    ),
    "deactivation": (
        "by_strategy_layer",
        "table_1",
        "by_strategy",
        "one_predecessor",
        "by_rescale",
        "new_group",
        "groups_by_strategy",
        "paired",
        "remaining",
        "counts",
        "control_match",
    ),
    "steering": (
        "steering_by_layer",
        "steering_by_value",
        "steering_features",
        "steering_best",
        "steering_paired",
        "steering_by_share",
        "steering_sensitivity",
        "steering_samples",
        "steering_cells",
    ),
    "transition": (
        "transition_permutations",
        "transition_top_k",
        "transition_loss",
        "transition_paired",
        "transition_fits",
    ),
}
_LEADS: Final = ("shares_by_dataset", "table_1", "by_strategy_layer", "steering_best", "transition_permutations")
_SAMPLES: Final = "steering_samples"
_PICKED: Final = ("theme", "direction")
"""The columns whose value the reader picks once for all figures of the page."""


@dataclass(frozen=True, slots=True)
class ShownPlate:
    """A figure as a page shows it, laid out for a window and for a phone.

    Attributes:
        of: the column values it shows, in words.
        picked: theme and direction among these values, by column.
        wide, narrow: the SVG elements.
        said: the sentence on its own rows; empty if it does not belong to one theme or direction.
    """

    of: str
    picked: Mapping[str, str]
    wide: Markup
    narrow: Markup
    said: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A table with its figures, or with HTML (`block`) in their place.

    `problem` says why it has no figure, and `left_out` how many themes are without a figure here.
    """

    table: SummaryTable
    said: str
    plates: tuple[ShownPlate, ...] = ()
    block: Markup | str = ""
    problem: str = ""
    left_out: int = 0

    @property
    def id(self) -> str:
        """An HTML id from the name of the table."""
        return "t-" + "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in self.table.name)

    @property
    def title(self) -> str:
        """The title of the table, or else its name."""
        return self.table.title or self.table.name

    @property
    def cited(self) -> str:
        """The figures of the paper it reproduces, as a citation."""
        paper = self.table.paper
        return "Beyond the paper" if "beyond" in paper else f"Cf. {paper} of {PAPER}" if paper else ""

    @property
    def file(self) -> str:
        """The name of its CSV file; empty if the table's name is not a safe file name."""
        return self.table.name if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", self.table.name) else ""

    @property
    def _shown(self) -> list[int]:
        """The columns that are shown, by index: lists of numbers are left to the CSV file."""
        return [i for i, name in enumerate(self.table.columns) if name != "histogram"]

    @property
    def columns(self) -> list[str]:
        """The names of the columns that are shown."""
        return [self.table.columns[i] for i in self._shown]

    @property
    def rows(self) -> list[list[Any]]:
        """The first rows, in the columns that are shown."""
        return [[row[i] for i in self._shown] for row in self.table.rows[:MOST_ROWS]]


def plot(results: Results, table: str) -> list[Figure]:
    """Draw a table of results as matplotlib figures: one, or one for each method, strategy or theme.

        figure, *_ = sf.plot(sf.open_results("few"), "by_rescale")

    Raises:
        InvalidArgument: for an unknown table or one without a figure; the message lists those with one.
    """
    tables = results.tables()
    if table not in tables:
        has = [name for name in tables if name in FIGURES]
        raise InvalidArgument(
            f"there is no table {table!r}.{nearest(table, has)} Those with a figure: {', '.join(has)}."
        )
    return [plate.figure for plate in draw(tables[table])]


def write_page(folder: Path) -> Path:
    """Draw the figures and the page of a results folder, finished or not; returns the path of `index.html`.

    The page names the tables of the experiment that the summary lacks; a table whose columns do not fit
    its figure is shown without one, with the reason.

    Raises:
        BadFile: when `manifest.json` or `summary.json` is missing or cannot be read.
        OSError: when the folder cannot be written.
    """
    results = Results.open(folder)
    tables = results.tables()
    expected = _EXPECTED.get(results.record.request.experiment, ())
    names = [name for name in expected if name in tables]
    names += [name for name in tables if name not in names]
    sections = [section_of(tables[name], folder / "figures", samples=tables.get("steering_best")) for name in names]
    for section in sections:
        csv = folder / "tables" / f"{section.file}.csv"
        if section.file and not csv.is_file():
            write_atomic(csv, section.table.to_csv().encode("utf-8", "replace"))
    text = page_html(results.record, sections, [name for name in expected if name not in tables])
    path = folder / "index.html"
    # Lone surrogates, which a badly decoded name can hold, cannot be encoded as UTF-8.
    write_atomic(path, text.encode("utf-8", "replace"))
    return path


def section_of(table: SummaryTable, figures: Path, *, samples: SummaryTable | None = None) -> Section:
    """The section of a table; figures are also written to `figures`. `samples` is the table `steering_best`."""
    said = reading(table)
    if table.name == _SAMPLES:
        return Section(table, said, block=samples_html(table, samples))
    if table.name not in FIGURES:
        return Section(table, said)

    def files(name: str, printed: bytes) -> None:
        write_atomic(figures / f"{name}.svg", svg_text(printed, alone=True).encode("utf-8", "replace"))

    return drawn_section(table, said, written=files, own=True)


def drawn_section(
    table: SummaryTable,
    said: str,
    *,
    prefix: str = "",
    own: bool = False,
    written: Callable[[str, bytes], None] | None = None,
) -> Section:
    """A table with its figures, each drawn for a window and for a phone, or with the reason why it has none.

    Args:
        table: the rows.
        said: the sentence on the table, for readers who cannot see the figure.
        prefix: the beginning of every id in the SVG.
        own: whether a figure of one theme or direction gets a sentence of its own.
        written: called with the name and the SVG of each wide figure.
    """
    from markupsafe import Markup

    found: list[ShownPlate] = []
    try:
        frame = Frame.read(table)
        for wide, narrow in zip(draw(frame, medium=PAGE), draw(frame, medium=PHONE), strict=True):
            picked = {key: wide.keys[key] for key in _PICKED if key in wide.keys}
            sentence = reading(frame.where(**wide.keys)) if own and picked else ""
            label = one_line(". ".join(word for word in (frame.title, wide.of, sentence or said) if word))
            forms = [
                Markup(svg_text(plate.svg, prefix=f"{prefix}{wide.name}-{kind}-", label=label, captioned=False))  # noqa: S704
                for kind, plate in (("on-page", wide), ("on-phone", narrow))
            ]
            if written is not None:
                written(wide.name, wide.svg)
            found.append(ShownPlate(wide.of, picked, forms[0], forms[1], sentence))
    except InvalidArgument as error:
        return Section(table, said, problem=str(error))
    return Section(table, said, tuple(found))


def page_html(record: RunRecord, sections: Sequence[Section], missing: Sequence[str]) -> str:
    """The page as one HTML document. `missing` names the tables of the experiment that are not there."""
    said = {section.table.name: section.said for section in sections}
    return sections_html(
        record.request.title,
        next((said[name] for name in _LEADS if said.get(name)), ""),
        [*_facts(record)],
        _record(record),
        sections,
        missing=missing,
        finished=record.finished is not None,
    )


def sections_html(
    title: str,
    lead: str,
    facts: Sequence[tuple[str, str]],
    record: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    *,
    missing: Sequence[str] = (),
    finished: bool = True,
    styles: Sequence[str] = (),
) -> str:
    """A page of figures and tables as one HTML document: a lead sentence, facts, all settings, and the sections.

    `styles` are further files of `static/` that its blocks need.
    """
    templates().filters["short"] = _short
    return document(
        "results.html.j2",
        title,
        styles=("palette.css", "page.css", *styles, "results.css"),
        more_style=stylesheet(),
        scripts=("results.js",),
        kind="results",
        finished=finished,
        lead=lead,
        facts=facts,
        record=record,
        drawn=[s for s in sections if s.plates or s.block],
        rest=[s for s in sections if not (s.plates or s.block)],
        missing=missing,
    )


def _short(number: float) -> str:
    return f"{number:.4g}" if math.isfinite(number) else ""


def _facts(record: RunRecord) -> Iterable[tuple[str, str]]:
    request = record.request
    yield "model", request.model
    yield "release", request.release
    yield "seed", str(request.seed)
    steering = request.experiment == "steering"
    yield "themes" if steering else "datasets", ", ".join(request.datasets)
    sizes = [f"{request.arguments[k]} {k}" for k in ("texts", "tokens") if isinstance(request.arguments.get(k), int)]
    if steering and isinstance(request.arguments.get("samples"), int):
        again = request.arguments.get("confirm")
        confirmed = f", {again} to confirm the best" if isinstance(again, int) else ""
        yield "samples of a setting", f"{request.arguments['samples']}{confirmed}"
    if sizes:
        yield "sample of each", f"{sizes[0]}, {sizes[1]} a text" if len(sizes) == 2 else sizes[0]
    yield (
        "units done" if steering else "texts done",
        f"{record.done or 0} of {record.total}" if record.finished else f"some of {record.total}",
    )
    yield "started", moment(record.started)
    if record.finished and (took := _took(record.started, record.finished)):
        yield "took", took
    yield "saeflow", str(record.versions.get("saeflow", "unknown"))


def moment(text: str) -> str:
    """A time of a record in readable form; any other text as it is."""
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


def _record(record: RunRecord) -> list[tuple[str, str]]:
    """Everything in the manifest that the header leaves out."""
    request = record.request
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Arguments", request.arguments),
        ("Matches", request.atlases),
        ("Versions", record.versions),
    ]
    return [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, group in groups
        for key, value in [(name, ""), *group.items()]
    ]
