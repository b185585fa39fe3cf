"""What the three similarity scores of a residual feature say about it (section 3.3).

    s(P) = max_k  f . W_dec[P]_k      for P in {R_{L-1}, M_L, A_L}, rows of unit norm

The paper calls scores "high" and "low" and gives no number. Here `Thresholds.high` draws that line
for all three scores, apart from the cuts t(R) and t(M), t(A) that decide what stays in a graph.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields

from saeflow.errors import InvalidArgument
from saeflow.ids import Part


@dataclass(frozen=True, slots=True)
class Scores:
    """s(R), s(M), s(A) of one residual feature; None where no dictionary was matched."""

    res: float | None = None
    mlp: float | None = None
    att: float | None = None

    def of(self, part: Part) -> float | None:
        """The score against the predecessors at `part`."""
        return {Part.RES: self.res, Part.MLP: self.mlp, Part.ATT: self.att}[part]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where a graph is cut, and which score counts as high. Cosines in [-1, 1].

    `res` is t(R): the flow stops where s(R) falls below it. `module` is t(M) and t(A): a module
    feature below it is dropped; `mlp` and `att` override it for one part. Defaults are those of
    appendix B.2; 0 for `res` follows the flow through the whole depth, as figure 2 does.

    Raises:
        InvalidArgument: for a threshold outside [-1, 1].
    """

    res: float = 0.5
    module: float = 0.15
    mlp: float | None = None
    att: float | None = None
    high: float = 0.5

    def __post_init__(self) -> None:
        """Check every range."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not -1.0 <= value <= 1.0:
                raise InvalidArgument(
                    f"threshold {field.name}={value} is no cosine. Give a number between -1 and 1, such as 0.5."
                )

    def of(self, part: Part) -> float:
        """The cut that applies to predecessors at `part`."""
        if part is Part.RES:
            return self.res
        own = self.mlp if part is Part.MLP else self.att
        return self.module if own is None else own


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
        """What the case means, in a sentence."""
        return _SENTENCES[self]


_SENTENCES = {
    Evolution.TRANSLATED: "It was there in the previous layer and is carried on.",
    Evolution.PROCESSED: "It was there in the previous layer, and a module of this layer writes it too.",
    Evolution.NEWBORN: "The previous layer has nothing like it: a module of this layer writes it.",
    Evolution.UNEXPLAINED: "No predecessor points its way: similarity alone does not explain it.",
}


def evolution(scores: Scores, high: float) -> Evolution:
    """Cases A to D of section 3.3, with `high` as the line between high and low."""
    carried = scores.res is not None and scores.res >= high
    written = any(s is not None and s >= high for s in (scores.mlp, scores.att))
    if carried:
        return Evolution.PROCESSED if written else Evolution.TRANSLATED
    return Evolution.NEWBORN if written else Evolution.UNEXPLAINED
