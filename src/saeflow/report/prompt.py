"""A prompt graph as a page, and in the formats of other tools. No torch.

The figure is drawn like a flow graph: the width of an edge shows its effect, edges that matching did not name are
dashed, errors are below the features of their site, and logits form a last layer.

circuit-tracer's JSON is that of an attribution graph (schema version 1): columns are tokens, the weight of a link is
the effect, and supernodes and pins are those of the graph. The format has one kind of feature and one error per layer
and token; here each layer has up to three (attention, MLP, residual stream), distinguished by their feature numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import pandas as pd

from saeflow.errors import InvalidArgument
from saeflow.flow.graph import FlowGraph, MeasuredEdge, MeasuredNode, Node
from saeflow.flow.scores import Thresholds
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import FeatureWords, Words, no_words
from saeflow.prompt_graph.graph import PromptGraph
from saeflow.report.blocks import Block, BlockRow, Column, ColumnRole, GraphFigure, Notes, Page, Table
from saeflow.report.exports import (
    COLUMNS,
    PINNED,
    attribution_graph,
    attribution_node,
    export,
    feature_number,
    format_named,
)
from saeflow.report.html import page_html
from saeflow.report.tokens import headline, one_line, visible
from saeflow.report.views import NONE, score_text

if TYPE_CHECKING:
    from pandas.api.typing import NAType

_FOLLOWED: Final = (
    "Effects are measured: the parent is removed at its own site and token, alone, and the block is run again.",
    "Attention is followed between the traced tokens alone; what it brings from others is in its features.",
    "The embedding and the biases of the dictionaries have no nodes.",
)


_COMPARED: Final = "the logit less the mean of all"
_LINKS: Final = {
    "stream": "along the stream",
    "block": "through the block",
    "attention": "through attention",
    "logit": "onto the logit",
}
_LAST: Final = 1 << 32
"""Added to the indices of errors, so that they lie above every feature index."""


class _NodeRow(Protocol):
    """A row of `PromptGraph.nodes`."""

    node: str
    kind: str
    position: int
    token: str
    layer: int | NAType
    part: str
    feature: str
    activation: float
    share: float


class _EdgeRow(Protocol):
    """A row of `PromptGraph.edges`."""

    parent: str
    child: str
    link: str
    rank: int | NAType
    cosine: float
    effect: float
    control: float
    change: float
    direct: float


def _node_rows(nodes: pd.DataFrame) -> Iterator[_NodeRow]:
    return cast("Iterator[_NodeRow]", nodes.itertuples(index=False))


def _edge_rows(edges: pd.DataFrame) -> Iterator[_EdgeRow]:
    return cast("Iterator[_EdgeRow]", edges.itertuples(index=False))


def prompt_page(graph: PromptGraph, words: Words = no_words) -> Page:
    """The page of a prompt graph: figure, logits, edges, nodes, and notes on what was measured and left out."""
    drawn = flow_graph(graph, words)
    blocks: list[Block] = [] if drawn is None else [GraphFigure(*drawn)]
    blocks += [_outputs(graph), _edges(graph, words), _nodes(graph, words)]
    if graph.supernodes:
        groups = tuple(f"{name}: {', '.join(nodes)}" for name, nodes in graph.supernodes.items())
        blocks.append(Notes("Groups", groups))
    blocks.append(Notes("What was measured", (*_FOLLOWED, *graph.notes)))
    end = graph.positions[-1]
    title = f"What happened at token {end}, {visible(graph.tokens[end])}"
    return Page(title, one_line(graph.text), _facts(graph), tuple(blocks))


def _facts(graph: PromptGraph) -> tuple[tuple[str, str], ...]:
    target = cast("Mapping[str, Any]", graph.nodes.set_index("node").loc[graph.target].to_dict())
    counts = graph.nodes["kind"].value_counts()
    first, last = graph.positions[0], graph.positions[-1]
    pairs = [
        ("release", graph.release),
        ("tokens", f"{last}" if first == last else f"{first} to {last}"),
        ("target", f"{visible(target['token'])} {score_text(target['activation'])}"),
        ("nodes", ", ".join(f"{n} {kind}{'' if n == 1 else 's'}" for kind, n in counts.items())),
        ("edges", f"{len(graph.edges)}, {int(graph.edges['rank'].notna().sum())} of them named by matching"),
    ]
    if graph.fidelity is not None:
        if graph.fidelity.to_lose != graph.fidelity.to_lose:
            alone = f"nothing to lose: the biases of the dictionaries alone give {graph.fidelity.nothing:.2f}"
            return (*pairs, ("completeness", alone))
        for name in ("completeness", "faithfulness"):
            value, control = getattr(graph.fidelity, name), getattr(graph.fidelity, f"random_{name}")
            beside = "" if control != control else f" (random graphs {score_text(control)})"  # noqa: PLR0124 - NaN
            pairs.append((name, f"{score_text(value)}{beside}"))
    return tuple(pairs)


def _outputs(graph: PromptGraph) -> Table:
    columns = (
        Column("logit", ColumnRole.TAG),
        Column("value", ColumnRole.NUMBER),
        Column("probability", ColumnRole.NUMBER),
    )
    found = graph.nodes[graph.nodes["kind"] == "logit"]
    rows = tuple(
        BlockRow(
            (visible(row.token), f"{row.activation:.2f}", NONE if pd.isna(row.share) else f"{row.share:.3f}"),
            strong=row.node == graph.target,
        )
        for row in _node_rows(found)
    )
    return Table("Logits, less the mean of all", columns, rows)


def _edges(graph: PromptGraph, words: Words) -> Table:
    names = ("into", "from", "link", "effect", "control", "cosine", "match", "direct")
    kinds = {"into": ColumnRole.TAG, "from": ColumnRole.TAG, "link": ColumnRole.TAG}
    columns = (*(Column(name, kinds.get(name, ColumnRole.NUMBER)) for name in names), Column("words", ColumnRole.WORDS))
    places = {node: -place for place, node in enumerate(graph.nodes["node"])}

    def upwards(column: pd.Series) -> pd.Series:
        return column.map(places)  # from the output downwards, as one reads the graph

    rows: list[BlockRow] = []
    last = ""
    for edge in _edge_rows(graph.edges.sort_values("child", kind="stable", key=upwards)):
        numbers = (_number(edge.effect), _number(edge.control), _number(edge.cosine))
        match = NONE if pd.isna(edge.rank) else f"{edge.rank + 1}"
        cells = (_spelled(graph, edge.child), edge.parent, edge.link, *numbers, match, _number(edge.direct))
        rows.append(BlockRow((*cells, _words(edge.parent, words)), opens=edge.child != last))
        last = edge.child
    return Table("Edges: what goes of the child when the parent is removed", columns, tuple(rows))


def _nodes(graph: PromptGraph, words: Words) -> Table:
    names = ("node", "token", "activation", "share")
    kinds = {"node": ColumnRole.TAG, "token": ColumnRole.TAG}
    columns = (*(Column(name, kinds.get(name, ColumnRole.NUMBER)) for name in names), Column("words", ColumnRole.WORDS))
    pins = set(graph.pins)
    rows = tuple(
        BlockRow(
            (row.node, visible(row.token), f"{row.activation:.3g}", _number(row.share), _words(row.node, words)),
            strong=row.node in pins,
        )
        for row in _node_rows(graph.nodes[graph.nodes["kind"] != "logit"])
    )
    return Table("Features and errors, with the share of their site that they are", columns, rows)


def _number(value: Any) -> str:
    return NONE if pd.isna(value) else score_text(float(value))


def _spelled(graph: PromptGraph, node: str) -> str:
    """A node's id; for a logit, its token."""
    if not node.startswith("logit/"):
        return node
    return visible(str(graph.nodes.set_index("node").loc[node, "token"]))


def _feature(node: str) -> FeatureId | None:
    """The feature of a node; None for an error or a logit."""
    name = node.partition("@")[0]
    return None if "error" in name or name.startswith("logit") else FeatureId.parse(name)


def _words(node: str, words: Words) -> str:
    feature = _feature(node)
    return "" if feature is None else headline(words.get(feature))


@dataclass(frozen=True, slots=True, init=False)
class _Key(FeatureId):
    """The position of a prompt graph's node in the figure, written as the node's own id."""

    spelled: str

    def __init__(self, site: Site, index: int, spelled: str) -> None:
        FeatureId.__init__(self, site, index)
        object.__setattr__(self, "spelled", spelled)

    def __str__(self) -> str:
        return self.spelled


@dataclass(frozen=True, slots=True)
class _PromptWords:
    """Words for the nodes of a figure: a feature's words, a logit's token, an error's share."""

    known: Mapping[FeatureId, FeatureWords | None]

    def get(self, feature: FeatureId) -> FeatureWords | None:
        return self.known.get(feature)

    def site(self, site: Site) -> list[FeatureWords | None]:  # noqa: ARG002  (a figure looks up single nodes only)
        return []


def flow_graph(graph: PromptGraph, words: Words = no_words) -> tuple[FlowGraph, Words] | None:
    """A flow graph of all nodes, with logits as a last layer, and the nodes' words; None for a graph without edges.

    Node ids include the token position if several tokens were traced.
    """
    if not len(graph.edges):
        return None
    # 1. every node with its measurements, errors after the features of their site
    output = int(graph.nodes["layer"].max()) + 1
    keys: dict[str, _Key] = {}
    nodes: list[Node] = []
    known: dict[FeatureId, FeatureWords | None] = {}
    groups = {node: name for name, members in graph.supernodes.items() for node in members}
    for place, row in enumerate(_node_rows(graph.nodes)):
        name = row.node if len(graph.positions) > 1 else row.node.partition("@")[0]
        if (feature := _feature(row.node)) is not None:
            key, label = _Key(feature.site, feature.index, name), words.get(feature)
            said = f"activation {row.activation:.3g}, {row.share:.0%} of its site"
        elif row.kind == "error":
            key = _Key(Site(cast("int", row.layer), Part(row.part)), _LAST + place, name)
            label = FeatureWords(f"{row.share:.0%} unexplained")
            said = f"what the SAE leaves unexplained, {row.share:.0%} of the squared length"
        else:
            key = _Key(Site(output, Part.RES), place, name)
            chance = "" if pd.isna(row.share) else f" p = {row.share:.2g}"
            aim = ", the target" if row.node == graph.target else ""
            label = FeatureWords(f"{visible(row.token)}{chance}{aim}")
            said = f"{row.activation:.2f}, {_COMPARED if ' - ' not in row.token else 'the difference of two logits'}"
        said += "".join(
            f", {more}" for more in ("pinned" if row.node in graph.pins else "", groups.get(row.node, "")) if more
        )
        keys[row.node], known[key] = key, label
        nodes.append(MeasuredNode(key, kind=row.kind, said=said))
    # 2. edges, and as the seed, which gets a ring, the parent with the largest effect on the target
    edges = [
        MeasuredEdge(
            keys[edge.parent],
            keys[edge.child],
            float(edge.cosine),
            0 if pd.isna(edge.rank) else int(edge.rank),
            effect=float(edge.effect),
            control=None if pd.isna(edge.control) else float(edge.control),
            named=_named(edge),
            link=_LINKS[edge.link],
            direct=None if pd.isna(edge.direct) or not edge.change else edge.direct * edge.effect / edge.change,
        )
        for edge in _edge_rows(graph.edges)
        if not pd.isna(edge.effect)
    ]
    onto = graph.edges[graph.edges["child"] == graph.target]
    seed = keys[graph.target if onto.empty else onto.iloc[0]["parent"]]
    drawn = FlowGraph.of(seed, nodes, edges, (), Thresholds(), graph.release)
    steps = (*(f"layer {layer}" for layer in range(output)), "output")
    return replace(drawn, steps=steps), _PromptWords(known)


def circuit_tracer_json(graph: PromptGraph, words: Words = no_words) -> bytes:
    """`graph` as the JSON of an attribution graph (schema version 1), whose weights are effects."""
    last = int(graph.nodes["layer"].max()) + 1
    ids: dict[str, str] = {}
    nodes: list[dict[str, Any]] = []
    for row in _node_rows(graph.nodes):
        feature = _feature(row.node)
        if row.kind == "logit":
            number = int(row.node.removeprefix("logit/").partition("@")[0].partition("-")[0])
            layer, kind, chance = str(last + 1), "logit", 0.0 if pd.isna(row.share) else float(row.share)
            if pd.isna(row.share):  # a difference, whose first token may also be a logit node
                number = -len(COLUMNS) - 1 - number
            name = f"{layer}_{number}_{row.position}"
            js, label = f"L_{number}-{row.position}", f'Output "{visible(row.token)}" (p={chance:.3f})'
        elif feature is None:
            place = COLUMNS[Part(row.part)]
            layer, kind, chance, number = str(row.layer), "mlp reconstruction error", 0.0, -1 - place
            name, js, label = f"{layer}_{number}_{row.position}", f"{layer}_{number}-{row.position}", row.node
        else:
            index = len(COLUMNS) * feature.index + COLUMNS[feature.part]
            layer, kind, chance, number = str(row.layer), "cross layer transcoder", 0.0, feature_number(feature)
            name, js = f"{layer}_{index}_{row.position}", f"{layer}_{index}-{row.position}"
            label = f"{feature} {one_line(headline(words.get(feature)))}".rstrip()
        ids[row.node] = name
        nodes.append(
            attribution_node(
                name,
                number,
                layer,
                int(row.position),
                len(graph.tokens),
                js=js,
                label=label,
                kind=kind,
                chance=chance,
                target=row.node == graph.target,
                activation=float(row.activation),
            )
        )
    return attribution_graph(
        slug=f"saeflow-{graph.release or 'graph'}-{graph.positions[-1]}",
        scan=graph.model or graph.release,
        tokens=[visible(token) for token in graph.tokens],
        prompt=graph.text,
        description="Weights are measured: the share of the child's value that goes when the parent is removed at its "
        "own site. Features are those of sparse autoencoders at three sites of each layer.",
        pinned=[ids[node] for node in (graph.target, *(graph.pins or _strongest(graph)))],
        supernodes=[[name, *(ids[node] for node in members)] for name, members in graph.supernodes.items()],
        clicked=ids[graph.target],
        nodes=nodes,
        links=[
            (ids[edge.parent], ids[edge.child], float(edge.effect))
            for edge in _edge_rows(graph.edges)
            if not pd.isna(edge.effect)
        ],
    )


def _strongest(graph: PromptGraph) -> list[str]:
    """The nodes of the viewer's initial subgraph, grown from the target, always along the strongest remaining edge."""
    found: dict[str, None] = {graph.target: None}
    edges = graph.edges.assign(strength=graph.edges["effect"].abs()).sort_values("strength", ascending=False)
    while len(found) <= PINNED:
        open_ = edges[edges["child"].isin(found) & ~edges["parent"].isin(found)]
        if open_.empty:
            break
        found[str(open_["parent"].iloc[0])] = None
    return list(found)[1:]


def _named(edge: _EdgeRow) -> bool | None:
    """Whether matching names an edge's parent; None for edges that matching does not cover."""
    return not pd.isna(edge.rank) if edge.link == "stream" and _feature(edge.parent) is not None else None


def export_prompt(graph: PromptGraph, to: str, words: Words = no_words) -> bytes:
    """The bytes of `graph` in the format `to`, one of the formats of flow graphs (`saeflow.report.exports`).

    `PromptGraph.from_json` reads the JSON back; pictures are the figure of the page.

    Raises:
        InvalidArgument: for an unknown format, or a picture of a graph without edges.
    """
    format_named(to)
    if to == "html":
        return page_html(prompt_page(graph, words)).encode("utf-8", "replace")
    if to == "json":
        return graph.to_json().encode("utf-8", "replace")
    if to == "graphml":
        return graph.to_graphml().encode("utf-8", "replace")
    if to == "circuit-tracer":
        return circuit_tracer_json(graph, words)
    drawn = flow_graph(graph, words)
    if drawn is None:
        raise InvalidArgument("there is no edge to draw. Lower the effect from which edges are kept.")
    return export(drawn[0], to, drawn[1])
