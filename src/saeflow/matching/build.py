"""Build an atlas: match every pair of sites that a flow graph needs.

Each pair is matched in one pass for both directions and written at once, so a killed build resumes with
the pairs that are missing. A table that is there is kept when it was made from the same two dictionaries
(by fingerprint) with the same k. Where pairs are matched is an engine's business (`saeflow.engines`); dictionaries that
are too large for one machine are matched by shards (`saeflow.matching.shards`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from saeflow.engines import Engine, InProcess
from saeflow.errors import UnknownSite
from saeflow.files import write_atomic
from saeflow.ids import Site
from saeflow.matching.atlas import Atlas, Pair, flow_pairs, open_atlas, save_manifest, table_entry, table_file
from saeflow.matching.methods import Role, Rows, check, find_method, match_rows, roles, rows_of
from saeflow.matching.row_cache import RowCache
from saeflow.matching.same_weights import weights_of
from saeflow.matching.table import Provenance, provenance_on_disk
from saeflow.records import Progress
from saeflow.sources.dictionary import AttentionWriter, Dictionary
from saeflow.version import __version__

KEPT: Final = 3
"""Sites whose rows a worker keeps; with the one that is read, four dictionaries are in memory."""


@dataclass(frozen=True, slots=True)
class PairUnit:
    """Two sites to match, and how the tables on disk were made, both ways."""

    source: Site
    target: Site
    on_disk: tuple[Provenance | None, Provenance | None]


@dataclass(frozen=True, eq=False)
class MatchPair:
    """Matches a pair both ways. A worker keeps the rows of the sites it saw last."""

    dictionaries: Mapping[Site, Dictionary]
    method: str
    k: int
    projector: AttentionWriter | None = None
    _rows: RowCache[tuple[Site, Role], Rows] = field(default_factory=lambda: RowCache(KEPT), repr=False)

    def __call__(self, unit: PairUnit) -> tuple[bytes, bytes] | None:
        """Both tables as bytes, for the driver to write, or None where those on disk are current."""
        first, second = roles(unit.source, unit.target)
        a, b = self._side(unit.source, first), self._side(unit.target, second)
        ends = ((a, b), (b, a))
        current = tuple(Provenance(self.method, self.k, x.fingerprint, y.fingerprint) for x, y in ends)
        if unit.on_disk == current:
            return None
        forward, backward = match_rows(a, b, k=self.k, method=self.method)
        return forward.to_bytes(), backward.to_bytes()

    def _side(self, site: Site, role: Role) -> Rows:
        def read() -> Rows:
            rows = rows_of(self.dictionaries[site], role, self.method, self.projector)
            self.dictionaries[site].unload()
            return rows

        return self._rows.get((site, role), read)


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
    """Match all pairs of the flow, both directions, into the folder `out`.

    At most four dictionaries are in the memory of a process at a time; with `shard_rows` three shards.

    Args:
        dictionaries: What to match; each is read when its turn comes, and forgotten after.
        out: Folder of the atlas. Tables in it that were made from the same weights in the same way are kept.
        k: How many matches of each feature are kept: 5, or 1 for a one-to-one method, when not given.
        method: A name in `METHODS`. Thresholds of flow graphs are meant for cosines.
        release: Name of the dictionaries, for the manifest.
        model: Name of the model, for the manifest.
        projector: The model, needed where attention dictionaries live in z.
        progress: Called with (pairs done, pairs in all, the pair begun last); with shards for each of these.
        engine: Where pairs are matched; this process when None. The tables do not depend on it.
        shard_rows: Match by shards of about so many rows, read by range: the same tables from less memory.

    Raises:
        UnknownSite: when no two sites of the release are neighbours in the flow.
        WidthMismatch: when two neighbours write into spaces of different width.
        InvalidArgument: for an unknown method, or when `k` is out of range for a dictionary.
    """
    out = Path(out)
    if k is None:
        k = find_method(method).default_k
    pairs = flow_pairs(list(dictionaries))
    if not pairs:
        found = ", ".join(str(s) for s in sorted(dictionaries)) or "none"
        raise UnknownSite(f"no residual site has a predecessor among the sites found ({found}). A flow needs two.")
    for pair in pairs:
        for site, role in zip(pair, roles(*pair), strict=True):
            check(dictionaries[site], method, role)
    if shard_rows is None:
        work = MatchPair(dictionaries, method, k, projector)
        _whole(work, pairs, out, engine or InProcess(), progress)
    else:
        from saeflow.matching.shards import ShardedBuild

        by_shards = ShardedBuild(dictionaries, out, method, k, shard_rows, projector)
        for step in by_shards.run(pairs, engine or InProcess()):
            if progress:
                progress(*step)
        by_shards.tidy()
    if progress:
        progress(len(pairs), len(pairs), "done")
    files = {way: table_entry(out, *way) for pair in pairs for way in (pair, (pair[1], pair[0]))}
    weights = weights_of(dictionaries, {site for pair in pairs for site in pair})
    save_manifest(Atlas(out, release, model, k, f"saeflow {__version__}", files, method, weights=weights))
    return open_atlas(out)


def _whole(work: MatchPair, pairs: list[Pair], out: Path, engine: Engine, progress: Progress | None) -> None:
    """Match the pairs whose tables on disk are missing or not current, and write what comes back."""
    done = 0

    def units() -> Iterator[tuple[int, PairUnit]]:
        for number, (source, target) in enumerate(pairs):
            if progress:
                progress(done, len(pairs), f"{source} and {target}")
            on_disk = [provenance_on_disk(out / table_file(*way)) for way in ((source, target), (target, source))]
            yield number, PairUnit(source, target, (on_disk[0], on_disk[1]))

    for number, tables in engine.run(work, units(), name="pairs of sites"):
        source, target = pairs[number]
        if tables is not None:
            write_atomic(out / table_file(source, target), tables[0])
            write_atomic(out / table_file(target, source), tables[1])
        done += 1
