"""Names of sites and features: `24/res` and `24/res/14548`.

Everything else in the package uses these. A site is a layer and a part; a feature is a row of the
dictionary trained at that site. Section 3.3 of arXiv 2502.03032 calls the residual stream, MLP and
attention of layer L R_L, M_L and A_L.
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering
from typing import TypeAlias

from saeflow.errors import InvalidId


class Part(enum.StrEnum):
    """The part of a layer that a dictionary is trained on, in the order the layer computes them."""

    ATT = "att"
    MLP = "mlp"
    RES = "res"

    @property
    def rank(self) -> int:
        """0 for attention, 1 for the MLP, 2 for the residual stream after both."""
        return ("att", "mlp", "res").index(self.value)


_PARTS = {part.value: part for part in Part}
_SITE = re.compile(r"(0|[1-9][0-9]{0,3})/(att|mlp|res)")
_FEATURE = re.compile(r"(0|[1-9][0-9]{0,3})/(att|mlp|res)/(0|[1-9][0-9]{0,8})")


@total_ordering
@dataclass(frozen=True, slots=True, init=False)
class Site:
    """A layer and one of its parts, written `24/res`. Layers count from 0."""

    layer: int
    part: Part

    def __init__(self, layer: int | str, part: Part | str | None = None) -> None:
        """Accept `Site(24, Part.RES)`, `Site(24, "res")` or `Site("24/res")`.

        Raises:
            InvalidId: for anything else.
        """
        if isinstance(layer, str) and part is None:
            found = _SITE.fullmatch(layer)
            if found is None:
                raise InvalidId(f"{layer!r} is no site. Write layer/part with part one of att, mlp, res: '24/res'.")
            layer, part = int(found[1]), found[2]
        if isinstance(layer, str) or not hasattr(layer, "__index__") or part not in _PARTS:
            raise InvalidId(
                f"layer {layer!r} and part {part!r} are no site. Give an integer and one of att, mlp, res, or '24/res'."
            )
        if layer < 0:
            raise InvalidId(f"layer {layer} of a site is negative. Layers count from 0.")
        object.__setattr__(self, "layer", operator.index(layer))  # also accepts numpy integers
        object.__setattr__(self, "part", _PARTS[part])

    @staticmethod
    def parse(text: str) -> Site:
        """Parse `24/res`; `str` is the inverse.

        Raises:
            InvalidId: when `text` has another form.
        """
        return Site(text)

    @staticmethod
    def of(site: SiteLike) -> Site:
        """Return a site unchanged, or parse its name, for functions that accept either.

        Raises:
            InvalidId: for anything else.
        """
        return site if isinstance(site, Site) else Site(site)

    def __str__(self) -> str:
        """`24/res`."""
        return f"{self.layer}/{self.part}"

    def __lt__(self, other: Site) -> bool:
        """Order of computation: by layer, then attention, MLP, residual stream."""
        return (self.layer, self.part.rank) < (other.layer, other.part.rank)

    @property
    def predecessors(self) -> tuple[Site, ...]:
        """The sites whose features are matched to the features of this one (section 3.3).

        R_L has R_{L-1} (from layer 1 on), M_L and A_L. A module has none: its decoder rows say what
        it writes, and matching rows does not look inside it.
        """
        if self.part is not Part.RES or self.layer == 0:
            return self.modules
        return (Site(self.layer - 1, Part.RES), *self.modules)

    @property
    def modules(self) -> tuple[Site, ...]:
        """M_L and A_L, the modules that write into a residual site; empty for a module."""
        return () if self.part is not Part.RES else (Site(self.layer, Part.MLP), Site(self.layer, Part.ATT))

    def flows_from(self, site: Site) -> bool:
        """Whether a flow can lead from `site` to this residual site: from a residual site below, or from its modules.

        Among the residual sites below, a flow takes the nearest one that exists.
        """
        below = site.part is Part.RES and site.layer < self.layer
        return self.part is Part.RES and (below or site in self.modules)

    @property
    def successor(self) -> Site:
        """The next residual site that this site writes into: R_{L+1} for R_L, R_L for M_L and A_L."""
        return Site(self.layer + 1 if self.part is Part.RES else self.layer, Part.RES)


@total_ordering
@dataclass(frozen=True, slots=True, init=False)
class FeatureId:
    """One row of the dictionary at a site, written `24/res/14548`. Rows count from 0."""

    site: Site
    index: int

    def __init__(self, site: Site | str, index: int | None = None) -> None:
        """Accept `FeatureId(Site(24, "res"), 14548)`, `FeatureId("24/res", 14548)` or `FeatureId("24/res/14548")`.

        Raises:
            InvalidId: for anything else.
        """
        if isinstance(site, str) and index is None:
            found = _FEATURE.fullmatch(site)
            if found is None:
                raise InvalidId(
                    f"{site!r} is no feature. Write layer/part/index with part one of att, mlp, res: '24/res/14548'."
                )
            site, index = Site(int(found[1]), found[2]), int(found[3])
        if not hasattr(index, "__index__"):
            raise InvalidId(f"{site!r} and {index!r} are no feature. Give a site and an integer, or '24/res/14548'.")
        row = operator.index(index)  # pyright: ignore[reportArgumentType]
        if row < 0:
            raise InvalidId(f"feature index {row} at {site} is negative. Rows count from 0.")
        object.__setattr__(self, "site", Site.of(site))
        object.__setattr__(self, "index", row)

    @staticmethod
    def parse(text: str) -> FeatureId:
        """Parse `24/res/14548`; `str` is the inverse.

        Raises:
            InvalidId: when `text` has another form.
        """
        return FeatureId(text)

    @staticmethod
    def of(feature: FeatureLike) -> FeatureId:
        """Return a feature unchanged, or parse its name, for functions that accept either.

        Raises:
            InvalidId: for anything else.
        """
        return feature if isinstance(feature, FeatureId) else FeatureId(feature)

    def __str__(self) -> str:
        """`24/res/14548`."""
        return f"{self.site}/{self.index}"

    def __hash__(self) -> int:
        """Hash all three fields in one call, for speed: experiments look up millions of features."""
        return hash((self.site.layer, self.site.part, self.index))

    def __lt__(self, other: FeatureId) -> bool:
        """Order by site, then by row."""
        return (self.site, self.index) < (other.site, other.index)

    @property
    def layer(self) -> int:
        """The layer of the feature's site."""
        return self.site.layer

    @property
    def part(self) -> Part:
        """The part of the feature's site."""
        return self.site.part


SiteLike: TypeAlias = Site | str
"""A site or its name: `24/res`."""

FeatureLike: TypeAlias = FeatureId | str
"""A feature or its name: `24/res/14548`."""


def layers_by_part(sites: Iterable[Site]) -> str:
    """Describe sites by part, as in `res at layers 0-3, 5; mlp at layers 0`."""
    named, sites = list[str](), sorted(sites)
    for part in Part:
        runs: list[list[int]] = []
        for layer in (site.layer for site in sites if site.part is part):
            if runs and layer == runs[-1][1] + 1:
                runs[-1][1] = layer
            else:
                runs.append([layer, layer])
        if runs:
            layers = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
            named.append(f"{part.value} at layers {layers}")
    return "; ".join(named) or "no site"
