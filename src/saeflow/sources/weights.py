"""Weights: where the tensors of a Dictionary come from, and what is checked when values are read.

Below dictionary.py and the file readers. A Weights knows its shape from a header and reads one tensor at a
time; wrappers change what is read without reading anything else: other device or dtype, rows scaled.
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
"""Numbers read at a time for a digest: 1 GiB."""
_HEX: Final = 64


class Weights(ABC):
    """Where a dictionary's tensors come from. `read` costs a read each time; Dictionary keeps the result.

    Attributes:
        origin: what an error names: the file.
        shape: (n_features, d_in), known without reading a tensor.
        d_out: the width of a row of `W_dec`: `d_in`, but for a transcoder between spaces of two widths.
        has_skip: whether there is a `W_skip`, known without reading it.
    """

    def __init__(self, origin: str, shape: tuple[int, int], d_out: int, *, has_skip: bool = False) -> None:
        """See the attributes."""
        self.origin, self.shape, self.d_out, self.has_skip = origin, shape, d_out, has_skip

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor by its name.

        `W_enc` [n_features d_in], `W_dec` [n_features d_out], `b_enc` [n_features], `b_dec` [d_out], and where
        there is one `W_skip` [d_out d_in].

        Raises:
            BadFile: when the tensor cannot be read.
        """

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Features `start` to `stop` - 1 of `W_enc`, `W_dec` or a vector of n_features; by range where that can be.

        Raises:
            BadFile: when they cannot be read.
        """
        return self.read(name)[start:stop]

    @property
    def stamp(self) -> str:
        """The state of the file (path, size, time of change), and what of it is read; "" when it is not known."""
        return ""


def digest(weights: Weights) -> str:
    """sha256 of `W_dec` in float32, rows being features: the same from any format, on any device or processor.

    Read by parts. Kept in the cache folder for each state of a file (path, size, time of change), so that only the
    first call reads it.

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
        with suppress(SaeflowError, OSError):  # a cache that cannot be written costs time alone
            write_atomic(kept, found.hexdigest().encode())
    return found.hexdigest()


class _Derived(Weights):
    """Weights made from others: the same file, the same shape."""

    def __init__(self, base: Weights) -> None:
        super().__init__(base.origin, base.shape, base.d_out, has_skip=base.has_skip)
        self._base = base


class RowScaled(_Derived):
    """Weights with encoder row i multiplied by factor[i]; unless `encoder_only`, bias i too, and decoder row i divided.

    Without `encoder_only` activation i is multiplied by factor[i], and the reconstruction is the same.
    """

    def __init__(
        self, base: Weights, factor: Callable[[], Float[Tensor, " n_features"]], *, encoder_only: bool = False
    ) -> None:
        """`factor` is called only when a tensor that needs it is read."""
        super().__init__(base)
        self._factor, self._encoder_only = factor, encoder_only

    def read(self, name: str) -> Tensor:
        """The base's tensor, scaled. Raises BadFile as the base does."""
        tensor = self._base.read(name)
        if name in ("b_dec", "W_skip") or (self._encoder_only and name != "W_enc"):
            return tensor
        factor = self._factor().to(tensor)
        if name == "b_enc":
            return tensor * factor
        return tensor * factor[:, None] if name == "W_enc" else tensor / factor[:, None]


class DirectionsOnly(_Derived):
    """Weights of which the directions of the decoder's rows are known, and nothing else.

    A number that all of them are to be multiplied by is missing: `W_dec` is read up to it, and all else refused.
    """

    def __init__(self, base: Weights, why: str) -> None:
        """`why` says, where more is requested, what is missing and what to do."""
        super().__init__(base)
        self._why = why

    def read(self, name: str) -> Tensor:
        """The base's `W_dec`; UnsupportedFormat for any other tensor. Raises BadFile as the base does."""
        if name != "W_dec":
            raise UnsupportedFormat(self._why)
        return self._base.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some features of the base's `W_dec`; raises as `read`."""
        if name != "W_dec":
            raise UnsupportedFormat(self._why)
        return self._base.read_rows(name, start, stop)


class Shifted(_Derived):
    """Weights for `h` where the base is for `h - shift`: the same activations, and `h` is reconstructed."""

    def __init__(self, base: Weights, shift: Float[Tensor, " d_in"], *, by_b_dec: bool) -> None:
        """`by_b_dec`: `b_dec` is subtracted from what is read, and so takes the shift along."""
        super().__init__(base)
        self._shift, self._by_b_dec = shift, by_b_dec

    def read(self, name: str) -> Tensor:
        """The base's tensor; the biases moved. Raises BadFile as the base does."""
        tensor = self._base.read(name)
        if name == "b_dec":
            return tensor + self._shift.to(tensor)
        if name == "b_enc" and not self._by_b_dec:
            W_enc = self._base.read("W_enc")
            return tensor - W_enc @ self._shift.to(W_enc)
        return tensor


class Cast(_Derived):
    """Weights on another device or in another dtype; None keeps what the base has. Raises BadFile as the base does."""

    def __init__(self, base: Weights, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Read nothing yet."""
        super().__init__(base)
        self._device, self._dtype = device, dtype

    def read(self, name: str) -> Tensor:
        """The base's tensor, moved."""
        return self._base.read(name).to(device=self._device, dtype=self._dtype)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some features of the base's tensor, moved."""
        return self._base.read_rows(name, start, stop).to(device=self._device, dtype=self._dtype)

    @property
    def stamp(self) -> str:
        """That of the base, unless values change with the dtype."""
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
        """The base's tensor; of those with an entry for each feature, the range. Raises BadFile as the base does."""
        if name in ("b_dec", "W_skip"):
            return self._base.read(name)
        return self._base.read_rows(name, self._start, self._stop)


class TensorsInMemory(Weights):
    """Weights in memory."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: str, *, transcoder: bool = False) -> None:
        """Check shapes against `W_dec` and hold; a transcoder's `d_in` is that of `W_enc`. `origin` names them.

        Raises:
            InvalidArgument: when two shapes do not go together.
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
    return torch.maximum(tensor.amax(dim=-1), -tensor.amin(dim=-1))  # an eighth of the time of aminmax


def first_rows(rows: Tensor) -> list[int]:
    """The first five row numbers, for a message."""
    return [int(row) for row in rows[:5]]
