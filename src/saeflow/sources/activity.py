"""From texts to active features: the loop shared by all that reads activations (matching, words, experiments).

    for group in site_groups(dictionaries, sites, at_once):          the dictionaries held in memory together
        for batch in text_batches(model, texts):                     a few texts as tokens, and which tokens count
            for site, h in site_states(model, dictionaries, group, batch.tokens).items():      one forward pass
                for acts in encoded(dictionaries[site], h[batch.real]):       a thousand tokens at a time

Special tokens (begin, end, padding, whatever the tokenizer calls special) do not count, because many features fire at
the begin-of-text token of any text. Digests bind stored results to the model and the encoders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.sources.activations import Function
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.modules import parameters_of
from saeflow.sources.tokens import Tokens

ENCODED_AT_ONCE: Final = 1024
"""How many tokens are encoded at a time: their dense activations take 64 MiB at 16,384 features."""

_PROBED: Final = 8
"""Rows of pre-activations on which a Python function of an activation is told from others."""


def special_tokens(model: LanguageModel, tokens: Tokens) -> Bool[Tensor, "batch pos"]:
    """Which tokens are not text: padding, and every id the tokenizer calls special."""
    ids = torch.tensor(model.tokenizer.all_special_ids, dtype=torch.long, device=tokens.input_ids.device)
    return (tokens.attention_mask == 0) | torch.isin(tokens.input_ids, ids)


@dataclass(frozen=True, slots=True, eq=False)
class TextBatch:
    """A batch of texts as tokens, and which of the tokens count."""

    tokens: Tokens
    real: Bool[Tensor, "batch pos"]

    @staticmethod
    def of(
        model: LanguageModel, texts: Sequence[str], *, max_length: int | None = None, max_tokens: int | None = None
    ) -> TextBatch:
        """Tokenize texts, each cut to `max_length` tokens; the batch's first `max_tokens` non-special tokens count."""
        tokens = model.tokenize(texts, max_length=max_length)
        real = ~special_tokens(model, tokens)
        if max_tokens is not None:
            real &= (real.flatten().cumsum(0) <= max_tokens).view_as(real)
        return TextBatch(tokens, real)

    @property
    def n_tokens(self) -> int:
        """How many tokens count."""
        return int(self.real.sum())


def text_batches(
    model: LanguageModel,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    max_tokens: int | None = None,
    texts_at_once: int = 8,
    least: int = 2,
) -> Iterator[TextBatch]:
    """Yield the texts in batches of `texts_at_once`, until `max_tokens` non-special tokens have been found.

    Raises:
        InvalidArgument: after the last batch, when there were fewer than `least` such tokens.
    """
    found = 0
    for start in range(0, len(texts), texts_at_once):
        some = texts[start : start + texts_at_once]
        left = None if max_tokens is None else max_tokens - found
        batch = TextBatch.of(model, some, max_length=max_length, max_tokens=left)
        found += batch.n_tokens
        yield batch
        if found == max_tokens:
            break
    if found < least:
        raise InvalidArgument(
            f"{len(texts)} texts hold {found} tokens that are not special, and {least} or more are needed. "
            "Give longer texts, or more."
        )


def site_groups(
    dictionaries: Mapping[Site, Dictionary], sites: Sequence[Site], at_once: int | None
) -> Iterator[Sequence[Site]]:
    """Yield the sites `at_once` at a time (all if None); each group's dictionaries are unloaded when it is done."""
    step = at_once or max(len(sites), 1)
    for start in range(0, len(sites), step):
        group = sites[start : start + step]
        yield group
        for site in group:
            dictionaries[site].unload()


def site_states(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], sites: Iterable[Site], tokens: Tokens
) -> dict[Site, Float[Tensor, "batch pos d_in"]]:
    """The hidden states that each site's dictionary reads, from one forward pass; inside `intervening`, as edited.

    Raises:
        UnknownSite: for a site that the model or the dictionaries do not have.
        InvalidArgument: as `LanguageModel.capture` does.
    """
    points = {site: dictionaries[site].point for site in sites}
    captured = model.capture(tokens, points.values())
    return {site: captured[point] for site, point in points.items()}


def encoded(dictionary: Dictionary, h: Float[Tensor, "n d_in"]) -> Iterator[Float[Tensor, "some n_features"]]:
    """Yield the activations on n tokens, ENCODED_AT_ONCE at a time, without gradient.

    Raises:
        WidthMismatch: when the dictionary does not fit the model.
    """
    for some in h.split(ENCODED_AT_ONCE):
        with torch.no_grad():
            acts = dictionary.encode(some)
        yield acts


def encoder_digest(dictionary: Dictionary, model: LanguageModel) -> str:
    """A digest of all that `encode` uses, of the point it reads, and of the kind of device.

    An activation given as a Python function is told from others by what it returns for fixed pre-activations.

    Raises:
        BadFile: when a tensor read at first use is bad.
    """
    activation = dictionary.activation
    said = f"{dictionary.point} {dictionary.preprocessing} {activation.kind} {model.device.type}"
    digest = hashlib.sha256(said.encode())
    numbers: list[Tensor] = [dictionary.W_enc, dictionary.b_enc]
    if dictionary.preprocessing.subtract_b_dec:
        numbers.append(dictionary.b_dec)
    numbers += [torch.as_tensor(getattr(activation, n)) for n in ("threshold", "k") if hasattr(activation, n)]
    if isinstance(activation, Function):
        drawn = torch.randn(_PROBED, dictionary.n_features, generator=torch.Generator().manual_seed(0))
        numbers.append(activation(drawn.to(dictionary.b_enc)))
    for tensor in numbers:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_digest(model: LanguageModel) -> str:
    """A digest that tells models apart: each parameter's name, shape, dtype and first values, and how texts begin."""
    digest = hashlib.sha256()
    if not model.prepend_bos and model.tokenizer.bos_token_id is not None:
        digest.update(b"texts without the begin-of-text token")
    for name, tensor in parameters_of(model.hf_model):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().reshape(-1)[:4096].float().cpu().numpy().tobytes())
    return digest.hexdigest()
