"""Settings of a training run: the loss, the optimiser, the stream of activations, and what is trained where.

All sparsity settings are in units of the *normalised* activations: centred, and scaled to a mean norm of sqrt(d_in),
about 1 per coordinate. Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147) scales to a mean squared norm of 1 instead.
Its lengths are therefore multiplied by sqrt(d_in) here, and its weights of L0 against the squared error by d_in: its
bandwidth and first threshold of 0.001 become 0.048 for Gemma 2 2B (d_in = 2,304), and its sparsity coefficient of 6e-4
becomes 1.4.
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
    """How activations are kept sparse.

    JUMPRELU: one threshold per feature and a penalty on L0 (Rajamanoharan et al. 2024, arXiv 2407.14435; Gemma Scope).
    JUMPRELU_L0: the same with the penalty 2 / target * (L0 - target)^2 per token (Gemma Scope 2).
    TOPK: the k largest activations of each token (Gao et al. 2025, arXiv 2406.04093).
    BATCHTOPK: the largest activations of each batch, k per token on average (Bussmann et al. 2024, arXiv 2412.06410);
    the trained dictionary is a JumpReLU.
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
    """The loss besides the squared error.

    Attributes:
        objective: which sparsity objective.
        l0: active features per token: the target, or k. With 0, JUMPRELU has no target, and its coefficient sets L0.
        coefficient: weight of the penalty on L0; for the two TopKs, of the auxiliary loss that revives dead features.
        warm_up: share of the steps over which the coefficient of a penalty grows linearly from 0.
        bandwidth: width of the rectangle through which gradients reach a threshold.
        threshold: initial value of every threshold; None for `first_threshold`, which needs `l0`.
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
        """Whether thresholds are moved to meet a target L0."""
        return self.objective.has_thresholds and self.l0 > 0


DEFAULTS: Final[dict[Objective, dict[str, Any]]] = {
    Objective.JUMPRELU: {},
    Objective.JUMPRELU_L0: {"bandwidth": 0.5, "threshold": None},
    Objective.TOPK: {"unit_decoder": False},
    Objective.BATCHTOPK: {"unit_decoder": False},
}
"""Values of `Sparsity` for each objective where none are given.

JUMPRELU is Gemma Scope's recipe; with a target L0 it starts from the values of JUMPRELU_L0 instead. Those are a wide
rectangle and first thresholds near the target, which reach it in few steps (docs/training.md). The two TopKs rank
activations times the norms of decoder rows, so these rows need no constraint.
"""


def first_threshold(l0: float, width: int) -> float:
    """The default initial threshold: where 8 times the target would be active, and at least 1.

    Unit rows give normalised activations pre-activations of about unit variance, which are treated as normal. From a
    lower start, hundreds of active features take thousands of steps to come down; a start at the target itself would
    leave features without gradient.
    """
    return max(1.0, NormalDist().inv_cdf(1 - min(0.5, 8 * l0 / width)))


def sparsity(objective: Objective | str, **values: float | bool | None) -> Sparsity:
    """Return an objective with its defaults, replaced by all given values that are not None.

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
    """Adam with a learning rate that rises from 0, stays constant, and falls to 0.

    Attributes:
        tokens: rows of activations to train on at each site; an incomplete last batch is left out.
        batch: rows per step.
        lr: the highest learning rate.
        warm_up: share of the steps over which it rises.
        decay: share of the steps at the end over which it falls.
        beta1: Adam's beta1; Gemma Scope uses 0.
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
        """The number of steps."""
        return self.tokens // self.batch


@dataclass(frozen=True, slots=True)
class ActivationStream:
    """How texts become rows of activations.

    Attributes:
        context: maximum tokens in a window, including the begin-of-text token.
        windows: windows in one forward pass.
        buffer: rows that are shuffled together.
        half: keep rows in bfloat16 to save memory; otherwise in the dtype of the model.
        uses: how many times each row is trained on: 2 halves the cost of the model and the number of texts.
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
        site: the site that is written, under which the dictionary is saved.
        reads: the tap that is read, in the layer of `site`: the site's own tensor, `z`, or what an MLP reads.
        width: number of features.
    """

    site: Site
    reads: Tap
    width: int

    def __post_init__(self) -> None:
        """Refuse a tap of another part, or a width below 1."""
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
        """The tensors to capture: one, or two for a transcoder."""
        return tuple(dict.fromkeys((self.read, self.written)))

    @property
    def name(self) -> str:
        """The name of its folder and of its tensors in a checkpoint: `3.res`."""
        return f"{self.site.layer}.{self.site.part.value}"


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Settings of a whole run; the result depends only on them, the model, the texts and the machine's arithmetic.

    Attributes:
        sparsity: the loss besides the squared error.
        optimiser: steps and learning rate.
        stream: windows and buffer.
        seed: seed of the first weights (together with the site) and of the shuffling.
        centre: subtract the mean of the activations before training; it is folded in at the end.
        checkpoint_every: tokens between checkpoints; 0 for none.
        checkpoint_minutes: minutes between checkpoints, however many tokens were seen; 0 for none. After a slow
            checkpoint, the next one waits at least twenty times as long as it took.
        massive: rows with a squared norm of more than this many medians of their site are left out everywhere; 0 leaves
            out none (`sources.massive`).
        metrics_every: tokens between measurements; 0 to measure only at the end.
        loss_every_time: measure the model's loss each time, not only at the end.
        keep_every: tokens between copies of the dictionaries saved along the way (`run.kept_folder`); 0 for none.
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
        """Refuse values outside their range, or that do not fit together."""
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
        """What a resumed run must share with the killed one: all settings but those of reports and checkpoints."""
        values = replace(self, checkpoint_every=0, metrics_every=0).to_json()
        del values["checkpoint_minutes"], values["loss_every_time"], values["keep_every"]
        return values


_TEXTS_AT_ONCE: Final = 2
_LOGITS_AT_ONCE: Final = 2**27
"""Maximum texts, and maximum logits, in memory at a time while dictionaries are measured."""


def measured_at_once(context: int, vocabulary: int) -> int:
    """How many texts of `context` tokens are measured in one forward pass: fewer for a large vocabulary."""
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
    """Estimate what a run needs, from the widths of its points; see `Needs`.

    Each dictionary is held in float32 with Adam's two moments. A step, taken by `at_once` dictionaries at a time, adds
    their gradients, the batch and its error, and about 60 bytes for every feature that is active or close to its
    threshold: in the first steps about eight times the target L0, or half of all features where only a penalty decides.
    The dense steps of sae-lens hold the gradients of all dictionaries, and about ten arrays of [batch, width].

    Measuring holds every dictionary once more, folded, and folding takes five copies of one dictionary at a time. Then
    a few texts of a whole context (`measured_at_once`) take the activations of all points in float32, the outputs of
    the blocks before them, and, for one dictionary at a time, about four arrays of [tokens, width], or for the model's
    loss three of [tokens, vocabulary]. Two checkpoints are on disk while one replaces the other.

    Args:
        targets: what is trained.
        widths: width of every point.
        settings: settings of the run.
        bytes_a_value: bytes per activation value.
        vocabulary: size of the model's vocabulary.
        dense: whether sae-lens trains.
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
    """Targets at every layer for each of `parts`: a part, `z`, `mlp_in` or `mid` (transcoders), in order of sites.

    Args:
        parts: names of taps, for all layers or with a layer of their own: "res", "3/mlp"; `z` trains on the outputs of
            the heads, at the site att.
        layers: layers of the names without their own.
        widths: numbers of features: one for all, or one for each of `parts`.

    Raises:
        InvalidArgument: for an unknown tap, no part or layer, two targets at one site, or another number of widths.
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
    """Refuse targets that could be trained but not written, before training starts.

    Raises:
        InvalidArgument: for no target, two at one site, a transcoder with TopK, or an L0 above the number of features.
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
    """The seed of one draw: a function only of the run's seed and of what is drawn."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *what]).encode()).digest()[:7], "big")


def _share(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InvalidArgument(f"{what} over {value} of the steps. Give a share from 0 to 1.")
