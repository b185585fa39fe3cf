"""Names of places and features: `24/res` and `24/res/14548`.

The lowest layer of the package: everything else speaks in these. A site is a layer and a part; a
feature is a row of the dictionary trained there (section 3.3 of arXiv 2502.03032 calls the parts
R_L, M_L and A_L).
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import total_ordering

from saeflow.errors import InvalidId


class Part(enum.StrEnum):
    """Where in a layer a dictionary is trained, in the order the layer computes them."""

    ATT = "att"
    MLP = "mlp"
    RES = "res"

    @property
    def rank(self) -> int:
        """0 for attention, 1 for the MLP, 2 for the residual stream after both."""
        return ("att", "mlp", "res").index(self.value)


_SITE = re.compile(r"(0|[1-9][0-9]{0,3})/(att|mlp|res)")
_FEATURE = re.compile(r"(0|[1-9][0-9]{0,3})/(att|mlp|res)/(0|[1-9][0-9]{0,8})")


@total_ordering
@dataclass(frozen=True, slots=True)
class Site:
    """A layer and a part of it, written `24/res`. Layers count from 0."""

    layer: int
    part: Part

    def __post_init__(self) -> None:
        """Refuse a negative layer."""
        if self.layer < 0:
            raise InvalidId(f"layer {self.layer} of a site is negative. Layers count from 0.")

    @staticmethod
    def parse(text: str) -> Site:
        """Read `24/res`; `str` is the inverse.

        Raises:
            InvalidId: when `text` has another form.
        """
        found = _SITE.fullmatch(text)
        if found is None:
            raise InvalidId(f"{text!r} is no site. Write layer/part with part one of att, mlp, res: '24/res'.")
        return Site(int(found[1]), Part(found[2]))

    def __str__(self) -> str:
        """`24/res`."""
        return f"{self.layer}/{self.part.value}"

    def __lt__(self, other: Site) -> bool:
        """Order of computation: by layer, then attention, MLP, residual stream."""
        return (self.layer, self.part.rank) < (other.layer, other.part.rank)

    @property
    def predecessors(self) -> tuple[Site, ...]:
        """The sites whose features are matched to this one's (section 3.3).

        R_L has R_{L-1} (from layer 1 on), M_L and A_L. A module has none: its decoder rows are what
        it writes, and matching rows does not look inside it.
        """
        if self.part is not Part.RES:
            return ()
        modules = (Site(self.layer, Part.MLP), Site(self.layer, Part.ATT))
        return modules if self.layer == 0 else (Site(self.layer - 1, Part.RES), *modules)

    @property
    def successor(self) -> Site:
        """The next residual site this one writes into: R_{L+1} for R_L, R_L for M_L and A_L."""
        return Site(self.layer + 1 if self.part is Part.RES else self.layer, Part.RES)


@total_ordering
@dataclass(frozen=True, slots=True)
class FeatureId:
    """One row of the dictionary at a site, written `24/res/14548`. Rows count from 0."""

    site: Site
    index: int

    def __post_init__(self) -> None:
        """Refuse a negative index."""
        if self.index < 0:
            raise InvalidId(f"feature index {self.index} at {self.site} is negative. Rows count from 0.")

    @staticmethod
    def parse(text: str) -> FeatureId:
        """Read `24/res/14548`; `str` is the inverse.

        Raises:
            InvalidId: when `text` has another form.
        """
        found = _FEATURE.fullmatch(text)
        if found is None:
            raise InvalidId(
                f"{text!r} is no feature. Write layer/part/index with part one of att, mlp, res: '24/res/14548'."
            )
        return FeatureId(Site(int(found[1]), Part(found[2])), int(found[3]))

    def __str__(self) -> str:
        """`24/res/14548`."""
        return f"{self.site}/{self.index}"

    def __lt__(self, other: FeatureId) -> bool:
        """By site, then by row."""
        return (self.site, self.index) < (other.site, other.index)

    @property
    def layer(self) -> int:
        """The layer of the feature's site."""
        return self.site.layer

    @property
    def part(self) -> Part:
        """The part of the feature's site."""
        return self.site.part
