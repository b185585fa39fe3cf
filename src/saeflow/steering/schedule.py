"""How one steering coefficient is spread over the layers of a flow graph (appendix B.2). No torch.

With l the layer of a feature and l_start, l_end the first and last layer of the graph's residual features:

    Constant(s)              s' = s
    Linear(s, s_end)         s' = s at l_start, s_end at l_end, and on the straight line in between
    Exponential(s, alpha)    s' = s e^(alpha l)

Constant is exactly Linear with s_end = s, and Exponential with alpha = 0. The exponent uses the absolute layer, as in
the paper: with alpha < 0, a graph that starts at a later layer has a smaller coefficient at its first layer.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Final

from saeflow.errors import InvalidArgument

STRENGTH: Final = 1.0
"""Default s, at the first layer of a plan. The paper tunes s for each case."""
STRENGTH_END: Final = 1.5
"""Default s_end, at its last layer. Of 14 ways to steer the demo pack's themes these scored best (docs/steering.md)."""


class ScheduleKind(enum.StrEnum):
    """The name of a schedule in files and on the command line."""

    CONSTANT = "constant"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True)
class Schedule(ABC):
    """How a coefficient is spread over layers.

    Attributes:
        s: the coefficient.

    Raises:
        InvalidArgument: when one of its numbers is not finite.
    """

    kind: ClassVar[ScheduleKind]

    s: float

    def __post_init__(self) -> None:
        """Refuse values that are not finite."""
        for name, value in asdict(self).items():
            if not math.isfinite(value):
                raise InvalidArgument(f"{name} = {value} of a {self.kind.value} schedule is not finite. Give a number.")

    @abstractmethod
    def at(self, layer: int, span: tuple[int, int]) -> float:
        """The coefficient of a feature of `layer`, in a graph from `span[0]` to `span[1]`."""

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON values that `schedule_from` reads."""
        return {"kind": self.kind.value, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """The same coefficient at every layer: s' = s (appendix B.2)."""

    kind: ClassVar[ScheduleKind] = ScheduleKind.CONSTANT

    def at(self, layer: int, span: tuple[int, int]) -> float:  # noqa: ARG002 - one signature for all
        """The coefficient of any feature."""
        return self.s


@dataclass(frozen=True, slots=True)
class Linear(Schedule):
    """From s at l_start to s_end at l_end in equal steps: s' = k l + b (appendix B.2, which takes s_end = 1).

    A span of one layer gives s. A layer outside the span gets the coefficient of the nearer end: only features of
    modules can lie there, and extending the line could reverse the sign of what is added.
    """

    kind: ClassVar[ScheduleKind] = ScheduleKind.LINEAR

    s_end: float = 1.0

    def at(self, layer: int, span: tuple[int, int]) -> float:
        """The coefficient of a feature of `layer`, in a graph from `span[0]` to `span[1]`.

        Raises:
            InvalidArgument: when the span ends before it starts.
        """
        start, end = span
        if end < start:
            raise InvalidArgument(f"the span {start} to {end} ends before it starts. Give (first, last).")
        if layer <= start or start == end:
            return self.s
        if layer >= end:
            return self.s_end
        return self.s + (self.s_end - self.s) * ((layer - start) / (end - start))


@dataclass(frozen=True, slots=True)
class Exponential(Schedule):
    """s' = s e^(alpha l), l the absolute layer (appendix B.2, which takes alpha = -0.05; C.3 takes -0.25)."""

    kind: ClassVar[ScheduleKind] = ScheduleKind.EXPONENTIAL

    alpha: float = -0.05

    def at(self, layer: int, span: tuple[int, int]) -> float:  # noqa: ARG002 - one signature for all
        """The coefficient of a feature of `layer`.

        Raises:
            InvalidArgument: when the coefficient is too large for a number.
        """
        try:
            found = self.s * math.exp(self.alpha * layer)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise InvalidArgument(
                f"s e^(alpha l) with s = {self.s}, alpha = {self.alpha} is too large at layer {layer}. "
                "Give an alpha of 0 or less, such as -0.05."
            )
        return found


_KINDS: Final[dict[str, type[Schedule]]] = {made.kind.value: made for made in (Constant, Linear, Exponential)}


def schedule_from(data: Mapping[str, Any]) -> Schedule:
    """Read what `to_dict` wrote: `{"kind": "linear", "s": 8, "s_end": 1}`; all keys but kind and s are optional.

    Raises:
        InvalidArgument: for an unknown kind or key, a missing s, or a value that is not a finite number.
    """
    kind = data.get("kind")
    made = _KINDS.get(kind) if isinstance(kind, str) else None
    if made is None:
        raise InvalidArgument(f"there is no schedule of kind {kind!r}. Known: {', '.join(_KINDS)}.")
    values = {name: value for name, value in data.items() if name != "kind"}
    known = tuple(field.name for field in fields(made))
    if strange := sorted(set(values) - set(known)):
        raise InvalidArgument(f"a {kind} schedule has no {', '.join(map(repr, strange))}. It takes {', '.join(known)}.")
    if "s" not in values:
        raise InvalidArgument(f'a {kind} schedule needs its coefficient. Write "s": 8, for instance.')
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidArgument(f"{name} = {value!r} of a {kind} schedule is no number. Write one, such as 8.")
    try:
        return made(**{name: float(value) for name, value in values.items()})
    except OverflowError:
        raise InvalidArgument(f"{values} of a {kind} schedule are too large. Write numbers, such as 8.") from None
