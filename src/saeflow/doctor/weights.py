"""Checks that need only the weights of a dictionary.

    norms        |W_dec_i|                                     no release promises 1, and matching does not need it
    alignment    cos(W_enc_i, W_dec_i)                         a trained feature reads roughly what it writes; rows of
                                                               different features are similar only by chance
    duplicates   cos(W_dec_i, W_dec_j) > 0.999, i not j

Where encoder and decoder rows are not aligned, the check tries a transposed matrix and another order of features.
Transcoders are exempt from the alignment check, because they read and write different spaces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.doctor.findings import CheckKind, Finding, Number, Severity, finding
from saeflow.errors import BadFile
from saeflow.sources.activations import BatchTopK, JumpReLU
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.weights import first_rows, row_peaks

ALIKE = 0.999
"""Cosine above which two decoder rows count as duplicates."""
_SAMPLED = 4096
"""About how many rows, evenly spaced, are compared with all others when there are more than four times as many."""
_TILE = 2048
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "activation")


def examine_weights(dictionary: Dictionary) -> list[Finding]:
    """The findings from the weights of one dictionary; if tensors cannot be read, only the findings that say so.

    Raises:
        Unreachable, NoSpace: when a tensor must be fetched and cannot be.
    """
    bad: list[Finding] = []
    for name in _TENSORS:
        try:
            getattr(dictionary, name)
        except BadFile as error:
            check = CheckKind.FINITE if "infinite values" in str(error) else CheckKind.FILE
            said, _, advice = str(error).partition(". ")
            bad.append(finding(check, dictionary.site, Severity.WRONG, said, {"tensor": name}, advice))
    if bad:
        return bad
    found = [
        finding(CheckKind.FINITE, dictionary.site, Severity.OK, "all values are finite", {}),
        _zero_rows(dictionary),
        _norms(dictionary),
    ]
    if isinstance(dictionary.activation, JumpReLU | BatchTopK):
        found.append(_thresholds(dictionary, dictionary.activation.threshold))
    if not dictionary.is_transcoder:
        found.append(_alignment(dictionary))
    found.append(_duplicates(dictionary))
    return found


def _zero_rows(dictionary: Dictionary) -> Finding:
    zero, n = torch.nonzero(row_peaks(dictionary.W_dec) == 0).flatten(), dictionary.n_features
    severity = Severity.WRONG if len(zero) == n else Severity.LOOK if len(zero) else Severity.OK
    said = f"{len(zero)} of {n} decoder rows are zeros (first rows {first_rows(zero)})"
    return finding(
        CheckKind.ZERO_ROWS,
        dictionary.site,
        severity,
        said if len(zero) else "every decoder row has a direction",
        {"zero rows": len(zero)},
        "These features have no direction: they match nothing and cannot steer. All others are as they would be alone.",
    )


def _norms(dictionary: Dictionary) -> Finding:
    norms = torch.linalg.vector_norm(dictionary.W_dec.float(), dim=1)
    norms = norms[norms > 0]
    if not len(norms):
        return finding(CheckKind.NORMS, dictionary.site, Severity.WRONG, "every decoder row is zeros", {})
    low, middle, high = (float(q) for q in torch.quantile(norms, norms.new_tensor([0.01, 0.5, 0.99])))
    unit_share = float((norms - 1).abs().lt(1e-3).float().mean())
    numbers = {"1 %": low, "median": middle, "99 %": high, "unit": unit_share}
    range_ = "all are 1" if unit_share == 1 else f"{low:.3g} to {high:.3g} (1 to 99 %), median {middle:.3g}"
    wide = high > 100 * low
    said = f"decoder norms spread widely: {range_}" if wide else f"decoder norms: {range_}"
    advice = "Matching uses directions and does not mind; sizes of activations are not comparable between features."
    return finding(CheckKind.NORMS, dictionary.site, Severity.LOOK if wide else Severity.OK, said, numbers, advice)


def _thresholds(dictionary: Dictionary, threshold: Tensor) -> Finding:
    """An active feature writes at least threshold * |W_dec_i|, which should not exceed the size of a hidden state."""
    t, n = threshold.float().expand(dictionary.n_features), dictionary.n_features
    negative, zero = int((t < 0).sum()), int((t == 0).sum())
    least = t * torch.linalg.vector_norm(dictionary.W_dec.float(), dim=1)
    middle, top = float(least.median()), float(least.max())
    numbers = {"median": float(t.median()), "negative": negative, "zero": zero, "median written": middle}
    said = f"thresholds: median {float(t.median()):.3g}; a feature that is on writes {middle:.3g} or more (median)"
    severity, advice = Severity.LOOK, ""
    if zero == n:
        said = f"all {n} thresholds are 0, so that it is a ReLU"
        advice = "If it was trained with thresholds, they are missing from the file: fetch it again."
    elif negative > n / 100:
        severity = Severity.WRONG if negative > n / 2 else Severity.LOOK
        said = f"{negative} of {n} thresholds are below 0, which cuts nothing; {said}"
        advice = "They may be logarithms, or another tensor read in their place: check the file. They cannot be folded."
    elif middle > 0 and top > 1000 * middle:
        said = f"the largest threshold is {top / middle:,.0f} times the median"
        advice = "Features with such thresholds never fire; see dead features."
    else:
        severity = Severity.OK
        said += f"; {negative} of {n} below 0, and these cannot be folded" if negative else ""
    return finding(CheckKind.THRESHOLDS, dictionary.site, severity, said, numbers, advice)


@dataclass(frozen=True, slots=True)
class Alignment:
    """Median cosine of a feature's encoder and decoder rows, and the 95 % quantile for rows of different features."""

    matched: float
    chance: float

    @property
    def holds(self) -> bool:
        """Whether the two rows of a feature are more similar than by chance."""
        return self.matched > self.chance


def alignment(W_enc: Float[Tensor, "n d_in"], W_dec: Float[Tensor, "n d_in"]) -> Alignment:
    """How similar the two rows of each feature are; the row of the preceding feature gives the chance level."""
    enc, dec = unit(W_enc), unit(W_dec)
    matched = (enc * dec).sum(dim=1)
    chance = (enc * dec.roll(1, dims=0)).sum(dim=1)
    high = float(torch.quantile(chance[: 1 << 20], 0.95))
    return Alignment(float(matched.median()), max(high, 0.02))


def unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The rows scaled to unit norm; a row of zeros stays zero."""
    rows = rows.float()
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)


def turned(matrix: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Reinterpret a matrix read as [n d] whose values were stored as [d n]; for a square matrix, its transpose."""
    n, d = matrix.shape
    return matrix.reshape(d, n).T


def _alignment(dictionary: Dictionary) -> Finding:
    W_enc, W_dec, site = dictionary.W_enc, dictionary.W_dec, dictionary.site
    now = alignment(W_enc, W_dec)
    numbers: dict[str, Number] = {"median cosine": now.matched, "by chance": now.chance}
    said = f"the two rows of a feature have cosine {now.matched:.2f} (median; {now.chance:.2f} by chance)"
    if now.holds:
        return finding(CheckKind.ALIGNMENT, site, Severity.OK, said, numbers)

    # 1. is a matrix transposed? If both are square, transposing either one restores the alignment, so the norms decide:
    # a decoder whose columns have more equal norms than its rows is the transposed one
    def spread(dim: int) -> float:
        norms = torch.linalg.vector_norm(W_dec.float(), dim=dim)
        return float(norms.std() / norms.mean())

    as_read = {"encoder": (turned(W_enc), W_dec), "decoder": (W_enc, turned(W_dec))}
    found = {name: alignment(*pair) for name, pair in as_read.items()}
    which = max(found, key=lambda name: found[name].matched)
    cosine = found[which].matched
    if found[which].holds:
        if all(one.holds for one in found.values()):
            which = "decoder" if spread(0) < spread(1) else "encoder"
        said += f"; with the {which} read the other way round, [d_in, n_features], it is {cosine:.2f}"
        advice = f"Transpose {'W_dec' if which == 'decoder' else 'W_enc'} in the file."
        numbers |= {"turned": which, "cosine turned": cosine}
        return finding(CheckKind.TRANSPOSED, site, Severity.WRONG, said, numbers, advice)

    # 2. are the features listed in different orders?
    partner = float((unit(W_enc[:256]) @ unit(W_dec).T).max(dim=1).values.median())
    if partner > 2 * max(now.matched, now.chance):
        said += f", and {partner:.2f} with the decoder row it is most alike (median)"
        advice = "Encoder and decoder list the features in different orders: they may be of two files."
        return finding(CheckKind.ORDER, site, Severity.WRONG, said, numbers | {"best partner": partner}, advice)
    advice = "Encoder and decoder are not of one dictionary, or one of them was not trained."
    return finding(CheckKind.ALIGNMENT, site, Severity.WRONG, said, numbers, advice)


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
    severity = Severity.OK if share <= 0.005 else Severity.WRONG if share > 0.1 else Severity.LOOK
    advice = "Twins share a match, and a one-to-one matching parts them: leave one of each out, or train anew."
    return finding(CheckKind.DUPLICATES, dictionary.site, severity, said, numbers, advice)
