"""Transition matrices T between two dictionaries, in every variant that appendix F compares, as maps to apply.

    z = encode_A(h_A)          features of A                              [n_source]
    y = z T                    predicted features of B                    [n_target]
    h_B ~ y W_dec(B) + b_dec(B)

Rows are features here, so the paper's W_dec(A)^T W_dec(B) is W_dec(A) @ W_dec(B).T, and its P and T [n_source n_target]
are applied from the right. A map provides the row of T W_dec(B) for each source feature: what one unit of its
activation adds to the prediction.

**Sources of T.** A permutation (Balagansky et al. 2024, arXiv 2410.07656): 1 at the partner, 0 elsewhere. Or the k
largest entries of each row of W_dec(A) W_dec(B)^T or of W_dec(A) W_enc(B)^T, as they are ("values"), or as 1 where
they are above 0 ("binary", the paper's I_{x>0}; for decoders taken from unit rows, so that top-1 is the best cosine).

**Scales.** To work in units of each feature's size s, z is divided by s(A) and the rows of W_dec(B) are multiplied by
s(B): T becomes diag(1 / s(A)) T diag(s(B)). `FOLDED` takes s from the thresholds, as folding does; `MEAN` takes the
mean activation where active, which is defined for every kind of dictionary but needs texts. The rows that T was
*matched* on, raw or folded, are chosen independently of the units in which it is *applied*. A threshold of 0 or less
says nothing about size (the feature fires at any activation); the median of the others replaces it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.experiments.settings import KS
from saeflow.experiments.transition.variants import MapSource, MapVariant, Scaling
from saeflow.matching.methods import EdgeEnd, match, rows_of
from saeflow.sources.activations import JumpReLU
from saeflow.sources.architectures import Point
from saeflow.sources.dictionary import Dictionary, Norm

_BLOCK: Final = 1024


@dataclass(frozen=True, slots=True, eq=False)
class InMemory:
    """T W_dec(B) in memory."""

    matrix: Float[Tensor, "n_source d_out"]

    def rows(self, features: Int[Tensor, " k"]) -> Float[Tensor, "k d_out"]:
        """Rows of the matrix."""
        return self.matrix[features]


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A T with k entries per row, and the decoder rows that it points to."""

    index: Int[Tensor, "n_source k"]
    value: Float[Tensor, "n_source k"]
    W_dec: Float[Tensor, "n_target d_out"]

    def rows(self, features: Int[Tensor, " k"]) -> Float[Tensor, "k d_out"]:
        """Weighted sums of the decoder rows that T points to."""
        bag = torch.nn.functional.embedding_bag
        return bag(self.index[features], self.W_dec, mode="sum", per_sample_weights=self.value[features])


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A full product of weights as T: (a b^T) W_dec(B) = a (b^T W_dec(B)), without the [n_source n_target] matrix."""

    left: Float[Tensor, "n_source width"]
    scale: Float[Tensor, " n_source"]
    core: Float[Tensor, "width d_out"]

    def rows(self, features: Int[Tensor, " k"]) -> Float[Tensor, "k d_out"]:
        """Rows of the product."""
        return (self.left[features] * self.scale[features, None]) @ self.core


TransitionMap: TypeAlias = InMemory | Sparse | Product
"""T W_dec(B): `rows` gives, for some source features, what one unit of activation of each adds to the prediction."""


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The size s of every feature on both sides, for one kind of units."""

    source: Float[Tensor, " n_source"]
    target: Float[Tensor, " n_target"]


def thresholds_as_scale(dictionary: Dictionary) -> Float[Tensor, " n_features"] | None:
    """The thresholds that folding divides by, with the median in place of those of 0 or less; None without thresholds.

    None too if half of them or more are 0 or less: such a dictionary has no scale of that kind.

    Raises:
        BadFile: when a threshold is not finite.
    """
    activation = dictionary.activation
    if not isinstance(activation, JumpReLU):
        return None
    t = activation.threshold.float()
    good = t > 0
    if int(good.sum()) * 2 <= len(t):
        return None
    return torch.where(good, t, t[good].median())


def means_as_scale(
    total: Float[Tensor, " n_features"], active: Float[Tensor, " n_features"]
) -> Float[Tensor, " n_features"] | None:
    """The mean activation of each feature where active; for features never active, the median of the others.

    None if no feature was ever active.
    """
    fired = active > 0
    if not bool(fired.any()):
        return None
    mean = total / active.clamp_min(1)
    return torch.where(fired, mean, mean[fired].median()).float()


def check_pair(source: Dictionary, target: Dictionary) -> None:
    """Refuse two dictionaries between which no transition can be measured; widths are checked elsewhere.

    Raises:
        InvalidArgument: for a transcoder, a dictionary on z, a target that normalises each token, or a target that
            does not come after the source.
    """
    for dictionary in (source, target):
        if dictionary.is_transcoder:
            raise InvalidArgument(
                f"the dictionary at {dictionary.site} is a transcoder: it reads {dictionary.tap.value} and predicts "
                "what the MLP writes, so that its activations do not stand for the hidden state of its site. Give "
                "sparse autoencoders."
            )
        if dictionary.point != Point.at(dictionary.site):
            raise InvalidArgument(
                f"the dictionary at {dictionary.site} reads {dictionary.tap.value}, which is not the tensor of its "
                "site. Transitions are measured between tensors of the residual stream: give parts res or mlp."
            )
    if target.preprocessing.norm is not Norm.NONE:
        raise InvalidArgument(
            f"the dictionary at {target.site} divides every token by its own size ({target.preprocessing.norm}), which "
            "a prediction does not know. Give a release without normalisation."
        )
    if not source.site < target.site:
        raise InvalidArgument(
            f"{source.site} does not come before {target.site} in the order of computation, and a transcoder leads "
            "forward. Give the earlier site first."
        )


def transition_maps(
    source: Dictionary, target: Dictionary, *, ks: Sequence[int | None] = KS, means: Units | None = None
) -> dict[MapVariant, TransitionMap]:
    """Every variant for a pair of dictionaries, on the device of the target's weights.

    Left out are folded variants if a dictionary has no thresholds to fold by, variants in units of mean activations if
    `means` is None, and every k above the number of target features.

    Args:
        source: A, which encodes.
        target: B, which decodes.
        ks: how many entries of each row are kept, None for all.
        means: mean activations of both sides, measured on texts.

    Raises:
        InvalidArgument: as `check_pair` does; for a k below 1.
        WidthMismatch: when the two differ in width.
        BadFile: when a tensor read on first use is bad.
    """
    check_pair(source, target)
    kept = list(dict.fromkeys(k for k in ks if k is None or k <= target.n_features))
    if any(k is not None and k < 1 for k in kept):
        raise InvalidArgument(f"k = {ks} holds a number below 1. Give 1 or more, or all.")
    # 1. the units that T can be applied in, and the dictionaries, raw and folded, that it can be matched on
    device, W_dec = target.W_dec.device, target.W_dec.float()
    units = _units(source, target, means)
    sides = {Scaling.RAW: (source, target)}
    if (fold := units.get(Scaling.FOLDED)) is not None:
        sides[Scaling.FOLDED] = (_folded(source, fold.source), _folded(target, fold.target))

    def sparse(index: np.ndarray, value: np.ndarray, how: Units) -> Sparse:
        at = torch.from_numpy(index.astype(np.int64)).to(device)
        entries = torch.from_numpy(np.where(np.isfinite(value), value, 0).astype(np.float32)).to(device)
        return Sparse(at, entries * how.target[at] / how.source[:, None], W_dec)

    made: dict[MapVariant, TransitionMap] = {}
    numbers = [k for k in kept if k is not None]
    for matched, (a, b) in sides.items():
        applied = units if matched is Scaling.RAW else {Scaling.FOLDED: units[Scaling.FOLDED]}
        # 2. permutations, which may be applied in any units, whatever rows they were matched on
        for weights in (one for one in MapSource if one.one_to_one):
            table = match(a, b, method=weights.value)
            paired = np.isfinite(table.score).astype(np.float32)
            for how, one in units.items():
                made[MapVariant(weights, matched=matched, applied=how)] = sparse(table.index, paired, one)
        for weights in (MapSource.DECODERS, MapSource.READS):
            product = "virtual" if weights is MapSource.READS else "decoder-product"  # the method with these scores
            # 3. the k largest entries of each row; for raw decoders the binary form takes them from unit rows
            for binary in (False, True) if numbers else ():
                cosine = binary and weights is MapSource.DECODERS and matched is Scaling.RAW
                table = match(a, b, k=max(numbers), method="cosine" if cosine else product)
                value = (table.score > 0).astype(np.float32) if binary else table.score
                for k, (how, one) in itertools.product(numbers, applied.items()):
                    variant = MapVariant(weights, k, binary, matched, how)
                    made[variant] = sparse(table.index[:, :k], value[:, :k], one)
            if None not in kept:
                continue
            # 4. all entries; their signs do not depend on scales, so folded rows add no binary form
            left, right = rows_of(a, EdgeEnd.PARENT, product).rows, rows_of(b, EdgeEnd.CHILD, product).rows
            for how, one in applied.items():
                scaled = W_dec * one.target[:, None]
                made[MapVariant(weights, None, False, matched, how)] = Product(left, 1 / one.source, right.T @ scaled)
                if matched is Scaling.RAW:
                    blocks = [(block @ right.T > 0).float() @ scaled for block in left.split(_BLOCK)]
                    whole = InMemory(torch.cat(blocks) / one.source[:, None])
                    made[MapVariant(weights, None, True, matched, how)] = whole
    return made


def in_memory(
    maps: Mapping[MapVariant, TransitionMap], n_source: int, d_out: int, most_bytes: int, device: torch.device
) -> dict[MapVariant, TransitionMap]:
    """The same maps as full matrices, which are faster to apply, if all together take at most `most_bytes`."""
    if 4 * len(maps) * n_source * d_out > most_bytes:
        return dict(maps)
    every = torch.arange(n_source, device=device)
    return {variant: one if isinstance(one, InMemory) else InMemory(one.rows(every)) for variant, one in maps.items()}


def _units(source: Dictionary, target: Dictionary, means: Units | None) -> dict[Scaling, Units]:
    ones = Units(torch.ones(source.n_features), torch.ones(target.n_features))
    found = {Scaling.RAW: ones}
    folded = thresholds_as_scale(source), thresholds_as_scale(target)
    if folded[0] is not None and folded[1] is not None:
        found[Scaling.FOLDED] = Units(folded[0], folded[1])
    if means is not None:
        found[Scaling.MEAN] = means
    device = target.W_dec.device
    return {how: Units(one.source.to(device), one.target.to(device)) for how, one in found.items()}


def _folded(dictionary: Dictionary, size: Tensor) -> Dictionary:
    """The dictionary folded by `size`: the same function, with activations in units of `size`."""
    rows = size.to(dictionary.W_dec)[:, None]
    activation = dictionary.activation
    return Dictionary(
        dictionary.site,
        tap=dictionary.tap,
        W_enc=dictionary.W_enc / rows,
        b_enc=dictionary.b_enc / rows[:, 0],
        W_dec=dictionary.W_dec * rows,
        b_dec=dictionary.b_dec,
        activation=JumpReLU(activation.threshold / rows[:, 0]) if isinstance(activation, JumpReLU) else activation,
        preprocessing=dictionary.preprocessing,
        training=dictionary.training,
    )
