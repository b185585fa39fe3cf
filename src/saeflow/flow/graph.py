"""The flow graph as plain data: nodes, edges and ends; reads and writes JSON, writes GraphML. No torch.

Edges follow the forward pass, from a predecessor (parent) to the feature that continues it (child).
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from saeflow.errors import BadFile, SaeflowError
from saeflow.flow.scores import Evolution, Scores, Thresholds
from saeflow.ids import FeatureId, Part
from saeflow.reading import parse_json

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "saeflow-graph"
VERSION = 2
READS = (1, 2)
"""Versions that `from_json` accepts. Version 1 has no p-values and no calibrated thresholds."""


CHANCE: Final = 0.05
"""An edge with a p-value above this is no better than chance."""


class Direction(enum.StrEnum):
    """Which way a flow was followed when it ended."""

    BACKWARD = "backward"
    FORWARD = "forward"


class Reason(enum.StrEnum):
    """Why a flow ends."""

    FIRST_LAYER = "first layer"
    LAST_LAYER = "last layer"
    BELOW_THRESHOLD = "below threshold"
    MODULE_OUTPUT = "module output"
    NO_TABLE = "no table"
    NO_PARTNER = "no partner"
    NO_DIRECTION = "no direction"


@dataclass(frozen=True, slots=True)
class Node:
    """A feature in a graph.

    `scores` and `evolution` are None for module features, which have no predecessors; `evolution` is also None for a
    residual feature that was not matched to a lower layer. `joins` lists the modules that join the flow here with a
    high score: a linear circuit (section 3.4). `p` holds the p-values of the scores, if nulls were drawn. `below` is
    the layer that the feature was matched to, if that is not the layer directly below: where a release skips layers,
    features are matched to the nearest lower layer that has a dictionary.
    """

    feature: FeatureId
    scores: Scores | None = None
    evolution: Evolution | None = None
    joins: tuple[Part, ...] = ()
    p: Scores | None = None
    below: int | None = None

    @property
    def sentence(self) -> str:
        """Where the feature comes from, in a sentence; empty for module features."""
        if self.feature.part is not Part.RES:
            return ""
        if self.evolution is None:
            return "Not matched: there is no table to the residual stream of a layer below."
        if self.below is None:
            return self.evolution.sentence
        near = f"layer {self.below} (the nearest below it with a dictionary)"
        return self.evolution.sentence.replace("The previous layer", near.capitalize()).replace(
            "the previous layer", near
        )


@dataclass(frozen=True, slots=True)
class MeasuredNode(Node):
    """A node of a prompt graph (`saeflow.trace_text`): `kind` is feature, error or logit, `said` what was measured.

    For errors and logits, `feature` is a key that stands for no dictionary feature and is written like a node id.
    """

    kind: str = "feature"
    said: str = ""

    @property
    def sentence(self) -> str:
        """The measurement in words."""
        return self.said


@dataclass(frozen=True, slots=True)
class Edge:
    """`child` continues `parent`; `score` is the cosine of their rows, `rank` 0 the best match.

    `p` is the probability that a feature without a counterpart has a best match this good, under the null for the
    matching direction in which the edge was found; None without a null. `mutual` says whether each feature is the
    other's best match; None where only one direction was matched.
    """

    parent: FeatureId
    child: FeatureId
    score: float
    rank: int = 0
    p: float | None = None
    mutual: bool | None = None

    @property
    def by_chance(self) -> bool | None:
        """Whether more than 1 in 20 features without a counterpart have a best match this good; None without `p`."""
        return None if self.p is None else self.p > CHANCE


@dataclass(frozen=True, slots=True)
class MeasuredEdge(Edge):
    """An edge of a prompt graph (`saeflow.trace_text`), with measured effects in addition to the cosine.

    `effect` is the share of the child's activation that is lost when the parent is removed; `control` is the same for
    another active feature, None if there is none. `named` says whether matching names the parent; None for edges that
    matching does not consider: from errors, to logits or through a block. `link` says what the edge runs through.
    `direct`, for logits, is the share that the parent contributes through the residual stream only.
    """

    effect: float = 0.0
    control: float | None = None
    named: bool | None = True
    link: str = "stream"
    direct: float | None = None


@dataclass(frozen=True, slots=True)
class End:
    """Where a flow stops, and why. `score` and `threshold` are set when the score fell below a cut."""

    feature: FeatureId
    direction: Direction
    reason: Reason
    score: float | None = None
    threshold: float | None = None

    @property
    def sentence(self) -> str:
        """The reason in a sentence."""
        name, back = self.feature, self.direction is Direction.BACKWARD
        if self.reason is Reason.FIRST_LAYER:
            return f"{name} lies in the first layer: no residual stream of SAE features comes before it."
        if self.reason is Reason.LAST_LAYER:
            return f"{name} lies in the last layer that was matched: nothing comes after it."
        if self.reason is Reason.MODULE_OUTPUT:
            return f"{name} is written by a module: matching rows does not look inside modules."
        if self.reason is Reason.NO_TABLE:
            side = "before" if back else "after"
            return f"The atlas has no table for the site {side} {name}."
        what = "predecessor" if back else "successor"
        if self.reason in (Reason.NO_PARTNER, Reason.NO_DIRECTION):
            return {
                Reason.NO_PARTNER: f"One-to-one matching left {name} without a {what}: all features there are taken.",
                Reason.NO_DIRECTION: f"{name} has no {what}: a decoder row of zeros, or one that is not finite, has no "
                "direction and matches nothing.",
            }[self.reason]
        cut = {Part.RES: "t(R)", Part.MLP: "t(M)", Part.ATT: "t(A)"}[name.part]
        return f"The best {what} of {name} scores {_below(self.score, self.threshold)} {cut} = {self.threshold:.2f}."


@dataclass(frozen=True, repr=False)
class FlowGraph:
    """A feature's flow through the model.

    `nodes` are in the order of computation; `span` is the first and last layer with a residual node (l_start, l_end of
    appendix B.2), None without residual nodes. `p_floor` is the smallest p-value that the nulls allow. `steps` names
    what takes the place of layers, such as checkpoints; it is empty for ordinary layers.
    """

    seed: FeatureId
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    ends: tuple[End, ...]
    thresholds: Thresholds
    span: tuple[int, int] | None
    release: str = ""
    p_floor: float | None = None
    steps: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """A one-line summary: the nodes and edges of a deep graph would fill pages."""
        layers = "" if self.span is None else f", layers {self.span[0]} to {self.span[1]}"
        of = f" of {self.release}" if self.release else ""
        return f"<FlowGraph {self.seed}{of}: {len(self.nodes)} features, {len(self.edges)} edges{layers}>"

    @staticmethod
    def of(
        seed: FeatureId,
        nodes: Iterable[Node],
        edges: Iterable[Edge],
        ends: Iterable[End],
        thresholds: Thresholds,
        release: str = "",
        p_floor: float | None = None,
        steps: tuple[str, ...] = (),
    ) -> FlowGraph:
        """Build a graph from nodes, edges and ends in any order; compute the span of its residual nodes."""
        ordered = tuple(sorted(nodes, key=lambda node: node.feature))
        layers = [node.feature.layer for node in ordered if node.feature.part is Part.RES]
        return FlowGraph(
            seed,
            ordered,
            tuple(sorted(edges, key=lambda edge: (edge.child, edge.parent))),
            tuple(sorted(ends, key=lambda end: (end.feature, end.direction))),
            thresholds,
            (min(layers), max(layers)) if layers else None,
            release,
            p_floor,
            steps,
        )

    @cached_property
    def by_feature(self) -> dict[FeatureId, Node]:
        """Every node, keyed by its feature."""
        return {node.feature: node for node in self.nodes}

    def parents(self, feature: FeatureId) -> tuple[Edge, ...]:
        """Edges into `feature`, best first."""
        return tuple(sorted((e for e in self.edges if e.child == feature), key=lambda e: -e.score))

    def children(self, feature: FeatureId) -> tuple[Edge, ...]:
        """Edges out of `feature`, best first."""
        return tuple(sorted((e for e in self.edges if e.parent == feature), key=lambda e: -e.score))

    def layer_name(self, layer: int) -> str:
        """The name of a layer: `layer 3`, or that of a step."""
        return self.steps[layer] if layer < len(self.steps) else f"layer {layer}"

    @property
    def measured(self) -> bool:
        """Whether this is the figure of a prompt graph, whose edges have measured effects."""
        return any(isinstance(node, MeasuredNode) for node in self.nodes)

    @property
    def circuits(self) -> tuple[Node, ...]:
        """Nodes at which a module joins with a high score (section 3.4)."""
        return tuple(node for node in self.nodes if node.joins)

    def to_json(self) -> str:
        """The graph as JSON text that `from_json` reads."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """The graph as JSON values; features are written `24/res/14548`.

        Calibrated thresholds are rows with layer, part, cut and `ahead`, the cut for matches found forward.
        """
        cuts = self.thresholds
        names = ("res", "module", "mlp", "att", "high", "fdr")
        layers = [
            {"layer": n, "part": part, "cut": cuts.cuts.get((n, part)), "ahead": cuts.ahead.get((n, part))}
            for n, part in sorted({*cuts.cuts, *cuts.ahead}, key=lambda key: (key[0], key[1].rank))
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "release": self.release,
            "seed": str(self.seed),
            "span": None if self.span is None else list(self.span),
            "thresholds": {name: getattr(cuts, name) for name in names} | {"layers": layers},
            "p_floor": self.p_floor,
            "nodes": [
                {
                    "feature": str(node.feature),
                    "scores": None if node.scores is None else asdict(node.scores),
                    "evolution": node.evolution,
                    "joins": list(node.joins),
                    "p": None if node.p is None else asdict(node.p),
                }
                | ({} if node.below is None else {"below": node.below})
                for node in self.nodes
            ],
            "edges": [
                asdict(e) | {"parent": str(e.parent), "child": str(e.child), "by_chance": e.by_chance}
                for e in self.edges
            ],
            "ends": [asdict(end) | {"feature": str(end.feature), "sentence": end.sentence} for end in self.ends],
        } | ({"steps": list(self.steps)} if self.steps else {})

    @staticmethod
    def from_json(text: str) -> FlowGraph:
        """Read what `to_json` wrote.

        Raises:
            BadFile: when the text is not a saeflow graph of this version.
        """
        try:
            data = cast("dict[str, Any]", parse_json(text))
            if data["format"] != FORMAT or data["version"] not in READS:
                raise BadFile(
                    f"this is {data['format']!r} version {data['version']}, not {FORMAT!r} version {VERSION}. "
                    "Write the graph again with `saeflow graph`."
                )
            return _read(data)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, SaeflowError):
                raise
            raise BadFile(
                f"no flow graph can be read from this JSON: {error!r}. Write it with `saeflow graph`."
            ) from None

    def to_pandas(self) -> pd.DataFrame:
        """One row per edge: parent and child (names of features), score, rank, p, mutual, by_chance."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["edges"], columns=[*Edge.__dataclass_fields__, "by_chance"])

    def to_html(self) -> str:
        """The graph as a single page that opens offline, with the release's feature labels found on this machine.

        `saeflow.render(graph, "html", words)` takes other labels; `saeflow.report.exports` has other formats.
        """
        # Imported by name at call time: rendering needs labels and sits in a layer above, but users look for it here.
        return import_module("saeflow.report.render").graph_html(self)

    def _repr_html_(self) -> str:
        """The page in a frame, for notebooks."""
        return import_module("saeflow.report.render").framed(self.to_html(), title=f"Feature flow of {self.seed}")

    def to_graphml(self) -> str:
        """The graph as GraphML, which networkx, Gephi and yEd open."""
        import networkx as nx

        return "\n".join(nx.generate_graphml(self.to_networkx())) + "\n"

    def to_networkx(self) -> Any:
        """A `networkx.DiGraph` with one node per feature; every edge has a `score`."""
        import networkx as nx

        graph = nx.DiGraph(seed=str(self.seed), release=self.release)
        for node in self.nodes:
            scores = (
                {} if node.scores is None else {f"s_{k}": v for k, v in asdict(node.scores).items() if v is not None}
            )
            graph.add_node(
                str(node.feature),
                layer=node.feature.layer,
                part=node.feature.part.value,
                index=node.feature.index,
                evolution=node.evolution.value if node.evolution else "",
                joins=" ".join(node.joins),
                **scores,
            )
        for edge in self.edges:
            known = {"p": edge.p, "mutual": edge.mutual, "by_chance": edge.by_chance}
            more = {name: value for name, value in known.items() if value is not None}
            graph.add_edge(str(edge.parent), str(edge.child), score=edge.score, rank=edge.rank, **more)
        return graph


def _below(score: float | None, threshold: float | None) -> str:
    """`0.31, below`, with more than two digits where rounding would make the score equal the threshold."""
    if score is None or threshold is None:
        return "below"
    digits = next((n for n in range(2, 8) if round(score, n) < round(threshold, n)), 8)
    return f"{score:.{digits}f}, below"


def _thresholds_in(data: dict[str, Any]) -> Thresholds:
    plain: dict[str, Any] = {name: _known(value) for name, value in data.items() if name != "layers"}
    found: dict[str, dict[tuple[int, Part], float]] = {
        name: {
            (_count(row["layer"]), Part(row["part"])): _number(row[name])
            for row in data.get("layers", ())
            if row[name] is not None
        }
        for name in ("cut", "ahead")
    }
    return Thresholds(**plain, cuts=found["cut"], ahead=found["ahead"])


def _read(data: dict[str, Any]) -> FlowGraph:
    parse = FeatureId.parse
    nodes = tuple(
        Node(
            parse(n["feature"]),
            _scores(n["scores"]),
            None if n["evolution"] is None else Evolution(n["evolution"]),
            tuple(Part(p) for p in n["joins"]),
            _scores(n.get("p")),
            None if n.get("below") is None else _count(n["below"]),
        )
        for n in data["nodes"]
    )
    edges = tuple(
        Edge(
            parse(e["parent"]),
            parse(e["child"]),
            _number(e["score"]),
            _count(e["rank"]),
            _known(e.get("p")),
            _truth(e.get("mutual")),
        )
        for e in data["edges"]
    )
    ends = tuple(
        End(
            parse(e["feature"]),
            Direction(e["direction"]),
            Reason(e["reason"]),
            _known(e["score"]),
            _known(e["threshold"]),
        )
        for e in data["ends"]
    )
    span = None if data["span"] is None else (_count(data["span"][0]), _count(data["span"][1]))
    thresholds = _thresholds_in(data["thresholds"])
    seed, floor, release = parse(data["seed"]), _known(data.get("p_floor")), str(data["release"])
    steps = tuple(map(str, data.get("steps", ())))
    return FlowGraph(seed, nodes, edges, ends, thresholds, span, release, floor, steps)


def _scores(data: dict[str, Any] | None) -> Scores | None:
    return None if data is None else Scores(**{name: _known(value) for name, value in data.items()})


def _known(value: Any) -> float | None:
    return None if value is None else _number(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _truth(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value
