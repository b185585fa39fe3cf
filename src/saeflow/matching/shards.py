"""Dictionaries too large for one machine: source shards against target shards, and an exact merge of their top-k.

    1. Each side is cut into shards of rows, read from its file by range. A worker holds two of them.
    2. One unit of work is a shard of one side with a shard of the other: the k best both ways (section 3.2).
    3. The k best of a feature over all shards are the k best of those of each shard: nothing else can be among them.
       The driver merges, best first, the lower row first where scores are equal to the bit.

The tables are those of the whole match. Shards of 16,384 rows or more are cut where tiles of the whole match begin, so
that every product is computed by the same call; fewer rows may change the last bit of a score where the library
of matrix products adds up in another order for another shape. Only place k is open where several rows score equal to
the bit, as it is in the whole match.

    OUT/parts/2.res-1.res.0-3.{digest}.safetensors    a unit that is done, until its pair is
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int32, Int64
from safetensors import SafetensorError
from safetensors.numpy import load, save

from saeflow.engines import Engine
from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import write_atomic
from saeflow.ids import Site
from saeflow.matching.atlas import Pair, table_file
from saeflow.matching.methods import Role, Rows, best_rows_both, find_method, roles, rows_of
from saeflow.matching.row_cache import RowCache
from saeflow.matching.table import MatchTable, Provenance, provenance_on_disk
from saeflow.matching.topk import COLUMNS
from saeflow.reading import SHARD, read_bytes
from saeflow.sources.dictionary import AttentionWriter, Dictionary

PARTS: Final = "parts"
KEPT: Final = 2
"""Shards a worker keeps; with the one that is read, three are in memory."""

Bounds = tuple[tuple[int, int], ...]
End = tuple[Site, Role]


@dataclass(frozen=True, slots=True)
class Digests:
    """What one side is: where its shards begin and end, a digest of each, and the fingerprint of all its rows."""

    bounds: Bounds
    shards: tuple[str, ...]
    whole: str


@dataclass(frozen=True, slots=True)
class ShardUnit:
    """Rows of a source against rows of a target; each end is (site, role, first row, row after the last)."""

    source: tuple[Site, Role, int, int]
    target: tuple[Site, Role, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The k best of some features so far: rows of the whole other side, best first; -1 and -inf where none is."""

    index: Int64[np.ndarray, "n k"]
    score: Float32[np.ndarray, "n k"]

    @staticmethod
    def none(n: int, k: int) -> Best:
        """Nothing yet."""
        return Best(np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, np.float32))

    def merged(self, other: Best) -> Best:
        """The k best of both: higher scores first, then lower rows. The order of merging does not matter."""
        k = self.index.shape[1]
        index = np.concatenate([self.index, other.index], axis=1)
        score = np.concatenate([self.score, other.score], axis=1)
        order = np.lexsort((index, -score), axis=1)[:, :k]
        return Best(np.take_along_axis(index, order, 1), np.take_along_axis(score, order, 1))

    @property
    def rows(self) -> Int32[np.ndarray, "n k"]:
        """`index` as a table has it: 0 where there is no match."""
        return np.where(np.isneginf(self.score), 0, self.index).astype(np.int32)


def shard_bounds(n: int, rows: int, k: int) -> Bounds:
    """Where the shards of `n` rows begin and end: about `rows` each, never fewer than `k`.

    Raises:
        InvalidArgument: when shards of so many rows, or the side itself, cannot hold k matches.
    """
    if rows < k or n < k or k < 1:
        raise InvalidArgument(
            f"k={k} matches were asked of {n} rows in shards of {rows}. Give k between 1 and both of these."
        )
    step = -(-rows // COLUMNS) * COLUMNS if rows >= COLUMNS else rows
    starts = list(range(0, n, step))
    if n - starts[-1] < k:
        starts.pop()
    return tuple(zip(starts, [*starts[1:], n], strict=True))


@dataclass(frozen=True)
class HashRows:
    """The digests of one side, read shard by shard."""

    dictionaries: Mapping[Site, Dictionary]
    method: str
    rows: int
    k: int
    projector: AttentionWriter | None = None

    def __call__(self, end: End) -> Digests:
        """Where the shards of one end begin and end, and their digests."""
        site, role = end
        bounds = shard_bounds(self.dictionaries[site].n_features, self.rows, self.k)
        whole, shards = hashlib.sha256(), list[str]()
        for start, stop in bounds:
            made = rows_of(self.dictionaries[site].rows(start, stop), role, self.method, self.projector)
            whole.update(made.rows.cpu().contiguous().numpy().data)
            shards.append(made.fingerprint)
        return Digests(bounds, tuple(shards), whole.hexdigest())


@dataclass(frozen=True, eq=False)
class MatchShards:
    """Matches two shards both ways. A worker keeps the rows of the shards it saw last."""

    dictionaries: Mapping[Site, Dictionary]
    method: str
    k: int
    projector: AttentionWriter | None = None
    _rows: RowCache[tuple[Site, Role, int, int], Rows] = field(default_factory=lambda: RowCache(KEPT), repr=False)

    def __call__(self, unit: ShardUnit) -> bytes:
        """The k best of every row of either shard in the other, as the bytes of a part."""
        a, b = self._shard(unit.source), self._shard(unit.target)
        forward, backward = best_rows_both(a, b, self.k, self.method)
        return save(
            {
                "forward.index": forward.index.cpu().numpy() + unit.target[2],
                "forward.score": forward.score.cpu().numpy(),
                "backward.index": backward.index.cpu().numpy() + unit.source[2],
                "backward.score": backward.score.cpu().numpy(),
            }
        )

    def _shard(self, end: tuple[Site, Role, int, int]) -> Rows:
        site, role, start, stop = end

        def read() -> Rows:
            return rows_of(self.dictionaries[site].rows(start, stop), role, self.method, self.projector)

        return self._rows.get(end, read)


@dataclass(frozen=True)
class ShardedBuild:
    """Match pairs of sites by shards into the folder of an atlas.

    Attributes:
        dictionaries: what is matched; rows are read by range.
        out: the folder.
        method: a name in `METHODS` that is not one-to-one.
        k: how many matches of each feature are kept.
        rows: about how many rows a shard has.
        projector: the model, needed where attention dictionaries live in z.
    """

    dictionaries: Mapping[Site, Dictionary]
    out: Path
    method: str
    k: int
    rows: int
    projector: AttentionWriter | None = None

    def run(self, pairs: list[Pair], engine: Engine) -> Iterator[tuple[int, int, str]]:
        """Match, write and merge; yields (units done, units in all, what was done last).

        Raises:
            InvalidArgument: for a one-to-one method, which looks at all rows at once; for a `k` out of range.
            WidthMismatch, BadFile: as matching does.
        """
        if find_method(self.method).one_to_one:
            raise InvalidArgument(
                f"method {self.method!r} pairs features one to one and needs all rows at once. Match it without "
                "--shard-rows, or take a method that keeps the best of each feature, such as cosine."
            )
        ends = sorted({end for pair in pairs for end in _ends(pair)})
        digests: dict[End, Digests] = {}
        hashing = HashRows(self.dictionaries, self.method, self.rows, self.k, self.projector)
        for number, found in engine.run(hashing, enumerate(ends), name="fingerprints"):
            digests[ends[number]] = found
            yield len(digests), len(ends), f"fingerprint of {ends[number][0]}"
        todo = [pair for pair in pairs if not self._is_current(pair, digests)]
        grids = {pair: self._units(pair, digests) for pair in todo}
        yield from self._match(grids, digests, engine)

    def paths_of(self, pair: Pair) -> tuple[Path, Path]:
        """The files of both tables of a pair."""
        return self.out / table_file(*pair), self.out / table_file(pair[1], pair[0])

    def _match(
        self, grids: Mapping[Pair, list[ShardUnit]], digests: Mapping[End, Digests], engine: Engine
    ) -> Iterator[tuple[int, int, str]]:
        every = [(pair, unit) for pair, units in grids.items() for unit in units]
        left = {pair: len(units) for pair, units in grids.items()}
        work = MatchShards(self.dictionaries, self.method, self.k, self.projector)
        done = 0

        def missing() -> Iterator[tuple[int, ShardUnit]]:
            for number, (pair, unit) in enumerate(every):
                if not self._part(pair, unit, digests).is_file():
                    yield number, unit

        for pair, unit in every:
            if self._part(pair, unit, digests).is_file():
                left[pair] -= 1
                done += 1
        for pair in [pair for pair, n in left.items() if n == 0]:
            self._merge(pair, grids[pair], digests)
        for number, data in engine.run(work, missing(), name="shards"):
            pair, unit = every[number]
            write_atomic(self._part(pair, unit, digests), data)
            left[pair] -= 1
            done += 1
            if left[pair] == 0:
                self._merge(pair, grids[pair], digests)
            yield done, len(every), f"{pair[0]} and {pair[1]}"

    def _units(self, pair: Pair, digests: Mapping[End, Digests]) -> list[ShardUnit]:
        """Every shard of one side with every shard of the other, there and back, so that one side stays in memory."""
        (a, role_a), (b, role_b) = _ends(pair)
        columns = digests[b, role_b].bounds
        return [
            ShardUnit((a, role_a, *source), (b, role_b, *target))
            for number, source in enumerate(digests[a, role_a].bounds)
            for target in (columns if number % 2 == 0 else columns[::-1])
        ]

    def _part(self, pair: Pair, unit: ShardUnit, digests: Mapping[End, Digests]) -> Path:
        """Where a unit that is done is kept: named after what was matched and how."""
        made_from: list[Any] = [self.method, self.k]
        numbers: list[int] = []
        for site, role, start, stop in (unit.source, unit.target):
            side = digests[site, role]
            numbers.append(side.bounds.index((start, stop)))
            made_from += [start, stop, side.shards[numbers[-1]]]
        digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
        stem = table_file(*pair).removesuffix(".safetensors")
        return self.out / PARTS / f"{stem}.{numbers[0]}-{numbers[1]}.{digest}.safetensors"

    def _is_current(self, pair: Pair, digests: Mapping[End, Digests]) -> bool:
        first, second = (digests[end].whole for end in _ends(pair))
        forward, backward = self.paths_of(pair)
        return provenance_on_disk(forward) == Provenance(self.method, self.k, first, second) and (
            provenance_on_disk(backward) == Provenance(self.method, self.k, second, first)
        )

    def _merge(self, pair: Pair, units: list[ShardUnit], digests: Mapping[End, Digests]) -> None:
        """Both tables of a pair from its parts, which are removed."""
        a, b = (digests[end] for end in _ends(pair))
        sizes = [side.bounds[-1][1] for side in (a, b)]
        both = [Best.none(n, self.k) for n in sizes]
        for unit in units:
            found = _read(self._part(pair, unit, digests))
            for side, name, end in ((0, "forward", unit.source), (1, "backward", unit.target)):
                some = slice(end[2], end[3])
                so_far = Best(both[side].index[some], both[side].score[some])
                better = so_far.merged(Best(found[f"{name}.index"], found[f"{name}.score"]))
                both[side].index[some], both[side].score[some] = better.index, better.score
        ways = ((pair, both[0], sizes[1], a, b), ((pair[1], pair[0]), both[1], sizes[0], b, a))
        for (source, target), best, n_target, one, other in ways:
            table = MatchTable(source, target, self.method, n_target, best.rows, best.score, (one.whole, other.whole))
            table.save(self.out / table_file(source, target))
        for unit in units:
            self._part(pair, unit, digests).unlink()

    def tidy(self) -> None:
        """Remove the folder of parts, with those of other weights or another k."""
        for path in (self.out / PARTS).glob("*.safetensors"):
            path.unlink()
        if (self.out / PARTS).is_dir():
            (self.out / PARTS).rmdir()


def _ends(pair: Pair) -> tuple[End, End]:
    first, second = roles(*pair)
    return (pair[0], first), (pair[1], second)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        return load(read_bytes(path, SHARD))
    except (OSError, ValueError, SafetensorError) as error:
        raise BadFile(f"{path} cannot be read ({error}). Remove it and build the atlas again.") from None
