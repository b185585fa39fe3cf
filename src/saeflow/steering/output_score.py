"""Output scores: does amplifying a feature make the model say what its row promotes? (Arad et al. 2025)

"SAEs are good for steering, if you select the right features" (arXiv 2505.20063) distinguishes features that follow
the input from features that drive the output, and finds that steering works two to three times better without features
of low output score. This module follows their published code:

    T = the k = 20 tokens that the feature's row promotes most (logit lens)
    h_t <- h_t + c a_max W_i        at the last token t of a neutral prompt, with c = 10 and a_max the largest
                                    activation that any feature of the dictionary has on that token
    p = the distribution over the next token
    score = (1 - rank / V) * max over T of p       rank in p of the likeliest token of T, from 0; V the vocabulary size

The score lies in [0, 1]: 0 if the model gives promoted tokens no probability, 1 if one promoted token is certain.

Differences from their code: with several prompts, the score is the mean; prompts on whose last token no feature is
active are left out, since c a_max is 0 there. Sites of modules can be scored too: the change then applies to the tensor
that the dictionary reconstructs, and T comes from the row in the stream. The logit lens is that of
`LanguageModel.unembed`, which leaves out the bias of a LayerNorm (their models have RMSNorms).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.plain_types import Progress
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.steering.sizes import by_site, stream_rows

PROMPTS: Final = ("From my experience,",)
"""The neutral prompt of their code."""

FACTOR: Final = 10.0
PROMOTED: Final = 20
AT_ONCE: Final = 32
"""Features scored in one forward pass."""


def output_scores(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    features: Iterable[FeatureId],
    *,
    prompts: Sequence[str] = PROMPTS,
    factor: float = FACTOR,
    k: int = PROMOTED,
    progress: Progress | None = None,
) -> dict[FeatureId, float]:
    """The output score of each feature, in [0, 1]; takes one forward pass per prompt for every 32 features.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: by site.
        features: the features to score; the result has each once, sorted by site and index.
        prompts: neutral prompts; the score is the mean over them.
        factor: c, how strongly a feature is amplified.
        k: number of tokens in T.
        progress: called with (features done, features, where).

    Raises:
        InvalidArgument: when no feature of a site is active at the end of any prompt, `factor` is not above 0 and
            finite, or `k` is out of range for the vocabulary.
        UnknownSite: for a site without a dictionary.
        UnknownFeature: for an index outside its dictionary.
        WidthMismatch: for a dictionary that does not fit the model.
    """
    if not 0 < factor < float("inf"):
        raise InvalidArgument(f"factor = {factor} turns nothing up. Give one above 0, such as {FACTOR:g}.")
    groups = list(by_site(features, dictionaries))
    n_features = sum(len(here) for _, here in groups)
    texts = [model.tokenize([prompt]) for prompt in prompts]
    found: dict[FeatureId, float] = {}
    for dictionary, here in groups:
        amounts = [factor * _largest_activation(model, dictionary, tokens) for tokens in texts]
        loud = [(tokens, amount) for tokens, amount in zip(texts, amounts, strict=True) if amount > 0]
        if not loud:
            tried = ", ".join(map(repr, prompts)) or "no prompt"
            raise InvalidArgument(
                f"no feature at {dictionary.site} is active at the end of {tried}, so that there is nothing to turn "
                "a feature up by. Give other prompts."
            )
        for start in range(0, len(here), AT_ONCE):
            some = here[start : start + AT_ONCE]
            if progress:
                progress(len(found), n_features, str(dictionary.site))
            lens = model.logit_lens(stream_rows(dictionary, some, model).float().to(model.device), k)
            promoted = torch.tensor([[token.id for token in row] for row in lens])
            scores = [_scores(_turned_up(model, dictionary, some, tokens, amount), promoted) for tokens, amount in loud]
            found |= dict(zip(some, torch.stack(scores).mean(0).tolist(), strict=True))
    return found


def _largest_activation(model: LanguageModel, dictionary: Dictionary, tokens: Tokens) -> float:
    """a_max: the largest activation of any feature on the last token."""
    last = model.capture(tokens, [dictionary.point])[dictionary.point][0, -1:]
    return float(dictionary.encode(last.to(dictionary.W_enc)).max())


def _turned_up(
    model: LanguageModel, dictionary: Dictionary, features: Sequence[FeatureId], tokens: Tokens, amount: float
) -> Float[Tensor, "n vocab"]:
    """The next-token distribution with each feature amplified on the last token; one row per feature."""
    rows = dictionary.finite_rows("W_dec")[[feature.index for feature in features]]

    def turn_up(h: Float[Tensor, "n pos d_in"]) -> Float[Tensor, "n pos d_in"]:
        out = h.clone()
        last = h[:, -1].to(rows)
        out[:, -1] = (last + amount * dictionary.scale(last) * rows).to(h)
        return out

    n = len(features)
    batch = Tokens(tokens.input_ids.expand(n, -1), tokens.attention_mask.expand(n, -1))
    # a transcoder reads its point but writes at its site
    place = dictionary.site if dictionary.is_transcoder else dictionary.point
    with model.intervening({place: turn_up}):
        logits = model.capture(batch, [], logits=True).logits
    if logits is None:
        raise InvalidArgument("the model returned no logits. Load a model with a language head.")
    return torch.softmax(logits[:, -1].double(), dim=-1).cpu()


def _scores(p: Float[Tensor, "n vocab"], promoted: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """(1 - rank / V) * max over T of p, for each row."""
    best = p.gather(1, promoted).max(dim=1).values
    # the rank of the likeliest token of T is the number of likelier tokens
    rank = (p > best[:, None]).sum(dim=1)
    return (1 - rank / p.shape[1]) * best
