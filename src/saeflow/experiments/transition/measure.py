"""One text at one pair of sites: what every map predicts for h_B, and its error (appendix F).

    explained variance = 1 - sum |h_B - prediction|^2 / sum |h_B - mean|^2

Both sums run over tokens and over all dimensions together, so dimensions count in proportion to their variance. Special
tokens, above all the begin-of-text token, and positions that are massive at either end (`sources.massive`) are left
out: their hidden states are far larger than all others and would dominate both sums. The mean is taken over all tokens
that are measured; the baseline `MEAN` predicts the mean of the texts for fitting, so its explained variance is slightly
below 0.

On some texts a layer is skipped through a map, the test of SAE Match (Balagansky et al. 2024, arXiv 2410.07656,
section 4): h_B is replaced by what the map predicts from h_A, and the rest of the model runs on. The loss is compared
with that of the unmodified model, of skipping the blocks (h_A in place of h_B), of the reconstruction of h_B by its own
dictionary, and of the mean in place of h_B. Tokens that are left out keep their own hidden states, without which every
model fails, so that the skipped layer is measured and not the loss of the begin-of-text token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.experiments.transition.maps import TransitionMap, Units
from saeflow.experiments.transition.variants import CLEAN, MapSource, MapVariant, Scaling
from saeflow.ids import Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.massive import ordinary
from saeflow.sources.model import Captured, LanguageModel
from saeflow.sources.tokens import Tokens

LEAST_SQUARES, AFFINE = "least squares", "affine map of h"
RECONSTRUCTION, OWN, IDENTITY, MEAN = "reconstruction", "source reconstruction", "identity", "mean"
_LOGITS_AT_ONCE: Final = 1 << 27
"""The most logits in one pass: half a gigabyte in float32."""
BASELINES: Final = (RECONSTRUCTION, LEAST_SQUARES, AFFINE, OWN, IDENTITY, MEAN)
"""The predictions that use no transition matrix from weights, in table order."""


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """The hidden states at both ends of a pair, on some tokens.

    Attributes:
        h: the hidden states at A, as in the model.
        z: the activations of A's dictionary on them.
        truth: the hidden states at B, centred if B's dictionary reads them centred.
    """

    h: Float[Tensor, "n width"]
    z: Float[Tensor, "n n_source"]
    truth: Float[Tensor, "n d_out"]


@dataclass(frozen=True, eq=False)
class DictionaryPair:
    """Two dictionaries, A before B.

    Raises:
        WidthMismatch: when their hidden states differ in width.
    """

    source: Dictionary
    target: Dictionary

    def __post_init__(self) -> None:
        """Refuse different widths."""
        if self.source.d_in != self.target.d_in:
            raise WidthMismatch(
                f"{self.source.site} is {self.source.d_in} wide and {self.target.site} {self.target.d_in}. A "
                "transition needs two dictionaries of one model's stream."
            )

    @property
    def sites(self) -> tuple[Site, Site]:
        """The sites of A and B."""
        return self.source.site, self.target.site

    @property
    def name(self) -> str:
        """The name in rows of results: `0/res > 1/res`."""
        return f"{self.sites[0]} > {self.sites[1]}"

    def measured(self, captured: Captured, real: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Which of the real tokens are measured: those that are massive at neither end."""
        return ordinary(captured[self.source.point], real) & ordinary(captured[self.target.point], real)

    def ends(self, captured: Captured, real: Bool[Tensor, "batch pos"]) -> Ends:
        """The hidden states of a forward pass at both ends, on the tokens that `real` selects."""
        with torch.no_grad():
            h = captured[self.source.point][real]
            z = self.source.encode(h).float()
            return Ends(h.float(), z, self.centred(captured[self.target.point][real]))

    def centred(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Hidden states at B as its dictionary reads them, in float32."""
        return self.target.preprocessing.prepare(h.to(self.target.W_enc.dtype))[0].float()


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The fit of one pair.

    Attributes:
        mean: mean of h_B on the texts for fitting.
        centre: mean of h_B on the texts that are measured, about which the variance is taken.
        least_squares: T W_dec(B) of ridge regression.
        affine: rows of the best affine map of h_A, the constant last.
        units: mean activations of both sides; None if one of the dictionaries was never active.
        scales: for each variant, the scale factor that is best on the texts for validation.
        facts: the chosen ridge strengths, numbers of tokens, and how many were left out as massive.
    """

    mean: Float[Tensor, " d_out"]
    centre: Float[Tensor, " d_out"]
    least_squares: Float[Tensor, "n_source d_out"]
    affine: Float[Tensor, "d_in d_out"]
    units: Units | None
    scales: Mapping[str, float]
    facts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over some tokens that give the error of a map's prediction, taken without b_dec(B), at any scale.

    Attributes:
        along: sum of (h_B - b_dec) . prediction.
        square: sum of |prediction|^2.
    """

    along: float
    square: float

    def missed(self, whole: float, scale: float = 1.0) -> float:
        """Sum of |h_B - b_dec - scale * prediction|^2, given `whole`, the sum of |h_B - b_dec|^2; at least 0."""
        return max(0.0, whole - 2 * scale * self.along + scale * scale * self.square)


def written(ends: Ends, one: TransitionMap) -> Float[Tensor, "n d_out"]:
    """z T W_dec(B): the prediction without b_dec(B). Only rows of active features are computed."""
    used = torch.nonzero(ends.z.any(dim=0)).flatten()
    return ends.z[:, used] @ one.rows(used)


def sums(ends: Ends, rest: Float[Tensor, "n d_out"], maps: Mapping[str, TransitionMap]) -> dict[str, Sums]:
    """The sums of every map on some tokens; `rest` is h_B - b_dec(B)."""
    found: dict[str, Sums] = {}
    for name, one in maps.items():
        said = written(ends, one)
        along = float((said * rest).sum(dtype=torch.float64))
        found[name] = Sums(along, float((said * said).sum(dtype=torch.float64)))
    return found


def baselines(pair: DictionaryPair, ends: Ends, fitted: Fitted) -> Iterator[tuple[str, Float[Tensor, "n d_out"]]]:
    """The predictions of h_B that use no transition matrix from weights."""
    device = ends.truth.device
    source, target = pair.source, pair.target
    yield RECONSTRUCTION, target.decode(target.encode(ends.truth)).float()
    rows = fitted.least_squares.to(device)
    yield LEAST_SQUARES, ends.z @ rows + target.b_dec.float()
    yield AFFINE, ends.h @ fitted.affine[:-1].to(device) + fitted.affine[-1].to(device)
    yield OWN, pair.centred(source.decode(ends.z.to(source.W_dec.dtype), ends.h).float())
    yield IDENTITY, pair.centred(ends.h)
    yield MEAN, fitted.mean.to(device).expand_as(ends.truth)


def squared(a: Float[Tensor, "n d_out"], b: Float[Tensor, "n d_out"]) -> float:
    """Sum of the squared differences, in float64."""
    return float(((a - b) ** 2).sum(dtype=torch.float64))


_DECODERS: Final = {
    Scaling.RAW: {(1, True), (2, True), (1, False), (2, False), (5, False), (10, False)},
    Scaling.FOLDED: {(1, True), (2, False)},
}
"""The variants of W_dec W_dec that a layer is skipped through: entries kept, and whether they are binary."""


def is_run(variant: MapVariant) -> bool:
    """Whether a layer is skipped through this variant: true for those in the paper and a few similar ones."""
    if variant.matched is not Scaling.RAW or variant.applied is Scaling.MEAN:
        return False
    raw = variant.applied is Scaling.RAW
    if variant.source.one_to_one:
        return variant.source is MapSource.PERMUTATION or (raw and variant.source is MapSource.PERMUTATION_BIAS)
    if variant.source is MapSource.READS:
        return raw and (variant.k, variant.binary) in {(1, True), (None, False)}
    return (variant.k, variant.binary) in _DECODERS[variant.applied]


def loss_through(
    model: LanguageModel,
    pair: DictionaryPair,
    tokens: Tokens,
    real: Bool[Tensor, "batch pos"],
    ends: Ends,
    maps: Mapping[str, TransitionMap],
    fitted: Fitted,
) -> dict[str, float]:
    """Mean next-token loss of one text in nats, with each prediction in place of h_B, and unmodified (`CLEAN`).

    Args:
        model: the model.
        pair: the dictionaries.
        tokens: one text.
        real: which of its tokens are replaced.
        ends: the hidden states at both ends on those tokens.
        maps: the maps by name.
        fitted: the fit of the pair.

    Raises:
        InvalidArgument: unless there is exactly one text, of two tokens or more.
    """
    if len(tokens.input_ids) != 1 or tokens.input_ids.shape[1] < 2:
        raise InvalidArgument(
            f"a loss was asked of tokens of shape {tuple(tokens.input_ids.shape)}. Give one text of two tokens or more."
        )
    b_dec = pair.target.b_dec.float()
    said = dict(baselines(pair, ends, fitted))
    said |= {name: written(ends, one) + b_dec for name, one in maps.items()}
    n_pos, n_vocab = tokens.input_ids.shape[1], int(model.hf_model.config.get_text_config().vocab_size)
    at_once = max(1, _LOGITS_AT_ONCE // (n_pos * n_vocab))
    names, found = list(said), {CLEAN: float(model.loss(tokens).nanmean())}
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        rows = torch.stack([said[name] for name in some])

        def replaced(h: Float[Tensor, "batch pos d_model"], rows: Tensor = rows) -> Float[Tensor, "batch pos d_model"]:
            out = h.clone()
            out[:, real[0]] = rows.to(out)
            return out

        many = Tokens(tokens.input_ids.expand(len(some), -1), tokens.attention_mask.expand(len(some), -1))
        with model.intervening({pair.target.point: replaced}):
            found |= dict(zip(some, model.loss(many).double().nanmean(dim=1).tolist(), strict=True))
    return found
