"""One pair of sites as a unit of work: both tables, matched where they are not there from the same weights already.

The driver writes what comes back. A worker keeps the rows of the sites it saw last, so that a site that is in several
pairs is read once as long as its pairs come one after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from saeflow.errors import BadFile
from saeflow.ids import Site
from saeflow.matching.methods import Role, Rows, match_rows, roles, rows_of
from saeflow.matching.table import MatchTable
from saeflow.sources.dictionary import AttentionWriter, Dictionary

KEPT: Final = 3
"""Sites whose rows a worker keeps; with the one that is read, four dictionaries are in memory."""

Told = tuple[str, int, str, str]
"""How a table was made: method, k, and the fingerprints of both sides."""


@dataclass(frozen=True, slots=True)
class PairUnit:
    """Two sites to match, and what is known of the tables that are there, both ways."""

    source: Site
    target: Site
    there: tuple[Told | None, Told | None]


@dataclass(eq=False)
class MatchPair:
    """Matches a pair both ways; the tables as bytes, or None where those that are there are current."""

    dictionaries: Mapping[Site, Dictionary]
    method: str
    k: int
    projector: AttentionWriter | None = None
    _rows: OrderedDict[tuple[Site, Role], Rows] = field(default_factory=OrderedDict, repr=False)

    def __getstate__(self) -> tuple[object, ...]:
        """Without the rows: another process reads its own."""
        return self.dictionaries, self.method, self.k, self.projector

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """What `__getstate__` gave."""
        self.dictionaries, self.method, self.k, self.projector = state  # pyright: ignore[reportAttributeAccessIssue]
        self._rows = OrderedDict()

    def __call__(self, unit: PairUnit) -> tuple[bytes, bytes] | None:
        """See the class."""
        first, second = roles(unit.source, unit.target)
        a, b = self._side(unit.source, first), self._side(unit.target, second)
        current = (told(self, a, b), told(self, b, a))
        if unit.there == current:
            return None
        forward, backward = match_rows(a, b, k=self.k, method=self.method)
        return forward.to_bytes(), backward.to_bytes()

    def _side(self, site: Site, role: Role) -> Rows:
        end = site, role
        if end not in self._rows:
            while len(self._rows) >= KEPT:
                self._rows.popitem(last=False)
            dictionary = self.dictionaries[site]
            self._rows[end] = rows_of(dictionary, role, self.method, self.projector)
            dictionary.unload()
        self._rows.move_to_end(end)
        return self._rows[end]


def told(work: MatchPair, source: Rows, target: Rows) -> Told:
    """How a table from `source` to `target` is made now."""
    return work.method, work.k, source.fingerprint, target.fingerprint


def there(path: Path) -> Told | None:
    """How the table at a path was made; None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        table = MatchTable.load(path)
    except BadFile:
        return None
    return table.method, table.k, *table.made_from


def file_name(source: Site, target: Site) -> str:
    """The file of the table from `source` to `target` in an atlas."""
    return f"{source.layer}.{source.part.value}-{target.layer}.{target.part.value}.safetensors"
