"""Match every neighbouring pair of a release under several methods, to be compared with `agreement`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saeflow.errors import InvalidArgument, UnknownSite, WidthMismatch
from saeflow.ids import Site
from saeflow.matching.atlas import Pair, flow_pairs
from saeflow.matching.methods import METHODS, check, find_method, match_pair, roles
from saeflow.matching.table import MatchTable
from saeflow.records import Progress
from saeflow.sources.dictionary import AttentionWriter, Dictionary


def compare_methods(
    dictionaries: Mapping[Site, Dictionary],
    methods: Sequence[str] = tuple(METHODS),
    *,
    k: int = 5,
    projector: AttentionWriter | None = None,
    partial: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[Pair, MatchTable]]:
    """Tables of all pairs of the flow, both directions, under each method: {method: {(source, target): table}}.

    Methods that rank keep `k` matches, or all features of the smaller side where it has fewer; one-to-one
    methods keep one. At most four dictionaries are in memory at a time. What a method cannot do with one of
    the dictionaries is refused before anything is matched; with `partial`, such pairs are missing from the
    tables of that method instead.

    Raises:
        UnknownSite: when no two sites are neighbours in the flow.
        InvalidArgument: for an unknown method, `k` below 1, or folding without thresholds above 0.
        WidthMismatch: when two neighbours share no stream, or an encoder that a method reads lies in z.
        BadFile: when a tensor that is read is bad.
    """
    pairs = flow_pairs(list(dictionaries))
    if not pairs:
        found = ", ".join(str(s) for s in sorted(dictionaries)) or "none"
        raise UnknownSite(f"no residual site has a predecessor among the sites found ({found}). A flow needs two.")
    refused = _refused(dictionaries, pairs, methods, raises=not partial)
    made: dict[str, dict[Pair, MatchTable]] = {method: {} for method in methods}
    for done, (source, target) in enumerate(pairs):
        a, b = dictionaries[source], dictionaries[target]
        for nth, method in enumerate(methods):
            if progress:
                step = f"{source} and {target}, {method}"
                progress(done * len(methods) + nth, len(pairs) * len(methods), step)
            if (method, source, target) in refused:
                continue
            kept = 1 if find_method(method).one_to_one else min(k, a.n_features, b.n_features)
            tables = match_pair(a, b, k=kept, method=method, projector=projector)
            made[method] |= {(table.source, table.target): table for table in tables}
        needed = {site for later in pairs[done + 1 :] for site in later}
        for site in {source, target} - needed:
            dictionaries[site].unload()
    if progress:
        progress(len(pairs) * len(methods), len(pairs) * len(methods), "done")
    return made


def _refused(
    dictionaries: Mapping[Site, Dictionary], pairs: Sequence[Pair], methods: Sequence[str], *, raises: bool
) -> set[tuple[str, Site, Site]]:
    """The pairs that a method cannot do; with `raises`, its error for the first of them."""
    found: set[tuple[str, Site, Site]] = set()
    for method in methods:
        find_method(method)
        met = {end for pair in pairs for end in zip(pair, roles(*pair), strict=True)}
        for site, role in sorted(met):
            try:
                check(dictionaries[site], method, role)
            except (InvalidArgument, WidthMismatch):
                if raises:
                    raise
                found |= {(method, *p) for p in pairs if (site, role) in zip(p, roles(*p), strict=True)}
            dictionaries[site].unload()
    return found
