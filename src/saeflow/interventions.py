"""Edits of hidden states as plain data: what to change at a site, not the code that changes it.

The first two edits cover the experiments of arXiv 2502.03032. With h the hidden state at a site, a the
activations of the chosen features on it and V their decoder rows:

    Rescale(features, r)      h + (r - 1) a V      section 4.2: r = 0 removes, r = 1 changes nothing
    Add({feature: strength})  h + s V              section 4.2 and appendix B: steering
    AddVector(site, v)        h + v                any direction, such as a difference of means

`Add` can be limited to tokens where its features are active (`only_active`). `Add` and `AddVector` can preserve the
norm of h (`keep_norm`): the result h' becomes h' |h| / |h'|.

`LanguageModel.intervening` looks up the vectors and applies the edits; plans and experiments only build
them. An edit names features of one site, so changing several layers takes a sequence of edits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site


@dataclass(frozen=True, slots=True)
class Span:
    """Token positions from `start` up to but excluding `stop`; without `stop`, to the end of the text.

    Positions count the tokens of each text from 0, prompt first, then generated tokens; padding is not counted.
    """

    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        """Reject negative bounds: during generation the end of the text is unknown."""
        if self.start < 0 or (self.stop is not None and self.stop < self.start):
            raise InvalidArgument(
                f"the span of positions {self.start} to {self.stop} is none. "
                "Count from 0, with start not after stop; leave stop out to reach every later token."
            )

    def __str__(self) -> str:
        """Describe the span in words, for messages."""
        if self.stop is None:
            return f"tokens from position {self.start} on"
        return f"tokens at positions {self.start} to {self.stop - 1}"

    def __contains__(self, position: int) -> bool:
        """Whether a position is in the span."""
        return position >= self.start and (self.stop is None or position < self.stop)


@dataclass(frozen=True, slots=True)
class Positions:
    """Exactly these token positions, counted as in `Span`."""

    at: tuple[int, ...]

    def __post_init__(self) -> None:
        """Reject negative positions: during generation the end of the text is unknown."""
        if any(position < 0 for position in self.at):
            raise InvalidArgument(f"positions {self.at} hold a negative one. Count from 0 at the first token.")

    def __str__(self) -> str:
        """Describe the positions in words, for messages."""
        return f"tokens at positions {', '.join(map(str, self.at))}"

    def __contains__(self, position: int) -> bool:
        """Whether a position is one of these."""
        return position in self.at


Where: TypeAlias = Span | Positions
"""Which tokens an edit touches."""

EVERYWHERE = Span()
"""Every token of the prompt and every generated token."""


def _one_site(features: tuple[FeatureId, ...]) -> Site:
    sites = sorted({feature.site for feature in features})
    if len(sites) != 1:
        found = ", ".join(map(str, sites)) or "none"
        raise InvalidArgument(
            f"an edit changes one site, and its {len(features)} features name: {found}. Make one edit a site."
        )
    if len(set(features)) != len(features):
        twice = sorted({str(feature) for feature in features if features.count(feature) > 1})
        raise InvalidArgument(f"an edit names {', '.join(twice)} more than once. Name each feature once.")
    return sites[0]


@dataclass(frozen=True, slots=True)
class Rescale:
    """Multiply what `features` of one site write by `r`: h + (r - 1) a V (section 4.2).

    All activations a are read from the unedited hidden state, so the features of one `Rescale` change jointly,
    and an inactive feature has no effect. r = 0 removes a feature; r = 1 leaves the state bit-identical.
    `r` is one factor for all features, or a tuple with one factor per feature, in order.

    Raises:
        InvalidArgument: when there are no features, they are from several sites, one is named twice, a factor is
            not finite, or the number of factors differs from the number of features.
    """

    features: tuple[FeatureId, ...]
    r: float | tuple[float, ...] = 0.0
    tokens: Where = EVERYWHERE

    def __post_init__(self) -> None:
        """Check the features and the factors."""
        _one_site(self.features)
        if isinstance(self.r, tuple) and len(self.r) != len(self.features):
            raise InvalidArgument(
                f"a Rescale of {len(self.features)} features at {self.site} has {len(self.r)} factors "
                f"r = {self.r}. Give one factor for all features, or one for each."
            )
        if not all(map(math.isfinite, self.factors)):
            raise InvalidArgument(f"the factor r = {self.r} of a Rescale is not finite. 0 removes, 1 keeps.")

    @property
    def factors(self) -> tuple[float, ...]:
        """The factor of each feature, in the order of `features`."""
        return self.r if isinstance(self.r, tuple) else (self.r,) * len(self.features)

    @property
    def site(self) -> Site:
        """The site whose hidden state is changed."""
        return self.features[0].site


@dataclass(frozen=True, slots=True)
class Add:
    """Add decoder directions of one site at given strengths, whatever the activations: h + s V (section 4.2).

    V is the decoder row in the residual stream scaled to unit norm, so |s| is the norm of the change. Where a release
    has unit-norm rows, as Gemma Scope does up to rounding, V is the row itself.

    Attributes:
        strengths: s of each feature, in the units of the hidden state.
        tokens: which tokens are changed.
        only_active: whether to add a feature only at tokens where its encoder finds it active in the incoming hidden
            state, which includes the additions of earlier layers.
        keep_norm: whether to rescale each token's hidden state to the norm it had before.

    Raises:
        InvalidArgument: when there are no features, they are from several sites, or a strength is not finite.
    """

    strengths: Mapping[FeatureId, float] = field(hash=False)
    tokens: Where = EVERYWHERE
    only_active: bool = False
    keep_norm: bool = False

    def __post_init__(self) -> None:
        """Check the features and strengths, and keep a private, sorted copy."""
        _one_site(tuple(self.strengths))
        bad = {str(feature): s for feature, s in self.strengths.items() if not math.isfinite(s)}
        if bad:
            raise InvalidArgument(f"the strengths {bad} of an Add are not finite. Give numbers.")
        object.__setattr__(self, "strengths", dict(sorted(self.strengths.items())))

    def __hash__(self) -> int:
        """Hash equal edits alike, regardless of the order in which the strengths were given."""
        return hash((tuple(self.strengths.items()), self.tokens, self.only_active, self.keep_norm))

    @property
    def features(self) -> tuple[FeatureId, ...]:
        """The features added, sorted."""
        return tuple(self.strengths)

    @property
    def site(self) -> Site:
        """The site whose hidden state is changed."""
        return next(iter(self.strengths)).site


@dataclass(frozen=True, slots=True)
class AddVector:
    """Add one vector to the hidden state at a site, whatever the activations: h + v.

    Attributes:
        site: the site whose hidden state is changed.
        vector: as wide as the residual stream, in the units of the hidden state.
        tokens: which tokens are changed.
        keep_norm: as for `Add`.

    Raises:
        InvalidArgument: when a value of the vector is not finite.
    """

    site: Site
    vector: tuple[float, ...]
    tokens: Where = EVERYWHERE
    keep_norm: bool = False

    def __post_init__(self) -> None:
        """Reject a vector with a value that is not finite."""
        if not all(map(math.isfinite, self.vector)):
            raise InvalidArgument(f"the vector of an AddVector at {self.site} has values that are not finite.")


Edit: TypeAlias = Rescale | Add | AddVector
"""An edit of the hidden state at one site."""
