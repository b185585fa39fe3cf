"""`compare`: open dictionaries, pair their sites, measure, and record exactly which files were compared."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from saeflow.comparison.chain import chain_tables
from saeflow.comparison.pairs import ComparedDictionary, PairMatches, match_dictionaries
from saeflow.comparison.results import Comparison
from saeflow.comparison.settings import ComparisonSettings
from saeflow.comparison.tables import pair_tables
from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.experiments.results import SummaryTable
from saeflow.flow.graph import FlowGraph
from saeflow.ids import Site, SiteLike
from saeflow.labels.folders import words_for
from saeflow.labels.words import Words
from saeflow.matching.methods import find_method
from saeflow.plain_types import Progress
from saeflow.sources.dictionary import AttentionWriter, Dictionary
from saeflow.sources.library import load_dictionaries

Compared: TypeAlias = str | Path | Dictionary | Mapping[Site, Dictionary]
"""The name of a release, a folder, dictionaries by site, or one dictionary."""
Pairing = Literal["name", "all"]


@dataclass(frozen=True, eq=False)
class _Opened:
    """One argument of `compare`, opened."""

    name: str
    release: str
    dictionaries: Mapping[Site, Dictionary]
    words: Words | None


def compare(
    a: Compared,
    b: Compared,
    *more: Compared,
    settings: ComparisonSettings | None = None,
    sites: Sequence[SiteLike] = (),
    pairing: Pairing = "name",
    mapping: Sequence[tuple[SiteLike, SiteLike]] = (),
    names: Sequence[str] = (),
    words: Mapping[str, Words] | None = None,
    projector: AttentionWriter | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Comparison:
    """Compare dictionaries of one residual stream: seeds, widths, checkpoints, a base and its tuned model.

    For two, sites are paired by name, by `mapping`, or all against all. Three or more are a chain in the order given:
    all pairs of dictionaries at a site are compared, and tables of the chain follow.

    Args:
        a: A release, a folder, dictionaries by site, or one dictionary.
        b: Another, or the same; of any width.
        more: Further ones, in order.
        settings: How they are compared.
        sites: Sites to compare; by default all that can be paired.
        pairing: "name" pairs equal sites, "all" every site of `a` with every site of `b`.
        mapping: Pairs (site of `a`, site of `b`), in place of `pairing`.
        names: A name for each; by default its release's, with a letter in front where two are equal.
        words: Words by name; by default those on this machine for releases and folders.
        projector: The model, needed for dictionaries that live in z.
        device: Device of the dictionaries opened here.
        progress: Called with (pairs done, pairs in all, the next pair).

    Raises:
        InvalidArgument: for a value out of range, names that do not fit, words of a name that is not compared, or a
            mapping or "all" for more than two.
        UnknownRelease: when a name is neither a release nor a path.
        UnknownSite: when no sites can be paired, or a mapped one is missing.
        WidthMismatch: when two dictionaries do not write into one stream.
        BadFile: when a tensor of a file is bad.
    """
    # 1. the dictionaries, and which sites are compared
    settings = settings or ComparisonSettings()
    find_method(settings.method)
    opened = _open((a, b, *more), names, words, device)
    if mapping and len(opened) > 2:
        raise InvalidArgument(f"a mapping pairs the sites of two, and {len(opened)} were given. Leave it out.")
    groups = _groups(opened, [Site.of(site) for site in sites], pairing, mapping)
    steps = len(groups) * len(opened) * (len(opened) - 1) // 2
    tables: dict[str, SummaryTable] = {}
    graph: FlowGraph | None = None
    records: dict[str, dict[str, Any]] = {}
    done = 0
    for group in groups:
        made = [_one(one, site, projector) for one, site in zip(opened, group, strict=True)]
        # 2. all pairs of a group
        found: dict[tuple[int, int], PairMatches] = {}
        for i, j in itertools.combinations(range(len(made)), 2):
            if progress:
                progress(done, steps, f"{made[i].name} and {made[j].name}")
            found[i, j] = match_dictionaries(made[i], made[j], settings)
            done += 1
        # 3. tables: "pairs" of all pairs, the others of neighbours in the chain only
        near = [pair for (i, j), pair in found.items() if j == i + 1]
        fresh = [one for one in made if one.name not in records]
        tables = _joined(tables, pair_tables(near, list(found.values()), fresh, settings))
        if len(made) > 2:
            chain, drawn = chain_tables(str(group[0]), made, found, settings)
            if graph is not None:  # only the first chain gets a graph
                chain.pop("compare_nodes", None)
            graph = graph or drawn
            tables = _joined(tables, chain)
        records |= {one.name: _record(one, of) for one, of in zip(made, opened, strict=True) if one in fresh}
    if progress:
        progress(steps, steps, "done")
    told = asdict(settings) | {"pairing": "mapping" if mapping else pairing, "names": [one.name for one in opened]}
    return Comparison(told, tuple(records.values()), tables, graph)


def _one(opened: _Opened, site: Site, projector: AttentionWriter | None) -> ComparedDictionary:
    """One dictionary with its words."""
    known = [] if opened.words is None else opened.words.site(site)
    return ComparedDictionary(f"{opened.name} {site}", opened.dictionaries[site], known, projector)


def _open(
    given: Sequence[Compared], names: Sequence[str], words: Mapping[str, Words] | None, device: torch.device | str
) -> list[_Opened]:
    """Open every argument and give each a unique name."""
    if names and (len(names) != len(given) or len(set(names)) != len(names)):
        raise InvalidArgument(f"{len(given)} are compared and named {', '.join(names)}. Give each a name of its own.")
    found: list[_Opened] = []
    for one in given:
        if isinstance(one, Dictionary):
            found.append(_Opened("", "", {one.site: one}, None))
        elif isinstance(one, str | Path):
            dictionaries = load_dictionaries(one, device=device)
            # words that cannot be read are reported where they are used
            found.append(_Opened(dictionaries.name, str(one), dictionaries, words_for(str(one))))
        else:
            name = str(getattr(one, "name", ""))
            found.append(_Opened(name, name, one, None))
    plain = [one.name for one in found]
    letters = [chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "") for i in range(len(found))]
    own = [
        name if name and plain.count(name) == 1 else f"{letter}:{name}" if name else letter
        for name, letter in zip(plain, letters, strict=True)
    ]
    words = words or {}
    if unknown := set(words) - set(own := names or own):
        raise InvalidArgument(
            f"there are words for {', '.join(sorted(unknown))}, and compared are {', '.join(own)}. Give words by these "
            "names."
        )
    return [replace(one, name=name, words=words.get(name, one.words)) for one, name in zip(found, own, strict=True)]


def _groups(
    opened: Sequence[_Opened], sites: Sequence[Site], pairing: Pairing, mapping: Sequence[tuple[SiteLike, SiteLike]]
) -> list[tuple[Site, ...]]:
    """The groups of sites that are compared with each other, one site per argument."""
    there = [sorted(one.dictionaries) for one in opened]
    if mapping:
        groups = [(Site.of(source), Site.of(target)) for source, target in mapping]
        for group in groups:
            for number, site in enumerate(group):
                _ = opened[number].dictionaries[site]  # raises an error that lists the sites
        return groups
    lone = all(len(found) == 1 for found in there)
    if pairing == "all" or lone:  # single dictionaries need no site in common
        groups = [group for group in itertools.product(*there) if lone or len(opened) == 2]
        if not groups:
            raise InvalidArgument(f"all sites against all were asked of {len(opened)} releases. Give two.")
    else:
        groups = [(site,) * len(opened) for site in there[0] if all(site in found for found in there[1:])]
    kept = [group for group in groups if not sites or set(group) & set(sites)]
    if not kept:
        named = "; ".join(
            f"{one.name} has {', '.join(map(str, found))}" for one, found in zip(opened, there, strict=True)
        )
        asked = f" among {', '.join(map(str, sites))}" if sites else ""
        raise UnknownSite(f"no two sites{asked} go together by name: {named}. Pair them with --map, as 3/res>4/res.")
    return kept


def _joined(tables: dict[str, SummaryTable], more: Mapping[str, SummaryTable]) -> dict[str, SummaryTable]:
    """Merge tables of several sites: rows of equal names are appended."""
    return tables | {
        name: replace(table, rows=(*tables[name].rows, *table.rows)) if name in tables else table
        for name, table in more.items()
    }


def _record(one: ComparedDictionary, opened: _Opened) -> dict[str, Any]:
    """What identifies a dictionary, to the byte."""
    path, digest = Path(one.dictionary.origin), None
    if path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "name": one.name,
        "release": opened.release,
        "model": str(getattr(opened.dictionaries, "model", "")),
        "site": str(one.site),
        "features": one.dictionary.n_features,
        "width": one.dictionary.d_out,
        "file": one.dictionary.origin,
        "sha256": digest,
        "decoder sha256": one.dictionary.digest(),
    }
