"""Texts as token ids, the loss of their next tokens, and the decoding of ids to text.

SentencePiece tokenizers (Llama 2, Mistral, TinyStories) drop the space at the start of a decoded text, so that a token
decoded on its own, or a completion without its prompt, would lose its leading space. So ids are decoded after a letter,
which is then removed. A character of several bytes may also be spread over several tokens, which `Spelling` joins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from saeflow.errors import WidthMismatch
from saeflow.sources.weights import infinite_values

PIECE: Final = "\ufffd"
"""The replacement character, which stands for an incomplete piece of a character."""
_LONGEST: Final = 4
"""The most bytes that a character takes in UTF-8."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A batch of texts as token ids, padded on the right; the mask is 1 on real tokens."""

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]

    @property
    def lengths(self) -> list[int]:
        """The number of real tokens of each text."""
        return [int(n) for n in self.attention_mask.sum(dim=1).tolist()]

    def loss(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch pos-1"]:
        """The loss of each next token in nats, in float32: column t is -log p(token t+1 | tokens up to t).

        NaN where token t+1 is padding, so that a mean must be `nanmean` and cannot count padding.

        Raises:
            WidthMismatch: when the logits do not have this batch's shape.
            InvalidArgument: when logits are NaN or infinite, so that a real token has no loss.
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
            raise infinite_values("the logits", loss.isfinite() | ~real, real)
        return loss.masked_fill(~real, float("nan"))


_IN_CACHE: Final = 1 << 18
"""Logits processed at a time on a CPU, 1 MiB in float32, which fits the cache: four times as fast as many rows at once,
whose differences and exponentials would each go through memory."""


def nats(logits: Float[Tensor, "n vocab"], ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-log p(token) for each row, in float32 and within 1e-5 of float64: log sum exp(l - l_token).

    Torch's `cross_entropy` sums over the vocabulary one by one in float32. With 260,000 tokens its result is too low by
    up to 1e-3 nats where the logits are strided, by 4e-5 where they are not. Torch's `logsumexp` sums pairwise.
    """
    some = max(1, _IN_CACHE // max(1, logits.shape[1]) if logits.device.type == "cpu" else len(logits))

    def of(logits: Float[Tensor, "n vocab"], ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        scores = logits.float()
        return torch.logsumexp(scores - scores.gather(1, ids[:, None]), dim=1)

    return torch.cat([of(*part) for part in zip(logits.split(some), ids.split(some), strict=True)])


class Spelling:
    """Decodes a tokenizer's ids to text, as they read after other text; each token is decoded once and cached."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Decode the ids of `tokenizer`."""
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._special = frozenset(tokenizer.all_special_ids)
        self._before = cast("list[int]", tokenizer("a", add_special_tokens=False)["input_ids"])

    def token(self, token: int) -> str:
        """The text of one token; U+FFFD stands for a piece of a character."""
        if token not in self._known:
            self._known[token] = self._decoded([token]) if token in self._special else self._behind([token])
        return self._known[token]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text of each token in a text that follows other text; joined, they are that text.

        A character spread over several tokens is assigned to the last of them, and the others are empty. U+FFFD stands
        for an incomplete character where the text is cut.
        """
        texts = [self._known[token] if token in self._known else self.token(token) for token in ids]
        if PIECE not in "".join(texts):  # nearly always, and words of features need millions
            return texts
        found: list[str] = []
        for broken, group in groupby(ids, lambda token: PIECE in self.token(token)):
            run = list(group)
            found += self._characters(run) if broken else map(self.token, run)
        return found

    def text(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids that follow other text; more ids only extend it, except for U+FFFD at its end."""
        special = self._special if skip_special_tokens else ()
        return "".join(self.tokens([token for token in ids if token not in special]))

    def _characters(self, ids: Sequence[int]) -> list[str]:
        """The texts of consecutive tokens that hold pieces of characters."""
        found = [""] * len(ids)
        start = ready_to = 0  # where the character being assembled begins, and up to where texts are known
        done = ""
        for n in range(len(ids)):
            whole = self._behind(ids[start : n + 1])
            while not whole.strip(PIECE) and n - start >= _LONGEST - 1:  # no character begins there
                found[start] = PIECE
                start, ready_to = start + 1, start + 1
                whole = self._behind(ids[start : n + 1])
            ready = whole.rstrip(PIECE)
            if len(ready) > len(done):
                found[n], done, ready_to = ready[len(done) :], ready, n + 1
            if ready == whole:
                start, done = n + 1, ""
        return found[:ready_to] + [PIECE] * (len(ids) - ready_to)

    def _behind(self, ids: Sequence[int]) -> str:
        """The text that ids add after a letter."""
        before, whole = self._decoded(self._before), self._decoded([*self._before, *ids])
        return whole[len(before) :] if whole.startswith(before) else self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
