"""A graph from the weights is the graph from the atlas."""

import pytest
import torch

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite, WidthMismatch
from saeflow.flow import trace
from saeflow.ids import FeatureId, Part, Site
from saeflow.matching import direct
from saeflow.matching.atlas import open_atlas
from saeflow.matching.build import build_atlas
from saeflow.matching.direct import DirectMatches
from saeflow.sources.library import load_dictionaries

from .planted import N_FEATURES, dictionary, plant


@pytest.fixture(scope="module")
def planted():
    return plant()


def same_graph(one, other):
    assert one.nodes
    assert {n.feature for n in one.nodes} == {n.feature for n in other.nodes}
    assert [(e.parent, e.child, e.rank) for e in one.edges] == [(e.parent, e.child, e.rank) for e in other.edges]
    assert [e.score for e in one.edges] == pytest.approx([e.score for e in other.edges], abs=1e-6)
    assert [(e.feature, e.reason) for e in one.ends] == [(e.feature, e.reason) for e in other.ends]


@pytest.mark.parametrize("k", [1, 3])
def test_graphs_of_planted_chains_are_those_of_the_atlas(planted, tmp_path, k):
    atlas = build_atlas(planted.dictionaries, out=tmp_path / "atlas", k=3)
    matches = DirectMatches(planted.dictionaries)
    for chain in range(0, 30, 7):
        seed = planted.feature(chain, 3)
        same_graph(trace(seed, matches, k=k), trace(seed, atlas, k=k))


def test_graphs_of_the_demo_pack_are_those_of_its_atlas():
    atlas, matches = open_atlas("demo"), DirectMatches(load_dictionaries("demo"))
    for name in ("4/res/72", "2/res/100", "3/mlp/5", "5/att/7"):
        seed = FeatureId.parse(name)
        same_graph(trace(seed, matches), trace(seed, atlas))


def test_a_graph_reads_every_decoder_once_and_nothing_else(planted, monkeypatch):
    read, multiplied = [], []
    of = direct.DirectMatches._of
    monkeypatch.setattr(
        direct.DirectMatches,
        "_of",
        lambda self, site: (read.append(site) if site not in self._rows else None) or of(self, site),
    )
    match = direct.DirectMatches._match
    monkeypatch.setattr(
        direct.DirectMatches, "_match", lambda self, *told: multiplied.append(told) or match(self, *told)
    )
    graph = trace(planted.feature(1, 3), DirectMatches(planted.dictionaries), forward=False)
    assert sorted(read) == sorted(set(read)), "each dictionary is read once"
    residual = [n for n in graph.nodes if n.feature.part is Part.RES]
    # three questions a residual feature, and for each edge whether it is mutual
    assert len(multiplied) <= 3 * len(residual) + 1 + len(graph.edges)
    assert not any("W_enc" in vars(d) for d in planted.dictionaries.values() if d.site in read)


def test_any_two_sites_can_be_asked_for(planted):
    matches = DirectMatches(planted.dictionaries)
    feature = planted.feature(2, 5)
    assert matches.best(feature, Site(0, Part.RES))[0].feature == planted.feature(2, 0)


def test_what_it_does_not_hold_is_said(planted):
    matches = DirectMatches(planted.dictionaries, release="planted")
    feature = FeatureId(Site(3, Part.RES), 1)
    with pytest.raises(UnknownSite, match="planted has no dictionary at 9/res"):
        matches.best(feature, Site(9, Part.RES))
    with pytest.raises(UnknownFeature, match="80 features, 0 to 79"):
        matches.best(FeatureId(Site(3, Part.RES), N_FEATURES), Site(2, Part.RES))
    for k in (81, 0, -1):
        with pytest.raises(InvalidArgument, match=f"k={k} .* at 2/res. Give k between 1 and 80"):
            matches.best(feature, Site(2, Part.RES), k)
        matches.best(feature, Site(2, Part.RES), 3)  # what is known already lets no other k pass
    odd = {
        Site(3, Part.RES): planted.dictionaries[Site(3, Part.RES)],
        Site(2, Part.RES): dictionary(Site(2, Part.RES), torch.ones(4, 7)),
    }
    with pytest.raises(WidthMismatch, match=r"96 wide .* 7 wide"):
        DirectMatches(odd).best(feature, Site(2, Part.RES))


def test_a_feature_with_fewer_matches_than_asked_for_is_multiplied_once(monkeypatch):
    sites = Site(3, Part.RES), Site(2, Part.RES)
    rows = torch.eye(4, 7)
    rows[2:] = 0
    matches = DirectMatches({site: dictionary(site, rows) for site in sites})
    multiplied, match = [], direct.DirectMatches._match
    monkeypatch.setattr(
        direct.DirectMatches, "_match", lambda self, *told: multiplied.append(told) or match(self, *told)
    )
    live, dead = FeatureId(sites[0], 0), FeatureId(sites[0], 3)
    for _ in range(2):
        assert [len(matches.best(live, sites[1], k)) for k in (4, 1, 3)] == [2, 1, 2]
        assert matches.best(dead, sites[1]) == ()
    assert len(multiplied) == 2
