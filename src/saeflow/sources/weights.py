"""Weights: where the tensors of a Dictionary come from, and what is checked when values are read.

Below dictionary.py and the file readers. A Weights knows its shape from a header and reads one tensor at a
time; wrappers change what is read without reading anything else: other device or dtype, rows scaled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, SaeflowError, UnsupportedFormat
from saeflow.files import cache_folder, write_atomic
from saeflow.ids import FeatureId

_AT_ONCE: Final = 1 << 28
"""Numbers read at a time for a digest: 1 GiB."""
_HEX: Final = 64


@runtime_checkable
class Weights(Protocol):
    """Where a dictionary's tensors come from. `read` costs a read each time; Dictionary keeps the result."""

    @property
    def origin(self) -> str:
        """What an error names: the file."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(n_features, d_in), known without reading a tensor."""
        ...

    @property
    def d_out(self) -> int:
        """The width of a row of `W_dec`: `d_in`, but for a transcoder between spaces of two widths."""
        ...

    @property
    def has_skip(self) -> bool:
        """Whether there is a `W_skip`, known without reading it."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor by its name.

        `W_enc` [n_features d_in], `W_dec` [n_features d_out], `b_enc` [n_features], `b_dec` [d_out], and where
        there is one `W_skip` [d_out d_in].

        Raises:
            BadFile: when the tensor cannot be read.
        """
        ...


@runtime_checkable
class ReadsRows(Protocol):
    """Weights that read some rows of a matrix without the others."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Entries `start` to `stop` - 1 along the axis of features: of `W_enc`, `W_dec` or a vector of n_features.

        Raises:
            BadFile: when they cannot be read.
        """
        ...


@runtime_checkable
class Stamped(Protocol):
    """Weights that can say, without reading a tensor, which state of which file they are."""

    @property
    def stamp(self) -> str:
        """The file with its size and time of change, and what of it is read; "" when it is not known."""
        ...


def digest(weights: Weights) -> str:
    """sha256 of `W_dec` in float32, rows being features: the same from any format, on any device or processor.

    Read by parts. Kept in the cache folder for each state of a file (path, size, time of change), so that only the
    first call reads it.

    Raises:
        BadFile: when the tensor cannot be read.
    """
    stamp = weights.stamp if isinstance(weights, Stamped) else ""
    kept = cache_folder() / "digests" / hashlib.sha256(stamp.encode()).hexdigest()[:32]
    if stamp:
        with suppress(OSError, UnicodeDecodeError):
            if len(known := kept.read_text()) == _HEX:
                return known
    found, n = hashlib.sha256(), weights.shape[0]
    step = max(1, _AT_ONCE // weights.d_out)
    for start in range(0, n, step):
        part = weights.read("W_dec") if step >= n else read_rows(weights, "W_dec", start, min(start + step, n))
        found.update(part.detach().float().cpu().contiguous().numpy().data)
    if stamp:
        with suppress(SaeflowError, OSError):  # a cache that cannot be written costs time alone
            write_atomic(kept, found.hexdigest().encode())
    return found.hexdigest()


def read_rows(weights: Weights, name: str, start: int, stop: int) -> Tensor:
    """Some features of a tensor, by range where the weights can.

    Raises:
        BadFile: when they cannot be read.
    """
    if isinstance(weights, ReadsRows):
        return weights.read_rows(name, start, stop)
    return weights.read(name)[start:stop]


class _Derived:
    """Weights made from others: the same file, the same shape."""

    def __init__(self, base: Weights) -> None:
        self._base = base

    @property
    def origin(self) -> str:
        """The file of the base."""
        return self._base.origin

    @property
    def shape(self) -> tuple[int, int]:
        """(n_features, d_in) of the base."""
        return self._base.shape

    @property
    def d_out(self) -> int:
        """That of the base."""
        return self._base.d_out

    @property
    def has_skip(self) -> bool:
        """Whether the base has one."""
        return self._base.has_skip


class RowScaled(_Derived):
    """Weights with feature i's activation multiplied by factor[i] and its decoder row divided by it."""

    def __init__(self, base: Weights, factor: Callable[[], Float[Tensor, " n_features"]]) -> None:
        """`factor` is called only when a tensor that needs it is read."""
        super().__init__(base)
        self._factor = factor

    def read(self, name: str) -> Tensor:
        """The base's tensor, scaled: W_enc and b_enc times the factor, W_dec divided by it.

        Raises:
            BadFile: when the base does.
        """
        tensor = self._base.read(name)
        if name in ("b_dec", "W_skip"):
            return tensor
        factor = self._factor().to(tensor)
        if name == "b_enc":
            return tensor * factor
        return tensor * factor[:, None] if name == "W_enc" else tensor / factor[:, None]


class EncoderScaled(_Derived):
    """Weights whose encoder rows are multiplied by factor[i], and nothing else."""

    def __init__(self, base: Weights, factor: Callable[[], Float[Tensor, " n_features"]]) -> None:
        """`factor` is called only when `W_enc` is read."""
        super().__init__(base)
        self._factor = factor

    def read(self, name: str) -> Tensor:
        """The base's tensor; `W_enc` with its rows multiplied.

        Raises:
            BadFile: when the base does.
        """
        tensor = self._base.read(name)
        return tensor * self._factor().to(tensor)[:, None] if name == "W_enc" else tensor


class DirectionsOnly(_Derived):
    """Weights of which the directions of the decoder's rows are known, and nothing else.

    A number that all of them are to be multiplied by is missing: `W_dec` is read up to it, and all else refused.
    """

    def __init__(self, base: Weights, why: str) -> None:
        """`why` is what is said where more is asked for: what is missing, and what to do."""
        super().__init__(base)
        self._why = why

    def read(self, name: str) -> Tensor:
        """The base's `W_dec`.

        Raises:
            UnsupportedFormat: for any other tensor.
            BadFile: when the base does.
        """
        return self._base.read(self._known(name))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some features of the base's `W_dec`.

        Raises:
            UnsupportedFormat: for any other tensor.
            BadFile: when the base does.
        """
        return read_rows(self._base, self._known(name), start, stop)

    def _known(self, name: str) -> str:
        if name != "W_dec":
            raise UnsupportedFormat(self._why)
        return name


class Shifted(_Derived):
    """Weights for `h` where the base is for `h - shift`: the same activations, and `h` is reconstructed."""

    def __init__(self, base: Weights, shift: Float[Tensor, " d_in"], *, by_b_dec: bool) -> None:
        """`by_b_dec`: `b_dec` is subtracted from what is read, and so takes the shift along."""
        super().__init__(base)
        self._shift, self._by_b_dec = shift, by_b_dec

    def read(self, name: str) -> Tensor:
        """The base's tensor; the biases moved.

        Raises:
            BadFile: when the base does.
        """
        tensor = self._base.read(name)
        if name == "b_dec":
            return tensor + self._shift.to(tensor)
        if name == "b_enc" and not self._by_b_dec:
            W_enc = self._base.read("W_enc")
            return tensor - W_enc @ self._shift.to(W_enc)
        return tensor


class Cast(_Derived):
    """Weights on another device or in another dtype."""

    def __init__(self, base: Weights, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """None keeps what the base has."""
        super().__init__(base)
        self._device, self._dtype = device, dtype

    def read(self, name: str) -> Tensor:
        """The base's tensor, moved.

        Raises:
            BadFile: when the base does.
        """
        return self._base.read(name).to(device=self._device, dtype=self._dtype)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some features of the base's tensor, moved.

        Raises:
            BadFile: when the base does.
        """
        return read_rows(self._base, name, start, stop).to(device=self._device, dtype=self._dtype)

    @property
    def stamp(self) -> str:
        """That of the base, unless values change with the dtype."""
        base = self._base
        return base.stamp if isinstance(base, Stamped) and self._dtype in (None, torch.float32) else ""


class RowRange(_Derived):
    """Some features of other weights."""

    def __init__(self, base: Weights, start: int, stop: int) -> None:
        """Features `start` to `stop` - 1."""
        super().__init__(base)
        self._start, self._stop = start, stop

    @property
    def origin(self) -> str:
        """The file of the base, and which rows of it."""
        return f"{self._base.origin}, rows {self._start} to {self._stop - 1}"

    @property
    def shape(self) -> tuple[int, int]:
        """(features of the range, d_in)."""
        return self._stop - self._start, self._base.shape[1]

    def read(self, name: str) -> Tensor:
        """The base's tensor; of those with a row or an entry for each feature, the range.

        Raises:
            BadFile: when the base does.
        """
        if name in ("b_dec", "W_skip"):
            return self._base.read(name)
        return read_rows(self._base, name, self._start, self._stop)


class InMemory:
    """Weights in memory."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: str, *, transcoder: bool = False) -> None:
        """Check shapes against `W_dec` and hold; a transcoder's `d_in` is that of `W_enc`.

        Raises:
            InvalidArgument: when two shapes do not go together.
        """
        self._tensors, self._origin = dict(tensors), origin
        if tensors["W_dec"].ndim != 2:
            raise InvalidArgument(
                f"{origin}: W_dec has shape {list(tensors['W_dec'].shape)}, expected [n_features, d_in]. Rows "
                "are features in both matrices."
            )
        n_features, d_out = tensors["W_dec"].shape
        d_in = int(tensors["W_enc"].shape[-1]) if transcoder and tensors["W_enc"].ndim else d_out
        for name, expected in expected_shapes(n_features, d_in, d_out).items():
            if name not in tensors and name == "W_skip":
                continue
            got = tuple(tensors[name].shape)
            if got != expected:
                raise InvalidArgument(
                    f"{origin}: {name} has shape {list(got)}, expected {list(expected)} beside W_dec "
                    f"{[n_features, d_out]}. Rows are features in both matrices."
                )
        self._shape = n_features, d_in

    @property
    def origin(self) -> str:
        """What the caller named it."""
        return self._origin

    @property
    def shape(self) -> tuple[int, int]:
        """(n_features, d_in)."""
        return self._shape

    @property
    def d_out(self) -> int:
        """The width of a row of `W_dec`."""
        return int(self._tensors["W_dec"].shape[1])

    @property
    def has_skip(self) -> bool:
        """Whether a `W_skip` was given."""
        return "W_skip" in self._tensors

    def read(self, name: str) -> Tensor:
        """The tensor as given.

        Raises:
            Nothing.
        """
        return self._tensors[name]


def expected_shapes(n_features: int, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor a dictionary may have, rows being features; `W_skip` is not in all of them."""
    return {
        "W_enc": (n_features, d_in),
        "b_enc": (n_features,),
        "W_dec": (n_features, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
    }


def check_values(tensor: Tensor, name: str, origin: str) -> None:
    """Refuse values that are not finite.

    Raises:
        BadFile: naming `origin`, the tensor, how many rows and which come first.
    """
    peak = row_peaks(tensor)
    bad = torch.nonzero(~torch.isfinite(peak)).flatten()
    if len(bad):
        raise BadFile(
            f"{origin}: tensor {name!r} has NaN or infinite values in {len(bad)} of {len(peak)} rows (first "
            f"rows {first_rows(bad)}). Fetch the file again; if it was trained here, training diverged."
        )


def refuse_infinite(what: str, h: Float[Tensor, "*tokens width"], real: Tensor | None = None) -> None:
    """Refuse hidden states that hold NaN or infinite values; no feature is active on them, silently.

    Args:
        what: what they are, in the plural, for the message: "hidden states at 3/res".
        h: in any dtype; adding up a token keeps NaN and makes infinity of infinity, and nothing else does in float32.
        real: `Int[Tensor, "*tokens"]`, not 0 where the value counts; None for everywhere.

    Raises:
        InvalidArgument: with how many tokens are concerned.
    """
    fine = h.sum(dim=-1, dtype=torch.promote_types(h.dtype, torch.float32)).isfinite()
    if real is not None:
        fine = fine | (real == 0)
    if not bool(fine.all()):
        raise infinite_values(what, fine, torch.ones_like(fine) if real is None else real)


def infinite_values(what: str, fine: Tensor, real: Tensor) -> InvalidArgument:
    """The error for values that are NaN or infinite at the tokens that are real and not `fine`."""
    return InvalidArgument(
        f"{what} hold NaN or infinite values, at {int((~fine).sum())} of {int((real != 0).sum())} tokens. float16 "
        "overflows above 65,504: load the model and its dictionaries in bfloat16 or float32; else look at the weights, "
        "and at what edits them."
    )


def unit_rows(rows: Float[Tensor, "n width"], features: Sequence[FeatureId]) -> Float[Tensor, "n width"]:
    """The decoder rows of some features at unit length, for those who add them to hidden states.

    Raises:
        InvalidArgument: for a row without a direction: adding it would change nothing, or everything to NaN.
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
    """The largest absolute entry of each row, or each entry of a vector.

    NaN or infinite where any entry of the row is, and 0 only in a row of zeros: no square under- or overflows.
    """
    if tensor.ndim < 2:
        return tensor.abs().reshape(-1)
    low, high = torch.aminmax(tensor, dim=-1)
    return torch.maximum(high, -low)


def first_rows(rows: Tensor) -> list[int]:
    """The first five row numbers, for a message."""
    return [int(row) for row in rows[:5]]
