"""Build an atlas: match every pair of sites that a flow graph needs.

Each pair is matched in one pass for both directions and written at once, so a killed build goes on with
the pairs that are missing. A table that is there is kept when it was made from the same two dictionaries
(by fingerprint) with the same k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from saeflow.errors import BadFile, UnknownSite
from saeflow.ids import Site
from saeflow.matching.atlas import Atlas, Pair, flow_pairs, open_atlas, save_manifest
from saeflow.matching.methods import Role, Rows, check, find_method, match_rows, roles, rows_of
from saeflow.matching.table import MatchTable
from saeflow.sources.dictionary import AttentionWriter, Dictionary
from saeflow.version import __version__

Progress = Callable[[int, int, str], None]


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
) -> Atlas:
    """Match all pairs of the flow, both directions, into the folder `out`.

    At most four dictionaries are in memory at a time.

    Args:
        dictionaries: What to match; each is read when its turn comes, and forgotten after.
        out: Folder of the atlas. Tables in it that were made from the same weights in the same way are kept.
        k: How many matches of each feature are kept: 5, or 1 for a one-to-one method, when not given.
        method: A name in `METHODS`. Thresholds of flow graphs are meant for cosines.
        release: Name of the dictionaries, for the manifest.
        model: Name of the model, for the manifest.
        projector: The model, needed where attention dictionaries live in z.
        progress: Called with (pairs done, pairs in all, the pair at hand).

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
        raise UnknownSite(
            f"no residual site has a predecessor among the sites found ({found}). A flow needs two."
        )
    for pair in pairs:
        for site, role in zip(pair, roles(*pair), strict=True):
            check(dictionaries[site], method, role)
    files: dict[Pair, tuple[str, str]] = {}
    sides: dict[tuple[Site, Role], Rows] = {}
    for done, pair in enumerate(pairs):
        if progress:
            progress(done, len(pairs), f"{pair[0]} and {pair[1]}")
        ends = _ends(pair)
        for site, role in ends:
            if (site, role) not in sides:
                sides[site, role] = rows_of(dictionaries[site], role, method, projector)
                dictionaries[site].unload()
        files |= _pair(sides[ends[0]], sides[ends[1]], out, k, method)
        needed = {end for later in pairs[done + 1 :] for end in _ends(later)}
        sides = {end: side for end, side in sides.items() if end in needed}
    if progress:
        progress(len(pairs), len(pairs), "done")
    save_manifest(Atlas(out, release, model, k, f"saeflow {__version__}", files, method))
    return open_atlas(out)


def _ends(pair: Pair) -> tuple[tuple[Site, Role], tuple[Site, Role]]:
    first, second = roles(*pair)
    return (pair[0], first), (pair[1], second)


def _pair(source: Rows, target: Rows, out: Path, k: int, method: str) -> dict[Pair, tuple[str, str]]:
    """Both tables of a pair, matched or found on disk, with their checksums."""
    pairs = [(source, target), (target, source)]
    paths = [out / _name(a.site, b.site) for a, b in pairs]
    if not all(_is_current(path, a, b, k, method) for path, (a, b) in zip(paths, pairs, strict=True)):
        for path, table in zip(paths, match_rows(source, target, k=k, method=method), strict=True):
            table.save(path)
    return {
        (a.site, b.site): (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for path, (a, b) in zip(paths, pairs, strict=True)
    }


def _is_current(path: Path, source: Rows, target: Rows, k: int, method: str) -> bool:
    if not path.exists():
        return False
    try:
        table = MatchTable.load(path)
    except BadFile:
        return False
    made = (table.method, table.k, *table.made_from)
    return made == (method, k, source.fingerprint, target.fingerprint)


def _name(source: Site, target: Site) -> str:
    return f"{source.layer}.{source.part.value}-{target.layer}.{target.part.value}.safetensors"
