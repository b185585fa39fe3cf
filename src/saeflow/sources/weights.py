"""Weights: where the tensors of a Dictionary come from, and the checks of values when they are read.

Used by dictionary.py and the file readers. A Weights knows its shape from a header and reads one tensor at a time;
wrappers transform what is read, such as its device, its dtype or the scale of its rows.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, SaeflowError, UnsupportedFormat
from saeflow.files import cache_folder, write_atomic
from saeflow.ids import FeatureId

_AT_ONCE: Final = 1 << 28
"""Numbers read at a time for a digest: 1 GiB in float32."""
_HEX: Final = 64


class Weights(ABC):
    """Where a dictionary's tensors come from. Each `read` reads from the source; Dictionary keeps the result.

    Attributes:
        origin: the file or object, as error messages name it.
        shape: (n_features, d_in), known without reading a tensor.
        d_out: the width of a row of `W_dec`: `d_in`, except for a transcoder between two widths.
        has_skip: whether there is a `W_skip`, known without reading it.
    """

    def __init__(self, origin: str, shape: tuple[int, int], d_out: int, *, has_skip: bool = False) -> None:
        """See the attributes."""
        self.origin, self.shape, self.d_out, self.has_skip = origin, shape, d_out, has_skip

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Read one tensor by name.

        The names are `W_enc` [n_features d_in], `W_dec` [n_features d_out], `b_enc` [n_features], `b_dec` [d_out] and,
        if `has_skip`, `W_skip` [d_out d_in].

        Raises:
            BadFile: when the tensor cannot be read.
        """

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Features `start` to `stop` - 1 of `W_enc`, `W_dec` or a vector over features; by range where possible.

        Raises:
            BadFile: when they cannot be read.
        """
        return self.read(name)[start:stop]

    @property
    def stamp(self) -> str:
        """The state of the file (path, size, modification time) and which part of it is read; "" if unknown."""
        return ""


def digest(weights: Weights) -> str:
    """sha256 of `W_dec` in float32, with features as rows: the same from any format, on any device or processor.

    The tensor is read in parts. The digest is cached on disk for each state of a file (path, size, modification time),
    so that only the first call reads the file.

    Raises:
        BadFile: when the tensor cannot be read.
    """
    stamp = weights.stamp
    kept = cache_folder() / "digests" / hashlib.sha256(stamp.encode()).hexdigest()[:32]
    if stamp:
        with suppress(OSError, UnicodeDecodeError):
            if len(known := kept.read_text()) == _HEX:
                return known
    found, n = hashlib.sha256(), weights.shape[0]
    step = max(1, _AT_ONCE // weights.d_out)
    for start in range(0, n, step):
        part = weights.read("W_dec") if step >= n else weights.read_rows("W_dec", start, min(start + step, n))
        found.update(part.detach().float().cpu().contiguous().numpy().data)
    if stamp:
        with suppress(SaeflowError, OSError):  # a cache that cannot be written only costs time
            write_atomic(kept, found.hexdigest().encode())
    return found.hexdigest()


class _Derived(Weights):
    """Weights derived from others, with the same origin and shape unless overridden."""

    def __init__(self, base: Weights) -> None:
        super().__init__(base.origin, base.shape, base.d_out, has_skip=base.has_skip)
        self._base = base


class RowScaled(_Derived):
    """Weights with encoder row i multiplied by factor[i]; unless `encoder_only`, bias i too, and decoder row i divided.

    Without `encoder_only`, activation i is multiplied by factor[i] under ReLU, or with thresholds scaled alike, and the
    reconstruction is the same.
    """

    def __init__(
        self, base: Weights, factor: Callable[[], Float[Tensor, " n_features"]], *, encoder_only: bool = False
    ) -> None:
        """Wrap `base`; `factor` is called only when a tensor that needs it is read."""
        super().__init__(base)
        self._factor, self._encoder_only = factor, encoder_only

    def read(self, name: str) -> Tensor:
        """The base's tensor, scaled. Raises BadFile as the base does."""
        return self._scaled(name, self._base.read(name), slice(None))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some features of the base's tensor, scaled."""
        return self._scaled(name, self._base.read_rows(name, start, stop), slice(start, stop))

    @property
    def stamp(self) -> str:
        """The base's stamp if the decoder is the base's."""
        return self._base.stamp if self._encoder_only else ""

    def _scaled(self, name: str, tensor: Tensor, features: slice) -> Tensor:
        if name in ("b_dec", "W_skip") or (self._encoder_only and name != "W_enc"):
            return tensor
        factor = self._factor()[features].to(tensor)
        if name == "b_enc":
            return tensor * factor
        return tensor * factor[:, None] if name == "W_enc" else tensor / factor[:, None]


class DirectionsOnly(_Derived):
    """Weights of which only the directions of the decoder rows are known.

    One factor common to all decoder rows is missing: `W_dec` is read without it, and all else is refused.
    """

    def __init__(self, base: Weights, why: str) -> None:
        """`why` is the error message for other tensors: what is missing and what to do."""
        super().__init__(base)
        self._why = why

    def read(self, name: str) -> Tensor:
        """The base's `W_dec`. Raises UnsupportedFormat for any other tensor, and BadFile as the base does."""
        if name != "W_dec":
            raise UnsupportedFormat(self._why)
        return self._base.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of the base's `W_dec`; raises as `read` does."""
        if name != "W_dec":
            raise UnsupportedFormat(self._why)
        return self._base.read_rows(name, start, stop)

    @property
    def stamp(self) -> str:
        """The base's stamp, since the decoder is the base's."""
        return self._base.stamp


class Shifted(_Derived):
    """Weights that read and reconstruct `h` where the base's read `h - shift`, with the same activations."""

    def __init__(self, base: Weights, shift: Float[Tensor, " d_in"], *, by_b_dec: bool) -> None:
        """With `by_b_dec`, encoding subtracts `b_dec`, so that shifting `b_dec` suffices and `b_enc` stays."""
        super().__init__(base)
        self._shift, self._by_b_dec = shift, by_b_dec

    def read(self, name: str) -> Tensor:
        """The base's tensor, with shifted biases. Raises BadFile as the base does."""
        tensor = self._base.read(name)
        if name == "b_dec":
            return tensor + self._shift.to(tensor)
        if name == "b_enc" and not self._by_b_dec:
            W_enc = self._base.read("W_enc")
            return tensor - W_enc @ self._shift.to(W_enc)
        return tensor

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some features of the base's tensor, with shifted biases."""
        if name in ("W_enc", "W_dec"):
            return self._base.read_rows(name, start, stop)
        return super().read_rows(name, start, stop)

    @property
    def stamp(self) -> str:
        """The base's stamp, since the decoder is the base's."""
        return self._base.stamp


class Cast(_Derived):
    """Weights on another device or in another dtype; None keeps what the base has. Raises BadFile as the base does."""

    def __init__(self, base: Weights, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Read nothing yet."""
        super().__init__(base)
        self._device, self._dtype = device, dtype

    def read(self, name: str) -> Tensor:
        """The base's tensor, moved and cast."""
        return self._base.read(name).to(device=self._device, dtype=self._dtype)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some features of the base's tensor, moved and cast."""
        return self._base.read_rows(name, start, stop).to(device=self._device, dtype=self._dtype)

    @property
    def stamp(self) -> str:
        """The base's stamp, unless the dtype may change values."""
        return self._base.stamp if self._dtype in (None, torch.float32) else ""


class RowRange(_Derived):
    """Features `start` to `stop` - 1 of other weights."""

    def __init__(self, base: Weights, start: int, stop: int) -> None:
        """Read nothing yet."""
        super().__init__(base)
        self._start, self._stop = start, stop
        self.origin = f"{base.origin}, rows {start} to {stop - 1}"
        self.shape = stop - start, base.shape[1]

    def read(self, name: str) -> Tensor:
        """The base's tensor, cut to the range if it has one row per feature. Raises BadFile as the base does."""
        if name in ("b_dec", "W_skip"):
            return self._base.read(name)
        return self._base.read_rows(name, self._start, self._stop)


class TensorsInMemory(Weights):
    """Weights in memory."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: str, *, transcoder: bool = False) -> None:
        """Hold tensors whose shapes fit `W_dec`; a transcoder's `d_in` is that of `W_enc`. Errors name `origin`.

        Raises:
            InvalidArgument: when two shapes do not fit together.
        """
        if tensors["W_dec"].ndim != 2:
            raise InvalidArgument(
                f"{origin}: W_dec has shape {list(tensors['W_dec'].shape)}, expected [n_features, d_in]. Rows "
                "are features in both matrices."
            )
        n_features, d_out = tensors["W_dec"].shape
        d_in = int(tensors["W_enc"].shape[-1]) if transcoder and tensors["W_enc"].ndim else d_out
        super().__init__(origin, (n_features, d_in), d_out, has_skip="W_skip" in tensors)
        self._tensors = dict(tensors)
        for name, expected in expected_shapes(n_features, d_in, d_out).items():
            if name not in tensors and name == "W_skip":
                continue
            got = tuple(tensors[name].shape)
            if got != expected:
                raise InvalidArgument(
                    f"{origin}: {name} has shape {list(got)}, expected {list(expected)} beside W_dec "
                    f"{[n_features, d_out]}. Rows are features in both matrices."
                )

    def read(self, name: str) -> Tensor:
        """The tensor as given."""
        return self._tensors[name]


def expected_shapes(n_features: int, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor a dictionary may have, with features as rows; only some have `W_skip`."""
    return {
        "W_enc": (n_features, d_in),
        "b_enc": (n_features,),
        "W_dec": (n_features, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
    }


def check_values(tensor: Tensor, name: str, origin: str) -> None:
    """Check that all values are finite.

    Raises:
        BadFile: naming `origin`, the tensor, the number of bad rows and the first of them.
    """
    peak = row_peaks(tensor)
    bad = torch.nonzero(~torch.isfinite(peak)).flatten()
    if len(bad):
        raise BadFile(
            f"{origin}: tensor {name!r} has NaN or infinite values in {len(bad)} of {len(peak)} rows (first "
            f"rows {first_rows(bad)}). Fetch the file again; if it was trained here, training diverged."
        )


def refuse_infinite(what: str, h: Float[Tensor, "*tokens width"], real: Tensor | None = None) -> None:
    """Check that hidden states are finite: on NaN or infinite values features would be silently inactive.

    Args:
        what: what they are, in the plural, for the message: "hidden states at 3/res".
        h: hidden states in any dtype; a token's sum, in float32 or better, is NaN or infinite where a value is, and
            practically only there.
        real: `Int[Tensor, "*tokens"]`, not 0 where a token counts; None if all count.

    Raises:
        InvalidArgument: with the number of bad tokens.
    """
    fine = h.sum(dim=-1, dtype=torch.promote_types(h.dtype, torch.float32)).isfinite()
    if real is not None:
        fine = fine | (real == 0)
    if not bool(fine.all()):
        raise infinite_values(what, fine, torch.ones_like(fine) if real is None else real)


def infinite_values(what: str, fine: Tensor, real: Tensor) -> InvalidArgument:
    """The error for NaN or infinite values at the tokens that are not `fine`; `real` is not 0 where a token counts."""
    return InvalidArgument(
        f"{what} hold NaN or infinite values, at {int((~fine).sum())} of {int((real != 0).sum())} tokens. float16 "
        "overflows above 65,504: load the model and its dictionaries in bfloat16 or float32; else look at the weights, "
        "and at what edits them."
    )


def unit_rows(rows: Float[Tensor, "n width"], features: Sequence[FeatureId]) -> Float[Tensor, "n width"]:
    """The decoder rows of some features at unit norm, to be added to hidden states.

    Raises:
        InvalidArgument: for a row that is zeros or not finite: adding it would change nothing, or give NaN.
    """
    peak = row_peaks(rows)
    bad = [str(f) for f, one in zip(features, peak.tolist(), strict=True) if not 0 < one < float("inf")]
    if bad:
        named = ", ".join(bad[:5]) + (" and others" if len(bad) > 5 else "")
        raise InvalidArgument(
            f"{len(bad)} of {len(peak)} features have a decoder row of zeros, or one that is not finite ({named}): "
            "there is no direction to add to a hidden state. Leave these features out."
        )
    return torch.nn.functional.normalize(rows, dim=-1, eps=0.0)


def row_peaks(tensor: Float[Tensor, "*rows columns"]) -> Float[Tensor, " n_rows"]:
    """The largest absolute entry of each row, or the absolute value of each entry of a vector.

    NaN or infinite where any entry of the row is, and 0 only for a row of zeros; unlike a norm it squares nothing, so
    nothing under- or overflows.
    """
    if tensor.ndim < 2:
        return tensor.abs().reshape(-1)
    return torch.maximum(tensor.amax(dim=-1), -tensor.amin(dim=-1))  # eight times as fast as aminmax


def first_rows(rows: Tensor) -> list[int]:
    """The first five row indices, for an error message."""
    return [int(row) for row in rows[:5]]
