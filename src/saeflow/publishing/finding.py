"""The word index of a published site, in shards that a browser fetches as the user types. No torch.

An entry is a word of a label or a token, or, marked with a star, a prefix of up to three letters. It lists features by
number (their position among all rows of all sites), each with the position of the word in its label (255 if only the
tokens contain it) and the number of words in the label. Each entry keeps its best `MOST` features: those with the word
in the label, near its start, in a short label. Entries are sorted as JavaScript compares strings, and cut into shards;
the file `first` lists the first entry of each.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import UInt64

from saeflow.errors import InvalidArgument
from saeflow.labels.search import words_in
from saeflow.publishing.packing import json_bytes, packed_arrays, packed_json, planes

MOST: Final = 2_000
"""Features kept per entry, at most."""
SHARD: Final = 20_000
"""Features listed in one shard, over all of its entries; a shard ends with the entry that reaches this."""
IN_TOKENS: Final = 255
_BEGINNINGS: Final = (1, 2, 3)
_BITS: Final = 24
"""Bits of a key for the number of a feature, and as many for that of an entry; place and length take 8 each."""


class WordIndex:
    """Collects the words of features one by one, then yields the shards."""

    def __init__(self) -> None:
        """Start with an empty index."""
        self._entries: dict[str, int] = {}
        self._keys = array("Q")

    def add(self, number: int, label: str, tokens: Sequence[str]) -> None:
        """Add a feature under its number.

        Raises:
            InvalidArgument: when there are more features or words than the index can number.
        """
        said = words_in(label)
        places = {word: IN_TOKENS for token in tokens for word in words_in(token)}
        places |= {word: min(place, IN_TOKENS - 1) for place, word in reversed(list(enumerate(said)))}
        for word, place in places.items():
            entry = self._entries.setdefault(word, len(self._entries))
            if max(entry, number) >> _BITS:
                raise InvalidArgument(
                    f"a site finds words of up to {1 << _BITS:,} features, and there are more. Publish a part of the "
                    "release, with an atlas of fewer sites."
                )
            self._keys.append(_key(entry, place, min(len(said), 255), number))

    def shards(self) -> Iterator[tuple[str, bytes]]:
        """The names and bytes of the files of the index."""
        # 1. the best features of each word, and from these the best of each prefix
        words, keys = list(self._entries), _best(np.frombuffer(self._keys, np.uint64))
        names, parts = list(words), [keys]
        entry_of = (keys >> np.uint64(64 - _BITS)).astype(np.int64)
        for letters in _BEGINNINGS:
            numbers: dict[str, int] = {}
            own = [numbers.setdefault(word[:letters], len(numbers)) for word in words]
            if not own:
                continue
            shift = np.uint64(64 - _BITS)
            moved = np.asarray(own, np.uint64)[entry_of] + np.uint64(len(names))
            parts.append(_best((keys & ((np.uint64(1) << shift) - np.uint64(1))) | (moved << shift)))
            names += [f"{beginning}*" for beginning in numbers]

        # 2. sort the entries like JavaScript strings (by UTF-16 code units), and cut where a shard is full
        keys = np.concatenate(parts)
        entries = keys >> np.uint64(64 - _BITS)
        order = sorted(range(len(names)), key=lambda entry: names[entry].encode("utf-16-be", "surrogatepass"))
        starts = np.searchsorted(entries, np.arange(len(names) + 1, dtype=np.uint64))
        first: list[str] = []
        held: list[int] = []
        n = 0
        for place, entry in enumerate(order):
            held.append(entry)
            n += int(starts[entry + 1] - starts[entry])
            if n >= SHARD or place == len(order) - 1:
                yield (
                    str(len(first)),
                    _shard([names[one] for one in held], [keys[starts[one] : starts[one + 1]] for one in held]),
                )
                first.append(names[held[0]])
                held, n = [], 0
        yield "first", packed_json(first)


def _key(entry: int, place: int, length: int, number: int) -> int:
    """A sortable key: within an entry, smaller is better."""
    return entry << (64 - _BITS) | place << (_BITS + 8) | length << _BITS | number


def _best(keys: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " m"]:
    """The sorted keys, with each feature only once per entry, and only the best `MOST` of each entry."""
    keys = np.sort(keys)
    number = np.uint64((1 << _BITS) - 1)
    pair = (keys >> np.uint64(64 - _BITS) << np.uint64(_BITS)) | (keys & number)
    keys = keys[np.sort(np.unique(pair, return_index=True)[1])]
    entry = keys >> np.uint64(64 - _BITS)
    rank = np.arange(len(keys)) - np.searchsorted(entry, entry)
    return keys[rank < MOST]


def _shard(words: list[str], keys: Sequence[np.ndarray]) -> bytes:
    """The bytes of one shard: entries with their features."""
    head: dict[str, Any] = {"words": words, "counts": [len(some) for some in keys]}
    whole = np.concatenate(keys) if keys else np.zeros(0, np.uint64)
    number = (whole & np.uint64((1 << _BITS) - 1)).astype(np.uint32)
    place, length = ((whole >> np.uint64(shift)).astype(np.uint8) for shift in (_BITS + 8, _BITS))
    return packed_arrays(json_bytes(head), planes(number) + place.tobytes() + length.tobytes())
