"""Upper bounds on what a request may ask for, and wrappers of the atlas and words that enforce them. No torch.

With a threshold of -1 and k = 5, the graph of one feature covers the whole of a large release and takes minutes to
grow. A graph worth drawing has a few hundred nodes, and growing it reads a few thousand rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.labels.words import Context, FeatureWords, Words
from saeflow.matching.atlas import Atlas
from saeflow.matching.null import NullDistribution
from saeflow.plain_types import Match

MOST_TEXT: Final = 4_000
"""Characters of a pasted text."""

MOST_TOKENS: Final = 1024
"""Tokens read from a text; the rest is cut off."""

MOST_PROMPT: Final = 2_000
MOST_SAMPLES: Final = 8
MOST_NEW_TOKENS: Final = 200

MOST_FEATURES: Final = 500
"""Features in a plan."""

MOST_NESTED: Final = 30
"""Nesting depth of the values in a plan file."""

MOST_TRACED: Final = 8
"""Preceding tokens that may be traced along with the chosen one."""

MOST_NODES: Final = 600
"""Nodes in a drawn graph: a larger one is unreadable and takes seconds to draw."""

MOST_LOOKUPS: Final = 40_000
"""Match-table rows that one request may read, which takes about half a second."""


class LimitedAtlas:
    """An atlas for a single request, with a bounded number of lookups."""

    def __init__(self, atlas: Atlas, most: int | None = None) -> None:
        """Allow `most` rows to be read; `MOST_LOOKUPS` when None."""
        self._atlas = atlas
        self._left = self._most = MOST_LOOKUPS if most is None else most
        self.release, self.sites, self.model, self.method = atlas.release, atlas.sites, atlas.model, atlas.method

    def has(self, source: Site, target: Site) -> bool:
        """Whether there is a table from `source` to `target`."""
        return self._atlas.has(source, target)

    def best(self, feature: FeatureId, target: Site, k: int | None = None) -> tuple[Match, ...]:
        """The best `k` matches of `feature` at `target`, best first.

        Raises:
            InvalidArgument: when the request has read too many rows, or for too large a `k`.
        """
        self._left -= 1
        if self._left < 0:
            raise InvalidArgument(
                f"this graph needs more than {self._most} rows of match tables. Raise the thresholds, lower k, or "
                "grow it with `saeflow graph`."
            )
        return self._atlas.best(feature, target, k)

    def null(self, source: Site, target: Site) -> NullDistribution | None:
        """The distribution of best-match scores by chance; None where it was not sampled."""
        return self._atlas.null(source, target)


@dataclass(frozen=True)
class UnicodeWords:
    """Words whose every text can be encoded as UTF-8: a tokenizer can leave half a character in a token."""

    words: Words

    def get(self, feature: FeatureId) -> FeatureWords | None:
        """The words of `feature`; None when it has none."""
        return _printable_words(self.words.get(feature))

    def site(self, site: Site) -> list[FeatureWords | None]:
        """The words of every row at a site, in order."""
        return [_printable_words(known) for known in self.words.site(site)]


def printable(text: str) -> str:
    """The text with a question mark for each character that UTF-8 cannot encode."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _printable_words(known: FeatureWords | None) -> FeatureWords | None:
    if known is None:
        return None
    passages = (*known.contexts, *known.spread)
    texts = [known.label, known.by, *known.tokens, *known.promotes, *known.suppresses]
    texts += [text for one in passages for text in (*one.tokens, one.source)]
    with suppress(UnicodeEncodeError):  # nearly all
        "".join(texts).encode()
        return known

    def contexts(found: Iterable[Context]) -> tuple[Context, ...]:
        return tuple(
            replace(one, tokens=tuple(map(printable, one.tokens)), source=printable(one.source)) for one in found
        )

    return replace(
        known,
        label=printable(known.label),
        tokens=tuple(map(printable, known.tokens)),
        promotes=tuple(map(printable, known.promotes)),
        suppresses=tuple(map(printable, known.suppresses)),
        contexts=contexts(known.contexts),
        spread=contexts(known.spread),
        by=printable(known.by),
    )
