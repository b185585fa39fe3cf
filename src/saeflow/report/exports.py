"""A flow graph in the formats of other tools: `export(graph, "circuit-tracer")`. No torch.

`svg` and `png` are the figure of the page, `html` is the page itself, and `json` is the format that saeflow reads back.
`graphml` opens in networkx, Gephi and yEd, `dot` in Graphviz, `mermaid` in Markdown, and `circuit-tracer` in the viewer
of attribution graphs and on Neuronpedia. In DOT and Mermaid, layers run from left to right as in the figure, and labels
are escaped for each language, because they may contain anything.

The format of circuit-tracer is for prompts, tokens and one kind of feature; a flow graph has neither prompt nor
activations. So the three parts take the place of tokens, left to right: attention, MLP, residual stream. The weight of
a link is the cosine, and labels are in `clerp`. The viewer's requirements, taken from the source of circuit-tracer 0.5:

- a feature that occurs on more than two thirds of the tokens is dropped: with a single token, that is every node;
- nodes are identified by layer, number and token, and labels edited in the viewer are stored by number only, so that
  3/res/7 and 3/mlp/7 need different tokens and numbers;
- without an output node the axis has 26 layers, and an output's label must contain its probability: the file has one
  unlinked output, labelled "none".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from saeflow.errors import InvalidArgument, UnknownRelease
from saeflow.flow.graph import FlowGraph, MeasuredEdge, Node
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.neuronpedia import sources_of
from saeflow.labels.words import Words, no_words
from saeflow.report.html import page_html
from saeflow.report.svg import FACE, WIRE, graph_svg, strength, tone_of
from saeflow.report.tokens import headline, one_line
from saeflow.report.views import graph_data, graph_page, score_text
from saeflow.version import __version__

SCALE: Final = 2
"""Image pixels per CSS pixel: sharp on a high-density screen and in print at 150 dpi."""

# resvg does not use fontconfig, so the substitutes for Helvetica have to be named.
_FACES: Final = "Helvetica, Arial, Liberation Sans, DejaVu Sans"

COLUMNS: Final = {Part.ATT: 0, Part.MLP: 1, Part.RES: 2}
"""The position of each part among the tokens of circuit-tracer."""
_TOKENS: Final = ("attn", "mlp", "resid")
PINNED: Final = 18
"""Nodes pinned in the viewer's subgraph; more would be unreadable there."""


def png(graph: FlowGraph, words: Words = no_words, *, scale: int = SCALE) -> bytes:
    """The figure as a PNG in the light theme, `scale` times the size of the SVG, at most 16,000 pixels wide.

    Text is set in Helvetica, Arial or Liberation Sans if the machine has one of them, else in the DejaVu Sans that
    comes with matplotlib.
    """
    import matplotlib as mpl
    import resvg_py

    text = graph_svg(graph, words).replace(FACE, _FACES)
    width = float(text.partition('width="')[2].partition('"')[0])
    faces = Path(mpl.get_data_path()) / "fonts" / "ttf"
    found = resvg_py.svg_to_bytes(
        svg_string=text,
        zoom=min(float(scale), 16_000 / width),
        sans_serif_family="DejaVu Sans",
        monospace_family="DejaVu Sans Mono",
        font_files=[str(faces / name) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf")],
    )
    return bytes(found)


def dot(graph: FlowGraph, words: Words = no_words) -> bytes:
    """`graph` in the DOT language: nodes of the same part are aligned, and edge widths show their score."""

    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"')

    title = "What happened at a token" if graph.measured else f"Feature flow of {graph.seed}"
    lines = [
        "digraph flow {",
        f'  label="{escaped(f"{title}, {graph.release}")}";',
        "  rankdir=LR; fontname=Helvetica;",
        '  node [shape=box, style="rounded", fontname=Helvetica, fontsize=11];',
        f'  edge [fontname=Helvetica, fontsize=9, color="{WIRE}"];',
    ]
    for node in graph.nodes:
        text = "\\n".join(escaped(one_line(line)) for line in _lines(node, words))
        bold = ", penwidth=2.5" if node.feature == graph.seed else ""
        look = f'label="{text}", group={node.feature.part}, color="{tone_of(node)[1]}"{bold}'
        lines.append(f'  "{node.feature}" [{look}];')
    for edge in graph.edges:
        weight = strength(edge)
        shown = score_text(edge.effect if isinstance(edge, MeasuredEdge) else weight)
        look = f'label="{shown}", weight={1 + round(8 * abs(weight))}, penwidth={0.5 + 3 * max(weight, 0.0):.2f}'
        lines.append(f'  "{edge.parent}" -> "{edge.child}" [{look}];')
    return "\n".join([*lines, "}", ""]).encode("utf-8", "replace")


def mermaid(graph: FlowGraph, words: Words = no_words) -> bytes:
    """`graph` as a Mermaid flowchart, which GitHub and many editors draw in Markdown."""

    def name(feature: FeatureId) -> str:
        return "f" + "".join(char if char.isalnum() else "_" for char in str(feature))

    def entities(text: str) -> str:
        # HTML entities are the only way to write quotes and brackets that Mermaid accepts everywhere.
        return "".join(char if char.isalnum() or char in " ,./-" else f"#{ord(char)};" for char in text)

    # No subgraphs for layers: they would push each layer below the previous one.
    lines = ["flowchart LR"]
    for node in graph.nodes:
        text = "<br/>".join(map(entities, _lines(node, words)))
        opening, closing = ("([", "])") if node.feature == graph.seed else ("[", "]")
        lines.append(f'  {name(node.feature)}{opening}"{text}"{closing}:::{_class_of(node)}')
    for edge in graph.edges:
        arrow = "-->" if edge.parent.part is Part.RES else "-.->"
        shown = score_text(edge.effect if isinstance(edge, MeasuredEdge) else edge.score)
        lines.append(f"  {name(edge.parent)} {arrow}|{shown}| {name(edge.child)}")
    tones = {_class_of(node): tone_of(node)[1] for node in graph.nodes}
    lines += [f"  classDef {name} stroke:{colour}" for name, colour in tones.items()]
    return "\n".join([*lines, ""]).encode("utf-8", "replace")


def _class_of(node: Node) -> str:
    """The name of a node's tone without a hyphen, which Mermaid would read as part of an arrow."""
    return tone_of(node)[0].removeprefix("case-")


def _lines(node: Node, words: Words) -> list[str]:
    """The lines of a drawn node: its id, and its words if it has any."""
    return [line for line in (str(node.feature), one_line(headline(words.get(node.feature)))) if line]


def circuit_tracer_json(graph: FlowGraph, words: Words = no_words) -> bytes:
    """`graph` as the JSON of an attribution graph (schema version 1).

    `feature` is the `feature_number`: unique to each feature, and layer, part and row can be read back from it.
    """
    seed, release = str(graph.seed), _plain(graph.release)
    try:
        model = sources_of(graph.release).model  # its name on Neuronpedia; if it has none, the release's name
    except (UnknownRelease, InvalidArgument):
        model = release or "unknown"

    # 1. every feature, and one output labelled "none"
    nodes: list[dict[str, Any]] = []
    for node in graph.nodes:
        case = "" if node.evolution is None else f" ({node.evolution.case})"
        label = f"{node.feature}{case} {one_line(headline(words.get(node.feature)))}".rstrip()
        nodes.append(_circuit_node(node.feature, label))
    last = max(node.feature.layer for node in graph.nodes) + 1
    output = {"feature_type": "logit", "jsNodeId": "L_0-0", "clerp": 'Output "none" (p=0.000)'}
    nodes.append(_circuit_node(FeatureId(Site(last, Part.RES), 0), "") | output)

    # 2. the viewer's initial subgraph: the seed, the residual features nearest to it, then the nearest module features
    def away(node: Node) -> tuple[bool, bool, int]:
        feature = node.feature
        return feature != graph.seed, feature.part is not Part.RES, abs(feature.layer - graph.seed.layer)

    nearest = sorted(graph.nodes, key=away)[:PINNED]
    return attribution_graph(
        slug=f"saeflow-{release or 'graph'}-{seed.replace('/', '-')}",
        scan=model,
        tokens=_TOKENS,
        prompt=f"Feature flow of {seed}, from the weights: cosines of decoder rows, no prompt.",
        description="Columns are parts of the model (attention, MLP, residual stream), not tokens. "
        "Weights are cosines of decoder rows, not attributions.",
        pinned=[_node_id(node.feature) for node in nearest],
        clicked=_node_id(graph.seed),
        nodes=nodes,
        links=[(_node_id(edge.parent), _node_id(edge.child), edge.score) for edge in graph.edges],
    )


def attribution_graph(
    *,
    slug: str,
    scan: str,
    tokens: Sequence[str],
    prompt: str,
    description: str,
    pinned: Sequence[str],
    clicked: str,
    nodes: Sequence[Mapping[str, Any]],
    links: Iterable[tuple[str, str, float]],
    supernodes: Sequence[Sequence[str]] = (),
) -> bytes:
    """The file of an attribution graph (schema version 1), from nodes of `attribution_node`."""
    data = {
        "metadata": {
            "slug": "".join(char if char.isalnum() or char in "-_." else "-" for char in slug),
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": list(tokens),
            "prompt": prompt,
            "schema_version": 1,
            "info": {"description": description, "generator": {"name": "saeflow", "version": __version__}},
        },
        "qParams": {
            "pinnedIds": list(pinned),
            "supernodes": list(supernodes),
            "linkType": "both",
            "clickedId": clicked,
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": [{"source": parent, "target": child, "weight": weight} for parent, child, weight in links],
    }
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def attribution_node(
    name: str,
    number: int,
    layer: int | str,
    column: int,
    n_columns: int,
    *,
    js: str,
    label: str,
    kind: str = "cross layer transcoder",
    chance: float = 0.0,
    target: bool = False,
    activation: float | None = None,
) -> dict[str, Any]:
    """A node of an attribution graph.

    Args:
        name: its id, which links use.
        number: its feature number.
        layer: its layer.
        column: its token.
        n_columns: how many tokens there are.
        js: its id in the viewer.
        label: its words.
        kind: its `feature_type`.
        chance: the probability of a logit's token.
        target: whether the graph explains it.
        activation: of a feature.
    """
    return {
        "node_id": name,
        "feature": number,
        "layer": str(layer),
        "ctx_idx": column,
        "feature_type": kind,
        "token_prob": chance,
        "is_target_logit": target,
        "run_idx": 0,
        "reverse_ctx_idx": n_columns - 1 - column,
        "jsNodeId": js,
        "clerp": label,
        "influence": None,
        "activation": activation,
    }


def feature_number(feature: FeatureId) -> int:
    """A unique number for layer l, part and row: (l + i)(l + i + 1) / 2 + i with i = 3 row + place of the part.

    This is circuit-tracer's Cantor pairing, where i = row because it has one kind of feature. `COLUMNS` has the places.
    """
    index = len(COLUMNS) * feature.index + COLUMNS[feature.part]
    return (feature.layer + index) * (feature.layer + index + 1) // 2 + index


def _plain(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name).strip("-.")


def _node_id(feature: FeatureId) -> str:
    return f"{feature.layer}_{feature.index}_{COLUMNS[feature.part]}"


def _circuit_node(feature: FeatureId, label: str) -> dict[str, Any]:
    column = COLUMNS[feature.part]
    js = f"{feature.layer}_{feature.index}-{len(_TOKENS) - 1 - column}"
    number = feature_number(feature)
    return attribution_node(_node_id(feature), number, feature.layer, column, len(_TOKENS), js=js, label=label)


@dataclass(frozen=True, slots=True)
class Format:
    """A format to export to.

    Attributes:
        suffix: the ending of a file name, such as ".graph.json"; no two formats share one.
        media_type: the content type that a server sends.
        title: the format's purpose, in a few words.
        write: the function that writes a graph with its words in this format.
    """

    suffix: str
    media_type: str
    title: str
    write: Callable[[FlowGraph, Words], bytes]


def _html(graph: FlowGraph, words: Words) -> bytes:
    return page_html(graph_page(graph, words)).encode()


def _json(graph: FlowGraph, words: Words) -> bytes:
    return (json.dumps(graph_data(graph, words), indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "html": Format(".graph.html", "text/html; charset=utf-8", "one page that opens offline", _html),
        "json": Format(".graph.json", "application/json", "what saeflow reads back", _json),
        "graphml": Format(
            ".graph.graphml", "application/graphml+xml", "networkx, Gephi, yEd", lambda g, _: g.to_graphml().encode()
        ),
        "svg": Format(".graph.svg", "image/svg+xml", "the figure, for papers", lambda g, w: graph_svg(g, w).encode()),
        "png": Format(".graph.png", "image/png", "the figure, for slides", png),
        "dot": Format(".graph.dot", "text/vnd.graphviz", "Graphviz", dot),
        "mermaid": Format(".graph.mmd", "text/vnd.mermaid", "a diagram in Markdown", mermaid),
        "circuit-tracer": Format(
            ".circuit-tracer.json", "application/json", "circuit-tracer's viewer and Neuronpedia", circuit_tracer_json
        ),
    }
)
"""The formats a graph can be written in, by name."""


ENDINGS: Final[Mapping[str, str]] = MappingProxyType(
    {one.suffix.removeprefix(".graph"): name for name, one in reversed(tuple(FORMATS.items()))}
)
"""The format of each file-name ending; circuit-tracer precedes JSON, because its files end in ".json" too."""


def export(graph: FlowGraph, to: str, words: Words = no_words) -> bytes:
    """The bytes of `graph` in the format `to`, one of FORMATS.

    Raises:
        InvalidArgument: for an unknown format.
    """
    return format_named(to).write(graph, words)


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        InvalidArgument: for an unknown format.
    """
    if name not in FORMATS:
        raise InvalidArgument(f"graphs are not exported to {name!r}. Choose one of {', '.join(FORMATS)}.")
    return FORMATS[name]


def format_of(path: Path) -> str | None:
    """The format that a file name's ending stands for, such as "html"; None for any other ending."""
    return next((name for ending, name in ENDINGS.items() if path.name.lower().endswith(ending)), None)
