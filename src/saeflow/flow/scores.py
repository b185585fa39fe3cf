"""How the three similarity scores of a residual feature are read (section 3.3).

    s(P) = max_k  f . W_dec[P]_k      for P in {R_{L-1}, M_L, A_L}, rows of unit norm

The paper calls scores "high" and "low", "specific for each layer", without giving numbers. Plain `Thresholds` use
one line, `high`, for all three scores, separate from the cuts t(R), t(M) and t(A) that decide what stays in a
graph. `Thresholds.calibrated` sets one line per layer and part, from the scores that matches reach by chance.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from saeflow.errors import InvalidArgument
from saeflow.ids import Part, Site

T_RES: Final = 0.5
T_MODULE: Final = 0.15
"""t(R), and t(M) = t(A), of appendix B.2."""

HIGH: Final = 0.5
"""The line between high and low scores in plain thresholds."""


@dataclass(frozen=True, slots=True)
class Scores:
    """s(R), s(M) and s(A) of one residual feature; None for a part that was not matched."""

    res: float | None = None
    mlp: float | None = None
    att: float | None = None

    def of(self, part: Part) -> float | None:
        """The score against predecessors at `part`."""
        return {Part.RES: self.res, Part.MLP: self.mlp, Part.ATT: self.att}[part]


@runtime_checkable
class Calibrated(Protocol):
    """What `Thresholds.calibrated` needs from an atlas."""

    def cuts(self, fdr: float) -> dict[tuple[Site, Site], float]:
        """For each ordered pair, the lowest best-match score that is significant at a false-discovery rate."""
        ...


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where a graph is cut, and which scores count as high. Cosines in [-1, 1].

    `res` is t(R): the flow stops where s(R) falls below it. `module` is t(M) and t(A): module features that score
    lower are dropped; `mlp` and `att` override it for one part. The defaults are those of appendix B.2; `res` = 0
    follows the flow through all layers, as figure 2 does.

    Attributes:
        res: t(R).
        module: t(M) and t(A).
        mlp: t(M), if it differs from `module`.
        att: t(A), if it differs from `module`.
        high: The line between high and low scores.
        cuts: Calibrated cuts, keyed by the layer of the residual feature and the part of its predecessor. A
            calibrated cut replaces both t and `high`.
        ahead: The same for matches found forward, from the predecessor.
        fdr: The false-discovery rate of the calibrated cuts; None for plain thresholds.

    Raises:
        InvalidArgument: for a threshold outside [-1, 1].
    """

    res: float = T_RES
    module: float = T_MODULE
    mlp: float | None = None
    att: float | None = None
    high: float = HIGH
    cuts: Mapping[tuple[int, Part], float] = field(default_factory=dict[tuple[int, Part], float], hash=False)
    ahead: Mapping[tuple[int, Part], float] = field(default_factory=dict[tuple[int, Part], float], hash=False)
    fdr: float | None = None

    def __post_init__(self) -> None:
        """Check all ranges."""
        named = {"res": self.res, "module": self.module, "mlp": self.mlp, "att": self.att, "high": self.high}
        layers = {f"{part.value} of layer {layer}": cut for (layer, part), cut in self.cuts.items()}
        for name, value in {**named, **layers}.items():
            if value is not None and not -1.0 <= value <= 1.0:
                raise InvalidArgument(
                    f"threshold {name}={value} is no cosine. Give a number between -1 and 1, such as 0.5."
                )

    @staticmethod
    def calibrated(atlas: Calibrated, fdr: float = 0.01) -> Thresholds:
        """Thresholds for each layer and part, set from the scores that matches reach by chance.

        Among the best matches of all features of a pair of sites, those at or above the pair's cut are significant
        at the false-discovery rate `fdr` (Benjamini and Hochberg 1995). The same cut is the line between high and
        low scores. Pairs without a null keep the plain thresholds.

        Raises:
            InvalidArgument: when the atlas has no nulls (`saeflow atlas calibrate`), or `fdr` is not between
                0 and 1.
        """
        cuts: dict[tuple[int, Part], float] = {}
        ahead: dict[tuple[int, Part], float] = {}
        for (source, target), cut in sorted(atlas.cuts(fdr).items()):
            child, parent = max(source, target), min(source, target)
            if child.flows_from(parent):
                (cuts if child == source else ahead)[child.layer, parent.part] = cut
        return Thresholds(cuts=cuts, ahead=ahead, fdr=fdr)

    def of(self, part: Part, layer: int | None = None, *, ahead: bool = False) -> float:
        """The cut for predecessors at `part` of residual features in `layer`; without a layer, the plain cut.

        With `ahead`, the cut for matches found forward.
        """
        found = None if layer is None else (self.ahead if ahead else self.cuts).get((layer, part))
        if found is not None:
            return found
        if part is Part.RES:
            return self.res
        own = self.mlp if part is Part.MLP else self.att
        return self.module if own is None else own

    def line(self, part: Part, layer: int | None = None) -> float:
        """The score from which a predecessor at `part` counts as high: the calibrated cut, or `high`."""
        found = None if layer is None else self.cuts.get((layer, part))
        return self.high if found is None else found

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers with a calibrated cut, ascending."""
        return tuple(sorted({layer for layer, _ in self.cuts}))


class Evolution(enum.StrEnum):
    """The four cases A to D of section 3.3."""

    TRANSLATED = "translated"
    PROCESSED = "processed"
    NEWBORN = "newborn"
    UNEXPLAINED = "unexplained"

    @property
    def case(self) -> str:
        """The paper's letter."""
        return "ABCD"[list(Evolution).index(self)]

    @property
    def sentence(self) -> str:
        """The meaning of the case, in a sentence."""
        return _SENTENCES[self]


_SENTENCES = {
    Evolution.TRANSLATED: "It was there in the previous layer and is carried on.",
    Evolution.PROCESSED: "It was there in the previous layer, and a module of this layer writes it too.",
    Evolution.NEWBORN: "The previous layer has nothing like it: a module of this layer writes it.",
    Evolution.UNEXPLAINED: "No predecessor points its way: similarity alone does not explain it.",
}


def evolution(scores: Scores, high: float | Mapping[Part, float]) -> Evolution:
    """Classify scores into cases A to D of section 3.3; `high` is one line for all parts, or one per part."""

    def reaches(part: Part) -> bool:
        score = scores.of(part)
        return score is not None and score >= (high[part] if isinstance(high, Mapping) else high)

    written = reaches(Part.MLP) or reaches(Part.ATT)
    if reaches(Part.RES):
        return Evolution.PROCESSED if written else Evolution.TRANSLATED
    return Evolution.NEWBORN if written else Evolution.UNEXPLAINED
