"""What the folders of a reproduction hold, as claims read it: rows as columns, opened when first asked for. No torch.

    OUT/origins, deactivation, steering, transition, graphs  ->  Evidence

A stage that was not run, was killed, or cannot be read raises `NotMeasured` with the reason, and only the claims that
need it go without a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np

from saeflow.errors import BadFile, SaeflowError
from saeflow.experiments.observations import Matched, Observations
from saeflow.experiments.results import MANIFEST, Results
from saeflow.experiments.tables import Texts
from saeflow.experiments.trials import Trials
from saeflow.flow.graph import FlowGraph
from saeflow.reading import read_json, read_text
from saeflow.reproduce.verdicts import NotMeasured
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.cells import Cell, Cells
from saeflow.steering.sweep.confirm import FOLDER
from saeflow.steering.sweep.scoring import read_scores
from saeflow.steering.sweep.settings import Setting

STAGES: Final = ("origins", "deactivation", "steering", "transition")
ACCEPTANCE: Final = "acceptance.json"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class OriginsRun:
    """Rows of `origins`, and the data sets that the Pearson tables had not seen."""

    seen: Observations
    matched: Matched
    new_to_pearson: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SteeringRun:
    """A sweep: its grid, and the chosen settings on fresh samples.

    Attributes:
        grid: every setting.
        confirmed: the chosen ones; None where they were not measured again.
        roles: why each of those was chosen.
        starts: theme -> layer -> how many features the theme starts from there.
    """

    grid: Cells
    confirmed: Cells | None
    roles: Mapping[Cell, str]
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
        missed: texts by pairs of sites by maps: squared error.
        total: texts by pairs: squared distance from the mean.
        tokens: texts by pairs.
        datasets: of each text, as a number.
    """

    names: tuple[str, ...]
    missed: np.ndarray
    total: np.ndarray
    tokens: np.ndarray
    datasets: np.ndarray


@dataclass(frozen=True, eq=False)
class GraphsRun:
    """Flow graphs by seed, and the comparison with Table 5 where it was made."""

    graphs: Mapping[str, FlowGraph] = field(default_factory=dict[str, FlowGraph])
    acceptance: Mapping[str, Any] | None = None


class Evidence:
    """Everything a reproduction measured, stage by stage."""

    def __init__(self, out: Path | None = None, *, why: Mapping[str, str] | None = None, **runs: object) -> None:
        """From a folder, or from runs already in hand by stage (`origins=OriginsRun(…)`).

        Args:
            out: the folder of the reproduction.
            why: why a stage was left out, by stage.
            runs: runs that need no folder.
        """
        self.out, self._why, self._runs = out, dict(why or {}), dict(runs)

    @cached_property
    def origins(self) -> OriginsRun:
        """Rows of `origins`."""
        return self._run("origins", OriginsRun, _origins)

    @cached_property
    def deactivation(self) -> Trials:
        """Trials of `deactivation`."""
        return self._run("deactivation", Trials, lambda results: Trials.of(results.rows()))

    @cached_property
    def steering(self) -> SteeringRun:
        """Cells of `steering`."""
        return self._run("steering", SteeringRun, _steering)

    @cached_property
    def transition(self) -> TransitionRun:
        """Sums of `transition`."""
        return self._run("transition", TransitionRun, _transition)

    @cached_property
    def graphs(self) -> GraphsRun:
        """Graphs and the comparison with Table 5."""
        given = self._runs.get("graphs")
        if given is not None or self.out is None:
            return cast("GraphsRun", given or GraphsRun())
        return read_graphs(self.out / "graphs")

    def _run(self, stage: str, kind: type[T], read: Callable[[Results], T]) -> T:
        given = self._runs.get(stage)
        if isinstance(given, kind):
            return given
        if isinstance(given, NotMeasured):  # asked before; a failure is not read twice
            raise given
        try:
            found = self._read(stage, read)
        except NotMeasured as error:
            self._runs[stage] = error
            raise
        self._runs[stage] = found
        return found

    def _read(self, stage: str, read: Callable[[Results], T]) -> T:
        if self.out is None or not (self.out / stage / MANIFEST).is_file():
            raise NotMeasured(self._why.get(stage) or f"The stage {stage} was not run.")
        try:
            return read(Results.open(self.out / stage))
        except NotMeasured:
            raise
        except SaeflowError as error:
            # of a stage that is not done the record says more than what its folder lacks
            told = self._why.get(stage) or f"The stage {stage} cannot be read: {error}"
            raise NotMeasured(told) from None


def _origins(results: Results) -> OriginsRun:
    seen = Observations.of(results.rows())
    fitted = results.record.request.arguments.get("pearson_datasets", [])
    new = tuple(name for name in seen.datasets if name not in fitted) if fitted else ()
    return OriginsRun(seen, Matched.of(results), new)


def _steering(results: Results) -> SteeringRun:
    grid = Cells.of(results, read_scores(results, ""))
    starts: dict[str, dict[int, int]] = {}
    for unit in results.units():
        layers = starts.setdefault(unit["theme"], {})
        if not layers:
            for site, (_, n) in unit["features"].items():
                layer = int(site.split("/")[0])
                layers[layer] = layers.get(layer, 0) + n
    again = results.folder / FOLDER
    if not (again / MANIFEST).is_file() or Results.open(again).record.finished is None:
        return SteeringRun(grid, None, {}, starts)
    fresh = Results.open(again)
    roles = {
        Cell(unit["theme"], SteeringDirection(unit["direction"]), Setting.of(setting)): role
        for unit in fresh.units()
        for setting, role in zip(unit["settings"], unit["roles"], strict=True)
    }
    return SteeringRun(grid, Cells.of(fresh, read_scores(fresh, grid.judge)), roles, starts)


def _transition(results: Results) -> TransitionRun:
    rows = list(results.rows())
    if not rows:
        raise NotMeasured("The stage transition has no rows yet.")
    texts = Texts.of([row["dataset"] for row in rows], [row["text"] for row in rows])
    at = texts.clusters([row["dataset"] for row in rows], [row["text"] for row in rows])
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    names = tuple(dict.fromkeys(name for row in rows for name in row["missed"]))
    place = {name: number for number, name in enumerate(names)}
    shape = len(texts.number), len(pairs)
    run = TransitionRun(names, np.zeros((*shape, len(names))), np.zeros(shape), np.zeros(shape), texts.datasets)
    there = np.zeros((len(pairs), len(names)), dtype=bool)
    for text, row in zip(at.tolist(), rows, strict=True):
        pair = pairs.index(row["pair"])
        run.total[text, pair], run.tokens[text, pair] = row["total"], row["tokens"]
        for name, values in row["missed"].items():
            run.missed[text, pair, place[name]], there[pair, place[name]] = values[0], True
    run.missed[:, ~there] = np.nan  # folding is not possible everywhere
    return run


def read_graphs(folder: Path) -> GraphsRun:
    """The graphs of a folder by seed; files that are no graph are passed over.

    Raises:
        NotMeasured: when `acceptance.json` is there and cannot be read.
    """
    graphs: dict[str, FlowGraph] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == ACCEPTANCE:
            continue
        try:
            graph = FlowGraph.from_json(read_text(path))
        except (OSError, ValueError, BadFile):
            continue
        graphs.setdefault(str(graph.seed), graph)
    path = folder / ACCEPTANCE
    if not path.is_file():
        return GraphsRun(graphs)
    try:
        told = read_json(path)
    except (OSError, ValueError) as error:
        raise NotMeasured(f"{path.name} cannot be read ({error}).") from None
    return GraphsRun(graphs, cast("dict[str, Any]", told) if isinstance(told, dict) else None)
