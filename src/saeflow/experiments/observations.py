"""Rows of the origins experiment as columns, one entry for each active feature at a token. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.records import Origin
from saeflow.experiments.results import Results, Row
from saeflow.experiments.tables import Texts
from saeflow.ids import Part, Site
from saeflow.reading import safetensors


@dataclass(frozen=True, slots=True, eq=False)
class Observations:
    """Every active feature at every sampled token.

    Attributes:
        texts: the clusters.
        cluster: the text of each entry.
        dataset: number of its dataset in `datasets`.
        layer: L of its residual site.
        feature: its row in the dictionary there.
        groups: for each method, the value of its `Origin`.
        datasets: names, in the order of the run.
    """

    texts: Texts
    cluster: Int[np.ndarray, " n"]
    dataset: Int[np.ndarray, " n"]
    layer: Int[np.ndarray, " n"]
    feature: Int[np.ndarray, " n"]
    groups: Mapping[str, Int[np.ndarray, " n"]]
    datasets: tuple[str, ...]

    @property
    def layers(self) -> list[int]:
        """The layers there are."""
        return np.unique(self.layer).tolist()

    @staticmethod
    def of(rows: Iterable[Row]) -> Observations:
        """From the rows of a results folder.

        Raises:
            InvalidArgument: when there is no row, or none with an active feature.
        """
        kept = list(rows)
        sizes = np.array([len(row["features"]) for row in kept], dtype=np.int64)
        if not sizes.sum():
            raise InvalidArgument("the run has no active feature at any token. Give more texts or tokens.")
        texts = Texts.of([row["dataset"] for row in kept], [row["text"] for row in kept])
        names = tuple(dict.fromkeys(row["dataset"] for row in kept))
        place = {name: code for code, name in enumerate(names)}
        each = np.array(
            [(texts.number[row["dataset"], row["text"]], place[row["dataset"]], row["layer"]) for row in kept]
        )
        cluster, dataset, layer = np.repeat(each, sizes, axis=0).T
        feature = np.fromiter((f for row in kept for f in row["features"]), np.int64, int(sizes.sum()))
        groups = {
            method: np.frombuffer("".join(row["groups"][method] for row in kept).encode(), np.uint8).astype(np.int64)
            - ord("0")
            for method in kept[0]["groups"]
        }
        return Observations(texts, cluster, dataset, layer, feature, groups, names)


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """The best match and score of every feature under every method, as the run kept them."""

    arrays: Mapping[str, np.ndarray]

    @staticmethod
    def read(path: Path) -> Matched:
        """From the file of a results folder.

        Raises:
            BadFile: when it is missing or damaged.
        """
        try:
            return Matched(load_file(safetensors(path)))
        except (OSError, ValueError, SafetensorError) as error:
            raise BadFile(f"{path} cannot be read ({error}). Run the experiment's command again.") from None

    @staticmethod
    def of(results: Results) -> Matched:
        """Those of a results folder.

        Raises:
            BadFile: when the file is missing or damaged.
        """
        return Matched.read(results.folder / "matches.safetensors")

    def _array(self, method: str, layer: int, part: Part, what: str) -> np.ndarray | None:
        site = Site(layer, Part.RES)
        for predecessor in site.predecessors:
            if predecessor.part is part:
                return self.arrays.get(f"{method} {site}-{predecessor} {what}")
        return None

    def index(self, method: str, layer: int, part: Part) -> Int[np.ndarray, " n_source"] | None:
        """The best match of each feature, -1 for none; None where the method has no table."""
        return self._array(method, layer, part, "index")

    def score(self, method: str, layer: int, part: Part) -> Float[np.ndarray, " n_source"] | None:
        """s(P) of each feature, NaN for none; None where the method has no table."""
        return self._array(method, layer, part, "score")

    def scores_of(self, method: str, seen: Observations, part: Part) -> Float[np.ndarray, " n"]:
        """s(P) of each observed feature; NaN where it has none."""
        found = np.full(len(seen.feature), np.nan)
        for layer in seen.layers:
            score = self.score(method, layer, part)
            if score is not None:
                here = seen.layer == layer
                found[here] = score[seen.feature[here]]
        return found


def is_on(groups: Int[np.ndarray, " n"], part: Part) -> Bool[np.ndarray, " n"]:
    """Whether the predecessor at `part` is active, from values of `Origin`."""
    return (groups & Origin[part.name].value) > 0
