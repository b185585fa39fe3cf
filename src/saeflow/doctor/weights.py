"""What the weights alone say of a dictionary.

    norms        |W_dec_i|                                     no release promises 1, and matching does not need it
    alignment    cos(W_enc_i, W_dec_i)                         a trained feature reads about what it writes; rows of
                                                               two features are alike by chance only
    duplicates   cos(W_dec_i, W_dec_j) > 0.999, i not j

Where the rows are not aligned, they are read in other ways until they are: transposed, or in another order.
Transcoders read and write two spaces, and are spared this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.doctor.findings import Check, Finding, Severity
from saeflow.errors import BadFile
from saeflow.sources.activations import BatchTopK, JumpReLU
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.weights import first_rows, row_peaks

ALIKE = 0.999
"""Cosine above which two decoder rows are one."""
_SAMPLED = 4096
"""Rows that are compared with all others where there are more than four times as many."""
_TILE = 2048
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "activation")


def examine_weights(dictionary: Dictionary) -> list[Finding]:
    """The findings from the weights of one dictionary; the first that are wrong may leave out the rest.

    Raises:
        Unreachable, NoSpace: when a tensor must be fetched and cannot be.
    """
    bad = [finding for name in _TENSORS if (finding := _readable(dictionary, name)) is not None]
    if bad:
        return bad
    site = str(dictionary.site)
    found = [
        Finding(Check.FINITE, site, Severity.OK, "all values are finite", {}),
        _zero_rows(dictionary),
        _norms(dictionary),
    ]
    if isinstance(dictionary.activation, JumpReLU | BatchTopK):
        found.append(_thresholds(dictionary, dictionary.activation.threshold))
    if not dictionary.is_transcoder:
        found.append(_alignment(dictionary))
    found.append(_duplicates(dictionary))
    return found


def _readable(dictionary: Dictionary, name: str) -> Finding | None:
    try:
        getattr(dictionary, name)
    except BadFile as error:
        told = str(error)
        check = Check.FINITE if "infinite values" in told else Check.FILE
        said, _, advice = told.partition(". ")
        return Finding(check, str(dictionary.site), Severity.WRONG, said, {"tensor": name}, advice)
    return None


def _zero_rows(dictionary: Dictionary) -> Finding:
    zero, n = torch.nonzero(row_peaks(dictionary.W_dec) == 0).flatten(), dictionary.n_features
    site, numbers = str(dictionary.site), {"zero rows": len(zero)}
    if not len(zero):
        return Finding(Check.ZERO_ROWS, site, Severity.OK, "every decoder row has a direction", numbers)
    return Finding(
        Check.ZERO_ROWS,
        site,
        Severity.WRONG if len(zero) == n else Severity.LOOK,
        f"{len(zero)} of {n} decoder rows are zeros (first rows {first_rows(zero)})",
        numbers,
        "These features have no direction: they match nothing and cannot steer. All others are as they would be alone.",
    )


def _norms(dictionary: Dictionary) -> Finding:
    norms = torch.linalg.vector_norm(dictionary.W_dec.float(), dim=1)
    norms = norms[norms > 0]
    if not len(norms):
        return Finding(Check.NORMS, str(dictionary.site), Severity.WRONG, "every decoder row is zeros", {})
    low, middle, high = (float(q) for q in torch.quantile(norms, norms.new_tensor([0.01, 0.5, 0.99])))
    unit = float((norms - 1).abs().lt(1e-3).float().mean())
    numbers = {"1 %": low, "median": middle, "99 %": high, "unit": unit}
    told = "all are 1" if unit == 1 else f"{low:.3g} to {high:.3g} (1 to 99 %), median {middle:.3g}"
    if high > 100 * low:
        return Finding(
            Check.NORMS,
            str(dictionary.site),
            Severity.LOOK,
            f"decoder norms spread widely: {told}",
            numbers,
            "Matching uses directions and does not mind; sizes of activations are not comparable between features.",
        )
    return Finding(Check.NORMS, str(dictionary.site), Severity.OK, f"decoder norms: {told}", numbers)


def _thresholds(dictionary: Dictionary, threshold: Tensor) -> Finding:
    """What a feature writes at least when it is on, threshold * |W_dec_i|, is of the size of a hidden state at most."""
    t = threshold.float().expand(dictionary.n_features)
    negative, zero = int((t < 0).sum()), int((t == 0).sum())
    norms = torch.linalg.vector_norm(dictionary.W_dec.float(), dim=1)
    least = t * norms
    middle, top = float(least.median()), float(least.max())
    numbers = {"median": float(t.median()), "negative": negative, "zero": zero, "median written": middle}
    site, n = str(dictionary.site), dictionary.n_features
    told = f"thresholds: median {float(t.median()):.3g}; a feature that is on writes {middle:.3g} or more (median)"
    if zero == n:
        return Finding(
            Check.THRESHOLDS,
            site,
            Severity.LOOK,
            f"all {n} thresholds are 0, so that it is a ReLU",
            numbers,
            "If it was trained with thresholds, they are missing from the file: fetch it again.",
        )
    if negative > n / 100:
        return Finding(
            Check.THRESHOLDS,
            site,
            Severity.WRONG if negative > n / 2 else Severity.LOOK,
            f"{negative} of {n} thresholds are below 0, which cuts nothing; {told}",
            numbers,
            "They may be logarithms, or another tensor read in their place: check the file. They cannot be folded.",
        )
    if middle > 0 and top > 1000 * middle:
        return Finding(
            Check.THRESHOLDS,
            site,
            Severity.LOOK,
            f"the largest threshold is {top / middle:,.0f} times the median",
            numbers,
            "Features with such thresholds never fire; see dead features.",
        )
    told += f"; {negative} of {n} below 0, and these cannot be folded" if negative else ""
    return Finding(Check.THRESHOLDS, site, Severity.OK, told, numbers)


@dataclass(frozen=True, slots=True)
class Alignment:
    """The median cosine of a feature's two rows, and what rows of two features reach by chance (95 %)."""

    matched: float
    chance: float

    @property
    def holds(self) -> bool:
        """Whether the rows of a feature belong together."""
        return self.matched > self.chance


def alignment(W_enc: Float[Tensor, "n d_in"], W_dec: Float[Tensor, "n d_in"]) -> Alignment:
    """How alike the two rows of a feature are; each is compared with its neighbour's for chance.

    Raises:
        Nothing.
    """
    enc, dec = unit(W_enc), unit(W_dec)
    matched = (enc * dec).sum(dim=1)
    chance = (enc * dec.roll(1, dims=0)).sum(dim=1)
    high = float(torch.quantile(chance[: 1 << 20], 0.95))
    return Alignment(float(matched.median()), max(high, 0.02))


def unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The rows at unit norm; a row of zeros stays one.

    Raises:
        Nothing.
    """
    rows = rows.float()
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)


def turned(matrix: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """A matrix whose values were written the other way round, [d n], and read as [n d]; square: its transpose.

    Raises:
        Nothing.
    """
    n, d = matrix.shape
    return matrix.reshape(d, n).T


def _alignment(dictionary: Dictionary) -> Finding:
    W_enc, W_dec, site = dictionary.W_enc, dictionary.W_dec, str(dictionary.site)
    now = alignment(W_enc, W_dec)
    numbers = {"median cosine": now.matched, "by chance": now.chance}
    told = f"the two rows of a feature have cosine {now.matched:.2f} (median; {now.chance:.2f} by chance)"
    if now.holds:
        return Finding(Check.ALIGNMENT, site, Severity.OK, told, numbers)
    # square matrices that agree after one is turned agree after the other is: the norms tell which
    as_read = {"encoder": (turned(W_enc), W_dec), "decoder": (W_enc, turned(W_dec))}
    found = {name: alignment(*pair) for name, pair in as_read.items()}
    best = max(found, key=lambda name: found[name].matched)
    if found[best].holds:
        both = all(one.holds for one in found.values())
        which = _turned_one(W_dec) if both else best
        cosine = found[best].matched
        return Finding(
            Check.TRANSPOSED,
            site,
            Severity.WRONG,
            f"{told}; with the {which} read the other way round, [d_in, n_features], it is {cosine:.2f}",
            numbers | {"turned": which, "cosine turned": cosine},
            f"Transpose {'W_dec' if which == 'decoder' else 'W_enc'} in the file.",
        )
    if (order := _best_partner(W_enc, W_dec)) > 2 * max(now.matched, now.chance):
        return Finding(
            Check.ORDER,
            site,
            Severity.WRONG,
            f"{told}, and {order:.2f} with the decoder row it is most alike (median)",
            numbers | {"best partner": order},
            "Encoder and decoder list the features in different orders: they may be of two files.",
        )
    return Finding(
        Check.ALIGNMENT,
        site,
        Severity.WRONG,
        told,
        numbers,
        "Encoder and decoder are not of one dictionary, or one of them was not trained.",
    )


def _turned_one(W_dec: Tensor) -> str:
    """Which of two square matrices lies the other way round: the decoder, if its columns are of more equal norms."""

    def spread(matrix: Tensor, dim: int) -> float:
        norms = torch.linalg.vector_norm(matrix.float(), dim=dim)
        return float(norms.std() / norms.mean())

    return "decoder" if spread(W_dec, 0) < spread(W_dec, 1) else "encoder"


def _best_partner(W_enc: Tensor, W_dec: Tensor, n: int = 256) -> float:
    enc, dec = unit(W_enc[:n]), unit(W_dec)
    return float((enc @ dec.T).max(dim=1).values.median())


def _duplicates(dictionary: Dictionary) -> Finding:
    n = dictionary.n_features
    rows = unit(dictionary.W_dec)
    step = max(1, n // _SAMPLED) if n > 4 * _SAMPLED else 1
    looked = torch.arange(0, n, step, device=rows.device)
    twins = 0
    for block in torch.split(looked, _TILE):
        likeness = rows[block] @ rows.T
        likeness[torch.arange(len(block), device=rows.device), block] = 0
        twins += int((likeness.amax(dim=1) > ALIKE).sum())
    share = twins / len(looked)
    of = f"{len(looked):,}" + ("" if step == 1 else f" looked at of {n:,}")
    numbers = {"twins": twins, "looked at": len(looked), "share": share}
    said = f"{twins:,} of {of} decoder rows have a twin (cosine above {ALIKE})"
    if share <= 0.005:
        return Finding(Check.DUPLICATES, str(dictionary.site), Severity.OK, said, numbers)
    return Finding(
        Check.DUPLICATES,
        str(dictionary.site),
        Severity.WRONG if share > 0.1 else Severity.LOOK,
        said,
        numbers,
        "Twins share a match, and a one-to-one matching parts them: leave one of each out, or train anew.",
    )
