"""Dictionary: one sparse autoencoder or transcoder at one site, its tensors read from disk when first used.

    pre  = prepare(h) @ W_enc^T + b_enc                       W_enc [n_features d_in]
    acts = activation(pre)
    h'   = acts @ W_dec + b_dec (+ prepare(h) @ W_skip^T)     W_dec [n_features d_out]

    prepare: h centred over d_in;  (h - shift) / scale, numbers of each token taken from the token itself;  less b_dec

An autoencoder reconstructs what it reads, and d_out = d_in. A transcoder reads what the MLP reads (its `tap`)
and predicts what the MLP writes (its `site`), some with a linear skip next to the features.
Rows are features in both matrices, whatever the file says: the readers in `formats` turn them, nothing
else does. Matching without data (section 3.2 of arXiv 2502.03032) needs `W_dec` alone, so every tensor is
read by itself, at first use, and checked then: values that are not finite are a BadFile. A decoder row of zeros
is a feature that writes nothing. Matching needs single rows: a feature whose row is zeros or not finite has no
direction and matches nothing, and all others match as if it were not there.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, replace
from functools import cached_property
from typing import Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, SaeflowError, WidthMismatch
from saeflow.ids import Site
from saeflow.sources.activations import COMPETING, Activation, JumpReLU
from saeflow.sources.architectures import Point, Tap, View
from saeflow.sources.weights import (
    Cast,
    RowRange,
    RowScaled,
    Shifted,
    TensorsInMemory,
    Weights,
    check_values,
    digest,
    first_rows,
    refuse_infinite,
    row_peaks,
)


class Norm(enum.StrEnum):
    """How each token's vector is normalised before encoding, and restored after decoding."""

    NONE = "none"
    LAYER_NORM = "layer_norm"
    """(h - mean) / (std + 1e-5), std with Bessel's correction, as sae-lens does."""
    RESCALE = "rescale"
    """h * sqrt(d_in) / |h|: also what an RMSNorm does before it multiplies by its gain."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to h before `W_enc`: centre over d_in, normalise, subtract `b_dec`, in this order."""

    subtract_b_dec: bool = False
    center: bool = False
    norm: Norm = Norm.NONE

    def prepare(
        self, h: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch d_in"], Tensor | float, Tensor | float]:
        """h centred and normalised, and the scale and shift that undo the normalisation."""
        if self.center:
            h = h - h.mean(dim=-1, keepdim=True)
        if self.norm is Norm.LAYER_NORM:
            mean = h.mean(dim=-1, keepdim=True)
            std = (h - mean).std(dim=-1, keepdim=True)
            return (h - mean) / (std + 1e-5), std, mean
        if self.norm is Norm.RESCALE:
            scale = torch.linalg.vector_norm(h, dim=-1, keepdim=True) / h.shape[-1] ** 0.5
            return h / scale.clamp_min(torch.finfo(h.dtype).tiny), scale, 0.0  # 0 stays 0
        return h, 1.0, 0.0


PLAIN: Final = Preprocessing()
"""Nothing is done to h."""


@dataclass(frozen=True, slots=True)
class TrainingInfo:
    """What a dictionary's file says of its training, besides its tensors.

    Attributes:
        view: how the file names the tensor it was trained on.
        prepend_bos: whether its texts began with the begin-of-text token; None where the file does not say.
        context_size: how many tokens its texts had at most; None where the file does not say.
    """

    view: View = View.OWN
    prepend_bos: bool | None = None
    context_size: int | None = None


_UNKNOWN: Final = TrainingInfo()


@runtime_checkable
class AttentionWriter(Protocol):
    """A model that can say how its attention writes z into the residual stream."""

    def attention_writer(self, layer: int) -> tuple[Float[Tensor, "d_model d_in"], Float[Tensor, " d_model"] | None]:
        """`W_O`, and what a norm between it and the stream multiplies each channel by, if there is one.

        On Gemma 2 and 3 the factor is (1 + weight) of the norm after attention.
        """
        ...


@runtime_checkable
class Settles(AttentionWriter, Protocol):
    """A model that can say what the name of a tensor means in it; see `LanguageModel`."""

    def settled(self, point: Point) -> Point:
        """The same tensor, as the tensor at the tap itself wherever it is."""
        ...

    def part_gain(self, site: Site) -> Float[Tensor, " d_model"] | None:
        """The gain of the norm after a part."""
        ...

    def value_bias(self, layer: int) -> Float[Tensor, " d_in"]:
        """What the bias of the values adds to z."""
        ...


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Dictionary:
    """One sparse autoencoder or transcoder, rows are features. See the head of the file for the formulas.

    Attributes:
        site: what is written: matching compares directions there.
        tap: what is read, in the layer of `site`; the site's own tensor or its `z`, but for a transcoder.
        preprocessing: what is done to a hidden state before `W_enc`.
        training: what its file says of its training.
    """

    site: Site
    tap: Tap
    preprocessing: Preprocessing
    training: TrainingInfo
    _weights: Weights
    _activation: Callable[[], Activation]

    def __init__(
        self,
        site: Site,
        *,
        tap: Tap,
        W_enc: Float[Tensor, "n_features d_in"],
        b_enc: Float[Tensor, " n_features"],
        W_dec: Float[Tensor, "n_features d_out"],
        b_dec: Float[Tensor, " d_out"],
        activation: Activation,
        preprocessing: Preprocessing = PLAIN,
        W_skip: Float[Tensor, "d_out d_in"] | None = None,
        training: TrainingInfo = _UNKNOWN,
    ) -> None:
        """Hold tensors that are in memory. For a file, see `saeflow.sources.formats.load`.

        Raises:
            InvalidArgument: when two shapes do not go together.
        """
        named = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        named |= {} if W_skip is None else {"W_skip": W_skip}
        weights = TensorsInMemory(named, f"the dictionary at {site}", transcoder=tap.is_read_only)
        self._fill(site, tap, weights, lambda: activation, preprocessing, training)

    def _fill(
        self,
        site: Site,
        tap: Tap,
        weights: Weights,
        activation: Callable[[], Activation],
        preprocessing: Preprocessing,
        training: TrainingInfo,
    ) -> None:
        if "_weights" in self.__dict__:
            raise FrozenInstanceError(f"the dictionary at {site} is made already")
        values: dict[str, object] = {"site": site, "tap": tap, "preprocessing": preprocessing, "training": training}
        self.__dict__.update(values, _weights=weights, _activation=activation)

    @staticmethod
    def reading(
        site: Site,
        *,
        tap: Tap,
        weights: Weights,
        activation: Callable[[], Activation],
        preprocessing: Preprocessing = PLAIN,
        training: TrainingInfo = _UNKNOWN,
    ) -> Dictionary:
        """A dictionary whose tensors are read at first use; `activation` is called at first use too.

        What is wrong in a file shows when it is read.
        """
        made = object.__new__(Dictionary)
        made._fill(site, tap, weights, activation, preprocessing, training)
        return made

    def _with(
        self,
        *,
        weights: Weights | None = None,
        activation: Callable[[], Activation] | None = None,
        preprocessing: Preprocessing | None = None,
        training: TrainingInfo | None = None,
    ) -> Dictionary:
        """The same but for what is given; reads nothing."""
        return Dictionary.reading(
            self.site,
            tap=self.tap,
            weights=weights or self._weights,
            activation=activation or self._activation,
            preprocessing=preprocessing or self.preprocessing,
            training=training or self.training,
        )

    def __repr__(self) -> str:
        """Site, sizes and tap; reads no tensor."""
        return f"Dictionary({self.site}, {self.n_features} features of width {self.d_in}, tap {self.tap.value})"

    @property
    def n_features(self) -> int:
        """How many features there are; reads no tensor."""
        return self._weights.shape[0]

    @property
    def d_in(self) -> int:
        """The width of what is read; reads no tensor."""
        return self._weights.shape[1]

    @property
    def d_out(self) -> int:
        """The width of what is written; `d_in` but for some transcoders. Reads no tensor."""
        return self._weights.d_out

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts what the MLP writes from what the MLP reads; edits of `h` have no meaning there."""
        return self.tap.is_read_only

    @property
    def point(self) -> Point:
        """The tensor whose hidden states `encode` takes, as `LanguageModel.capture` takes it."""
        return Point(self.site.layer, self.tap, self.training.view)

    @property
    def prepend_bos(self) -> bool | None:
        """Whether the texts of its training began with the begin-of-text token; None where its file does not say."""
        return self.training.prepend_bos

    @property
    def origin(self) -> str:
        """The file the tensors are read from, as errors name it."""
        return self._weights.origin

    @cached_property
    def W_enc(self) -> Float[Tensor, "n_features d_in"]:  # noqa: N802
        """The encoder, one row per feature. Raises BadFile where a row is not finite."""
        return self._read("W_enc")

    @cached_property
    def b_enc(self) -> Float[Tensor, " n_features"]:
        """The bias of the pre-activations. Raises BadFile where it is not finite."""
        return self._read("b_enc")

    @cached_property
    def W_dec(self) -> Float[Tensor, "n_features d_out"]:  # noqa: N802
        """The decoder, one row per feature. Raises BadFile where a row is not finite."""
        return self._read("W_dec")

    @cached_property
    def b_dec(self) -> Float[Tensor, " d_out"]:
        """The bias of the reconstruction. Raises BadFile where it is not finite."""
        return self._read("b_dec")

    @cached_property
    def W_skip(self) -> Float[Tensor, "d_out d_in"] | None:  # noqa: N802
        """What is added to the output linearly, besides the features; mostly None. Raises BadFile as W_enc."""
        return self._read("W_skip") if self._weights.has_skip else None

    @cached_property
    def activation(self) -> Activation:
        """The activation function, with its thresholds read. Raises BadFile where one is not finite."""
        return self._activation()

    def _read(self, name: str) -> Tensor:
        tensor = self._weights.read(name)
        check_values(tensor, name, self._weights.origin)
        return tensor

    def finite_rows(self, name: str) -> Tensor:
        """`W_enc`, `b_enc` or `W_dec` for those who use rows one by one: rows that are not finite are zeros.

        Raises:
            BadFile: when the tensor cannot be read, or no row of it is finite.
        """
        try:
            return getattr(self, name)
        except BadFile:
            tensor = self._weights.read(name)
            finite = torch.isfinite(row_peaks(tensor))
            if not finite.any():
                raise
            return torch.where(finite if tensor.ndim < 2 else finite[:, None], tensor, 0)

    @property
    def projects(self) -> bool:
        """Whether its directions need the model: it is trained on z."""
        return self.tap is Tap.Z

    def digest(self) -> str:
        """sha256 of the decoder in float32: whether two dictionaries are the same. See `weights.digest`.

        Raises:
            BadFile: when the decoder cannot be read.
        """
        return digest(self._weights)

    def unload(self) -> None:
        """Forget the tensors that were read; the next use reads them again. Values do not change."""
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "activation"):
            self.__dict__.pop(name, None)

    def encode(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_features"]:
        """Activations of every feature on hidden states `h`, in the dtype of the weights.

        Raises:
            WidthMismatch: when `h` is not `d_in` wide.
            InvalidArgument: when `h` holds NaN or infinite values, or does so in the dtype of the weights.
            BadFile: when a tensor read at first use is bad.
        """
        refuse_infinite(f"hidden states that the dictionary at {self.site} reads", h.to(self.W_enc.dtype))
        return self.encode_unchecked(h)

    def encode_unchecked(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_features"]:
        """As `encode`, without the look at `h`, which waits for the device: for hooks, where padding may be anything.

        Raises:
            WidthMismatch: when `h` is not `d_in` wide.
            BadFile: when a tensor read at first use is bad.
        """
        return self.activation(torch.nn.functional.linear(self._prepared(h), self.W_enc, self.b_enc))

    def encode_only(self, h: Float[Tensor, "*batch d_in"], features: Int[Tensor, " k"]) -> Float[Tensor, "*batch k"]:
        """The columns `features` of `encode(h)`, without computing the others where they do not matter.

        Where features compete, as under TopK, all are computed. Equal to `encode` up to the rounding of the
        products.

        Raises:
            WidthMismatch: when `h` is not `d_in` wide.
            BadFile: when a tensor read at first use is bad.
        """
        activation = self.activation
        if isinstance(activation, COMPETING):
            return self.encode_unchecked(h)[..., features]
        pre = torch.nn.functional.linear(self._prepared(h), self.W_enc[features], self.b_enc[features])
        return activation.of(features)(pre)

    def scale(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"] | float:
        """What `decode` multiplies the rows of `W_dec` by on hidden states `h`: 1 without normalisation.

        Raises:
            BadFile: when a tensor read at first use is bad.
        """
        return 1.0 if self.is_transcoder else self.preprocessing.prepare(h.to(self.W_enc.dtype))[1]

    def _prepared(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """What `W_enc` multiplies."""
        if h.shape[-1] != self.d_in:
            raise WidthMismatch(
                f"The dictionary at {self.site} reads {self.tap.value} of width {self.d_in}, and the hidden "
                f"states are {h.shape[-1]} wide. Capture {self.tap.value} at layer {self.site.layer} of the "
                "model the dictionary was trained on."
            )
        prepared, _, _ = self.preprocessing.prepare(h.to(self.W_enc.dtype))
        return prepared - self.b_dec if self.preprocessing.subtract_b_dec else prepared

    def decode(
        self, acts: Float[Tensor, "*batch n_features"], h: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """What is written, from activations: acts @ W_dec + b_dec, and prepare(h) @ W_skip^T where there is one.

        `h`, what was encoded, is needed with a skip, and where `preprocessing.norm` is not NONE: there each token
        was divided by a number of its own, which is taken from `h` again. What a transcoder writes is not scaled
        back: it is another tensor than it read. Where `preprocessing.center` holds, the reconstruction is of
        centred h.

        Raises:
            WidthMismatch: when `acts` is not `n_features` wide.
            InvalidArgument: when `h` is needed and not given.
            BadFile: when a tensor read at first use is bad.
        """
        if acts.shape[-1] != self.n_features:
            raise WidthMismatch(
                f"{acts.shape[-1]} activations for the {self.n_features} features at {self.site}. Pass what "
                "this dictionary's encode returned."
            )
        out = acts.to(self.W_dec.dtype) @ self.W_dec + self.b_dec
        norm = Norm.NONE if self.is_transcoder else self.preprocessing.norm
        skip = self.W_skip
        if norm is Norm.NONE and skip is None:
            return out
        if h is None:
            why = "adds a linear skip of what it reads" if skip is not None else f"normalises every token ({norm})"
            raise InvalidArgument(
                f"The dictionary at {self.site} {why}, so activations alone do not give the reconstruction. Call "
                "decode(acts, h) with the hidden states that were encoded."
            )
        prepared, scale, shift = self.preprocessing.prepare(h.to(out.dtype))
        out = out if skip is None else out + prepared @ skip.T
        return out if norm is Norm.NONE else out * scale + shift

    def directions(self, model: AttentionWriter | None = None) -> Float[Tensor, "n_features d_model"]:
        """What each feature writes into the residual stream: unit rows in d_model.

        The decoder rows, at unit norm; no release promises that they are. A row v of a dictionary on z is
        written as `(W_O v) * gain`: a norm after attention also divides by a positive number per token, which a
        direction does not see. A row of zeros, or one that is not finite, has no direction and is given as zeros.
        Reads `W_dec` and nothing else.

        Raises:
            WidthMismatch: on z without a model, or with a model whose z has another width.
            BadFile: when the tensor cannot be read.
        """
        rows = self.written_rows(model)
        # a row is scaled by its largest entry first, so that no square under- or overflows
        peaks = row_peaks(rows)[:, None]
        rows = rows / torch.where(peaks > 0, peaks, 1)
        # at least 1 but for a row of zeros
        return rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp(min=0.5))

    def written_rows(self, model: AttentionWriter | None = None) -> Float[Tensor, "n_features d_model"]:
        """What an activation of 1 of each feature writes into the residual stream, in the units of the weights.

        The decoder rows, zeros where a row is not finite; on z the rows as the model projects them, up to the
        positive number by which a norm after attention divides each token.

        Raises:
            WidthMismatch: on z without a model, or with a model whose z has another width.
            BadFile: when the tensor cannot be read, or the model projects rows to values that are not finite.
        """
        stored = self.finite_rows("W_dec")
        rows = self.project(stored, model)
        if rows is stored:
            return rows
        check_values(rows, "W_dec projected by W_O", self.origin)
        if not rows.any() and stored.any():
            raise BadFile(
                f"{self.origin}: the output projection of the model at layer {self.site.layer} takes every row of "
                "'W_dec' to zeros, so that no feature has a direction. Load the model the dictionary was trained on."
            )
        return rows

    def project(self, rows: Float[Tensor, "n d_out"], model: AttentionWriter | None) -> Float[Tensor, "n d_model"]:
        """Rows of `W_dec` as the model writes them into the stream: on z through W_O, and times a norm's gain.

        Raises:
            WidthMismatch: on z without a model, or with a model whose z has another width.
            InvalidArgument: without a model, where only the model says whether a norm follows.
        """
        if self.tap is not Tap.Z:
            gain = None if self.training.view is not View.MODULE else self._settling(model).part_gain(self.site)
            return rows if gain is None else rows * gain.to(rows)
        if model is None:
            raise WidthMismatch(
                f"The dictionary at {self.site} was trained on z, the outputs of the heads, of width "
                f"{self.d_in}; directions are of width d_model, and only the model's output projection leads "
                "from one to the other. Load the model and call directions(model); on the command line give "
                "--model, or leave the part out with --parts."
            )
        W_O, gain = model.attention_writer(self.site.layer)
        if W_O.shape[1] != self.d_in:
            raise WidthMismatch(
                f"The dictionary at {self.site} reads z of width {self.d_in}, and the model's output "
                f"projection at layer {self.site.layer} maps width {W_O.shape[1]} to d_model {W_O.shape[0]}. "
                "Load the model the dictionary was trained on."
            )
        out = rows @ W_O.to(rows).T
        return out if gain is None else out * gain.to(rows)

    def for_model(self, model: AttentionWriter) -> Dictionary:
        """The same for one model, whose tensors it then reads as they stand wherever that can be.

        What TransformerLens did to the weights it was trained on is folded in: hidden states are centred first
        where the model has LayerNorms, and z is taken less the value bias.

        Raises:
            InvalidArgument: when the model has no tensor as the file names it.
        """
        if self.training.view is View.OWN:
            return self
        known = self._settling(model)
        training = replace(self.training, view=known.settled(self.point).view)
        if training.view is not View.PROCESSED:
            return self._with(training=training)
        training = replace(training, view=View.OWN)
        before = self.preprocessing
        if self.tap is not Tap.Z:
            return self._with(training=training, preprocessing=replace(before, center=True))
        if before.center or before.norm is not Norm.NONE:
            return self
        shift = known.value_bias(self.site.layer)
        return self._with(training=training, weights=Shifted(self._weights, shift, by_b_dec=before.subtract_b_dec))

    def _settling(self, model: AttentionWriter | None) -> Settles:
        if isinstance(model, Settles):
            return model
        raise InvalidArgument(
            f"The dictionary at {self.site} is named by its module, and only the model says whether a norm follows "
            "before the stream, whose gain its directions need. Load the model and call directions(model); on the "
            "command line give --model, or leave the part out with --parts."
        )

    def with_training(self, training: TrainingInfo) -> Dictionary:
        """The same, with `training` in place of what its file says."""
        return self._with(training=training)

    def centred(self) -> Dictionary:
        """The same, on hidden states that are centred over `d_in` first.

        For a dictionary trained on a model with centred writing weights, whose file does not say so.
        """
        return self._with(preprocessing=replace(self.preprocessing, center=True))

    def fold(self) -> Dictionary:
        """The same function with every threshold at 1: W_enc / t, b_enc / t, W_dec * t, t -> 1.

        Activations are divided by t and decoder rows multiplied, so decode(encode(h)) does not change while
        rows of two dictionaries become comparable in size (Balagansky et al. 2024, arXiv 2410.07656).

        Raises:
            InvalidArgument: when the activation is not JumpReLU, or a threshold is not above 0.
            BadFile: when a threshold read at first use is not finite.
        """
        activation = self.activation
        if not isinstance(activation, JumpReLU):
            raise InvalidArgument(
                f"The dictionary at {self.site} has activation {activation.kind.value}; folding divides by "
                "JumpReLU thresholds. Match without folding."
            )
        t = activation.threshold
        low = torch.nonzero(t <= 0).flatten()
        if len(low):
            raise InvalidArgument(
                f"{len(low)} of {len(t)} thresholds at {self.site} are not above 0 (first rows "
                f"{first_rows(low)}), and folding divides by them. Match without folding."
            )
        return self._with(
            weights=RowScaled(self._weights, lambda: 1 / t), activation=lambda: JumpReLU(torch.ones_like(t))
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dictionary:
        """The same on `device` in `dtype`; still reads at first use.

        At first use torch raises RuntimeError when the device does not exist.
        """
        return self._with(
            weights=Cast(self._weights, device, dtype), activation=lambda: self.activation.to(device, dtype)
        )

    def rows(self, start: int, stop: int) -> Dictionary:
        """The features `start` to `stop` - 1, for a dictionary too large to read whole; reads nothing yet.

        Feature i of the result is feature `start` + i. Its directions, encoder rows and thresholds are those of the
        whole, read from the file by range. Where features compete, as under TopK, what it encodes is
        not a part of what the whole encodes.

        Raises:
            InvalidArgument: when the range is empty or outside the dictionary.
        """
        if not 0 <= start < stop <= self.n_features:
            raise InvalidArgument(
                f"rows {start} to {stop} are no range of the {self.n_features} features at {self.site}."
            )

        def activation() -> Activation:
            whole = self.activation
            return whole if isinstance(whole, COMPETING) else whole.of(torch.arange(start, stop))

        return self._with(weights=RowRange(self._weights, start, stop), activation=activation)


def prepend_bos_of(dictionaries: Mapping[Site, Dictionary]) -> bool | None:
    """What the first dictionary whose file says it says of the begin-of-text token; None where none says it.

    One that cannot be opened says nothing.
    """
    for site in dictionaries:
        with contextlib.suppress(SaeflowError):
            if (begun := dictionaries[site].prepend_bos) is not None:
                return begun
    return None
