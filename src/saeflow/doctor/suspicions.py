"""What may be wrong with a dictionary, each undone: what makes the reconstruction much better is what is wrong.

    FVE = 1 - sum |h - h'|^2 / sum |h - mean h|^2          the fraction of variance explained, over tokens

A suspicion is another tensor to read (tap), or the same hidden states read by the dictionary put right: the input
or the thresholds times a factor c, centred, normalised, b_dec subtracted or not, a matrix turned. The factor is
searched on a grid of powers of two and then between its neighbours. Two suspicions may both help; the one that
helps most is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.doctor.findings import Check
from saeflow.doctor.places import Spot
from saeflow.doctor.weights import turned
from saeflow.sources.activations import Activation, BatchTopK, JumpReLU
from saeflow.sources.dictionary import Dictionary, Norm

SCANNED: Final = 256
"""Tokens that suspicions are tried on."""
_COARSE: Final = 96
"""Tokens that the powers of two are tried on, of which all but the best are far off."""
_POWERS: Final = range(-7, 8)
_BLOCK: Final = 512
"""Tokens whose dense activations are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well hidden states are reconstructed, and by how many active features a token."""

    fve: float
    l0: float


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something undone, what that gives, and what it is.

    Attributes:
        check: which kind it is.
        said: what was done: "read at 3/att", "with the input times 13.9".
        fit: what it gives.
        value: the factor, where there is one.
    """

    check: Check
    said: str
    fit: Fit
    value: float = math.nan


def fve(h: Float[Tensor, "n d"], made: Float[Tensor, "n d"]) -> float:
    """The fraction of the variance of `h` over tokens that `made` explains: 1 at best, below 0 where it hurts.

    Raises:
        Nothing.
    """
    total = (h - h.mean(dim=0)).square().sum()
    return float(1 - (h - made).square().sum() / total) if float(total) > 0 else math.nan


def fit(
    dictionary: Dictionary,
    read: Float[Tensor, "n d_in"],
    written: Float[Tensor, "n d_out"] | None = None,
    *,
    scale: float = 1.0,
) -> Fit:
    """Encode `read` times `scale`, decode, divide by `scale`, and compare with `written`, by default `read` itself.

    A transcoder's output is not divided: it is another tensor. Where hidden states are centred first, what is to
    be explained is too.

    Raises:
        WidthMismatch: when `read` is not `d_in` wide.
    """
    target = read if written is None else written
    made: list[Tensor] = []
    active = 0
    for block in torch.split(read, _BLOCK):
        acts = dictionary.encode(block * scale)
        active += int((acts > 0).sum())
        made.append(dictionary.decode(acts, block * scale))
    found = torch.cat(made).float()
    if written is None:
        found = found / scale
        if dictionary.preprocessing.center:
            target = target - target.mean(dim=-1, keepdim=True)
    return Fit(fve(target.float(), found), active / max(len(read), 1))


def variant(
    dictionary: Dictionary,
    *,
    activation: Activation | None = None,
    W_enc: Tensor | None = None,
    W_dec: Tensor | None = None,
    **preprocessing: bool | Norm,
) -> Dictionary:
    """The dictionary with something of it changed; tensors are shared.

    Raises:
        InvalidArgument: when shapes do not go together.
    """
    return Dictionary(
        dictionary.site,
        tap=dictionary.tap,
        W_enc=dictionary.W_enc if W_enc is None else W_enc,
        b_enc=dictionary.b_enc,
        W_dec=dictionary.W_dec if W_dec is None else W_dec,
        b_dec=dictionary.b_dec,
        W_skip=dictionary.W_skip,
        activation=activation or dictionary.activation,
        preprocessing=replace(dictionary.preprocessing, **preprocessing),  # pyright: ignore[reportArgumentType]
        training=dictionary.training,
    )


def suspicions(
    dictionary: Dictionary, seen: Mapping[Spot, Tensor], own: Spot, written: Spot, tried: tuple[Spot, ...]
) -> list[Suspicion]:
    """Every suspicion that can be tried on these hidden states, undone.

    Raises:
        BadFile: when a tensor read at first use is bad.
    """
    h = seen[own][:SCANNED]
    target = seen[written][:SCANNED] if dictionary.is_transcoder else None
    found = [_at(dictionary, seen, spot, target) for spot in tried if spot != own and _fits(dictionary, seen[spot])]
    if dictionary.preprocessing.norm is Norm.NONE:
        found.append(_scaled(lambda c, n: fit(dictionary, h[:n], _first(target, n), scale=c)))
    threshold = dictionary.activation
    if isinstance(threshold, JumpReLU | BatchTopK) and bool((threshold.threshold != 0).any()):
        found.append(_cut(dictionary, threshold, h, target))
    found += [Suspicion(check, said, fit(made, h, target)) for check, said, made in _changed(dictionary)]
    return found


def cut_for(dictionary: Dictionary, h: Float[Tensor, "n d_in"], l0: float) -> float | None:
    """The factor on the thresholds at which as many features are active as stated; None where no factor does it.

    Halves the interval of factors between 1/128 and 128, since more is active the lower thresholds are.

    Raises:
        Nothing.
    """
    activation = dictionary.activation
    if not isinstance(activation, JumpReLU | BatchTopK) or not bool((activation.threshold > 0).any()):
        return None

    def active(power: float) -> float:
        cut = replace(activation, threshold=activation.threshold * 2.0**power)
        return float((variant(dictionary, activation=cut).encode(h) > 0).sum()) / len(h)

    low, high = float(_POWERS[0]), float(_POWERS[-1])
    if not active(high) <= l0 <= active(low):
        return None
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if active(middle) > l0 else (low, middle)
    return 2.0 ** ((low + high) / 2)


def _fits(dictionary: Dictionary, h: Tensor) -> bool:
    return h.shape[1] == dictionary.d_in


def _at(dictionary: Dictionary, seen: Mapping[Spot, Tensor], spot: Spot, target: Tensor | None) -> Suspicion:
    return Suspicion(Check.TAP, f"read at {spot}", fit(dictionary, seen[spot][:SCANNED], target))


def _first(target: Tensor | None, n: int) -> Tensor | None:
    return None if target is None else target[:n]


def _scaled(at: Callable[[float, int], Fit]) -> Suspicion:
    c, best = _search(at)
    return Suspicion(Check.SCALE, f"with the input times {c:.3g}", best, c)


def _cut(dictionary: Dictionary, activation: JumpReLU | BatchTopK, h: Tensor, target: Tensor | None) -> Suspicion:
    def at(c: float, n: int) -> Fit:
        cut = replace(activation, threshold=activation.threshold * c)
        return fit(variant(dictionary, activation=cut), h[:n], _first(target, n))

    c, best = _search(at)
    return Suspicion(Check.THRESHOLD_SCALE, f"with the thresholds times {c:.3g}", best, c)


def _search(at: Callable[[float, int], Fit]) -> tuple[float, Fit]:
    """The factor with the highest FVE: powers of two on few tokens, then between the neighbours of the best."""
    coarse = {float(power): at(2.0**power, _COARSE).fve for power in _POWERS if power != 0}
    middle = max(coarse, key=lambda power: coarse[power])
    found = {middle: at(2.0**middle, SCANNED)}
    for step in (0.5, 0.25, 0.125, 0.0625):
        middle = max(found, key=lambda power: found[power].fve)
        found |= {power: at(2.0**power, SCANNED) for power in (middle - step, middle + step)}
    best = max(found, key=lambda power: found[power].fve)
    return 2.0**best, found[best]


def _changed(dictionary: Dictionary) -> list[tuple[Check, str, Dictionary]]:
    """The dictionary put right in each way that leaves the hidden state as it is."""
    before = dictionary.preprocessing
    found: list[tuple[Check, str, Dictionary]] = []
    if not before.center:
        found.append((Check.CENTERING, "with the input centred", variant(dictionary, center=True)))
    else:
        found.append((Check.CENTERING, "with the input not centred", variant(dictionary, center=False)))
    for norm, said in (
        (Norm.NONE, "with the input not normalised"),
        (Norm.RESCALE, "with each token brought to norm sqrt(d_in)"),
        (Norm.LAYER_NORM, "with each token layer-normed"),
    ):
        if norm is not before.norm:
            found.append((Check.NORM, said, variant(dictionary, norm=norm)))
    if not dictionary.is_transcoder:
        flipped = variant(dictionary, subtract_b_dec=not before.subtract_b_dec)
        word = "not " if before.subtract_b_dec else ""
        found.append((Check.B_DEC, f"with b_dec {word}subtracted from the input", flipped))
        turned_dec = variant(dictionary, W_dec=turned(dictionary.W_dec))
        turned_enc = variant(dictionary, W_enc=turned(dictionary.W_enc))
        found += [
            (Check.TRANSPOSED, "with the decoder read the other way round", turned_dec),
            (Check.TRANSPOSED, "with the encoder read the other way round", turned_enc),
        ]
    return found
