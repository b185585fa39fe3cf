"""Results folders: what a long experiment writes, so that a killed run can be resumed. No torch.

    OUT/manifest.json         the request, and the versions it ran with
    OUT/samples.jsonl.gz      the units of work, one per line: a text with its sampled tokens
    OUT/rows/00000.jsonl.gz   the rows of a unit, written atomically; an existing file is not recomputed
    OUT/summary.json          the tables; also as OUT/tables/NAME.csv
    OUT/index.html, figures/  drawn by saeflow.report

A unit's rows depend only on the unit and the request, so a run that was killed and resumed ends with
the same bytes as one that was not. A folder is resumed only for the same request.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from saeflow.engines import Engine, InProcess
from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import write_atomic
from saeflow.plain_types import Progress
from saeflow.reading import PACKED_WRONG, gzip_lines, parse_json, read_json, read_text
from saeflow.version import __version__

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl.gz"
SUMMARY = "summary.json"
_TOLD: Final = 4
"""How many differences between two requests an error message lists."""
Cell = str | int | float | bool | None
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SummaryTable:
    """One table of a summary: the numbers behind a figure or table of the paper, or an addition to it.

    Attributes:
        name: the name in `summary.json` and `tables/NAME.csv`.
        title: what it shows, as a caption without a full stop.
        paper: which figures or tables of arXiv 2502.03032 it corresponds to; "" or "beyond the paper" for additions.
        note: how to read it: what is counted, and when it misleads.
        columns: the column names.
        rows: the cells of each row, in the order of `columns`.
    """

    name: str
    title: str
    paper: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @staticmethod
    def of(name: str, title: str, paper: str, note: str, columns: str, rows: Iterable[Sequence[Any]]) -> SummaryTable:
        """Build a table from cells of any numeric type; `columns` is a comma-separated line of names.

        The note writes columns and text cells in backticks; a sentence with one that the table lacks is left out.

        Raises:
            InvalidArgument: for a row of the wrong length.
        """
        names = tuple(column.strip() for column in columns.split(","))
        plain = tuple(tuple(_cell(cell) for cell in row) for row in rows)
        for row in plain:
            if len(row) != len(names):
                raise InvalidArgument(f"a row of table {name} has {len(row)} cells for {len(names)} columns: {row}.")
        # for example, the note of a run without searches says nothing about searches
        there = {*names, *(cell for row in plain for cell in row if isinstance(cell, str))}
        sentences = [one for one in re.split(r"(?<=\.) ", note) if there.issuperset(re.findall(r"`([^`]+)`", one))]
        return SummaryTable(name, title, paper, " ".join(sentences), names, plain)

    @staticmethod
    def from_frame(name: str, title: str, paper: str, note: str, frame: pd.DataFrame) -> SummaryTable:
        """Build a table from the columns of a DataFrame; its index is left out."""
        rows = frame.astype(object).itertuples(index=False, name=None)
        return SummaryTable.of(name, title, paper, note, ",".join(frame.columns), rows)

    def dicts(self) -> list[Row]:
        """The rows as dictionaries, column -> cell."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def frame(self) -> pd.DataFrame:
        """The table as a DataFrame, with title, paper and note in `attrs`."""
        import pandas as pd

        found = pd.DataFrame(list(self.rows), columns=list(self.columns))
        found.attrs = {"title": self.title, "paper": self.paper, "note": self.note}
        return found

    def to_csv(self) -> str:
        """The table as CSV text with a header; None is an empty cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()


_TITLES: Final = {
    "origins": "Where active features come from",
    "deactivation": "Removing predecessors",
    "steering": "Steering along the flow",
    "transition": "A match as a transcoder",
}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A request to an experiment; together with the inputs it names, it determines every row.

    Attributes:
        experiment: "origins", "deactivation" or another.
        release: name of the dictionaries.
        model: name of the language model.
        seed: seed of everything that is drawn.
        datasets: names of the datasets, in order.
        atlases: for each matching method, the kind of its tables and a checksum of them.
        arguments: all other arguments, as JSON values.
    """

    experiment: str
    release: str
    model: str
    seed: int
    datasets: tuple[str, ...]
    atlases: Mapping[str, str]
    arguments: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The run's title for display: "Removing predecessors: demo"."""
        return f"{_TITLES.get(self.experiment, f'Results of {self.experiment}')}: {self.release}"

    def differences(self, other: RunRequest) -> list[str]:
        """How `other` differs, one "NAME is X there and Y here" each; "here" is `other`. Empty if nothing differs."""
        mine, theirs = self._flat(), other._flat()
        return [
            f"{name} is {json.dumps(mine.get(name))} there and {json.dumps(theirs.get(name))} here"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        ]

    def _flat(self) -> dict[str, Any]:
        values = asdict(self)
        flat = {name: value for name, value in values.items() if name not in ("atlases", "arguments")}
        flat |= {f"atlas {name}": value for name, value in self.atlases.items()}
        # through JSON, so that a request read from a manifest compares equal to a new one
        return json.loads(json.dumps(flat | dict(self.arguments)))


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A request and how it was run: the manifest of a results folder.

    Attributes:
        request: the request.
        versions: versions of saeflow, Python and the libraries that computed it.
        started: start time in UTC, ISO 8601.
        finished: end time in the same form; None while the run is going on, or after a kill.
        done: units of work done when `finished` was written, else 0.
        total: number of units of work; a unit is usually one text of one dataset.
    """

    request: RunRequest
    versions: Mapping[str, str]
    started: str
    finished: str | None
    done: int
    total: int

    def to_json(self) -> str:
        """The manifest as JSON: the fields of the request and of the run in one object."""
        values = asdict(self)
        return json.dumps(values.pop("request") | values, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> RunRecord:
        """The inverse of `to_json`.

        Raises:
            ValueError: for text that is not JSON.
            KeyError: for a manifest that lacks a field.
            TypeError: for counts that are not integers.
        """
        data = parse_json(text)
        if not all(type(data[name]) is int for name in ("done", "total")):
            raise TypeError(f"{data['done']!r} of {data['total']!r} texts are no counts")
        request = {field.name: data[field.name] for field in fields(RunRequest)}
        request["datasets"] = tuple(request["datasets"])
        run = {field.name: data[field.name] for field in fields(RunRecord) if field.name != "request"}
        return RunRecord(RunRequest(**request), **run)


@dataclass(frozen=True, slots=True)
class Made:
    """The output of a unit of work: its rows, and files to write, by their path in the results folder."""

    rows: Iterable[Row]
    files: Mapping[str, bytes]


Work = Callable[[Row], Iterable[Row] | Made]
"""Computes the rows of a unit, which may depend only on the unit and the request."""


@dataclass(frozen=True)
class Results:
    """A results folder: starts or opens one, writes and reads its rows and tables."""

    folder: Path
    record: RunRecord

    def _repr_html_(self) -> str:
        """The repr and a list of the tables, for notebooks."""
        with contextlib.suppress(BadFile):  # the run has no summary yet
            cells = [(f"<code>{escape(name)}</code>", escape(table.title)) for name, table in self.tables().items()]
            rows = "".join(f"<tr><td>{name}</td><td>{title}</td></tr>" for name, title in cells)
            return f"<p><code>{escape(repr(self))}</code></p><table>{rows}</table>"
        return f"<p><code>{escape(repr(self))}</code></p>"

    def __repr__(self) -> str:
        """What was run, and its progress."""
        return f"Results({self.record.request.title}, {self.done} of {self.record.total} units, in {self.folder})"

    def to_pandas(self) -> pd.DataFrame:
        """The same as `frame`."""
        return self.frame()

    @staticmethod
    def open(folder: Path | str) -> Results:
        """Open the results in a folder, finished or not.

        Raises:
            BadFile: when there is no manifest, or it cannot be read.
        """
        path = Path(folder) / MANIFEST
        try:
            return Results(Path(folder), RunRecord.from_json(read_text(path)))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
            raise BadFile(
                f"{path} cannot be read as the manifest of results ({why}). Give the folder a command such as "
                "`saeflow origins` wrote."
            ) from None

    @staticmethod
    def start(
        folder: Path | str, request: RunRequest, units: Callable[[], Sequence[Row]], versions: Mapping[str, str]
    ) -> Results:
        """Start a new folder, or open the existing one if it was made by the same request.

        Args:
            folder: the folder; created if missing.
            request: the request, which determines the rows.
            units: returns the units of work; called for a new folder only, a resumed one reads them from its file.
            versions: versions of the libraries that compute the rows.

        Raises:
            InvalidArgument: when the folder was made by another request (the message names what differs), when
                there is no unit, or when the folder holds rows without a manifest.
            BadFile: when its manifest cannot be read.
        """
        folder = Path(folder)
        if (folder / MANIFEST).is_file():
            there = Results.open(folder)
            there.refuse_other(request)
            return there
        if folder.is_dir() and any(folder.glob("rows/*")):
            raise InvalidArgument(f"{folder} holds rows without a manifest. Give an empty folder with --out.")
        made = list(units())
        if not made:
            raise InvalidArgument("no text has enough tokens to sample from. Give other datasets or fewer --tokens.")
        write_atomic(folder / SAMPLES, pack_rows(made))
        record = RunRecord(request, dict(versions), utc_now(), None, 0, len(made))
        write_atomic(folder / MANIFEST, record.to_json().encode())
        return Results(folder, record)

    @staticmethod
    def refuse_folder(folder: Path | str, request: RunRequest) -> None:
        """Refuse a folder that another request has begun, before anything is computed for this one.

        Args:
            folder: where results are to go; one without a manifest is accepted.
            request: what is known of the run beforehand; atlases and the texts they are fitted on are not compared.

        Raises:
            InvalidArgument: when anything else differs, as in `refuse_other`.
            BadFile: when its manifest cannot be read.
        """
        if (Path(folder) / MANIFEST).is_file():
            there = Results.open(folder)
            asked = there.record.request
            fitted = {key: asked.arguments[key] for key in ("pearson_datasets",) if key in asked.arguments}
            there.refuse_other(replace(request, atlases=asked.atlases, arguments={**request.arguments, **fitted}))

    def refuse_other(self, request: RunRequest) -> None:
        """Refuse a request that differs from that of this folder.

        Raises:
            InvalidArgument: naming what differs.
        """
        mine = self.record.request
        if mine.experiment != request.experiment:
            raise InvalidArgument(
                f"{self.folder} holds results of another experiment, {mine.experiment} of {mine.release}, and this is "
                f"{request.experiment}. Give another folder with --out."
            )
        if differing := mine.differences(request):
            told = "; ".join(differing[:_TOLD]) + (f"; and {n} more" if (n := len(differing) - _TOLD) > 0 else "")
            raise InvalidArgument(
                f"{self.folder} holds a run with other arguments: {told}. Give the same arguments to go on with it, or "
                "another folder with --out."
            )

    def units(self) -> list[Row]:
        """The units of work, in order.

        Raises:
            BadFile: when the file is missing or damaged.
        """
        return unpack_rows(self.folder / SAMPLES)

    def shard(self, unit: int) -> Path:
        """The path of the file with the rows of a unit."""
        return self.folder / "rows" / f"{unit:05d}.jsonl.gz"

    @property
    def done(self) -> int:
        """How many units have been done."""
        return sum(self.shard(unit).is_file() for unit in range(self.record.total))

    def run(self, work: Work, progress: Progress | None = None, engine: Engine | None = None) -> Results:
        """Do every unit that is not done and write its rows; at the end, record the finishing time.

        Args:
            work: computes the rows of a unit, or `Made` if files come with them. Engines other than `InProcess` send
                it to worker processes, so it must be picklable.
            progress: called with (units done, units in all, the name of the unit begun last).
            engine: where units run; None for this process, in order. The bytes written do not depend on it, as long as
                units are computed with the same number of threads.

        Raises:
            InvalidArgument: when the work cannot be sent to the engine's workers.
            WorkerLost: when several workers died on the same unit.
            Whatever `work` raises.
        """
        engine = engine or InProcess()
        done, now = self.done, ""  # what an earlier run did is no part of the pace of this one

        def tell() -> None:
            if progress:
                progress(done, self.record.total, now)

        def missing() -> Iterator[tuple[int, Row]]:
            nonlocal now
            for number, unit in enumerate(self.units()):
                if self.shard(number).is_file():
                    continue
                if progress:
                    now = f"{unit['dataset']} {unit['text']}"
                    tell()
                yield number, unit

        for number, (rows, files) in engine.run(
            partial(_bytes_of, work), missing(), name=self.record.request.experiment
        ):
            for name, data in files.items():
                write_atomic(self.folder / name, data)
            write_atomic(self.shard(number), rows)
            done += 1
            if not isinstance(engine, InProcess):
                tell()
        if progress:
            progress(self.record.total, self.record.total, "done")
        return self._ended()

    def _ended(self) -> Results:
        """Record when the run first finished."""
        if self.record.finished is not None:
            return self
        finished = replace(self.record, finished=utc_now(), done=self.record.total)
        write_atomic(self.folder / MANIFEST, finished.to_json().encode())
        return replace(self, record=finished)

    def rows(self) -> Iterator[Row]:
        """All rows written so far, unit by unit.

        Raises:
            BadFile: when a shard is damaged.
        """
        for unit in range(self.record.total):
            if self.shard(unit).is_file():
                yield from unpack_rows(self.shard(unit))

    def columns(self, *names: str) -> dict[str, list[Any]]:
        """Some fields of every row, as lists of equal length; None where a row lacks the field.

        Raises:
            BadFile: when a shard is damaged.
        """
        kept: dict[str, list[Any]] = {name: [] for name in names}
        for row in self.rows():
            for name, column in kept.items():
                column.append(row.get(name))
        return kept

    def frame(self) -> pd.DataFrame:
        """All rows written so far as a DataFrame; lists and dictionaries stay in their cells.

        Raises:
            BadFile: when a shard is damaged.
        """
        import pandas as pd

        return pd.DataFrame(list(self.rows()))

    def table(self, name: str) -> pd.DataFrame:
        """One table of `summary.json` as a DataFrame, with its title, paper and note in `attrs`.

        Raises:
            InvalidArgument: for a table that the folder does not have.
            BadFile: when there is no summary, or it cannot be read.
        """
        tables = self.tables()
        if name not in tables:
            raise InvalidArgument(f"{self.folder} has no table {name!r}. It has {', '.join(tables)}.")
        return tables[name].frame()

    def write_tables(self, tables: Iterable[SummaryTable]) -> dict[str, SummaryTable]:
        """Write `summary.json` and a CSV file for each table; return the tables by name."""
        tables = list(tables)
        written: Row = {}
        for table in tables:
            written[table.name] = {
                "title": table.title,
                "paper": table.paper,
                "note": table.note,
                "columns": table.columns,
                "rows": table.rows,
            }
            write_atomic(self.folder / "tables" / f"{table.name}.csv", table.to_csv().encode())
        text = json.dumps({"tables": written}, indent=None, allow_nan=False, ensure_ascii=False)
        write_atomic(self.folder / SUMMARY, (text + "\n").encode())
        return {table.name: table for table in tables}

    def tables(self) -> dict[str, SummaryTable]:
        """The tables of `summary.json` by name.

        Raises:
            BadFile: when there is no summary, or it cannot be read.
        """
        path = self.folder / SUMMARY
        try:
            data = cast("Row", read_json(path))
            return {
                name: SummaryTable(
                    name,
                    stored["title"],
                    stored["paper"],
                    stored["note"],
                    tuple(stored["columns"]),
                    tuple(tuple(row) for row in stored["rows"]),
                )
                for name, stored in data["tables"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadFile(
                f"{path} cannot be read as a summary ({error!r}). Run the experiment's command again."
            ) from None


def versions() -> dict[str, str]:
    """The versions of saeflow, Python and the libraries that compute the rows; imports none of them."""
    found = {"saeflow": __version__, "python": platform.python_version()}
    for package in ("numpy", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def significant(value: float, digits: int = 6) -> float:
    """Round to some significant digits, for rows: short, and 0 only for 0."""
    return float(f"{value:.{digits}g}")


def _cell(value: Any) -> Cell:
    """A plain cell from a Python or numpy scalar; NaN and infinities become None."""
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float):
        return significant(plain) if math.isfinite(plain) else None
    return cast("Cell", plain)


def _bytes_of(work: Work, unit: Row) -> tuple[bytes, Mapping[str, bytes]]:
    """The rows of a unit, packed in the process that computes them, and its files."""
    found = work(unit)
    made = found if isinstance(found, Made) else Made(found, {})
    return pack_rows(made.rows), made.files


def pack_rows(rows: Iterable[Row]) -> bytes:
    """Rows as gzipped JSON lines; equal rows give equal bytes."""
    lines = [json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    return gzip.compress("".join(lines).encode("utf-8", "surrogatepass"), compresslevel=6, mtime=0)


def unpack_rows(path: Path) -> list[Row]:
    """The rows of a file that `pack_rows` made.

    Raises:
        BadFile: when it is missing or damaged.
    """
    try:
        lines = list(gzip_lines(path, "surrogatepass"))
        if path.stat().st_size == 0:
            raise EOFError("the file is empty")
        # one JSON call for the whole file is many times faster than one per line
        return cast("list[Row]", json.loads("[" + ",".join(lines) + "]"))
    except (*PACKED_WRONG, RecursionError) as error:
        raise BadFile(
            f"{path} cannot be read ({error}). Remove it and run the command again to make it anew."
        ) from None


def utc_now() -> str:
    """The current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
