"""Build an atlas: match every pair of sites that a flow graph needs.

Each pair is matched in one pass for both directions and written immediately, so a killed build resumes with the missing
pairs. An existing table is kept if it was made from the same two dictionaries (by fingerprint) with the same method and
k. An engine (`saeflow.engines`) decides where pairs are matched; in this process the next pair is read and hashed while
one is matched.

Dictionaries that are too large for one machine are matched in shards of rows, with an exact merge of their top-k:

    1. Each side is cut into shards of rows, read from its file by range. A worker keeps two of them.
    2. A unit of work matches a shard of one side with a shard of the other: the k best both ways (section 3.2).
    3. Each of a feature's k best matches is among the k best of its shard, so merging the shards' k best is exact.
       The driver merges them best first; scores equal to the bit put the lower row first.

The tables equal those of an unsharded match to the bit, because a score does not depend on the tile it was found in
(`topk`). Only place k is undetermined where several rows tie to the bit, as it is in an unsharded match.

    OUT/parts/2.res-1.res.0-3.{digest}.safetensors    a finished unit, kept until its pair is finished

An atlas names features by number. With retrained weights, every answer would be about different features, yet look as
good as a right one. So an atlas states a digest of each site's decoder (`sources.weights.digest`), which does not
depend on processor, device or file format, and `refuse_other_weights` compares it wherever tables meet dictionaries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial as bind
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64
from safetensors import SafetensorError
from safetensors.numpy import load, save

from saeflow.engines import Engine, InProcess
from saeflow.errors import BadFile, InvalidArgument, UnknownSite, WidthMismatch
from saeflow.files import write_atomic
from saeflow.ids import Site
from saeflow.matching.atlas import (
    Atlas,
    Pair,
    both_ways,
    flow_pairs,
    open_atlas,
    save_manifest,
    table_entry,
    table_file,
)
from saeflow.matching.methods import (
    METHODS,
    EdgeEnd,
    RowCache,
    Rows,
    Side,
    best_rows_both,
    check,
    find_method,
    match_pair,
    match_rows,
    rows_of,
    sides_of,
)
from saeflow.matching.table import MatchTable, Provenance, provenance_on_disk
from saeflow.matching.topk import COLUMNS
from saeflow.plain_types import Progress
from saeflow.reading import SHARD, read_bytes
from saeflow.sources.dictionary import AttentionWriter, Dictionary
from saeflow.sources.library import DictionarySet
from saeflow.version import __version__

KEPT: Final = 3
"""Sites whose rows a worker keeps; with the one being read, four dictionaries are in memory."""
PARTS: Final = "parts"
KEPT_SHARDS: Final = 2
"""Shards a worker keeps; with the one being read, three are in memory."""

Bounds = tuple[tuple[int, int], ...]
ShardEnd = tuple[Site, EdgeEnd, int, int]
"""Site, end of the edge, first row, row after the last."""


def build_atlas(
    dictionaries: Mapping[Site, Dictionary],
    *,
    out: Path | str,
    k: int | None = None,
    method: str = "cosine",
    release: str = "",
    model: str = "",
    projector: AttentionWriter | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
    shard_rows: int | None = None,
) -> Atlas:
    """Match all pairs of the flow in both directions, and write the atlas to the folder `out`.

    A process has at most four dictionaries in memory at a time, or three shards with `shard_rows`.

    Args:
        dictionaries: What to match; each is read when it is needed, and unloaded afterwards.
        out: Folder of the atlas. Tables in it that were made from the same weights in the same way are kept.
        k: Matches kept per feature; by default 5, or 1 for a one-to-one method.
        method: A name in `METHODS`. Thresholds of flow graphs are meant for cosines.
        release: Name of the dictionaries, for the manifest.
        model: Name of the model, for the manifest.
        projector: The model, needed where attention dictionaries live in z.
        progress: Called with (pairs done, pairs in all, the pair begun last); with `shard_rows`, also for every unit.
        engine: Where pairs are matched; this process when None. The tables do not depend on it.
        shard_rows: Match in shards of about this many rows, read by range: the same tables with less memory.

    Raises:
        UnknownSite: when no two sites of the release are neighbours in the flow.
        WidthMismatch: when two neighbours write into spaces of different width.
        InvalidArgument: for an unknown method, or when `k` is out of range for a dictionary.
    """
    out, engine = Path(out), engine or InProcess()
    if k is None:
        k = find_method(method).default_k
    pairs = _pairs_of(dictionaries)
    for side in {side for pair in pairs for side in sides_of(pair)}:
        check(dictionaries[side[0]], method, side[1])
    if shard_rows is None:
        order = tuple(pairs) if isinstance(engine, InProcess) else ()
        _build_whole(MatchPair(dictionaries, method, k, projector, order), pairs, out, engine, progress)
    else:
        by_shards = ShardedBuild(dictionaries, out, method, k, shard_rows, projector)
        for step in by_shards.run(pairs, engine):
            if progress:
                progress(*step)
    if progress:
        progress(len(pairs), len(pairs), "done")
    files = {way: table_entry(out, *way) for pair in pairs for way in both_ways(pair)}
    weights = weights_of(dictionaries, {site for pair in pairs for site in pair})
    save_manifest(Atlas(out, release, model, k, f"saeflow {__version__}", files, method, weights=weights))
    return open_atlas(out)


def compare_methods(
    dictionaries: Mapping[Site, Dictionary],
    methods: Sequence[str] = tuple(METHODS),
    *,
    k: int = 5,
    projector: AttentionWriter | None = None,
    partial: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[Pair, MatchTable]]:
    """Match all pairs of the flow in both directions by each method: {method: {(source, target): table}}.

    Ranking methods keep `k` matches, or as many as the smaller side has features; one-to-one methods keep one.
    At most four dictionaries are in memory at a time. A method that cannot match one of the dictionaries is
    refused before anything is matched; with `partial`, the pairs concerned are left out of its tables instead.

    Raises:
        UnknownSite: when no two sites are neighbours in the flow.
        InvalidArgument: for an unknown method, `k` below 1, or folding without thresholds above 0.
        WidthMismatch: when two neighbours share no stream, or an encoder that a method reads lies in z.
        BadFile: when a tensor that is read is bad.
    """
    pairs = _pairs_of(dictionaries)
    # 1. find what a method cannot match
    refused: set[tuple[str, Pair]] = set()
    for method in methods:
        find_method(method)
        for site, end in sorted({side for pair in pairs for side in sides_of(pair)}):
            try:
                check(dictionaries[site], method, end)
            except (InvalidArgument, WidthMismatch):
                if not partial:
                    raise
                refused |= {(method, pair) for pair in pairs if (site, end) in sides_of(pair)}
            dictionaries[site].unload()
    # 2. match each pair by every method, while its dictionaries are in memory
    made: dict[str, dict[Pair, MatchTable]] = {method: {} for method in methods}
    for done, pair in enumerate(pairs):
        a, b = (dictionaries[site] for site in pair)
        for nth, method in enumerate(methods):
            if progress:
                step = f"{pair[0]} and {pair[1]}, {method}"
                progress(done * len(methods) + nth, len(pairs) * len(methods), step)
            if (method, pair) in refused:
                continue
            kept = 1 if find_method(method).one_to_one else min(k, a.n_features, b.n_features)
            tables = match_pair(a, b, k=kept, method=method, projector=projector)
            made[method] |= {(table.source, table.target): table for table in tables}
        for site in set(pair) - {site for later in pairs[done + 1 :] for site in later}:
            dictionaries[site].unload()
    if progress:
        progress(len(pairs) * len(methods), len(pairs) * len(methods), "done")
    return made


def _pairs_of(dictionaries: Mapping[Site, Dictionary]) -> list[Pair]:
    pairs = flow_pairs(list(dictionaries))
    if not pairs:
        found = ", ".join(str(s) for s in sorted(dictionaries)) or "none"
        raise UnknownSite(f"no residual site has a predecessor among the sites found ({found}). A flow needs two.")
    return pairs


# Whole pairs


@dataclass(frozen=True, slots=True)
class PairUnit:
    """Two sites to match, and the provenance of their tables on disk, in both directions."""

    pair: Pair
    on_disk: tuple[Provenance | None, Provenance | None]


@dataclass(frozen=True, eq=False)
class MatchPair:
    """Matches a pair in both directions. A worker keeps the rows of the sites it used last.

    If `order` lists the pairs as they will come, the sites of the next pair are read and hashed meanwhile.
    """

    dictionaries: Mapping[Site, Dictionary]
    method: str
    k: int
    projector: AttentionWriter | None = None
    order: tuple[Pair, ...] = ()
    _rows: RowCache[Side, Rows] = field(default_factory=lambda: RowCache(KEPT), repr=False)

    def __call__(self, unit: PairUnit) -> tuple[bytes, bytes] | None:
        """Both tables as bytes, for the driver to write, or None if those on disk are current."""
        a, b = (self._rows.get(side, bind(self._read, side)) for side in sides_of(unit.pair))
        if unit.pair in self.order[:-1]:
            for side in sides_of(self.order[self.order.index(unit.pair) + 1]):
                self._rows.read_ahead(side, bind(self._read, side))
        current = tuple(Provenance(self.method, self.k, x.fingerprint, y.fingerprint) for x, y in ((a, b), (b, a)))
        if unit.on_disk == current:
            return None
        forward, backward = match_rows(a, b, k=self.k, method=self.method)
        return forward.to_bytes(), backward.to_bytes()

    def _read(self, side: Side) -> Rows:
        dictionary = self.dictionaries[side[0]]
        rows = rows_of(dictionary, side[1], self.method, self.projector)
        dictionary.unload()
        dictionary.digest()  # cached for the manifest if the weights are in a file
        _ = rows.fingerprint, rows.live
        return rows


def _build_whole(work: MatchPair, pairs: list[Pair], out: Path, engine: Engine, progress: Progress | None) -> None:
    """Match the pairs whose tables on disk are missing or not current, and write their tables."""
    done = 0

    def units() -> Iterator[tuple[int, PairUnit]]:
        for number, pair in enumerate(pairs):
            if progress:
                progress(done, len(pairs), f"{pair[0]} and {pair[1]}")
            yield number, PairUnit(pair, _on_disk(out, pair))

    for number, tables in engine.run(work, units(), name="pairs of sites"):
        if tables is not None:
            for way, table in zip(both_ways(pairs[number]), tables, strict=True):
                write_atomic(out / table_file(*way), table)
        done += 1


def _on_disk(out: Path, pair: Pair) -> tuple[Provenance | None, Provenance | None]:
    """The provenance of a pair's tables in the folder `out`, in both directions."""
    there, back = (provenance_on_disk(out / table_file(*way)) for way in both_ways(pair))
    return there, back


# Shards of rows


@dataclass(frozen=True, slots=True)
class Digests:
    """The identity of one side: the bounds of its shards, a digest of each, and the fingerprint of all its rows."""

    bounds: Bounds
    shards: tuple[str, ...]
    whole: str


def shard_bounds(n: int, rows: int, k: int) -> Bounds:
    """Where the shards of `n` rows begin and end: about `rows` each, never fewer than `k`.

    Raises:
        InvalidArgument: when shards of this size, or the side itself, cannot hold k matches.
    """
    if rows < k or n < k or k < 1:
        raise InvalidArgument(
            f"k={k} matches were asked of {n} rows in shards of {rows}. Give k between 1 and both of these."
        )
    step = -(-rows // COLUMNS) * COLUMNS if rows >= COLUMNS else rows  # large shards are whole tiles of `topk`
    starts = list(range(0, n, step))
    if n - starts[-1] < k:  # a rest too small for k matches joins the shard before
        starts.pop()
    return tuple(zip(starts, [*starts[1:], n], strict=True))


def merge_best(
    index: Int64[np.ndarray, "n k"],
    score: Float32[np.ndarray, "n k"],
    more: Int64[np.ndarray, "n k"],
    more_score: Float32[np.ndarray, "n k"],
) -> tuple[Int64[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """The k best of two sets of matches: higher scores first, then lower rows. The order of merging does not matter."""
    k = index.shape[1]
    index, score = np.concatenate([index, more], axis=1), np.concatenate([score, more_score], axis=1)
    order = np.lexsort((index, -score), axis=1)[:, :k]
    return np.take_along_axis(index, order, 1), np.take_along_axis(score, order, 1)


@dataclass(frozen=True)
class HashRows:
    """Computes the digests of one side, reading it shard by shard."""

    dictionaries: Mapping[Site, Dictionary]
    method: str
    rows: int
    k: int
    projector: AttentionWriter | None = None

    def __call__(self, side: Side) -> Digests:
        """The bounds and digests of one side's shards, and the fingerprint of all its rows."""
        site, end = side
        bounds = shard_bounds(self.dictionaries[site].n_features, self.rows, self.k)
        whole, shards = hashlib.sha256(), list[str]()
        for start, stop in bounds:
            made = rows_of(self.dictionaries[site].rows(start, stop), end, self.method, self.projector)
            whole.update(made.rows.cpu().contiguous().numpy().data)
            shards.append(made.fingerprint)
        return Digests(bounds, tuple(shards), whole.hexdigest())


@dataclass(frozen=True, slots=True)
class ShardUnit:
    """A shard of a source and a shard of a target to match."""

    source: ShardEnd
    target: ShardEnd


@dataclass(frozen=True, eq=False)
class MatchShards:
    """Matches two shards in both directions. A worker keeps the rows of the shards it used last."""

    dictionaries: Mapping[Site, Dictionary]
    method: str
    k: int
    projector: AttentionWriter | None = None
    _rows: RowCache[ShardEnd, Rows] = field(default_factory=lambda: RowCache(KEPT_SHARDS), repr=False)

    def __call__(self, unit: ShardUnit) -> bytes:
        """The k best matches of every row of either shard in the other, as the bytes of a part."""

        def read(shard: ShardEnd) -> Rows:
            site, end, start, stop = shard
            return rows_of(self.dictionaries[site].rows(start, stop), end, self.method, self.projector)

        a, b = (self._rows.get(shard, bind(read, shard)) for shard in (unit.source, unit.target))
        forward, backward = best_rows_both(a, b, self.k, self.method)
        return save(
            {
                "forward.index": forward.index.cpu().numpy() + unit.target[2],
                "forward.score": forward.score.cpu().numpy(),
                "backward.index": backward.index.cpu().numpy() + unit.source[2],
                "backward.score": backward.score.cpu().numpy(),
            }
        )


@dataclass(frozen=True)
class ShardedBuild:
    """Matches pairs of sites in shards, and writes the tables to the folder of an atlas.

    Attributes:
        dictionaries: what to match; rows are read by range.
        out: folder of the atlas.
        method: a name in `METHODS` that is not one-to-one.
        k: matches kept per feature.
        rows: approximate number of rows in a shard.
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
            InvalidArgument: for a one-to-one method, which needs all rows at once, or when `k` is out of range.
            WidthMismatch, BadFile: as `match`.
        """
        if find_method(self.method).one_to_one:
            raise InvalidArgument(
                f"method {self.method!r} pairs features one to one and needs all rows at once. Match it without "
                "--shard-rows, or take a method that keeps the best of each feature, such as cosine."
            )
        # 1. fingerprint every side
        sides = sorted({side for pair in pairs for side in sides_of(pair)})
        digests: dict[Side, Digests] = {}
        hashing = HashRows(self.dictionaries, self.method, self.rows, self.k, self.projector)
        for number, found in engine.run(hashing, enumerate(sides), name="fingerprints"):
            digests[sides[number]] = found
            yield len(digests), len(sides), f"fingerprint of {sides[number][0]}"
        # 2. list the units of the pairs whose tables are not current, with the file that keeps each
        grids = {pair: self._units(pair, digests) for pair in pairs if not self._is_current(pair, digests)}
        every = [(pair, unit, path) for pair, units in grids.items() for unit, path in units]
        left = {pair: sum(not path.is_file() for _, path in units) for pair, units in grids.items()}
        done = len(every) - sum(left.values())
        for pair in [pair for pair, n in left.items() if n == 0]:
            self._merge(pair, grids[pair], digests)
        # 3. match the missing units; a pair is merged after its last unit
        work = MatchShards(self.dictionaries, self.method, self.k, self.projector)
        missing = ((number, unit) for number, (_, unit, path) in enumerate(every) if not path.is_file())
        for number, data in engine.run(work, missing, name="shards"):
            pair, _, path = every[number]
            write_atomic(path, data)
            left[pair] -= 1
            done += 1
            if left[pair] == 0:
                self._merge(pair, grids[pair], digests)
            yield done, len(every), f"{pair[0]} and {pair[1]}"
        # 4. remove parts left by other weights or another k
        for path in (self.out / PARTS).glob("*.safetensors"):
            path.unlink()
        if (self.out / PARTS).is_dir():
            (self.out / PARTS).rmdir()

    def _is_current(self, pair: Pair, digests: Mapping[Side, Digests]) -> bool:
        first, second = (digests[side].whole for side in sides_of(pair))
        ways = ((first, second), (second, first))
        return _on_disk(self.out, pair) == tuple(Provenance(self.method, self.k, *made_from) for made_from in ways)

    def _units(self, pair: Pair, digests: Mapping[Side, Digests]) -> list[tuple[ShardUnit, Path]]:
        """Every shard of one side with every shard of the other, and the file that keeps the finished unit.

        The order reverses from row to row, so that consecutive units share a shard in memory. The file is named
        after what was matched and how.
        """
        one, other = sides_of(pair)
        stem = table_file(*pair).removesuffix(".safetensors")
        units: list[tuple[ShardUnit, Path]] = []
        for i, source in enumerate(digests[one].bounds):
            columns = list(enumerate(digests[other].bounds))
            for j, target in columns if i % 2 == 0 else columns[::-1]:
                shards = (*source, digests[one].shards[i], *target, digests[other].shards[j])
                digest = hashlib.sha256(json.dumps([self.method, self.k, *shards]).encode()).hexdigest()[:16]
                path = self.out / PARTS / f"{stem}.{i}-{j}.{digest}.safetensors"
                units.append((ShardUnit((*one, *source), (*other, *target)), path))
        return units

    def _merge(self, pair: Pair, units: list[tuple[ShardUnit, Path]], digests: Mapping[Side, Digests]) -> None:
        """Write both tables of a pair from its parts, and remove the parts."""
        first, second = (digests[side] for side in sides_of(pair))
        for name, way, own, other in zip(
            ("forward", "backward"), both_ways(pair), (first, second), (second, first), strict=True
        ):
            n, n_target = own.bounds[-1][1], other.bounds[-1][1]
            index, score = np.full((n, self.k), -1, np.int64), np.full((n, self.k), -np.inf, np.float32)
            for unit, path in units:
                some = slice(*(unit.source if name == "forward" else unit.target)[2:])
                part = _read_part(path)
                better = merge_best(index[some], score[some], part[f"{name}.index"], part[f"{name}.score"])
                index[some], score[some] = better
            index = np.where(np.isneginf(score), 0, index).astype(np.int32)
            table = MatchTable(way[0], way[1], self.method, n_target, index, score, (own.whole, other.whole))
            table.save(self.out / table_file(*way))
        for _, path in units:
            path.unlink()


def _read_part(path: Path) -> dict[str, np.ndarray]:
    try:
        return load(read_bytes(path, SHARD))
    except (OSError, ValueError, SafetensorError) as error:
        raise BadFile(f"{path} cannot be read ({error}). Remove it and build the atlas again.") from None


# Whose weights made an atlas


def weights_of(dictionaries: Mapping[Site, Dictionary], sites: Iterable[Site]) -> dict[Site, str]:
    """The digest of each site's decoder.

    Raises:
        BadFile: when a decoder cannot be read.
    """
    return {site: dictionaries[site].digest() for site in sorted(sites)}


def other_weights(
    atlas: Atlas,
    dictionaries: Mapping[Site, Dictionary],
    sites: Collection[Site] | None = None,
    *,
    projector: AttentionWriter | None = None,
) -> list[Site]:
    """The sites whose dictionary is not the one the atlas was made from.

    Atlases of earlier versions state no digests; for these the fingerprints of their tables are compared, unless a
    dictionary lives in z and no model is given. Dictionaries that would have to be fetched from a hub are skipped.

    Args:
        atlas: the atlas whose tables are used.
        dictionaries: the dictionaries they are used with; sites without one are skipped.
        sites: the sites that are used; all sites of the atlas when None.
        projector: the model.

    Raises:
        BadFile: when a decoder, or a table of an older atlas, cannot be read.
    """
    used = [site for site in atlas.sites if site in dictionaries and (sites is None or site in sites)]
    if isinstance(dictionaries, DictionarySet):
        used = [site for site in used if dictionaries.to_fetch(site) is None]
    if atlas.weights:
        found = weights_of(dictionaries, [site for site in used if site in atlas.weights])
        return [site for site, digest in found.items() if digest != atlas.weights[site]]
    other: list[Site] = []
    for site in used if atlas.method in METHODS else ():
        pair = next(pair for pair in atlas if site in pair)
        dictionary, expected = dictionaries[site], atlas[pair].made_from[pair.index(site)]
        if expected and not (dictionary.projects and projector is None):
            end = sides_of(pair)[pair.index(site)][1]
            if rows_of(dictionary, end, atlas.method, projector).fingerprint != expected:
                other.append(site)
            dictionary.unload()
    return other


def refuse_other_weights(
    atlas: Atlas,
    dictionaries: Mapping[Site, Dictionary],
    sites: Collection[Site] | None = None,
    *,
    projector: AttentionWriter | None = None,
) -> None:
    """Refuse an atlas that was not made from these dictionaries; see `other_weights`.

    Raises:
        InvalidArgument: naming the sites that differ.
        BadFile: as `other_weights`.
    """
    if other := other_weights(atlas, dictionaries, sites, projector=projector):
        named = ", ".join(map(str, other[:5])) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
        raise InvalidArgument(
            f"the atlas at {atlas.folder} was not built from these dictionaries: decoders differ at {named}. Build it "
            "again with `saeflow atlas build`, or give the dictionaries it was built from."
        )
