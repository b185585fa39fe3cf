"""The tables of the command line as plain rows, which become either text or JSON. No torch."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from saeflow.errors import SaeflowError
from saeflow.flow import FlowGraph, Thresholds
from saeflow.ids import FeatureId, Part, Site
from saeflow.matching.atlas import Atlas
from saeflow.matching.table import MatchTable, mutual

Row = dict[str, Any]
ABOVE = (0.5, 0.7)
ONE_LINE = 10_000
GAP = 2  # characters between two columns


def best_summary(table: MatchTable) -> Row:
    """Summarise how well the features of `table.source` are matched; see `score_summary`."""
    return score_summary(table.score[:, 0])


def score_summary(best: Float32[np.ndarray, " n_source"]) -> Row:
    """The number of features without a match, and for the others the mean best score and the shares above 0.5 and 0.7.

    A feature has no match if it has no direction (a decoder row of zeros), or no partner under a one-to-one method.
    """
    none = int(np.isneginf(best).sum())
    best = best[~np.isneginf(best)]
    if not len(best):
        return {"no match": none, "mean best": None} | {f"above {line}": None for line in ABOVE}
    shares = {f"above {line}": round(float(np.mean(best > line)), 4) for line in ABOVE}
    return {"no match": none, "mean best": round(float(best.mean()), 4)} | shares


def match_rows(table: MatchTable, limit: int, back: MatchTable | None = None) -> tuple[Row, list[Row]]:
    """Return (summary, one row for each of the `limit` best matched features, with all its matches).

    If `back`, the table of the opposite direction, is given, mutual best matches are counted and marked.
    """
    summary: Row = {
        "source": str(table.source),
        "target": str(table.target),
        "method": table.method,
        "k": table.k,
        "features": table.n_source,
        "features of the target": table.n_target,
    }
    rows: list[Row] = []
    both = None if back is None else mutual(table, back)[:, 0]
    if both is not None:
        summary["mutual best matches"] = int(both.sum())
    matched = int((~np.isneginf(table.score[:, 0])).sum())
    for index in np.argsort(-table.score[:, 0], kind="stable")[: min(limit, matched)].tolist():
        feature = FeatureId(table.source, index)
        found = [f"{match.feature.index} ({match.score:.3f})" for match in table.best(feature)]
        rows.append(
            {
                "feature": str(feature),
                "score": round(float(table.score[index, 0]), 4),
                **({} if both is None else {"mutual": bool(both[index])}),
                "matches": "  ".join(found),
            }
        )
    return summary | best_summary(table), rows


def atlas_rows(atlas: Atlas) -> tuple[Row, list[Row]]:
    """Return (summary, one row per table)."""
    summary: Row = {
        "release": atlas.release,
        "model": atlas.model,
        "k": atlas.k,
        "made by": atlas.made_by,
        "sites": len(atlas.sites),
        "tables": len(atlas),
        "folder": str(atlas.folder),
    }
    rows: list[Row] = [
        {"source": str(source), "target": str(target), "features": table.n_source, **best_summary(table)}
        for (source, target), table in atlas.items()
    ]
    return summary, rows


def calibration_rows(atlas: Atlas, fdr: float = 0.01) -> list[Row]:
    """One row per ordered pair of sites with a null: its calibrated threshold, by direction, part and layer.

    `layer` is the layer of the residual feature and `part` the part of its predecessor. `direction` is "backward" if
    matches are looked for from the residual feature, and "forward" if from the predecessor. `threshold` is the
    calibrated cut, `null q50` and `null q99` are quantiles of the best scores by chance, `kept` is the share of
    features whose best match reaches the cut, and `kept plain` the share that reaches the default threshold: 0.5 for
    the residual stream, 0.15 for modules (B.2). A threshold of 1.0 means that no match of the pair is significant.

    Raises:
        InvalidArgument: when the atlas has no nulls, or `fdr` is not between 0 and 1.
    """
    rows: list[Row] = []
    for (source, target), cut in sorted(atlas.cuts(fdr).items()):
        null, best = atlas.null(source, target), atlas[source, target].score[:, 0]
        child, parent = max(source, target), min(source, target)
        back = child == source
        if null is None or not child.flows_from(parent):
            continue
        rows.append(
            {
                "layer": child.layer,
                "part": parent.part.value,
                "direction": "backward" if back else "forward",
                "null q50": round(null.quantile(0.5), 4),
                "null q99": round(null.quantile(0.99), 4),
                "threshold": round(cut, 4),
                "kept": round(float(np.mean(best >= cut)), 4),
                "kept plain": round(float(np.mean(best >= Thresholds().of(parent.part))), 4),
            }
        )
    return sorted(rows, key=lambda row: (row["direction"], Part(row["part"]).rank, row["layer"]))


@runtime_checkable
class _Described(Protocol):
    """The properties of a dictionary that are listed; none of them reads a tensor."""

    @property
    def n_features(self) -> int: ...
    @property
    def d_in(self) -> int: ...
    @property
    def origin(self) -> str: ...


@runtime_checkable
class _Release(Protocol):
    """A named collection of dictionaries."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def sites(self) -> tuple[Site, ...]: ...
    @property
    def left_out(self) -> Mapping[str, str]: ...
    def to_fetch(self, site: Site) -> str | None: ...
    def __getitem__(self, site: Site) -> _Described: ...


def release_rows(
    dictionaries: _Release, quality: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Row, list[Row], list[Row]]:
    """Return (summary, one row per site of a release, one row per dictionary left out). Fetches nothing from a hub.

    If the dictionary of a site cannot be opened, its row says why. `quality` adds columns, by site.
    """
    rows: list[Row] = []
    for site in dictionaries.sites:
        missing = dictionaries.to_fetch(site)
        row: Row = {"site": str(site), "features": None, "width": None}
        if missing is not None:
            row["file"] = f"{missing} (not fetched)"
        else:
            try:
                found = dictionaries[site]
            except SaeflowError as error:
                row["file"] = str(error)
            else:
                row |= {"features": found.n_features, "width": found.d_in, "file": found.origin}
        measured = (quality or {}).get(str(site), {})
        # the file comes last because its name may be long
        rows.append({**{key: row[key] for key in ("site", "features", "width")}, **measured, "file": row["file"]})
    left_out = [{"left out": name, "why": why} for name, why in dictionaries.left_out.items()]
    return {"release": dictionaries.name, "model": dictionaries.model, "sites": len(rows)}, rows, left_out


def pick_rows(picks: Sequence[Any]) -> list[Row]:
    """One row per feature picked as worth a first look."""

    def row(graph: FlowGraph, label: str) -> Row:
        circuits = ", ".join(str(node.feature.layer) for node in graph.circuits if node.feature.part is Part.RES)
        span = "-" if graph.span is None else f"{graph.span[0]}-{graph.span[1]}"
        return {"feature": str(graph.seed), "fires on": label, "layers": span, "modules join at": circuits or "-"}

    return [row(pick.graph, pick.label) for pick in picks]


def quality_rows(measured: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """The quality measurements of the demo pack, as titled tables."""
    domains = [{"domain": name, **row} for name, row in measured["model"]["domains"].items()]
    saes = [{"site": name, **row} for name, row in measured["saes"].items()]
    flow = [{"match": name, **row} for name, row in measured["flow"].items()]
    size = f"{measured['model']['parameters']:,} parameters, {measured['model']['training_tokens']:,} training tokens"
    return [
        (f"Model, on held-out text ({size})", domains),
        ("SAEs, on held-out text", saes),
        ("Flow: best cosine of each feature", flow),
    ]


def as_text(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table for the terminal: numbers are right-aligned, nothing is cut off, and no word is broken.

    The table is as wide as the terminal, or wider if a word would otherwise be broken. In a pipe or a file, unless
    COLUMNS is set, each row is one line.
    """
    if not rows:
        return f"{title}\nThere is nothing to list.".lstrip()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = {column: [_cell(row.get(column)) for row in rows] for column in columns}
    out = io.StringIO()
    console = Console(file=out, highlight=False)
    room = max(console.width, 80) if sys.stdout.isatty() or "COLUMNS" in os.environ else ONE_LINE
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0)
    )
    for column, width in zip(columns, _widths(cells, room), strict=True):
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", width=width)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    console.width = ONE_LINE
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _widths(cells: Mapping[str, Sequence[str]], room: int) -> list[int]:
    """Column widths that keep every word whole; spare `room` goes first to the columns that need least to unfold."""
    texts = [(column, *values) for column, values in cells.items()]
    widths = [max(cell_len(word) for text in column for word in (text.split() or [""])) for column in texts]
    needs = [max(map(cell_len, column)) - width for column, width in zip(texts, widths, strict=True)]
    spare = max(0, room - 1 - GAP * len(texts) - sum(widths))
    for column in sorted(range(len(texts)), key=needs.__getitem__):
        given = min(needs[column], spare)
        widths[column] += given
        spare -= given
    return widths


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A duration as text: `95 s`, `12 min`, `3.2 h`, `4.1 days`."""
    for size, unit in ((86_400, "days"), (3600, "h")):
        if seconds >= 5 / 3 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"
