"""Virtual weights: how strongly what one feature writes is read by another (equation 1, appendix F).

    w(parent -> child) = W_dec[parent] . W_enc[child]
    z(h)_i (W_dec(A)^T W_enc(B)^T)_{i,:}                        A before B, for one token       (eq. 1)

Equation 1 (Dunefsky et al. 2024, arXiv 2406.11944) multiplies A's decoder by B's encoder, so A comes first in
the computation: its feature i, active with z_i, adds z_i w_ij to the pre-activation of B's feature j. The
sentence below it in the paper calls features of B the ancestors; the product says descendants, and we follow
the product. For a child in the residual stream this is the direct path. For a child at a module's output
the parent's share first passes through the module, and the product is a similarity and no path.

A transcoder (Dunefsky et al.) writes at its site like any dictionary, and as a parent is no exception. What it reads
decides about the child: one that reads the stream after attention (`mid`) has its encoder rows in the residual stream,
and the product is the direct path, as for a child there. One that reads what the MLP is called with (`mlp_in`) has them
behind a norm, whose gain the weights of the dictionary do not hold: it is refused.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.matching.table import MatchTable
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import AttentionWriter, Dictionary, Norm

BLOCK = 1024


def reading_rows(dictionary: Dictionary) -> Float[Tensor, "n_features d_model"]:
    """What each feature reads from the residual stream: the encoder rows, in the units of the file.

    Where hidden states are centred before they are encoded, the rows are centred instead, which is the same
    function. A normalisation that divides each token by its own size is left out: it scales all features
    alike on a token.

    Raises:
        WidthMismatch: when the dictionary reads z, or as a transcoder what a norm makes of the stream: neither is the
            residual stream.
        BadFile: when a row is not finite.
    """
    if dictionary.tap is Tap.MLP_IN:
        raise WidthMismatch(
            f"The transcoder at {dictionary.site} reads mlp_in, the stream after the norm before the MLP: its encoder "
            "rows lack the gain of that norm and do not lie in the residual stream. Match by what it writes: method "
            '"cosine", "permutation" or "decoder-product".'
        )
    if dictionary.tap is Tap.Z:
        raise WidthMismatch(
            f"The dictionary at {dictionary.site} reads z, the outputs of the heads, of width {dictionary.d_in}: "
            "its encoder rows do not lie in the residual stream, and those of two layers not in one space. "
            'Match by what it writes: method "cosine", "permutation" or "decoder-product".'
        )
    rows = dictionary.finite_rows("W_enc")
    if dictionary.preprocessing.center or dictionary.preprocessing.norm is Norm.LAYER_NORM:
        return rows - rows.mean(dim=1, keepdim=True)
    return rows


def reading_bias(dictionary: Dictionary) -> Float[Tensor, " n_features"]:
    """The bias of the pre-activations; where `b_dec` is subtracted from the input, that is counted in.

    Raises:
        BadFile: when a tensor is not finite.
    """
    if dictionary.preprocessing.subtract_b_dec:
        return dictionary.finite_rows("b_enc") - dictionary.finite_rows("W_enc") @ dictionary.b_dec
    return dictionary.finite_rows("b_enc")


def weighted_virtual(
    acts: Float[Tensor, " n_source"],
    source: Dictionary,
    target: Dictionary,
    *,
    k: int = 5,
    projector: AttentionWriter | None = None,
) -> MatchTable:
    """For each feature of `target`, the features of `source` that add most to it on one token (eq. 1).

    The contribution of source feature i to the pre-activation of target feature j is
    a_i (W_dec[i] . W_enc[j]), signed: a feature that holds j down comes last. Where a dictionary normalises
    tokens, or a norm stands between z and the stream, contributions on a token are right up to one positive
    factor, which all features share.

    Args:
        acts: Activations of `source` at the token, as `source.encode(h)` gives them.
        source: The dictionary that writes; before `target` in the order of computation.
        target: The dictionary that reads.
        k: How many sources to keep for each target feature. Features that are not active contribute 0.
        projector: The model, needed where `source` lives in z.

    Returns:
        A table FROM the features of `target` TO those of `source`, best first, with method "virtual-weighted".
        Of equal contributions, the lower index comes first.

    Raises:
        WidthMismatch: when the two share no stream, or `acts` does not hold one number per feature of `source`.
        InvalidArgument: when `source` does not come before `target`, an activation is not finite, or `k` is
            not between 1 and the number of source features.
        BadFile: when a row is not finite.
    """
    _check(acts, source, target, k)
    # zeros compete with negative contributions, and the first k of them stand for all
    silent = torch.nonzero(acts == 0).flatten()[:k]
    taking_part = torch.cat([torch.nonzero(acts).flatten(), silent]).sort().values
    reads = reading_rows(target).float()
    writes = (source.written_rows(projector)[taking_part] * acts[taking_part, None].to(source.W_dec)).float()
    if writes.shape[1] != reads.shape[1]:
        raise WidthMismatch(
            f"what {source.site} writes is {writes.shape[1]} wide and what {target.site} reads {reads.shape[1]}. "
            "Both must be trained on one model."
        )
    index, score = zip(*(_largest(writes, block, k) for block in reads.split(BLOCK)), strict=True)
    return MatchTable(
        source=target.site,
        target=source.site,
        method="virtual-weighted",
        n_target=source.n_features,
        index=taking_part[torch.cat(index)].to(torch.int32).cpu().numpy(),
        score=torch.cat(score).cpu().numpy().astype(np.float32),
    )


def _largest(writes: Tensor, reads: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Index and value of the `k` largest contributions to each row of `reads`, the lower index first."""
    score, index = (reads @ writes.T).sort(dim=1, descending=True, stable=True)
    return index[:, :k], score[:, :k]


def _check(acts: Tensor, source: Dictionary, target: Dictionary, k: int) -> None:
    if acts.shape[0] != source.n_features:
        raise WidthMismatch(
            f"{acts.shape[0]} activations for the {source.n_features} features at {source.site}. Give those of one "
            "token, as encode returns them."
        )
    if not source.site < target.site:
        raise InvalidArgument(
            f"{source.site} does not come before {target.site} in the order of computation, so it adds nothing to "
            "it. Give the earlier one as source."
        )
    if not bool(torch.isfinite(acts).all()):
        raise InvalidArgument(f"activations at {source.site} hold NaN or infinity. Encode finite hidden states.")
    if not 1 <= k <= source.n_features:
        raise InvalidArgument(
            f"k={k} matches were asked of {source.n_features} features. Give k between 1 and {source.n_features}."
        )
