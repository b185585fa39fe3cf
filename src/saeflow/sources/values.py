"""What goes into a language model and what comes out of it, as plain values over tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument, UnknownSite, WidthMismatch
from saeflow.ids import Site
from saeflow.sources.architectures import Point, Tap

Place: TypeAlias = Site | tuple[int, Tap] | Point
"""A site, `(layer, Tap.Z)` for the head outputs before the output projection, which are no site, or a `Point`."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A batch of texts as token ids, padded on the right; the mask is 1 on real tokens."""

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]

    @property
    def lengths(self) -> list[int]:
        """How many real tokens each text has."""
        return [int(n) for n in self.attention_mask.sum(dim=1).tolist()]

    def loss(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch pos-1"]:
        """Loss of each next token in nats, in float32: column t is -log p(token t+1 | tokens up to t).

        NaN where token t+1 is padding, so that a mean has to be `nanmean` and cannot count padding.

        Raises:
            WidthMismatch: when the logits are not of this batch.
            InvalidArgument: when logits are NaN or infinite, so that a token has no loss.
        """
        if logits.shape[:2] != self.input_ids.shape:
            raise WidthMismatch(
                f"logits of shape {tuple(logits.shape)} are not of tokens of shape "
                f"{tuple(self.input_ids.shape)}. Pass the logits of the same batch."
            )
        following = self.input_ids[:, 1:]
        rows = [nats(text[:-1], ids) for text, ids in zip(logits, following, strict=True)]
        loss, real = torch.stack(rows), self.attention_mask[:, 1:] != 0
        if bool((loss.isnan() & real).any()):
            raise InvalidArgument(_not_finite("the logits", loss.isfinite() | ~real, real))
        return loss.masked_fill(~real, float("nan"))


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
        raise InvalidArgument(_not_finite(what, fine, torch.ones_like(fine) if real is None else real))


def _not_finite(what: str, fine: Tensor, real: Tensor) -> str:
    return (
        f"{what} hold NaN or infinite values, at {int((~fine).sum())} of {int((real != 0).sum())} tokens. float16 "
        "overflows above 65,504: load the model and its dictionaries in bfloat16 or float32; else look at the weights, "
        "and at what edits them."
    )


def nats(logits: Float[Tensor, "n vocab"], ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-log p(token) of each row, in float32 and within 1e-5 of float64: log sum exp(l - l_token).

    Torch's `cross_entropy` adds the vocabulary up one by one in float32: too low by up to 1e-3 nats for 260,000 tokens
    where they are strided, 4e-5 where they are not. Its `logsumexp` adds them in pairs.
    """
    scores = logits.float()
    return torch.logsumexp(scores - scores.gather(1, ids[:, None]), dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class Captured(Mapping["Site | Point", Tensor]):
    """What one forward pass held at the places asked for.

    Each value is `Float[Tensor, "batch pos d_model"]` (`d_in` wide for `z`) in the model's dtype, without
    gradient. Values at padding are there and mean nothing.

    Attributes:
        tensors: point -> tensor; index the object itself by site or `(layer, Tap.Z)`.
        asked: the places, as they were asked for.
        inputs: layer -> what its block read, for the layers asked for.
        logits: `Float[Tensor, "batch pos vocab"]` where asked for.
    """

    tensors: Mapping[Point, Tensor]
    asked: tuple[Site | Point, ...]
    inputs: Mapping[int, Tensor]
    logits: Tensor | None

    def __getitem__(self, place: Place) -> Tensor:
        """The tensor at a place.

        Raises:
            UnknownSite: when it was not asked for.
        """
        point = Point.at(place)
        if point not in self.tensors:
            have = ", ".join(map(str, self.asked)) or "none"
            raise UnknownSite(f"{point} was not captured; captured: {have}. Name it in capture(tokens, sites).")
        return self.tensors[point]

    def __iter__(self) -> Iterator[Site | Point]:
        """The places, as they were asked for."""
        return iter(self.asked)

    def __len__(self) -> int:
        """How many places were asked for."""
        return len(self.asked)


class OutputProjection(NamedTuple):
    """What turns a direction v of `z` into the stream: `(W_O v) * gain`, up to one positive factor a token.

    `gain` is that of the sandwich norm, for models that have one: its division by the root mean square
    is one number per token, so the direction is exact without data.
    """

    W_O: Float[Tensor, "d_model d_in"]
    gain: Float[Tensor, " d_model"] | None

    def project(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_model"]:
        """Directions of `z`, one a row, as directions of the stream; not of unit length.

        Raises:
            WidthMismatch: when the rows are not as wide as `z`.
        """
        if rows.shape[1] != self.W_O.shape[1]:
            raise WidthMismatch(
                f"directions of width {rows.shape[1]} cannot pass an output projection that reads "
                f"{self.W_O.shape[1]}. Check that model and dictionary belong together."
            )
        written = rows @ self.W_O.to(rows).T
        return written if self.gain is None else written * self.gain.to(rows)


class TokenLogit(NamedTuple):
    """A token a direction promotes, and by how much."""

    token: str
    id: int
    logit: float
