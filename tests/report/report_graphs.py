"""Flow graphs built by hand for the tests of reports: every id, score and end is written down here."""

import random
from dataclasses import dataclass, field

from saeflow.flow.graph import Direction, Edge, End, FlowGraph, Node, Reason
from saeflow.flow.scores import Scores, Thresholds, evolution
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import Context, FeatureWords

HOSTILE = '</script><img src=x onerror="document.title=1">&amp; \x1b[31m\u202e\x00'

_LABELS = (
    "particle physics and the standard model of interactions",
    "measurements and observed data in experiments",
    "gauge bosons",
    "terms of quantum field theory, above all where they concern symmetry breaking",
    "dark matter",
    "return statements of functions",
)


def feature(text: str) -> FeatureId:
    return FeatureId.parse(text)


@dataclass
class KnownWords:
    """Words in a dictionary, which is all that a report may ask for."""

    known: dict[FeatureId, FeatureWords] = field(default_factory=dict)

    def get(self, feature: FeatureId) -> FeatureWords | None:
        return self.known.get(feature)

    def site(self, site: Site) -> list[FeatureWords | None]:
        raise AssertionError("a report asks for single features only")


def words_for(graph: FlowGraph) -> KnownWords:
    """Words for every node but every fifth, some without a label."""
    known = {}
    for i, node in enumerate(graph.nodes):
        if i % 5 == 4:
            continue
        label = "" if i % 7 == 3 else _LABELS[i % len(_LABELS)]
        context = Context(
            (" return", " the", " boson", "\n", "    ", "mass"), (0.0, 0.5, 3.25, 0.0, 1.5, 0.2), "python"
        )
        known[node.feature] = FeatureWords(
            label, (" the", "\n", "boson", " quark"), (" Higgs", "\tGeV", " field"), (context, context), 0.0125
        )
    return KnownWords(known)


def _graph(seed, nodes, edges, ends, thresholds, *, release="planted") -> FlowGraph:
    layers = [n.feature.layer for n in nodes if n.feature.part is Part.RES]
    span = (min(layers), max(layers)) if layers else None
    ordered = tuple(sorted(nodes, key=lambda n: n.feature))
    return FlowGraph(seed, ordered, tuple(edges), tuple(ends), thresholds, span, release)


def _node(name: FeatureId, scores: Scores, high: float) -> Node:
    joins = tuple(p for p in (Part.ATT, Part.MLP) if (scores.of(p) or 0.0) >= high)
    return Node(name, scores, evolution(scores, high), joins)


def deep(layers: int, seed: int = 7) -> FlowGraph:
    """k = 1 through the whole depth: one residual feature a layer, modules here and there."""
    rng, cuts = random.Random(seed), Thresholds(res=0.0, module=0.25)  # noqa: S311 - planted data
    nodes, edges, ends, before = [], [], [], None
    for layer in range(layers):
        name = FeatureId(Site(layer, Part.RES), rng.randrange(16384))
        s_res = None if before is None else round(rng.uniform(0.25, 0.95), 2)
        s_mlp, s_att = round(rng.uniform(0.1, 0.85), 2), round(rng.uniform(0.02, 0.6), 2)
        if before is not None:
            edges.append(Edge(before, name, s_res))
        for part, score in ((Part.MLP, s_mlp), (Part.ATT, s_att)):
            if score >= cuts.of(part):
                module = FeatureId(Site(layer, part), rng.randrange(16384))
                nodes.append(Node(module))
                edges.append(Edge(module, name, score))
        nodes.append(_node(name, Scores(s_res, s_mlp, s_att), cuts.high))
        before = name
    first = min(n.feature for n in nodes if n.feature.part is Part.RES)
    ends = [
        End(first, Direction.BACKWARD, Reason.FIRST_LAYER),
        End(before, Direction.FORWARD, Reason.BELOW_THRESHOLD, 0.12, 0.5),
    ]
    start = sorted(n.feature for n in nodes if n.feature.part is Part.RES)[-2]
    return _graph(start, nodes, edges, ends, cuts)


def branching() -> FlowGraph:
    """k = 3 over four layers: features share sites, and two residual features share a module's."""
    rng, cuts = random.Random(3), Thresholds(res=0.3, module=0.2)  # noqa: S311 - planted data
    nodes, edges, before = [], [], []
    for layer, count in enumerate((3, 3, 2, 1)):
        here = [FeatureId(Site(layer, Part.RES), rng.randrange(16384)) for _ in range(count)]
        modules = [FeatureId(Site(layer, Part.MLP), rng.randrange(16384)) for _ in range(2)]
        nodes += [Node(m) for m in modules]
        for child in here:
            for rank, parent in enumerate(before):
                edges.append(Edge(parent, child, round(0.9 - 0.2 * rank, 2), rank))
            for rank, parent in enumerate(modules):
                edges.append(Edge(parent, child, round(0.6 - 0.3 * rank, 2), rank))
            nodes.append(_node(child, Scores(0.9 if before else None, 0.6, None), cuts.high))
        before = here
    return _graph(before[0], nodes, edges, [End(before[0], Direction.FORWARD, Reason.LAST_LAYER)], cuts)


def from_module() -> FlowGraph:
    """A seed at a module, which writes into one residual feature."""
    seed, child = feature("2/att/77"), feature("2/res/400")
    ends = [End(seed, Direction.BACKWARD, Reason.MODULE_OUTPUT), End(child, Direction.FORWARD, Reason.NO_TABLE)]
    nodes = [Node(seed), _node(child, Scores(0.1, None, 0.71), 0.5)]
    return _graph(seed, nodes, [Edge(seed, child, 0.71)], ends, Thresholds())


def alone() -> FlowGraph:
    """A seed that nothing leads to or from."""
    seed = feature("3/res/12")
    ends = [
        End(seed, Direction.BACKWARD, Reason.BELOW_THRESHOLD, 0.21, 0.5),
        End(seed, Direction.FORWARD, Reason.BELOW_THRESHOLD, 0.33, 0.5),
    ]
    return _graph(seed, [_node(seed, Scores(0.21, 0.11, -0.001), 0.5)], [], ends, Thresholds(), release="")


GRAPHS = {"six": deep(6), "branching": branching(), "deep": deep(26), "module": from_module(), "alone": alone()}
