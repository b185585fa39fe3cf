"""The folders of a reproduction as claims read them: rows as columns, each folder read on first use. No torch.

    OUT/origins, deactivation, steering, transition, graphs  ->  Evidence

A stage that was not run, was killed, or cannot be read raises `NotMeasured` with the reason, so that only the claims
that need it stay without a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

from saeflow.errors import BadFile, InvalidArgument, SaeflowError
from saeflow.experiments.deactivation_tables import trials_frame
from saeflow.experiments.origins_tables import BestMatches, methods_of, observations
from saeflow.experiments.results import MANIFEST, Results
from saeflow.experiments.statistics import TEXT, text_codes
from saeflow.experiments.transition.tables import measured
from saeflow.flow.graph import FlowGraph
from saeflow.paper.verdicts import NotMeasured
from saeflow.reading import read_json, read_text
from saeflow.steering.sweep.cells import Cells, confirmed_cells
from saeflow.steering.sweep.scoring import read_scores

_T = TypeVar("_T")
ACCEPTANCE: Final = "acceptance.json"


@dataclass(frozen=True, eq=False)
class OriginsRun:
    """The rows of `origins`, and the data sets that the Pearson tables were not made on.

    Attributes:
        seen: the rows as `observations` returns them.
        matches: the best matches and their scores.
        new_to_pearson: names of these data sets.
    """

    seen: pd.DataFrame
    matches: BestMatches
    new_to_pearson: tuple[str, ...] = ()

    @cached_property
    def texts(self) -> tuple[np.ndarray, np.ndarray]:
        """The text of each row, and the data set of each text, as numbers."""
        return text_codes(self.seen)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets, in the order of the run."""
        return tuple(self.seen["dataset"].unique())

    def groups(self, method: str) -> np.ndarray:
        """The group of every row under a method, as an index into the eight groups.

        Raises:
            NotMeasured: when the run did not use the method.
        """
        if method not in methods_of(self.seen):
            raise NotMeasured(f"Matching by {method} was not run.")
        return self.seen[method].cat.codes.to_numpy(dtype=np.int64)


def once(measure: Callable[[OriginsRun], _T]) -> Callable[[OriginsRun], _T]:
    """The function, computed once for each run; the result is kept as long as the run is."""
    kept: WeakKeyDictionary[OriginsRun, _T] = WeakKeyDictionary()

    @wraps(measure)
    def found(run: OriginsRun) -> _T:
        if run not in kept:
            kept[run] = measure(run)
        return kept[run]

    return found


@dataclass(frozen=True, eq=False)
class SteeringRun:
    """A steering sweep: its grid, and the chosen settings on fresh samples.

    Attributes:
        grid: every setting.
        confirmed: the chosen settings, with their roles; None if they were not measured again.
        starts: theme -> layer -> number of features the theme starts from there.
    """

    grid: Cells
    confirmed: Cells | None
    starts: Mapping[str, Mapping[int, int]]

    @property
    def fresh(self) -> Cells:
        """The chosen settings on fresh samples.

        Raises:
            NotMeasured: when there are none.
        """
        if self.confirmed is None:
            raise NotMeasured("The chosen settings were not measured again on fresh samples.")
        return self.confirmed


@dataclass(frozen=True, eq=False)
class TransitionRun:
    """Explained variance of each map, as sums over the tokens of a text.

    Attributes:
        names: the maps.
        missed: squared error, (texts, pairs of sites, maps); NaN where a map was not possible.
        total: squared distance from the mean, (texts, pairs).
        tokens: (texts, pairs).
        datasets: the data set of each text, as a number.
    """

    names: tuple[str, ...]
    missed: np.ndarray
    total: np.ndarray
    tokens: np.ndarray
    datasets: np.ndarray


@dataclass(frozen=True, eq=False)
class GraphsRun:
    """Flow graphs by seed, the comparison with Table 5 if it was made, and by seed why a file cannot be read."""

    graphs: Mapping[str, FlowGraph] = field(default_factory=dict[str, FlowGraph])
    acceptance: Mapping[str, Any] | None = None
    damaged: Mapping[str, str] = field(default_factory=dict[str, str])


class Evidence:
    """Everything a reproduction measured, stage by stage."""

    def __init__(self, out: Path | None = None, *, why: Mapping[str, str] | None = None, **runs: object) -> None:
        """Take a folder, or runs that are in memory already, by stage (`origins=OriginsRun(…)`).

        Args:
            out: the folder of the reproduction.
            why: the reason a stage was left out, by stage.
            runs: runs that need no folder.
        """
        self.out, self._why, self._runs = out, dict(why or {}), dict(runs)

    def run(self, stage: str) -> Any:
        """What a stage gave: `OriginsRun`, `trials_frame`, `SteeringRun`, `TransitionRun` or `GraphsRun`.

        Raises:
            NotMeasured: when the stage was not run, was killed or cannot be read; a failed stage is not read again.
        """
        if stage not in self._runs:
            try:
                self._runs[stage] = self._read(stage)
            except NotMeasured as error:
                self._runs[stage] = error
        found = self._runs[stage]
        if isinstance(found, NotMeasured):
            raise found
        return found

    def _read(self, stage: str) -> object:
        if stage == "graphs":
            return GraphsRun() if self.out is None else read_graphs(self.out / stage)
        if self.out is None or not (self.out / stage / MANIFEST).is_file():
            raise NotMeasured(self._why.get(stage) or f"The stage {stage} was not run.")
        try:
            return _READERS[stage](Results.open(self.out / stage))
        except NotMeasured:
            raise
        except SaeflowError as error:
            # for an unfinished stage the recorded reason says more than the error of its folder
            reason = self._why.get(stage) or f"The stage {stage} cannot be read: {error}"
            raise NotMeasured(reason) from None


def _origins(results: Results) -> OriginsRun:
    seen = observations(results.rows())
    fitted = results.record.request.arguments.get("pearson_datasets", [])
    new = tuple(name for name in seen["dataset"].unique() if name not in fitted) if fitted else ()
    return OriginsRun(seen, BestMatches.of(results), new)


def steering_run(results: Results) -> SteeringRun:
    """The results in the folder of a sweep.

    Raises:
        InvalidArgument: when no judge has scored it.
        BadFile: when a file of the folder is damaged.
    """
    grid = Cells.of(results, read_scores(results, ""))
    starts: dict[str, dict[int, int]] = {}
    for unit in results.units():
        layers = starts.setdefault(unit["theme"], {})
        if not layers:
            for site, (_, n) in unit["features"].items():
                layer = int(site.split("/")[0])
                layers[layer] = layers.get(layer, 0) + n
    return SteeringRun(grid, confirmed_cells(results, grid.judge), starts)


def _transition(results: Results) -> TransitionRun:
    try:
        lines = measured(results.rows())
    except InvalidArgument:
        raise NotMeasured("The stage transition has no rows yet.") from None
    pairs, names = lines["pair"].unique().tolist(), lines["map"].unique().tolist()
    wide = lines.pivot(index=TEXT, columns=["pair", "map"], values="missed")
    known = wide.loc[:, wide.notna().any()].fillna(0.0)  # the others stay NaN: folding is not possible everywhere
    missed = known.reindex(columns=pd.MultiIndex.from_product([pairs, names]))
    each = lines.drop_duplicates([*TEXT, "pair"])
    total, tokens = (
        each.pivot(index=TEXT, columns="pair", values=name).fillna(0.0)[pairs].to_numpy(dtype=np.float64)
        for name in ("total", "tokens")
    )
    datasets = pd.factorize(wide.index.get_level_values("dataset"))[0]
    shape = len(datasets), len(pairs), len(names)
    return TransitionRun(tuple(names), missed.to_numpy().reshape(shape), total, tokens, datasets)


_READERS: Final[Mapping[str, Callable[[Results], object]]] = {
    "origins": _origins,
    "deactivation": lambda results: trials_frame(results.rows()),
    "steering": steering_run,
    "transition": _transition,
}
STAGES: Final = tuple(_READERS)
"""The stages whose results are rows."""


def read_graphs(folder: Path) -> GraphsRun:
    """The graphs of a folder by seed; of a file that cannot be read, its name stands for the seed.

    Raises:
        NotMeasured: when `acceptance.json` exists but cannot be read.
    """
    graphs: dict[str, FlowGraph] = {}
    damaged: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == ACCEPTANCE:
            continue
        try:
            graph = FlowGraph.from_json(read_text(path))
        except (OSError, ValueError, BadFile) as error:
            damaged[path.stem.replace(".", "/")] = f"{path.name} cannot be read: {error}"
            continue
        graphs.setdefault(str(graph.seed), graph)
    path = folder / ACCEPTANCE
    if not path.is_file():
        return GraphsRun(graphs, damaged=damaged)
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise NotMeasured(f"{path.name} cannot be read ({error}).") from None
    return GraphsRun(graphs, cast("dict[str, Any]", data) if isinstance(data, dict) else None, damaged)
