"""What a training run is told: the loss, the optimiser, the stream of activations, and what is trained where.

Everything in sparsity is in the units of the *normalised* activations: centred, and scaled so that their mean norm is
sqrt(d_in), about 1 a coordinate. Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147) scales to a mean squared norm
of 1 instead, so that a number of theirs that is a length is multiplied by sqrt(d_in) here, and one that weighs L0
against squared error by d_in: their bandwidth and first threshold of 0.001 are 0.048 for Gemma 2 2B (d_in = 2,304),
and their sparsity coefficient of 6e-4 is 1.4.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any, Final, NamedTuple

from saeflow.errors import InvalidArgument, nearest
from saeflow.ids import Part, Site
from saeflow.sources.architectures import Point, Tap
from saeflow.sources.massive import RATIO


class Objective(enum.StrEnum):
    """How activations are kept few.

    JUMPRELU: a threshold a feature and a penalty on L0 (Rajamanoharan et al. 2024, arXiv 2407.14435; Gemma Scope).
    JUMPRELU_L0: the same with the penalty 2 / target * (L0 - target)^2 of each token (Gemma Scope 2).
    TOPK: the k largest of each token (Gao et al. 2025, arXiv 2406.04093).
    BATCHTOPK: the k a token largest of each batch (Bussmann et al. 2024, arXiv 2412.06410); a JumpReLU when trained.
    """

    JUMPRELU = "jumprelu"
    JUMPRELU_L0 = "jumprelu-l0"
    TOPK = "topk"
    BATCHTOPK = "batchtopk"

    @property
    def has_thresholds(self) -> bool:
        """Whether thresholds are parameters, moved by straight-through gradients."""
        return self in (Objective.JUMPRELU, Objective.JUMPRELU_L0)


@dataclass(frozen=True, slots=True)
class Sparsity:
    """The loss beside the squared error.

    Attributes:
        objective: which one.
        l0: active features a token: the target, or k. JUMPRELU without one, 0, is left to its coefficient.
        coefficient: of the penalty on L0; of the auxiliary loss that revives dead features for the two TopKs.
        warm_up: share of the steps over which the coefficient of a penalty grows from 0, linearly.
        bandwidth: width of the rectangle through which gradients reach a threshold.
        threshold: where every threshold starts; None for `first_threshold`, which needs `l0`.
        unit_decoder: keep decoder rows at norm 1 in every step, as Gemma Scope does.
    """

    objective: Objective
    l0: float = 0.0
    coefficient: float = 1.0
    warm_up: float = 0.1
    bandwidth: float = 0.05
    threshold: float | None = 0.05
    unit_decoder: bool = True

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        needs = self.objective is not Objective.JUMPRELU
        if needs and not (self.l0 > 0 and math.isfinite(self.l0)):
            raise InvalidArgument(
                f"{self.objective.value} with L0 = {self.l0}: it needs the active features a token to aim at. Give "
                "--l0, about 3 to 4 % of the width of the stream."
            )
        if self.objective is Objective.TOPK and self.l0 != int(self.l0):
            raise InvalidArgument(f"topk with k = {self.l0}. Give a whole number, or use batchtopk.")
        for name in ("coefficient", "bandwidth", "threshold"):
            value = getattr(self, name)
            if value is None and name == "threshold" and self.l0:
                continue
            above = name == "bandwidth"
            if value is None or not math.isfinite(value) or value < 0 or (above and not value):
                least = "more than 0" if above else "0 or more"
                raise InvalidArgument(f"{name} = {value} of the sparsity loss. Give {least}.")
        _share("warm-up of the L0 penalty", self.warm_up)

    @property
    def holds_l0(self) -> bool:
        """Whether thresholds are moved so that a target L0 is met."""
        return self.objective.has_thresholds and self.l0 > 0


DEFAULTS: Final[dict[Objective, dict[str, Any]]] = {
    Objective.JUMPRELU: {},
    Objective.JUMPRELU_L0: {"bandwidth": 0.5, "threshold": None},
    Objective.TOPK: {"unit_decoder": False},
    Objective.BATCHTOPK: {"unit_decoder": False},
}
"""What an objective is trained with where nothing else is said.

JUMPRELU is Gemma Scope's recipe, and with a target L0 begins as JUMPRELU_L0. That has a wide rectangle and first
thresholds near the target, which find it in few steps (docs/training.md). The two TopKs rank activations times the
norms of decoder rows, which so need no constraint.
"""


def first_threshold(l0: float, width: int) -> float:
    """Where thresholds start that none are given for: where 8 times the target would be active, and at 1 or more.

    Unit rows give normalised activations pre-activations of about unit variance, and they are taken as normal. From a
    start below this, hundreds of active features take thousands of steps to come down; one at the target itself would
    leave features without gradient.
    """
    return max(1.0, NormalDist().inv_cdf(1 - min(0.5, 8 * l0 / width)))


def sparsity(objective: Objective | str, **values: float | bool | None) -> Sparsity:
    """An objective with its defaults; what is told and not None replaces them.

    Raises:
        InvalidArgument: for an unknown objective, or a value outside its range.
    """
    known = [member.value for member in Objective]
    if objective not in known:
        raise InvalidArgument(
            f"there is no architecture {objective!r}.{nearest(objective, known)} Known: {', '.join(known)}."
        )
    objective = Objective(objective)
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    aims = objective is Objective.JUMPRELU and given.get("l0")
    return Sparsity(objective, **(DEFAULTS[Objective.JUMPRELU_L0 if aims else objective] | given))


@dataclass(frozen=True, slots=True)
class Optimiser:
    """Adam, its learning rate up from 0, constant, and down to 0.

    Attributes:
        tokens: rows of activations to train on at each site; the last batch is left out where it is not whole.
        batch: rows a step.
        lr: the learning rate at its highest.
        warm_up: share of the steps over which it rises.
        decay: share of the steps at the end over which it falls.
        beta1: Adam's first decay; Gemma Scope has 0.
    """

    tokens: int
    batch: int = 4096
    lr: float = 3e-4
    warm_up: float = 0.02
    decay: float = 0.2
    beta1: float = 0.9

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.batch < 1 or self.tokens < self.batch:
            raise InvalidArgument(
                f"{self.tokens} tokens in batches of {self.batch} give no step. Give more tokens, or a smaller batch."
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InvalidArgument(f"learning rate {self.lr}. Give a number above 0, such as 3e-4.")
        if not 0 <= self.beta1 < 1:
            raise InvalidArgument(f"beta1 = {self.beta1} of Adam. Give 0 or more, and less than 1.")
        _share("warm-up of the learning rate", self.warm_up)
        _share("decay of the learning rate", self.decay)
        if self.warm_up + self.decay > 1:
            raise InvalidArgument(
                f"the learning rate rises over {self.warm_up:g} and falls over {self.decay:g} of the steps, which is "
                "more than all of them. Give shares that sum to 1 or less."
            )

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return self.tokens // self.batch


@dataclass(frozen=True, slots=True)
class ActivationStream:
    """How texts become rows of activations.

    Attributes:
        context: tokens of a window at most, the begin-of-text token included.
        windows: windows in one forward pass.
        buffer: rows that are shuffled at a time.
        half: keep them in bfloat16, where memory is short; else in the dtype of the model.
        uses: how many times a row is trained on: 2 halves what the model costs, and the texts are half as many.
    """

    context: int = 256
    windows: int = 32
    buffer: int = 65_536
    half: bool = False
    uses: int = 1

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.uses < 1:
            raise InvalidArgument(f"{self.uses} uses of a row. Give 1 or more.")
        if self.context < 2 or self.windows < 1:
            raise InvalidArgument(
                f"{self.windows} windows of {self.context} tokens hold no text beside the begin-of-text token. Give "
                "windows of 2 tokens or more, and one window or more."
            )


@dataclass(frozen=True, slots=True)
class TrainingTarget:
    """One dictionary to train.

    Attributes:
        site: what is written, and where it is found again.
        reads: the tap that is read, in the layer of `site`: the site's own tensor, `z`, or what an MLP reads.
        width: how many features.
    """

    site: Site
    reads: Tap
    width: int

    def __post_init__(self) -> None:
        """Refuse a tap of another part, and a width without features."""
        if self.reads.part is not self.site.part:
            raise InvalidArgument(
                f"a dictionary at {self.site} cannot read {self.reads.value}, which serves {self.reads.part.value}. "
                "Sites are read at their own tensor; att also at z; mlp also at mlp_in or mid, as a transcoder."
            )
        if self.width < 1:
            raise InvalidArgument(f"a dictionary of {self.width} features at {self.site}. Give 1 or more.")

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts the site from another tensor."""
        return self.reads.is_read_only

    @property
    def read(self) -> Point:
        """The tensor that is read."""
        return Point(self.site.layer, self.reads)

    @property
    def written(self) -> Point:
        """The tensor that is reconstructed or predicted."""
        return Point.at(self.site) if self.is_transcoder else self.read

    @property
    def points(self) -> tuple[Point, ...]:
        """What must be captured: one tensor, or two for a transcoder."""
        return tuple(dict.fromkeys((self.read, self.written)))

    @property
    def name(self) -> str:
        """`3.res`: how its folder and its tensors in a checkpoint are named."""
        return f"{self.site.layer}.{self.site.part.value}"


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """A whole run; the result is a function of it, of the model, of the texts and of the machine's arithmetic.

    Attributes:
        sparsity: the loss beside the squared error.
        optimiser: steps and learning rate.
        stream: windows and buffer.
        seed: of the first weights (with the site), and of the shuffling.
        centre: subtract the mean of the activations before training; it is folded in at the end.
        checkpoint_every: tokens between checkpoints; 0 for none.
        checkpoint_minutes: minutes between checkpoints, whatever the tokens; 0 for none. One that takes long is not
            written again before twenty times as long.
        massive: rows with a squared norm of more than so many medians of their site are left out everywhere; 0 for
            none (`sources.massive`).
        metrics_every: tokens between measurements; 0 for the end alone.
        loss_every_time: measure the model's loss each time, not only at the end.
        keep_every: tokens between dictionaries that are kept as they are then (`run.kept_folder`); 0 for none.
    """

    sparsity: Sparsity
    optimiser: Optimiser
    stream: ActivationStream = field(default_factory=ActivationStream)
    seed: int = 0
    centre: bool = True
    massive: float = RATIO
    checkpoint_every: int = 0
    metrics_every: int = 0
    checkpoint_minutes: float = 0.0
    loss_every_time: bool = False
    keep_every: int = 0

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.stream.buffer < 2 * self.optimiser.batch:
            raise InvalidArgument(
                f"a buffer of {self.stream.buffer} rows for batches of {self.optimiser.batch}: half of it is served "
                f"between refills. Give a buffer of {2 * self.optimiser.batch} or more."
            )
        every = {name: getattr(self, f"{name}_every") for name in ("checkpoint", "metrics", "keep")}
        if min(every.values()) < 0:
            shown = ", ".join(f"{name}_every={tokens}" for name, tokens in every.items())
            raise InvalidArgument(f"{shown} tokens. Give 0 or more; 0 for none.")
        if not (math.isfinite(self.checkpoint_minutes) and self.checkpoint_minutes >= 0):
            raise InvalidArgument(f"checkpoints every {self.checkpoint_minutes} minutes. Give 0 or more; 0 for none.")
        if not (math.isfinite(self.massive) and (self.massive > 1 or self.massive == 0)):
            raise InvalidArgument(
                f"positions of more than {self.massive} median squared norms are massive. Give more than 1, such as "
                "100, or 0 to leave out none."
            )

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether checkpoints are written."""
        return bool(self.checkpoint_every or self.checkpoint_minutes)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)

    @staticmethod
    def of_json(data: dict[str, Any]) -> TrainingSettings:
        """The inverse of `to_json`.

        Raises:
            InvalidArgument: when a value is outside its range.
        """
        values = dict(data)
        loss = dict(values.pop("sparsity"))
        return TrainingSettings(
            Sparsity(Objective(loss.pop("objective")), **loss),
            Optimiser(**values.pop("optimiser")),
            ActivationStream(**values.pop("stream")),
            **values,
        )

    def bound(self) -> dict[str, Any]:
        """What a run that goes on must share with the one that was killed: all but how often it reports."""
        values = replace(self, checkpoint_every=0, metrics_every=0).to_json()
        del values["checkpoint_minutes"], values["loss_every_time"], values["keep_every"]
        return values


_TEXTS_AT_ONCE: Final = 2
_LOGITS_AT_ONCE: Final = 2**27
"""At most so many texts and so many logits are in memory at a time while dictionaries are measured."""


def measured_at_once(context: int, vocabulary: int) -> int:
    """How many texts of `context` tokens are measured in one forward pass; fewer where the vocabulary is large."""
    return max(1, min(_TEXTS_AT_ONCE, _LOGITS_AT_ONCE // (context * max(vocabulary, 1))))


class Needs(NamedTuple):
    """Bytes a run takes besides the model: in memory for the dictionaries, the buffer and measuring, and on disk."""

    dictionaries: int
    buffer: int
    measuring: int
    checkpoint: int


def needs(
    targets: Sequence[TrainingTarget],
    widths: dict[Point, int],
    settings: TrainingSettings,
    bytes_a_value: int,
    vocabulary: int = 0,
    *,
    dense: bool = False,
    at_once: int = 1,
) -> Needs:
    """What a run needs, from the widths of its points. See `Needs`.

    Each dictionary is held with Adam's two moments in float32. A step, of `at_once` dictionaries at a time, adds their
    gradients, the batch and its error, and about 60 bytes for every feature that is active or close to its threshold,
    in the first steps on about eight times as many as the target L0; where a penalty alone decides, on half of all. The
    dense steps of sae-lens take gradients of all dictionaries, and about ten arrays of [batch, width].

    For measuring every dictionary is held once more, folded, which takes five copies of one at a time; then some texts
    of a whole context (`measured_at_once`) take the activations of all places in float32, what the blocks before them
    returned, and at one dictionary at a time about four arrays of [tokens, width], or for the model's loss three of
    [tokens, vocabulary]. Two checkpoints are on disk while one replaces the other.

    Args:
        targets: what is trained.
        widths: of every point.
        settings: of the run.
        bytes_a_value: of an activation.
        vocabulary: how many tokens the model chooses from.
        dense: sae-lens trains.
        at_once: steps that run side by side: as many as threads on the CPU.

    Raises:
        KeyError: when a point has no width.
    """
    loss, batch = settings.sparsity, settings.optimiser.batch
    sizes = [(t.width + 1) * (widths[t.read] + widths[t.written]) + 3 * t.width for t in targets]
    values, largest = sum(sizes), max(sizes, default=0)
    widest = max((t.width for t in targets), default=0)
    if dense:
        trained = 4 * (4 * values + 10 * batch * widest)
    else:
        rows = max((2 * widths[t.read] + 3 * widths[t.written] for t in targets), default=0)
        active = min(widest / 2, (16 if loss.holds_l0 else 2) * loss.l0) if loss.l0 else widest / 2
        at_once = min(at_once, len(targets))
        trained = 4 * (3 * values + at_once * (2 * largest + batch * rows)) + round(at_once * 60 * batch * active)
    row = sum(widths[point] for point in {p for t in targets for p in t.points})
    buffer = settings.stream.buffer * row * (2 if settings.stream.half else bytes_a_value)
    tokens = measured_at_once(settings.stream.context, vocabulary) * settings.stream.context
    measuring = 4 * (values + max(5 * largest, tokens * (2 * row + max(4 * widest, 3 * vocabulary))))
    kept = 3 * 4 * values + buffer
    return Needs(trained, buffer, measuring, 2 * kept if settings.keeps_checkpoints else 0)


def targets_of(parts: Sequence[str], layers: Sequence[int], widths: Sequence[int]) -> list[TrainingTarget]:
    """Targets at every layer for each of `parts`: a part, `z`, `mlp_in` or `mid` (transcoders); in order of sites.

    Args:
        parts: names of taps, at all layers or with one of their own: "res", "3/mlp"; `z` trains on the outputs of the
            heads, at the site att.
        layers: layers.
        widths: features: one number for all, or one a part.

    Raises:
        InvalidArgument: for a name that is no tap, two at one site, or another number of widths.
    """
    known = [tap.value for tap in Tap]
    named = [part.rpartition("/") for part in parts]
    unknown = [name for layer, slash, name in named if name not in known or (slash and not layer.isdecimal())]
    if unknown or not parts or not layers:
        raise InvalidArgument(
            f"sites {', '.join(parts) or 'none'} at {len(layers)} layers. Give one or more of {', '.join(known)}, and "
            "one or more layers."
        )
    if len(widths) not in (1, len(parts)):
        raise InvalidArgument(
            f"{len(widths)} widths for {len(parts)} sites. Give one for all, or one for each in the same order."
        )
    found: dict[Site, TrainingTarget] = {}
    for (own, _, name), width in zip(named, list(widths) * (len(parts) // len(widths)), strict=True):
        tap = Tap(name)
        for layer in [int(own)] if own else layers:
            site = Site(layer, Part(tap.part))
            if site in found:
                raise InvalidArgument(
                    f"{found[site].reads.value} and {name} would both be the dictionary at {site}. Train them into two "
                    "folders."
                )
            found[site] = TrainingTarget(site, tap, width)
    return [found[site] for site in sorted(found)]


def check_targets(targets: Sequence[TrainingTarget], settings: TrainingSettings) -> None:
    """Refuse what could be trained and not be written, before it is trained.

    Raises:
        InvalidArgument: for no target, two at one site, a transcoder with TopK, or more active features than there are.
    """
    if not targets or len({target.site for target in targets}) < len(targets):
        raise InvalidArgument(
            f"targets at {', '.join(str(t.site) for t in targets) or 'no site'}. Give one a site, and one or more."
        )
    loss = settings.sparsity
    for target in targets:
        if target.is_transcoder and loss.objective is Objective.TOPK:
            raise InvalidArgument(
                f"a transcoder with topk at {target.site} has no architecture in sae-lens. Use batchtopk, which is "
                "written as a JumpReLU, or jumprelu-l0."
            )
        if loss.l0 > target.width:
            raise InvalidArgument(
                f"L0 {loss.l0:g} of a dictionary of {target.width} features at {target.site}. Give a wider one, or a "
                "lower --l0."
            )


def seed_of(seed: int, *what: str) -> int:
    """A seed for one draw: a function of the run's seed and of what is drawn, and of nothing else."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *what]).encode()).digest()[:7], "big")


def _share(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InvalidArgument(f"{what} over {value} of the steps. Give a share from 0 to 1.")
