"""What a sweep tries: method x layer x schedule x value, and baselines (section 5.3, appendices B, C.3). No torch.

    method        features that are changed                                  schedule
    single        those of layer l alone                                     constant
    constant, linear, exponential   activation: those of layers 0 to l, of   of that name
                  which at least two have some
    cumulative    suppression: likewise                                      the same r at every layer
    start         the features a theme starts from, at their own layers      constant
    none          nothing: unsteered
    prompt        nothing: the prompt asks for the topic, or to avoid it
    random        as many random rows of the same sites in place of another method's features
    difference    no features: the difference of mean states of texts with and without the theme, at layer l
    probe         no features: the weights of a logistic regression that tells these texts, at layer l

The last two are what people steer with who have no dictionary (`steering.directions`). They only activate, only when
they are named, and count s in shares.

Strengths of activation are in units of a feature's own scale where folding is on (B.2), so that one grid suits all
features of a release; without folding they are lengths in the units of the hidden state. In shares, s is the share of
the centred norm that all a plan adds comes to at its last layer: methods at one s change as much.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from saeflow.errors import InvalidArgument, nearest
from saeflow.experiments.sampling import generator
from saeflow.flow.scores import Thresholds
from saeflow.ids import Part
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.schedule import Constant, Exponential, Linear, Schedule, ScheduleKind

if TYPE_CHECKING:
    from saeflow.steering.sizes import Budget

NONE, PROMPT, START, RANDOM = "none", "prompt", "start", "random"
SINGLE, CUMULATIVE = "single", "cumulative"
CONSTANT = ScheduleKind.CONSTANT.value
SCHEDULES: Final = tuple(kind.value for kind in ScheduleKind)
MULTI: Final[Mapping[SteeringDirection, tuple[str, ...]]] = {
    SteeringDirection.ACTIVATE: SCHEDULES,
    SteeringDirection.SUPPRESS: (CUMULATIVE,),
}
"""The methods that change several layers at once."""

VECTORS: Final = ("difference", "probe")
"""The methods that use no features."""

ORDER: Final = (NONE, PROMPT, START, RANDOM, SINGLE, *SCHEDULES, CUMULATIVE, *VECTORS)
"""All methods, as tables and figures list them."""

ACTIVATE: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Default s, in units of features' own scales. In the demo pack the weakest leaves coherence as it is, most methods are
best between 1 and 4, and the strongest leaves no language."""

SUPPRESS: Final = (0.5, 0.0, -1.0, -2.0, -4.0, -8.0)
"""Default r: halve, remove, and turn around with growing force."""

GRID, CONFIRMED = "grid", "confirmed"
"""The two stages; each has seeds of its own."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """One way to generate; a unit of a results folder holds it as the list of its fields.

    Attributes:
        method: of `ORDER`.
        layer: l of single and cumulative methods, -1 otherwise.
        schedule: how a value is spread over layers; "" where nothing is changed.
        value: s of an activation, r of a suppression; 0 where nothing is changed.
        mirrors: of "random", the method whose plan it copies; "" otherwise.
    """

    method: str
    layer: int = -1
    schedule: str = ""
    value: float = 0.0
    mirrors: str = ""

    def name(self, direction: SteeringDirection) -> str:
        """A name for files: "activate-exponential-l4-s2", "suppress-random-single-l2-r-1"."""
        letter = "s" if direction is SteeringDirection.ACTIVATE else "r"
        words = [direction.value, self.method, self.mirrors, f"l{self.layer}" if self.layer >= 0 else ""]
        return "-".join([*filter(None, words), f"{letter}{self.value:g}"])


@dataclass(frozen=True, slots=True)
class Grid:
    """What is tried, and on how many samples.

    Attributes:
        activate: s, weak to strong.
        suppress: r, weak to strong.
        layers: l of single and cumulative methods; None for every layer with a feature to change.
        methods: of `ORDER`; empty for all but `VECTORS`. Unsteered samples are always made: scores are
            read against them.
        samples: of each setting of the grid.
        confirm: fresh samples of each setting that was chosen.

    Raises:
        InvalidArgument: for a value outside its range, or an unknown method.
    """

    activate: tuple[float, ...] = ACTIVATE
    suppress: tuple[float, ...] = SUPPRESS
    layers: tuple[int, ...] | None = None
    methods: tuple[str, ...] = ()
    samples: int = 64
    confirm: int = 96

    def __post_init__(self) -> None:
        """Check every range."""
        if self.samples < 1 or self.confirm < 1:
            raise InvalidArgument(
                f"samples = {self.samples} and confirm = {self.confirm}: a setting needs 1 sample or more. "
                f"Give more, such as 64 and 96."
            )
        if unknown := [name for name in self.methods if name not in ORDER]:
            raise InvalidArgument(
                f"there is no steering method {', '.join(unknown)}.{nearest(unknown[0], ORDER)} Known: "
                f"{', '.join(ORDER)}."
            )
        for name, values in (("s", self.activate), ("r", self.suppress)):
            if not values or len(set(values)) < len(values) or not all(map(math.isfinite, values)):
                raise InvalidArgument(f"{name} = {values} is no list of values. Give each number once.")
        if 1.0 in self.suppress:
            raise InvalidArgument("r = 1 changes nothing, and none is tried anyway. Leave 1 out of the r.")

    def values(self, direction: SteeringDirection) -> tuple[float, ...]:
        """The s or the r."""
        return self.activate if direction is SteeringDirection.ACTIVATE else self.suppress

    def wants(self, method: str) -> bool:
        """Whether a method is tried."""
        return method == NONE or method in (self.methods or ORDER[: -len(VECTORS)])

    def steered(self, direction: SteeringDirection) -> tuple[str, ...]:
        """The methods that use targets of graphs, of those that are tried."""
        return tuple(name for name in (SINGLE, *MULTI[direction]) if self.wants(name))

    def of_method(self, direction: SteeringDirection, method: str, layers: Iterable[int]) -> tuple[Setting, ...]:
        """Every setting of a method of the grid; none where it is not tried.

        Args:
            direction: activate or suppress.
            method: of `ORDER`; "random" copies what is chosen later, and has none here.
            layers: layers with a feature to change.

        Raises:
            InvalidArgument: when none of the layers asked for has a feature to change.
        """
        if not self.wants(method) or method == RANDOM:
            return ()
        if method in (NONE, PROMPT):
            return (Setting(method),)
        values = self.values(direction)
        if method == START:
            return tuple(Setting(method, -1, CONSTANT, value) for value in values)
        if method not in (*self.steered(direction), *(VECTORS if direction is SteeringDirection.ACTIVATE else ())):
            return ()
        there = sorted(set(layers))
        chosen = [layer for layer in there if self.layers is None or layer in self.layers]
        if not chosen:
            raise InvalidArgument(
                f"none of the layers {list(self.layers or ())} has a feature to steer. The graphs have some at "
                f"{there or 'none'}. Give other layers, or lower thresholds."
            )
        if method not in (SINGLE, *VECTORS):  # up to the first layer they would change that one alone, as single does
            chosen = [layer for layer in chosen if layer > there[0]]
        kind = CONSTANT if method in (SINGLE, CUMULATIVE, *VECTORS) else method
        return tuple(Setting(method, layer, kind, value) for layer in chosen for value in values)

    def to_arguments(self) -> dict[str, Any]:
        """As a request records it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Variant:
    """How the features are found and how strong each is; the defaults are those of appendix B.2.

    Attributes:
        thresholds: where graphs are cut.
        k: matches of each site that are followed.
        parts: of the features that are changed; residual alone is `(Part.RES,)`.
        min_output_score: features below it are left out (Arad et al. 2025, arXiv 2505.20063); None keeps all.
        fold: whether s counts in units of a feature's threshold times its row's length (B.2).
        in_shares: whether s is the share of the centred norm that all a plan adds comes to; folding then decides how
            strong its features are beside one another.
        generated_only: whether the tokens of the prompt are left as they are.
        only_active: to activate, whether a feature is added only at tokens where it is active.
        keep_norm: to activate, whether changed hidden states keep their lengths.
        orthogonal: to activate, whether each layer adds only what is orthogonal to all that earlier ones add.
        by_output_score: to activate, whether features share the strength as they have output scores.
        schedules: what s is spread by; their own s is not used.
        budget: the most that a plan may change, in shares of the centred norm; None for no limit.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    k: int = 1
    parts: tuple[Part, ...] = (Part.RES, Part.MLP, Part.ATT)
    min_output_score: float | None = None
    fold: bool = True
    schedules: tuple[Schedule, ...] = (Constant(1.0), Linear(1.0), Exponential(1.0))
    budget: Budget | None = None
    in_shares: bool = False
    generated_only: bool = False
    only_active: bool = False
    keep_norm: bool = False
    orthogonal: bool = False
    by_output_score: bool = False

    def __post_init__(self) -> None:
        """Refuse parts or schedules that are missing or doubled."""
        kinds = [schedule.kind.value for schedule in self.schedules]
        if set(kinds) != set(SCHEDULES) or len(kinds) != len(set(kinds)):
            raise InvalidArgument(f"the schedules are {kinds}. Give one each of constant, linear, exponential.")
        if not self.parts or len(set(self.parts)) != len(self.parts):
            raise InvalidArgument(f"the parts are {list(self.parts)}. Give each once, of res, mlp, att.")
        if self.in_shares and self.budget is not None:
            raise InvalidArgument("strengths in shares are a budget each, and another would undo them. Give either.")
        if self.only_active and self.orthogonal:
            raise InvalidArgument("what is orthogonal lies along no feature, and is never active. Give either.")

    def schedule(self, kind: str, s: float) -> Schedule:
        """The schedule of a kind, starting at s.

        Raises:
            InvalidArgument: for an unknown kind.
        """
        for schedule in self.schedules:
            if schedule.kind.value == kind:
                return replace(schedule, s=s)
        raise InvalidArgument(f"there is no schedule {kind!r}. Known: constant, linear, exponential.")

    def to_arguments(self) -> dict[str, Any]:
        """As a request records it."""
        cut = self.thresholds
        budget = self.budget
        return {
            "t_res": cut.res,
            "t_mlp": cut.module if cut.mlp is None else cut.mlp,
            "t_att": cut.module if cut.att is None else cut.att,
            "cuts": _digest(sorted((layer, part.value, at) for (layer, part), at in cut.cuts.items()))
            if cut.cuts
            else None,
            "k": self.k,
            "parts": [part.value for part in self.parts],
            "min_output_score": self.min_output_score,
            "fold": self.fold,
            "schedules": [
                {name: value for name, value in schedule.to_dict().items() if name != "s"}
                for schedule in self.schedules
            ],
            "budget": None if budget is None else {"per_layer": budget.per_layer, "total": budget.total},
            **{name: True for name in _WAYS if getattr(self, name)},
        }


_WAYS: Final = ("in_shares", "generated_only", "only_active", "keep_norm", "orthogonal", "by_output_score")


def seed_of(seed: int, stage: str, sample: int) -> int:
    """The seed of a sample: the same for all settings of a stage, and another in the other stage."""
    return int(generator(seed, "steering", stage, sample).integers(2**48))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
