"""The graphs of a reproduction: of the paper's features or of features worth a look, and table 5 node by node.

OUT/graphs/NAME.json         a flow graph; NAME is its seed, such as 24.res.14548
OUT/graphs/NAME.html         the same graph as a page
OUT/graphs/acceptance.json   a grown graph compared with a published one
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeflow.demo.pick import worth_a_look
from saeflow.errors import BadFile, UnknownRelease
from saeflow.files import write_atomic
from saeflow.flow.graph import FlowGraph
from saeflow.flow.published import GraphComparison, PublishedGraph, compare, published_graph
from saeflow.flow.scores import Thresholds
from saeflow.flow.trace import Matches, trace
from saeflow.ids import FeatureId, Part
from saeflow.labels import Words, words_for
from saeflow.matching.atlas import Atlas, open_atlas
from saeflow.matching.direct import DirectMatches
from saeflow.report import render
from saeflow.reproduce.recipe import FROM_WEIGHTS, PaperStage, Recipe, Table
from saeflow.sources.library import load_dictionaries

ACCEPTANCE = "acceptance.json"
WHOLE = Thresholds(res=0.0, mlp=0.25, att=0.25)
"""The thresholds of the graphs in appendix E: through the whole depth, modules from 0.25."""


def make_graphs(recipe: Recipe, out: Path, *, device: str = "cpu", only: frozenset[str] = frozenset()) -> Path:
    """Grow and write the graphs of a recipe, and compare the published one with ours.

    Args:
        recipe: a recipe with seeds or picks under `graphs`.
        out: the folder to write.
        device: where rows are multiplied if there is no atlas.
        only: the requested items, all when empty. If only table 5 is requested and there is no atlas, its graph is
            grown from the weights; of the release, only the parts that it shows are read.

    Raises:
        UnknownRelease: when there is no atlas, and more than table 5 is requested.
        InvalidArgument: when no published graph grows from the feature that the recipe names.
        UnknownFeature, UnknownSite: for a feature that the matches do not know.
        BadFile: when the recipe wants features worth a look, but the atlas has no words.
    """
    size = recipe.sizes[PaperStage.GRAPHS]
    if named := size.get("published", ""):
        published = published_graph(recipe.release, FeatureId.parse(named))
        grown = trace(published.seed, _matches(recipe, published, only, device), thresholds=published.thresholds)
        accepted = acceptance(compare(grown, published), grown)
        write_atomic(out / ACCEPTANCE, (json.dumps(accepted, indent=1) + "\n").encode())
        _save(grown, words_for(recipe.release), out)
    if not only or only - FROM_WEIGHTS:
        atlas = open_atlas(recipe.release)
        words = words_for(recipe.release, beside=atlas.folder)
        for grown in _asked(size, atlas, words, only):
            _save(grown, words, out)
    return out


def acceptance(compared: GraphComparison, grown: FlowGraph) -> dict[str, Any]:
    """The comparison in the form that the report reads: a row per site, and the pairs whose scores the text gives.

    Each of `rows` has layer, part, the published and the found index (None if there is no feature; a list if there are
    several), the cosine by which the found feature was reached, and whether both are the same. `agree` of `of`
    published features were found.
    """
    published = compared.published
    rows = [
        {
            "layer": site.site.layer,
            "part": site.site.part.value,
            "paper": _index(site.published),
            "found": _index(site.found),
            "score": _reached(grown, site.found[0]) if site.found else None,
            "same": site.agrees,
        }
        for site in compared.sites
    ]
    pairs = [
        {
            "feature": str(score.published.child),
            "parent": str(score.published.parent),
            "part": score.published.parent.part.value,
            "paper": score.published.score,
            "found": score.found,
            "same": score.agrees,
        }
        for score in compared.scores
    ]
    return {
        "seed": str(published.seed),
        "source": published.source,
        "sentence": compared.sentence,
        "rows": rows,
        "pairs": pairs,
        "agree": compared.n_same,
        "of": len(published.nodes),
    }


def _matches(recipe: Recipe, published: PublishedGraph, only: frozenset[str], device: str) -> Matches:
    """The atlas; if there is none and only table 5 is requested, matches from the weights of the compared parts."""
    try:
        return open_atlas(recipe.release)
    except UnknownRelease:
        if not only or only - FROM_WEIGHTS:
            raise
    dictionaries = load_dictionaries(recipe.release, device=device).only(published.parts)
    return DirectMatches(dictionaries, release=recipe.release)


def _asked(size: Table, atlas: Atlas, words: Words, only: frozenset[str]) -> list[FlowGraph]:
    """The graphs of the features that the recipe names, or of picked features worth a look."""
    if n := size.get("picks", 0):
        picks = worth_a_look(atlas, words, n)
        if not picks:
            raise BadFile(
                f"the release {atlas.release} has no words to pick features by. Make some: `saeflow labels make`; or "
                "name features as seeds in the recipe."
            )
        return [pick.graph for pick in picks]
    cuts: Mapping[str, float] = size.get("thresholds", {})
    thresholds = Thresholds(
        res=cuts.get("res", WHOLE.res), mlp=cuts.get("mlp", WHOLE.mlp), att=cuts.get("att", WHOLE.att)
    )
    seeds = dict(zip(size.get("figures", ()), size.get("seeds", ()), strict=True))
    return [
        trace(FeatureId.parse(seed), atlas, thresholds=thresholds)
        for item, seed in seeds.items()
        if not only or item in only
    ]


def _save(grown: FlowGraph, words: Words, out: Path) -> None:
    name = str(grown.seed).replace("/", ".")
    write_atomic(out / f"{name}.json", (grown.to_json() + "\n").encode())
    write_atomic(out / f"{name}.html", render(grown, to="html", words=words).encode("utf-8", "replace"))


def _reached(grown: FlowGraph, feature: FeatureId) -> float | None:
    """The cosine of a feature with the one it was found from; None for the seed."""
    if feature == grown.seed:
        return None
    back = feature.layer <= grown.seed.layer or feature.part is not Part.RES  # a module is never a child
    return next((e.score for e in grown.edges if (e.parent if back else e.child) == feature), None)


def _index(features: tuple[FeatureId, ...]) -> int | list[int] | None:
    if len(features) > 1:
        return [feature.index for feature in features]
    return features[0].index if features else None
