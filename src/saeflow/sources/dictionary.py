"""Dictionary: one sparse autoencoder or transcoder at one site, whose tensors are read from disk at first use.

    pre  = prepare(h) @ W_enc^T + b_enc                       W_enc [n_features d_in]
    acts = activation(pre)
    h'   = acts @ W_dec + b_dec (+ prepare(h) @ W_skip^T)     W_dec [n_features d_out]

    prepare: centre h over d_in;  (h - shift) / scale, both computed from the token itself;  subtract b_dec

Each step of `prepare` is optional. An autoencoder reconstructs what it reads, so d_out = d_in. A transcoder reads what
the MLP reads (its `tap`) and predicts what the MLP writes (its `site`), some with a linear skip next to the features.

Rows are features in both matrices: the readers in `formats`, and nothing else, transpose what a file stores otherwise.
Data-free matching (section 3.2 of arXiv 2502.03032) needs only `W_dec`, so each tensor is read separately, at first
use, and checked then: values that are not finite raise BadFile. A decoder row of zeros is a feature that writes
nothing. Matching works row by row: a feature whose row is zeros or not finite has no direction and matches nothing,
and the others match as if it were absent.
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
    """(h - mean) / (std + 1e-5), std with Bessel's correction, as in sae-lens."""
    RESCALE = "rescale"
    """h * sqrt(d_in) / |h|, which is also an RMSNorm before its gain."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The preprocessing of h before `W_enc`: centre over d_in, normalise, subtract `b_dec`, in this order."""

    subtract_b_dec: bool = False
    center: bool = False
    norm: Norm = Norm.NONE

    def prepare(
        self, h: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch d_in"], Tensor | float, Tensor | float]:
        """h centred and normalised, with the scale and shift that undo the normalisation (not the centring)."""
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
"""No preprocessing: h is encoded as it is."""


@dataclass(frozen=True, slots=True)
class TrainingInfo:
    """What a dictionary's file says about its training.

    Attributes:
        view: how the file names the tensor it was trained on.
        prepend_bos: whether the training texts began with the begin-of-text token; None if the file does not say.
        context_size: the maximum length of the training texts, in tokens; None if the file does not say.
    """

    view: View = View.OWN
    prepend_bos: bool | None = None
    context_size: int | None = None


_UNKNOWN: Final = TrainingInfo()


@runtime_checkable
class AttentionWriter(Protocol):
    """A model that knows how its attention writes z into the residual stream."""

    def attention_writer(self, layer: int) -> tuple[Float[Tensor, "d_model d_in"], Float[Tensor, " d_model"] | None]:
        """`W_O`, and the gain per channel of a norm between it and the residual stream, None without such a norm.

        On Gemma 2 and 3 the gain is (1 + weight) of the norm after attention.
        """
        ...


@runtime_checkable
class Settles(AttentionWriter, Protocol):
    """A model that can resolve which tensor a `View` means in it; see `LanguageModel`."""

    def settled(self, point: Point) -> Point:
        """The same tensor, with `View.OWN` wherever it is the tensor at the tap itself."""
        ...

    def part_gain(self, site: Site) -> Float[Tensor, " d_model"] | None:
        """The factor per channel between a part's module and the residual stream, such as the gain of a norm."""
        ...

    def value_bias(self, layer: int) -> Float[Tensor, " d_in"]:
        """The constant that the bias of the values adds to z."""
        ...


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Dictionary:
    """One sparse autoencoder or transcoder; rows are features. See the module docstring for the formulas.

    Attributes:
        site: where it writes; matching compares directions there.
        tap: which tensor it reads, in the layer of `site`: for an SAE, the site's own tensor or its `z`.
        preprocessing: what is done to a hidden state before `W_enc`.
        training: what its file says about its training.
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
            InvalidArgument: when the shapes do not fit together.
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
        """A dictionary whose tensors are read at first use; `activation` too is called then.

        Defects of a file therefore raise errors only when it is read.
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
        """A copy with the given fields replaced; reads nothing."""
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
        """The number of features; reads no tensor."""
        return self._weights.shape[0]

    @property
    def d_in(self) -> int:
        """The width of the tensor it reads; reads no tensor from the file."""
        return self._weights.shape[1]

    @property
    def d_out(self) -> int:
        """The width of the tensor it writes: `d_in`, except for some transcoders. Reads no tensor from the file."""
        return self._weights.d_out

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts what the MLP writes from what the MLP reads; editing what it reads has no meaning."""
        return self.tap.is_read_only

    @property
    def point(self) -> Point:
        """The tensor whose hidden states `encode` takes, in the form that `LanguageModel.capture` accepts."""
        return Point(self.site.layer, self.tap, self.training.view)

    @property
    def prepend_bos(self) -> bool | None:
        """Whether the training texts began with the begin-of-text token; None if its file does not say."""
        return self.training.prepend_bos

    @property
    def origin(self) -> str:
        """The file the tensors are read from, as error messages name it."""
        return self._weights.origin

    @cached_property
    def W_enc(self) -> Float[Tensor, "n_features d_in"]:  # noqa: N802
        """The encoder, one row per feature. Raises BadFile if a row is not finite."""
        return self._read("W_enc")

    @cached_property
    def b_enc(self) -> Float[Tensor, " n_features"]:
        """The bias of the pre-activations. Raises BadFile if a value is not finite."""
        return self._read("b_enc")

    @cached_property
    def W_dec(self) -> Float[Tensor, "n_features d_out"]:  # noqa: N802
        """The decoder, one row per feature. Raises BadFile if a row is not finite."""
        return self._read("W_dec")

    @cached_property
    def b_dec(self) -> Float[Tensor, " d_out"]:
        """The bias of the reconstruction. Raises BadFile if a value is not finite."""
        return self._read("b_dec")

    @cached_property
    def W_skip(self) -> Float[Tensor, "d_out d_in"] | None:  # noqa: N802
        """The linear skip from input to output; None in most dictionaries. Raises BadFile if a row is not finite."""
        return self._read("W_skip") if self._weights.has_skip else None

    @cached_property
    def activation(self) -> Activation:
        """The activation function, with its thresholds read. Raises BadFile if one is not finite."""
        return self._activation()

    def _read(self, name: str) -> Tensor:
        tensor = self._weights.read(name)
        check_values(tensor, name, self._weights.origin)
        return tensor

    def finite_rows(self, name: str) -> Tensor:
        """`W_enc`, `b_enc` or `W_dec` for use row by row: rows that are not finite are replaced by zeros.

        Raises:
            BadFile: when the tensor cannot be read, or none of its rows is finite.
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
        """Whether it reads z, so that its directions need the model's output projection."""
        return self.tap is Tap.Z

    def digest(self) -> str:
        """sha256 of the decoder in float32, to tell whether two dictionaries are the same. See `weights.digest`.

        Raises:
            BadFile: when the decoder cannot be read.
        """
        return digest(self._weights)

    def unload(self) -> None:
        """Drop the tensors read so far; the next use reads them again, with the same values."""
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "activation"):
            self.__dict__.pop(name, None)

    def encode(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_features"]:
        """Activations of every feature on hidden states `h`, in the dtype of the weights.

        Raises:
            WidthMismatch: when `h` is not `d_in` wide.
            InvalidArgument: when `h`, cast to the dtype of the weights, holds NaN or infinite values.
            BadFile: when a tensor read at first use is bad.
        """
        refuse_infinite(f"hidden states that the dictionary at {self.site} reads", h.to(self.W_enc.dtype))
        return self.encode_unchecked(h)

    def encode_unchecked(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_features"]:
        """As `encode`, without checking `h`, which would wait for the device: for hooks, where padding is arbitrary.

        Raises:
            WidthMismatch: when `h` is not `d_in` wide.
            BadFile: when a tensor read at first use is bad.
        """
        return self.activation(torch.nn.functional.linear(self._prepared(h), self.W_enc, self.b_enc))

    def encode_only(self, h: Float[Tensor, "*batch d_in"], features: Int[Tensor, " k"]) -> Float[Tensor, "*batch k"]:
        """The columns `features` of `encode(h)`, computing only these where features do not compete.

        Where they compete, as under TopK, all are computed. Equal to `encode` up to the rounding of matrix products.

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
        """The factor by which `decode` scales the rows of `W_dec` on hidden states `h`: 1 without normalisation.

        Raises:
            BadFile: when a tensor read at first use is bad.
        """
        return 1.0 if self.is_transcoder else self.preprocessing.prepare(h.to(self.W_enc.dtype))[1]

    def _prepared(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The vectors that `W_enc` multiplies: `h` after all preprocessing."""
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
        """The output for given activations: acts @ W_dec + b_dec, plus prepare(h) @ W_skip^T if there is a skip.

        `h`, the hidden states that were encoded, is needed with a skip, and to undo the normalisation of each token
        where `preprocessing.norm` is not NONE. A transcoder's output is not scaled back, since it is a different
        tensor from its input. With `preprocessing.center`, the reconstruction is of centred h.

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
        """The direction each feature writes into the residual stream: unit rows in d_model.

        These are the decoder rows, normalised, since no release guarantees unit norm. A row v of a dictionary on z is
        written as `(W_O v) * gain`: a norm after attention also divides by a positive number per token, which does
        not change the direction. A row that is zeros or not finite has no direction and is returned as zeros.
        Reads only `W_dec`.

        Raises:
            WidthMismatch: on z without a model, or with a model whose z has another width.
            BadFile: when the tensor cannot be read.
        """
        rows = self.written_rows(model)
        # divide each row by its largest entry first, so that no square under- or overflows
        peaks = row_peaks(rows)[:, None]
        rows = rows / torch.where(peaks > 0, peaks, 1)
        # the norm is now at least 1, except for a row of zeros, which stays zeros
        return rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp(min=0.5))

    def written_rows(self, model: AttentionWriter | None = None) -> Float[Tensor, "n_features d_model"]:
        """The vector that each feature writes into the residual stream per unit of activation, in the weights' units.

        These are the decoder rows, with zeros for rows that are not finite; on z, the rows as the model projects them,
        up to the positive number by which a norm after attention divides each token.

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
        """Rows of `W_dec` as the model writes them into the residual stream: through W_O on z, times a norm's gain.

        Raises:
            WidthMismatch: on z without a model, or with a model whose z has another width.
            InvalidArgument: without a model, where only the model knows whether a norm follows.
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
        """The same dictionary adapted to one model, so that it reads the model's own tensors wherever possible.

        For a dictionary trained on weights that TransformerLens processed, the processing is folded in: hidden states
        are centred first if the model has LayerNorms, and the value bias is subtracted from z.

        Raises:
            InvalidArgument: when the model has no tensor that fits the file's name for it.
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
        """The same dictionary, with `training` in place of what its file says."""
        return self._with(training=training)

    def centred(self) -> Dictionary:
        """The same dictionary, with hidden states centred over `d_in` before anything else.

        For a dictionary trained on a model with centred writing weights, when its file does not say so.
        """
        return self._with(preprocessing=replace(self.preprocessing, center=True))

    def fold(self) -> Dictionary:
        """The same function with every threshold at 1: W_enc / t, b_enc / t, W_dec * t, t -> 1.

        Activations are divided by t and decoder rows multiplied by it, so decode(encode(h)) does not change, while
        the rows of two dictionaries become comparable in size (Balagansky et al. 2024, arXiv 2410.07656).

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
        """The same dictionary on `device` in `dtype`; tensors are still read at first use.

        Torch raises RuntimeError then if the device does not exist.
        """
        return self._with(
            weights=Cast(self._weights, device, dtype), activation=lambda: self.activation.to(device, dtype)
        )

    def rows(self, start: int, stop: int) -> Dictionary:
        """The features `start` to `stop` - 1, for a dictionary too large to read whole; reads nothing yet.

        Feature i of the result is feature `start` + i of the whole, with the same direction, encoder row and threshold,
        read from the file by range. Where features compete, as under TopK, its activations are not a slice of those of
        the whole.

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
    """The first `prepend_bos` that a dictionary's file states; None if no file states it.

    Dictionaries that cannot be opened are skipped.
    """
    for site in dictionaries:
        with contextlib.suppress(SaeflowError):
            if (begun := dictionaries[site].prepend_bos) is not None:
                return begun
    return None
