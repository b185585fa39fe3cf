"""Build an atlas: match every pair of sites that a flow graph needs.

Each pair is matched in one pass for both directions and written at once, so a killed build goes on with
the pairs that are missing. A table that is there is kept when it was made from the same two dictionaries
(by fingerprint) with the same k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.ids import Site
from saeflow.matching.atlas import Atlas, Pair, flow_pairs, open_atlas, save_manifest
from saeflow.matching.cosine import Directions, match_both
from saeflow.matching.table import MatchTable
from saeflow.sources.dictionary import AttentionWriter, Dictionary
from saeflow.version import __version__

Progress = Callable[[int, int, str], None]


def match(
    source: Dictionary,
    target: Dictionary,
    *,
    k: int = 1,
    method: str = "cosine",
    projector: AttentionWriter | None = None,
) -> MatchTable:
    """Match every feature of `source` to its `k` best rows of `target` (section 3.2).

    `projector` is the model, needed where a dictionary lives in z.

    Raises:
        InvalidArgument: for an unknown method, or `k` out of range.
        WidthMismatch: when the dictionaries write into spaces of different width.
    """
    if method != "cosine":
        raise InvalidArgument(f"there is no matching method {method!r}. Known: cosine.")
    return match_both(Directions.of(source, projector), Directions.of(target, projector), k=k)[0]


def build_atlas(
    dictionaries: Mapping[Site, Dictionary],
    *,
    out: Path | str,
    k: int = 5,
    release: str = "",
    model: str = "",
    projector: AttentionWriter | None = None,
    progress: Progress | None = None,
) -> Atlas:
    """Match all pairs of the flow, both directions, into the folder `out`.

    `projector` is the model, needed where attention dictionaries live in z. At most four dictionaries are
    in memory at a time.

    Raises:
        UnknownSite: when no two sites of the release are neighbours in the flow.
        WidthMismatch: when two neighbours write into spaces of different width.
        InvalidArgument: when `k` is out of range for a dictionary.
    """
    out = Path(out)
    pairs = flow_pairs(list(dictionaries))
    if not pairs:
        found = ", ".join(str(s) for s in sorted(dictionaries)) or "none"
        raise UnknownSite(
            f"no residual site has a predecessor among the sites found ({found}). A flow needs two."
        )
    files: dict[Pair, tuple[str, str]] = {}
    sides: dict[Site, Directions] = {}
    for done, pair in enumerate(pairs):
        if progress:
            progress(done, len(pairs), f"{pair[0]} and {pair[1]}")
        for site in pair:
            if site not in sides:
                sides[site] = Directions.of(dictionaries[site], projector)
                dictionaries[site].unload()
        files |= _pair(sides[pair[0]], sides[pair[1]], out, k)
        needed = {site for later in pairs[done + 1 :] for site in later}
        sides = {site: side for site, side in sides.items() if site in needed}
    if progress:
        progress(len(pairs), len(pairs), "done")
    save_manifest(Atlas(out, release, model, k, f"saeflow {__version__}", files))
    return open_atlas(out)


def _pair(source: Directions, target: Directions, out: Path, k: int) -> dict[Pair, tuple[str, str]]:
    """Both tables of a pair, matched or found on disk, with their checksums."""
    pairs = [(source, target), (target, source)]
    paths = [out / _name(a.site, b.site) for a, b in pairs]
    if not all(_is_current(path, a, b, k) for path, (a, b) in zip(paths, pairs, strict=True)):
        for path, table in zip(paths, match_both(source, target, k=k), strict=True):
            table.save(path)
    return {
        (a.site, b.site): (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for path, (a, b) in zip(paths, pairs, strict=True)
    }


def _is_current(path: Path, source: Directions, target: Directions, k: int) -> bool:
    if not path.exists():
        return False
    try:
        table = MatchTable.load(path)
    except BadFile:
        return False
    return table.k == k and table.made_from == (source.fingerprint, target.fingerprint)


def _name(source: Site, target: Site) -> str:
    return f"{source.layer}.{source.part.value}-{target.layer}.{target.part.value}.safetensors"
