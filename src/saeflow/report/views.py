"""Domain objects as blocks. A flow graph becomes the table of appendix E (table 5), a picture and notes.

The table has one row per residual feature, with the module features that write into it in further columns; its narrow
form gives module features separate rows. With k > 1, several features can share a layer: each has its own row, and a
second table lists the residual edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from saeflow.flow.graph import Edge, End, FlowGraph, MeasuredNode, Node, Reason
from saeflow.flow.scores import Evolution, Thresholds
from saeflow.ids import FeatureId, Part
from saeflow.labels.words import FeatureWords, Words, no_words, silent
from saeflow.report.blocks import Block, BlockRow, Column, ColumnRole, GraphFigure, Notes, Page, Table
from saeflow.report.tokens import headline

SEED, CIRCUIT, MUTUAL, NONE = "▶", "⊕", "⇄", "–"
NOT_MATCHED = "not matched"
SILENT, CHANCE = "†", "≈"
MODULES = (Part.MLP, Part.ATT)
_NAMED = (("R", Part.RES), ("M", Part.MLP), ("A", Part.ATT))
_CAPTION = "Every feature of the graph, by layer"


def graph_page(graph: FlowGraph, words: Words = no_words) -> Page:
    """The page of one flow graph."""
    blocks: list[Block] = [GraphFigure(graph, words), flow_table(graph, words)]
    if _shows_edges(graph):
        blocks.append(edge_table(graph))
    if graph.thresholds.fdr is not None:
        blocks.append(threshold_table(graph.thresholds))
    if graph.ends:
        blocks.append(Notes("Where the flow ends", tuple(_end_sentences(graph.ends))))
    blocks.append(Notes("Marks", tuple(_marks(graph, words))))
    return Page(f"Feature flow of {graph.seed}", headline(words.get(graph.seed)), facts(graph), tuple(blocks))


def facts(graph: FlowGraph) -> tuple[tuple[str, str], ...]:
    """Seed, release, span, thresholds and size of a graph."""
    counts = ", ".join(f"{n} {part}" for part in (Part.RES, *MODULES) if (n := _count(graph, part)))
    pairs = [("seed", str(graph.seed))]
    if graph.release:
        pairs.append(("release", graph.release))
    if graph.span is not None:
        first, last = graph.span
        ends = f"layers {first} to {last}" if not graph.steps else f"{graph.steps[first]} to {graph.steps[last]}"
        pairs.append(("span", graph.layer_name(first) if first == last else ends))
    pairs.append(("thresholds", threshold_text(graph.thresholds)))
    mutual = [edge.mutual for edge in graph.edges if edge.mutual is not None]  # empty if only one direction was matched
    edges = f"{len(graph.edges)}" + (f", {sum(mutual)} of them mutual best matches" if mutual else "")
    pairs += [("features", counts or "none"), ("edges", edges)]
    return tuple(pairs)


def threshold_text(thresholds: Thresholds) -> str:
    """`t(R) = 0.5, t(M) = 0.15, t(A) = 0.15; high from 0.5`, or the ranges over layers for calibrated thresholds."""
    if thresholds.fdr is None:
        plain = [f"t({k}) = {thresholds.of(part):g}" for k, part in _NAMED]
        return f"{', '.join(plain)}; high from {thresholds.high:g}"
    ranges: list[str] = []
    for k, part in _NAMED:
        cuts = [cut for (_, other), cut in thresholds.cuts.items() if other is part]
        low, high = (_cut_text(min(cuts)), _cut_text(max(cuts))) if cuts else (f"{thresholds.of(part):g}",) * 2
        ranges.append(f"t({k}) = {low}" if low == high else f"t({k}) {low} to {high}")
    return f"by layer, at a false-discovery rate of {thresholds.fdr:g}: {', '.join(ranges)}; high from the same"


def _cut_text(cut: float | None) -> str:
    """A calibrated cut as text; "none" for 1, where no match of the pair of sites is significant."""
    return "none" if cut is not None and cut >= 1.0 else score_text(cut)


def p_text(p: float | None) -> str:
    """A p-value with two significant digits; a dash for None."""
    return NONE if p is None else f"{p:.2g}"


def threshold_table(thresholds: Thresholds) -> Table:
    """The calibrated thresholds, one row per layer: for each part, the cuts of the backward and the forward matches."""
    columns = [Column("layer", ColumnRole.NUMBER)]
    for k in "RMA":
        columns += [Column(f"t({k})", ColumnRole.NUMBER), Column("forward", ColumnRole.NUMBER)]
    rows: list[BlockRow] = []
    for layer in thresholds.layers:
        cuts = [by.get((layer, part)) for _, part in _NAMED for by in (thresholds.cuts, thresholds.ahead)]
        rows.append(BlockRow((str(layer), *map(_cut_text, cuts))))
    return Table("Thresholds by layer of the residual feature", tuple(columns), tuple(rows))


def score_text(score: float | None) -> str:
    """A score with two decimals; a dash for None or NaN."""
    if score is None or math.isnan(score):
        return NONE
    return f"{score:.2f}".replace("-0.00", "0.00")


def flow_table(graph: FlowGraph, words: Words = no_words) -> Table:
    """A table with one row per residual feature and its module features; `narrow` has one row per feature."""

    def mark(feature: FeatureId, *, joins: bool = False, by_chance: bool = False) -> str:
        seed, dead = SEED if feature == graph.seed else "", SILENT if silent(words, feature) else ""
        return seed + (CIRCUIT if joins else "") + dead + (CHANCE if by_chance else "")

    lanes = tuple(part for part in MODULES if _count(graph, part))
    wide: list[BlockRow] = []
    narrow: list[BlockRow] = []
    for layer in sorted({node.feature.layer for node in graph.nodes}):
        opens = opens_narrow = True
        for node, *modules in _entries(graph, layer, lanes):
            strong, tone = False, ""
            cells = [str(layer) if opens else ""]
            if isinstance(node, Node):
                # 1. the residual feature, in both tables
                case = node.evolution
                strong, tone = node.feature == graph.seed, "" if case is None else case.value
                found = (None,) * 3 if node.scores is None else (node.scores.res, node.scores.mlp, node.scores.att)
                head = (mark(node.feature, joins=bool(node.joins)), str(node.feature), *map(score_text, found))
                text = headline(words.get(node.feature))
                cells += [*head, NOT_MATCHED if case is None else f"{case.case} {case.value}", text]
                narrow.append(BlockRow((*head, NONE if case is None else case.case, text), opens_narrow, strong, tone))
                opens_narrow = False
            else:
                cells += [""] * 7
            for module in modules:
                # 2. its module features: in further columns of the wide table, in separate rows of the narrow one
                if not isinstance(module, Edge | FeatureId):
                    cells += [""] * 4
                    continue
                edge = module if isinstance(module, Edge) else None
                feature = edge.parent if edge else module
                assert isinstance(feature, FeatureId)  # noqa: S101 - an edge or a feature
                score = score_text(edge.score) if edge else NONE
                named = (mark(feature, by_chance=edge is not None and edge.by_chance is True), str(feature))
                text = headline(words.get(feature))
                cells += [*named, score, text]
                scores = ("", score, "") if feature.part is Part.MLP else ("", "", score)
                narrow.append(BlockRow((*named, *scores, "", text), opens_narrow, feature == graph.seed))
                opens_narrow = False
            wide.append(BlockRow(tuple(cells), opens, strong, tone))
            opens = False
    columns = [Column("layer", ColumnRole.NUMBER), Column("", ColumnRole.MARK), Column("res", ColumnRole.ID)]
    columns += [Column(f"s({k})", ColumnRole.NUMBER) for k in "RMA"]
    columns += [Column("case", ColumnRole.TAG), Column("words", ColumnRole.WORDS)]
    for part in lanes:
        columns += [Column("", ColumnRole.MARK), Column(part.value, ColumnRole.ID)]
        columns += [Column("score", ColumnRole.NUMBER), Column("words", ColumnRole.WORDS)]
    columns_narrow = [columns[1], Column("feature", ColumnRole.ID), *columns[3:8]]
    small = Table(_CAPTION, tuple(columns_narrow), tuple(narrow))
    return _without_empty(Table(_CAPTION, tuple(columns), tuple(wide), _without_empty(small)))


def edge_table(graph: FlowGraph) -> Table:
    """Every residual edge with its score and the rank of its match; if the graph has p-values, every edge."""
    columns = (
        Column("from", ColumnRole.ID),
        Column("to", ColumnRole.ID),
        Column("score", ColumnRole.NUMBER),
        Column("match", ColumnRole.NUMBER),
    )
    tested = any(e.p is not None for e in graph.edges)
    shown = [e for e in graph.edges if tested or e.parent.part is Part.RES]
    ordered = sorted(shown, key=lambda e: (e.child, e.rank, e.parent))
    cells = [
        (
            str(e.parent),
            str(e.child),
            score_text(e.score),
            f"{CHANCE if e.by_chance else ''}{MUTUAL if e.mutual else ''} {e.rank + 1}".strip(),
        )
        for e in ordered
    ]
    if not tested:
        return Table("Residual edges: which feature continues which", columns, tuple(map(BlockRow, cells)))
    rows = tuple(BlockRow((*row, p_text(e.p))) for row, e in zip(cells, ordered, strict=True))
    return Table("Edges: which feature continues which", (*columns, Column("p", ColumnRole.NUMBER)), rows)


# A cell of a module lane: an edge into the residual feature of the row, a module feature without one, or nothing.
_Cell = Edge | FeatureId | None


def _entries(graph: FlowGraph, layer: int, lanes: Sequence[Part]) -> Iterable[tuple[Node | _Cell | None, ...]]:
    """The rows of a layer: each residual feature with its module parents, then module features without an edge here."""
    nodes = [node for node in graph.nodes if node.feature.layer == layer]
    shown: set[FeatureId] = set()
    for node in nodes:
        if node.feature.part is not Part.RES:
            continue
        found = [[e for e in graph.parents(node.feature) if e.parent.part is part] for part in lanes]
        shown.update(e.parent for edges in found for e in edges)
        for row in zip_longest([node], *found):
            yield row
    alone = [[n.feature for n in nodes if n.feature.part is p and n.feature not in shown] for p in lanes]
    for row in zip_longest(*alone):
        yield (None, *row)


def _without_empty(table: Table) -> Table:
    """`table` without the mark columns that are empty."""
    keep = [
        i
        for i, column in enumerate(table.columns)
        if column.role is not ColumnRole.MARK or any(r.cells[i] for r in table.rows)
    ]
    columns = tuple(table.columns[i] for i in keep)
    rows = tuple(BlockRow(tuple(r.cells[i] for i in keep), r.opens, r.strong, r.tone) for r in table.rows)
    return Table(table.caption, columns, rows, table.narrow)


_SHARED_ENDS = {
    Reason.FIRST_LAYER: "In the first layer, with no residual stream of SAE features before it",
    Reason.LAST_LAYER: "In the last layer that was matched, with nothing after it",
    Reason.MODULE_OUTPUT: "Written by a module, and matching rows does not look inside modules",
}


def _end_sentences(ends: Sequence[End]) -> Iterable[str]:
    """The sentence of each end; ends that share a reason are merged into one sentence that names their features."""
    for reason, sentence in _SHARED_ENDS.items():
        alike = [end for end in ends if end.reason is reason]
        if len(alike) > 1:
            yield f"{sentence}: {', '.join(str(end.feature) for end in alike)}."
        else:
            yield from (end.sentence for end in alike)
    yield from (end.sentence for end in ends if end.reason not in _SHARED_ENDS)


def _marks(graph: FlowGraph, words: Words) -> Iterable[str]:
    yield f"{SEED} the seed."
    if graph.circuits:
        yield f"{CIRCUIT} a linear circuit: a module joins the residual stream with a high score."
    if any(silent(words, node.feature) for node in graph.nodes):
        yield f"{SILENT} silent: it fired on none of the texts its words were made from, and explains no activation."
    if any(edge.by_chance for edge in graph.edges):
        yield (
            f"{CHANCE} no better than chance: a feature without a counterpart has a best match that good in more than "
            "1 of 20."
        )
    if _shows_edges(graph) and any(edge.mutual for edge in graph.edges):
        yield f"{MUTUAL} each of the two is the other's best match."
    if _shows_edges(graph) and graph.p_floor is not None:
        yield (
            "p how often a feature without a counterpart has a best match that good: the share of null scores that "
            f"reach it, the edge itself counted, so never below {graph.p_floor:.2g}."
        )
    met = {node.evolution for node in graph.nodes}
    yield from (f"{case.case} {case.value}. {case.sentence}" for case in Evolution if case in met)
    gaps = {(node.feature.layer, node.below) for node in graph.nodes if node.below is not None}
    if gaps:
        pairs = ", ".join(f"{layer} to {below}" for layer, below in sorted(gaps))
        yield f"Layers without a residual dictionary are left out: layer {pairs} instead of the layer before."


def _shows_edges(graph: FlowGraph) -> bool:
    """Whether the page lists edges: if the feature table does not show all of them, or if there are p-values."""
    sites = [node.feature.site for node in graph.nodes]
    return graph.thresholds.fdr is not None or len(set(sites)) < len(sites)


def _count(graph: FlowGraph, part: Part) -> int:
    return sum(node.feature.part is part for node in graph.nodes)


_CARD_CONTEXTS = 3


def _card(words: FeatureWords) -> dict[str, Any]:
    """The words that a card in a graph needs; all passages of a large graph would be a megabyte."""
    data = asdict(words)
    del data["spread"], data["near"]
    data["contexts"] = data["contexts"][:_CARD_CONTEXTS]
    return data


def graph_data(graph: FlowGraph, words: Words = no_words) -> dict[str, Any]:
    """`graph.to_dict()` with the words of each node under `words` (null if it has none).

    `FlowGraph.from_json` reads the result and ignores the words; it cannot read the figure of a prompt graph. `silent`
    says whether a node is dead according to its words, null if nobody looked. `case` and `sentence` give a node's case
    of section 3.3, as the paper's letter and as a sentence.
    """
    data = graph.to_dict()
    for node, row in zip(graph.nodes, data["nodes"], strict=True):
        found = words.get(node.feature)
        row["words"] = None if found is None else _card(found)
        row["silent"] = silent(words, node.feature)
        row["case"] = None if node.evolution is None else node.evolution.case
        row["sentence"] = node.sentence or None
        if isinstance(node, MeasuredNode):
            row["kind"] = node.kind
    for row in data["edges"]:
        row["score"] = row["score"] if math.isfinite(row["score"]) else None  # an error or a logit has no cosine
    return data
