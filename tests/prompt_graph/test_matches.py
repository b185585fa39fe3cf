"""Matches by measured effect: means over tokens, and the wiring of a planted model where cosines would take decoys."""

import pytest

from saeflow.errors import InvalidArgument
from saeflow.flow import Thresholds, trace
from saeflow.ids import FeatureId, Site
from saeflow.prompt_graph import PromptGraph
from saeflow.prompt_graph.graph import EDGE_COLUMNS, NODE_COLUMNS, frame
from saeflow.prompt_graph.matches import EffectMatches, effect_matches

from ..experiments.planted import plant

CUTS = Thresholds(res=0.1, mlp=0.1, att=0.1)


def graph_of(active, effects):
    """A graph of one token with these features active, and these effects along the stream."""
    columns = {"position": 3, "token": "x", "layer": 0, "part": "res", "activation": 1.0, "share": 0.5}
    nodes = [{"node": f"{f}@3", "kind": "feature", "feature": f, **columns} for f in active]
    nodes.append({"node": "0/res/error@3", "kind": "error", "feature": "", **columns})
    unknown = dict.fromkeys(EDGE_COLUMNS)
    edges = [unknown | {"parent": f"{a}@3", "child": f"{b}@3", "link": how, "effect": e} for a, b, how, e in effects]
    return PromptGraph("r", "m", "x", ("x",) * 4, (3,), "", frame(nodes, NODE_COLUMNS), frame(edges, EDGE_COLUMNS))


def test_an_effect_is_the_mean_over_tokens_where_both_are_active():
    stream = ("0/res/1", "1/res/2", "stream", 0.8)
    found = EffectMatches.of(
        [
            graph_of(["0/res/1", "1/res/2"], [stream, ("0/res/error", "1/res/2", "stream", 0.9)]),
            graph_of(["0/res/1", "1/res/2", "1/mlp/5"], [("0/res/1", "1/mlp/5", "block", 0.7)]),
            graph_of(["0/res/1"], []),
        ]
    )
    parent, child = FeatureId.parse("0/res/1"), FeatureId.parse("1/res/2")
    assert found.effects == {(parent, child): pytest.approx(0.4)}
    assert found.best(child, parent.site) == ((parent, pytest.approx(0.4)),)
    assert found.best(parent, child.site) == ((child, pytest.approx(0.4)),)
    assert found.best(parent, Site.parse("1/mlp")) == ()
    assert found.has(parent.site, child.site)
    assert found.has(child.site, parent.site)
    assert not found.has(parent.site, Site.parse("1/mlp"))


def test_the_strongest_effects_come_first_and_no_more_than_are_asked_for():
    parents = [f"0/res/{i}" for i in range(4)]
    edges = [(name, "1/res/2", "stream", effect) for name, effect in zip(parents, (0.2, 0.6, -0.5, 0.6), strict=True)]
    found = EffectMatches.of([graph_of([*parents, "1/res/2"], edges)])
    best = found.best(FeatureId.parse("1/res/2"), Site.parse("0/res"), 3)
    assert [one.feature.index for one in best] == [1, 3, 0]


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("carried", "nothing carry", ()),
        ("written", "nothing write", ("write_cause",)),
        ("both", "double", ()),
        ("orphan", "nothing orphan", ("orphan_cause",)),
    ],
)
def test_a_planted_model_gives_its_wiring_no_decoys_and_what_the_mlp_reads(name, text, read):
    planted = plant()
    feature = planted.feature("1/res", name)
    matches = effect_matches([text, text], feature, planted.dictionaries, planted.model)
    graph = trace(feature, matches, thresholds=CUTS, forward=False)
    parents = {edge.parent for edge in graph.edges if edge.child == feature}
    # a cause that the MLP turns into another direction has an effect, and no cosine
    assert parents == {*planted.predecessors(name), *(planted.feature("0/res", cause) for cause in read)}


def test_texts_that_say_nothing_of_a_feature_are_refused():
    planted = plant()
    with pytest.raises(InvalidArgument, match="active on none of the 1 texts"):
        effect_matches(["nothing"], planted.feature("1/res", "carried"), planted.dictionaries, planted.model)
    with pytest.raises(InvalidArgument, match="no dictionary at 7/res"):
        effect_matches(["carry"], FeatureId.parse("7/res/0"), planted.dictionaries, planted.model)
