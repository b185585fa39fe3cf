"""A grown graph beside a published one, on a planted release of the shape of Table 5 of arXiv 2502.03032."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument
from saeflow.flow import FlowGraph, Thresholds, trace
from saeflow.flow.published import GraphComparison, PublishedGraph, compare, published_graph, published_graphs
from saeflow.ids import FeatureId, Part, Site
from saeflow.matching.direct import DirectMatches
from saeflow.sources import releases
from saeflow.sources.activations import ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.weights import Weights

SEED = FeatureId.parse("24/res/14548")
WIDTH, D_MODEL = 16384, 64
NOISE = D_MODEL - 1


class Rows(Weights):
    """16,384 rows of which one is planted and the others point where nothing planted does; made when read."""

    def __init__(self, index: int | None, row: Tensor) -> None:
        super().__init__("planted", (WIDTH, D_MODEL), D_MODEL)
        self.index, self.row = index, row

    def read(self, name: str) -> Tensor:
        rows = torch.zeros(WIDTH, D_MODEL)
        rows[:, NOISE] = 1
        if self.index is not None:
            rows[self.index] = 3 * self.row  # rows of a file have any norm
        return rows


def mixed(row: Tensor, cosine: float, new: int) -> Tensor:
    """A unit vector at a given cosine with `row`, the rest of it along an axis of its own."""
    axis = torch.zeros(D_MODEL)
    axis[new] = 1
    return cosine * row + math.sqrt(1 - cosine**2) * axis


def planted(told: PublishedGraph, *, moved: dict[Site, int] | None = None) -> DirectMatches:
    """Dictionaries whose matches are those of the published graph; `moved` puts a row elsewhere."""
    scores = {(s.child.site, s.parent.site): s.score for s in told.scores}
    index = {feature.site: feature.index for feature in told.nodes} | (moved or {})
    rows: dict[Site, Tensor] = {told.seed.site: torch.eye(D_MODEL)[0]}
    axes = iter(range(1, NOISE))
    for layer in range(told.seed.layer, 0, -1):
        child, parent = Site(layer, Part.RES), Site(layer - 1, Part.RES)
        rows[parent] = mixed(rows[child], scores.get((child, parent), 0.7), next(axes))
    rows[Site(25, Part.RES)] = mixed(rows[told.seed.site], 0.7, next(axes))
    for site in [site for site in index if site.part is Part.MLP]:
        child = Site(site.layer, Part.RES)
        rows[site] = mixed(rows[child], scores.get((child, site), 0.6), next(axes))
    made = {
        site: Dictionary.reading(
            site,
            tap=Tap.of(site.part),
            weights=Rows(index.get(site), rows.get(site, torch.zeros(D_MODEL))),
            activation=ReLU,
        )
        for site in (Site(layer, part) for layer in range(26) for part in (Part.MLP, Part.RES))
    }
    return DirectMatches(made, release="gemma-scope-2b")


def grown(told: PublishedGraph, matches: DirectMatches) -> FlowGraph:
    return trace(told.seed, matches, thresholds=told.thresholds)


def test_table_5_is_data_beside_the_recipe():
    told = published_graph("gemma-scope-2b", SEED)
    assert (told.seed, len(told.nodes), len(told.scores)) == (SEED, 35, 4)
    assert {site.layer for site in (f.site for f in told.nodes) if site.part is Part.RES} == set(range(26))
    assert told.thresholds == Thresholds(res=0.0, mlp=0.25)
    assert published_graph("gemma-scope-2b@l0=canonical", SEED) == told


def test_a_release_with_those_matches_agrees_node_by_node_and_score_by_score():
    told = published_graph("gemma-scope-2b", SEED)
    made = compare(grown(told, planted(told)), told)
    assert made.agrees
    assert made.n_same == 35
    assert made.sentence == (
        "35 of 35 features of Table 5 of arXiv 2502.03032 agree, 4 of 4 scores; the graph has 0 that it does not have."
    )
    assert [round(score.found or 0, 2) for score in made.scores] == [0.82, 0.30, 0.48, 0.79]


def test_one_feature_elsewhere_is_named_and_the_others_still_agree():
    told = published_graph("gemma-scope-2b", SEED)
    made = compare(grown(told, planted(told, moved={Site(10, Part.RES): 3, Site(7, Part.MLP): 9})), told)
    wrong = {str(site.site): (site.published, site.found) for site in made.sites if not site.agrees}
    parse = FeatureId.parse
    assert wrong == {
        "10/res": ((parse("10/res/13754"),), (parse("10/res/3"),)),
        "7/mlp": ((parse("7/mlp/6110"),), (parse("7/mlp/9"),)),
    }
    assert (made.agrees, made.n_same) == (False, 33)
    assert [score.agrees for score in made.scores] == [False, True, True, True]
    assert "33 of 35" in made.sentence
    assert made.to_dict()["scores"][0]["found"] is None


def test_a_module_that_the_publication_does_not_have_is_told():
    told = published_graph("gemma-scope-2b", SEED)
    few = PublishedGraph(
        told.source,
        told.seed,
        told.parts,
        told.thresholds,
        tuple(f for f in told.nodes if f != FeatureId.parse("24/mlp/11342")),
        told.scores,
    )
    made = compare(grown(told, planted(told)), few)
    assert [str(site.site) for site in made.sites if not site.agrees] == ["24/mlp"]
    assert "the graph has 1 that it does not have" in made.sentence


def test_sites_are_told_from_the_last_layer_back():
    told = published_graph("gemma-scope-2b", SEED)
    made = compare(grown(told, planted(told)), told)
    assert isinstance(made, GraphComparison)
    assert [str(site.site) for site in made.sites[:4]] == ["25/res", "24/res", "24/mlp", "23/res"]


def test_what_was_not_published_is_refused_with_what_was():
    with pytest.raises(
        InvalidArgument, match=r"no published graph of gemma-scope-2b grows from 3/res/1\. Seeds .*24/res/14548"
    ):
        published_graph("gemma-scope-2b", FeatureId.parse("3/res/1"))
    with pytest.raises(InvalidArgument, match=r"Seeds of published graphs: none"):
        published_graph("demo", SEED)
    told = published_graph("gemma-scope-2b", SEED)
    other = trace(FeatureId.parse("3/res/16138"), planted(told))
    with pytest.raises(InvalidArgument, match=r"grew from 3/res/16138, and that of Table 5 .* from 24/res/14548"):
        compare(other, told)


@pytest.mark.parametrize("text", ["[[graphs]]\nseed = '1/res/0'", "graphs = 3", "[[graphs", "[[graphs]]\nseed='x'"])
def test_published_data_that_is_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setattr(releases, "RELEASES", tmp_path)
    (tmp_path / "mine.graphs.toml").write_text(text)
    with pytest.raises(BadFile, match=r"mine\.graphs\.toml: holds no published graphs"):
        published_graphs("mine")
