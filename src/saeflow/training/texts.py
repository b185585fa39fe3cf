"""Texts as windows of tokens, read from a position that can be saved and restored.

    texts -> windows of at most `context` tokens, each opened by the begin-of-text token -> batches of similar length

A text is cut, never joined to another: no token sees a text it does not belong to, as everywhere in saeflow. A batch
holds windows of about the same length, so that little of it is padding. When the texts end they are read again, in the
order of the next pass. One text in twenty, chosen by its content, is held out for measuring and never trained on.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.training.settings import seed_of

EVALUATED: Final = 20
"""One text in this many is held out for measuring."""
POOL: Final = 16
"""Batches whose windows are sorted by length together."""

ReadTexts = Callable[[int], Iterable[str]]
"""Returns the texts of a pass, in an order that depends only on the pass's number."""


@runtime_checkable
class TokenBatches(Protocol):
    """An endless stream of token batches with a position that can be saved."""

    def __next__(self) -> Tokens:
        """The next batch."""
        ...

    def state(self) -> dict[str, Any]:
        """The position, as plain values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position that `state` returned."""
        ...


def is_evaluated(text: str) -> bool:
    """Whether a text is held out for measuring; independent of the quarter that experiments leave out."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[1] % EVALUATED == 0


def is_trained_on(text: str) -> bool:
    """Whether a text is not held out for measuring."""
    return not is_evaluated(text)


def evaluation_texts(read: ReadTexts, n: int, *, looked_at: int = 2000) -> list[str]:
    """The first `n` texts held out for measuring, from the first `looked_at` texts of pass 0, or 80 n if that is more.

    Raises:
        InvalidArgument: when there is none.
    """
    texts = itertools.islice(read(0), max(looked_at, 4 * EVALUATED * n))
    found = list(itertools.islice((t for t in texts if t.strip() and is_evaluated(t)), n))
    if not found:
        raise InvalidArgument(
            f"none of the texts is kept for measuring (1 in {EVALUATED} is). Give more texts, or longer files."
        )
    return found


class TextBatches:
    """Batches of windows from texts that are read pass after pass."""

    def __init__(
        self,
        model: LanguageModel,
        read: ReadTexts,
        *,
        context: int,
        windows: int,
        keep: Callable[[str], bool] | None = None,
    ) -> None:
        """Read nothing yet. `keep` says which texts to train on; by default all but those of `is_evaluated`."""
        self._model, self._read = model, read
        self._context, self._windows = context, windows
        self._keep = keep or is_trained_on
        self._pass, self._done, self._found = 0, 0, 0
        self._waiting: list[list[int]] = []
        self._texts: Iterator[str] | None = None

    @property
    def passes(self) -> int:
        """How many times the texts were read to their end."""
        return self._pass

    def __next__(self) -> Tokens:
        """The next `windows` windows.

        Raises:
            InvalidArgument: when a whole pass gives no token.
        """
        if len(self._waiting) < self._windows:
            while len(self._waiting) < POOL * self._windows:
                self._cut(self._next_text())
            self._waiting.sort(key=len)
        rows, self._waiting = self._waiting[: self._windows], self._waiting[self._windows :]
        return padded(rows, self._model)

    def state(self) -> dict[str, Any]:
        """The pass, how many of its texts were read, and the windows not yet served."""
        return {"pass": self._pass, "read": self._done, "found": self._found, "waiting": self._waiting}

    def restore(self, state: dict[str, Any]) -> None:
        """Read up to the position again; skipped texts are not tokenised.

        Raises:
            BadFile: when there are fewer texts than were read before.
        """
        self._pass, self._done, self._found = state["pass"], state["read"], state["found"]
        self._waiting = [list(map(int, row)) for row in state["waiting"]]
        self._texts = iter(self._read(self._pass))
        skipped = sum(1 for _ in itertools.islice(self._texts, self._done))
        if skipped < self._done:
            raise BadFile(
                f"the run had read {self._done} texts, and there are only {skipped} now. Give the texts it began with, "
                "or another --out."
            )

    def _next_text(self) -> str:
        while True:
            if self._texts is None:
                self._texts = iter(self._read(self._pass))
            for text in self._texts:
                self._done += 1
                if self._keep(text):
                    return text
            if not self._found:
                raise InvalidArgument(
                    f"the {self._done} texts hold no token to train on. Give texts that are not empty; 1 in "
                    f"{EVALUATED} is kept for measuring."
                )
            self._pass, self._done, self._found, self._texts = self._pass + 1, 0, 0, None

    def _cut(self, text: str) -> None:
        tokenizer = self._model.tokenizer
        ids = cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        start = [cast("int", tokenizer.bos_token_id)] if self._model.prepend_bos else []
        ids = ids[1:] if start and ids[:1] == start else ids
        length = self._context - len(start)
        for first in range(0, len(ids), length):
            self._waiting.append(start + ids[first : first + length])
            self._found += 1


class WindowBatches:
    """Batches of windows that are token ids already, each pass in its own order."""

    def __init__(self, windows: Int[np.ndarray, "n pos"], *, at_once: int, seed: int) -> None:
        """`windows` are token ids, each row opened by the begin-of-text token where the model has one.

        Raises:
            InvalidArgument: when there is no window.
        """
        if not windows.size:
            raise InvalidArgument("there is no window of tokens to train on. Give one or more.")
        self._windows, self._at_once, self._seed = windows, at_once, seed
        self._pass, self._done = 0, 0
        self._order = self._shuffled()

    def __next__(self) -> Tokens:
        """The next `at_once` windows; fewer at the end of a pass."""
        if self._done >= len(self._order):
            self._pass, self._done = self._pass + 1, 0
            self._order = self._shuffled()
        rows = self._order[self._done : self._done + self._at_once]
        self._done += len(rows)
        ids = torch.from_numpy(self._windows[np.sort(rows)].astype(np.int64))
        return Tokens(ids, torch.ones_like(ids))

    def state(self) -> dict[str, Any]:
        """The pass and how many of its windows were read."""
        return {"pass": self._pass, "read": self._done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to that window of that pass."""
        self._pass, self._done = int(state["pass"]), int(state["read"])
        self._order = self._shuffled()

    def _shuffled(self) -> Int[np.ndarray, " n"]:
        return np.random.default_rng(seed_of(self._seed, "windows", str(self._pass))).permutation(len(self._windows))


def padded(rows: Sequence[Sequence[int]], model: LanguageModel) -> Tokens:
    """Rows of token ids as one batch, padded on the right.

    Raises:
        ValueError: when there is no row.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[model.pad_id] * (width - len(row))] for row in rows], device=model.device)
    mask: Tensor = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    return Tokens(ids, mask)
