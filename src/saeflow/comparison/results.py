"""The result of a comparison: its tables, and a record of exactly what was compared. No torch.

OUT/comparison.json     everything: settings, the sha256 of every file, all tables, the flow graph of a chain
OUT/tables/NAME.csv     the tables
OUT/index.html          the page; OUT/figures/NAME.svg
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.results import Cell, Results, SummaryTable
from saeflow.files import add_check, agrees_with_check, write_atomic
from saeflow.flow.graph import FlowGraph
from saeflow.reading import read_json
from saeflow.version import __version__

if TYPE_CHECKING:
    import pandas as pd

FORMAT: Final = "saeflow-comparison"
VERSION: Final = 1
FILE: Final = "comparison.json"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two or more dictionaries, or releases, side by side.

    Attributes:
        settings: the settings, pairing and names; with the dictionaries they determine every number.
        dictionaries: for each dictionary its name, release, model, site, features, width, file, and the sha256 of the
            file (if it is on this machine) and of the decoder in float32.
        tables: by name; `table` returns them as DataFrames. "pairs" has one row per pair of dictionaries, "features"
            one row per feature with its matches.
        graph: for a chain, some features over its steps; None for two dictionaries.
        made_by: the version of saeflow.
    """

    settings: Mapping[str, Any]
    dictionaries: tuple[Mapping[str, Any], ...]
    tables: Mapping[str, SummaryTable]
    graph: FlowGraph | None = None
    made_by: str = f"saeflow {__version__}"

    def __repr__(self) -> str:
        """The dictionaries that were compared."""
        return f"<Comparison of {', '.join(str(one['name']) for one in self.dictionaries)}>"

    def table(self, name: str) -> pd.DataFrame:
        """One table as a DataFrame; `attrs` has its title and note.

        Raises:
            InvalidArgument: for an unknown table.
        """
        if name not in self.tables:
            raise InvalidArgument(f"this comparison has no table {name!r}. It has {', '.join(self.tables)}.")
        return self.tables[name].frame()

    def to_pandas(self) -> pd.DataFrame:
        """The table "pairs", one row per pair of dictionaries: PW-MCC and related measures."""
        return self.table("pairs")

    def to_json(self) -> str:
        """The comparison as JSON that `open_comparison` reads."""
        told = {
            "format": FORMAT,
            "version": VERSION,
            "made_by": self.made_by,
            "settings": dict(self.settings),
            "dictionaries": [dict(one) for one in self.dictionaries],
            "tables": {name: asdict(table) for name, table in self.tables.items()},
            "graph": None if self.graph is None else self.graph.to_dict(),
        }
        # a round trip through JSON first, so that the checksum covers what will be read back
        return json.dumps(add_check(json.loads(json.dumps(told)))) + "\n"

    def save(self, folder: Path | str) -> Path:
        """Write the folder: JSON, tables and the page; returns the path of the page.

        Raises:
            OSError: when the folder cannot be written.
        """
        folder = Path(folder)
        write_atomic(folder / FILE, self.to_json().encode())
        for name, table in self.tables.items():
            write_atomic(folder / "tables" / f"{name}.csv", table.to_csv().encode("utf-8", "replace"))
        # imported by name: `page` is a layer above this one, but users expect `save` to write it
        return import_module("saeflow.comparison.page").write_page(self, folder)


def open_comparison(path: Path | str) -> Comparison:
    """Read a comparison from its folder or its JSON file.

    Raises:
        BadFile: when the file is missing, has changed, or has another format or version.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    again = "Write it again with `saeflow compare --out`."
    try:
        told = cast("dict[str, Any]", read_json(path))
        if (told["format"], told["version"]) != (FORMAT, VERSION):
            raise BadFile(f"{path} is {told['format']!r} version {told['version']}, not {FORMAT!r} {VERSION}. {again}")
        if not agrees_with_check(told):
            raise BadFile(f"{path} has changed since it was written: its checksum differs. {again}")
        tables = {
            name: SummaryTable(
                **{key: table[key] for key in ("name", "title", "paper", "note")},
                columns=tuple(table["columns"]),
                rows=tuple(tuple(cast("list[Cell]", row)) for row in table["rows"]),
            )
            for name, table in told["tables"].items()
        }
        graph = None if told["graph"] is None else FlowGraph.from_json(json.dumps(told["graph"]))
        return Comparison(told["settings"], tuple(told["dictionaries"]), tables, graph, told["made_by"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{path} cannot be read as a comparison ({error!r}). {again}") from None


def open_results(folder: Path | str) -> Results | Comparison:
    """Open the results of any command in a folder, finished or not; a `Comparison` for one of `saeflow compare`.

        results = sf.open_results("deactivate-demo")
        results.table("by_rescale")     a table of the summary as a pandas DataFrame
        results.frame()                 every row of the experiment as a DataFrame; for a comparison, see `to_pandas`

    Raises:
        BadFile: when there is no manifest, or it cannot be read.
    """
    return open_comparison(folder) if (Path(folder) / FILE).is_file() else Results.open(Path(folder))
