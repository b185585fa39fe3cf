"""The rows of the last few sites: a site that is in several pairs is read once while its pairs follow each other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Rows = TypeVar("Rows")


class RowCache(Generic[Key, Rows]):
    """The rows of the `size` keys that were asked for last. It pickles empty: another process reads its own."""

    def __init__(self, size: int) -> None:
        """Nothing is kept yet."""
        self._size = size
        self._rows: OrderedDict[Key, Rows] = OrderedDict()

    def __reduce__(self) -> tuple[type[RowCache[Key, Rows]], tuple[int]]:
        """An empty cache of the same size."""
        return RowCache, (self._size,)

    def __contains__(self, key: object) -> bool:
        """Whether the rows of a key are in memory."""
        return key in self._rows

    def get(self, key: Key, read: Callable[[], Rows]) -> Rows:
        """The rows of a key. Where they are not in memory they are read, after the oldest are forgotten."""
        if key not in self._rows:
            while len(self._rows) >= self._size:
                self._rows.popitem(last=False)
            self._rows[key] = read()
        self._rows.move_to_end(key)
        return self._rows[key]
