"""Rescale on many rows at once, each with features and a factor of its own: h + (r - 1) a V (section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.sources.dictionary import Dictionary


class RowEdit(NamedTuple):
    """What is rescaled in one row; `values` are the features' activations where they are known."""

    row: int
    features: tuple[int, ...]
    r: float
    values: tuple[float, ...] | None


def rescaled(
    h: Float[Tensor, "n d_in"], dictionary: Dictionary, edits: Sequence[RowEdit]
) -> Float[Tensor, "n d_in"]:
    """`h` with some of its rows edited; activations that are not known are read from `h`.

    Raises:
        WidthMismatch: when `h` is not `d_in` wide.
        BadFile: when a tensor read at first use is bad.
    """
    W_dec = dictionary.W_dec
    x = h.to(W_dec)
    row, feature, factor = _flat(edits, h.device)
    known = torch.zeros(len(row), dtype=x.dtype)
    blank = [edit.values is None for edit in edits for _ in edit.features]
    given = [value for edit in edits for value in edit.values or ()]
    unknown = torch.tensor(blank)
    known[~unknown] = torch.tensor(given, dtype=x.dtype)
    acts = known.to(x.device)
    if any(blank):
        ask = unknown.to(x.device)
        acts[ask] = activations_of(x, dictionary, row[ask], feature[ask])
    # a product, not index_add_, whose sums on a GPU differ from run to run
    features, column = feature.unique(return_inverse=True)
    coefficient = x.new_zeros(len(x), len(features))
    coefficient[row, column] = factor.to(x) * acts
    share = coefficient @ W_dec[features]
    return h + (share * dictionary.scale(x)).to(h)


def activations_of(
    h: Float[Tensor, "n d_in"], dictionary: Dictionary, row: Tensor, feature: Tensor
) -> Float[Tensor, " k"]:
    """The activation of one feature on one row, for each of `k` pairs.

    Raises:
        WidthMismatch: when `h` is not `d_in` wide.
        BadFile: when a tensor read at first use is bad.
    """
    rows, row = row.unique(return_inverse=True)
    features, column = feature.unique(return_inverse=True)
    return dictionary.encode_only(h[rows].to(dictionary.W_enc), features)[row, column]


def _flat(edits: Sequence[RowEdit], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The row, the feature and the factor r - 1 of every feature of every edit."""
    row = [edit.row for edit in edits for _ in edit.features]
    feature = [index for edit in edits for index in edit.features]
    factor = [edit.r - 1.0 for edit in edits for _ in edit.features]
    return (
        torch.tensor(row, device=device),
        torch.tensor(feature, device=device),
        torch.tensor(factor, device=device, dtype=torch.float64),
    )
