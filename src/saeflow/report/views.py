"""Domain objects as blocks. A flow graph becomes the table of appendix E (table 5), a picture and notes.

The table has a row per residual feature with the module features that write into it beside it; where
there is little room, module features take rows of their own. With k > 1 several features share a
layer: each has its row, and a second table lists the residual edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from saeflow.flow.graph import Edge, End, FlowGraph, Node, Reason
from saeflow.flow.scores import Evolution, Thresholds
from saeflow.ids import FeatureId, Part
from saeflow.labels.words import Words, no_words, silent
from saeflow.report.blocks import Block, Column, GraphFigure, KeyValues, Notes, Page, Role, Row, Table
from saeflow.report.tokens import headline

SEED, CIRCUIT, MUTUAL, NONE = "▶", "⊕", "⇄", "–"
SILENT, CHANCE = "†", "≈"
MODULES = (Part.MLP, Part.ATT)
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


def facts(graph: FlowGraph) -> KeyValues:
    """Seed, release, span, thresholds and size of a graph."""
    counts = ", ".join(f"{n} {part}" for part in (Part.RES, *MODULES) if (n := _count(graph, part)))
    pairs = [("seed", str(graph.seed))]
    if graph.release:
        pairs.append(("release", graph.release))
    if graph.span is not None:
        first, last = graph.span
        pairs.append(("span", f"layer {first}" if first == last else f"layers {first} to {last}"))
    pairs.append(("thresholds", threshold_text(graph.thresholds)))
    pairs += [("features", counts or "none"), ("edges", _edge_count(graph))]
    return KeyValues(tuple(pairs))


def threshold_text(thresholds: Thresholds) -> str:
    """`t(R) = 0.5, t(M) = 0.15, t(A) = 0.15; high from 0.5`, or the ranges over layers where calibrated."""
    cuts = zip("RMA", (Part.RES, *MODULES), strict=True)
    if thresholds.fdr is not None:
        said = [f"t({k}) {_range(thresholds, part)}" for k, part in cuts]
        return f"by layer, at a false-discovery rate of {thresholds.fdr:g}: {', '.join(said)}; high from the same"
    return ", ".join(f"t({k}) = {thresholds.of(part):g}" for k, part in cuts) + f"; high from {thresholds.high:g}"


def _range(thresholds: Thresholds, part: Part) -> str:
    found = [cut for (_, other), cut in thresholds.cuts.items() if other is part]
    if not found:
        return f"= {thresholds.of(part):g}"
    low, high = _cut_text(min(found)), _cut_text(max(found))
    return f"= {low}" if low == high else f"{low} to {high}"


def _cut_text(cut: float | None) -> str:
    """A calibrated cut; "none" for 1, where no match of the pair of sites is significant."""
    return "none" if cut is not None and cut >= 1.0 else score_text(cut)


def p_text(p: float | None) -> str:
    """A p-value with two digits that count, a dash where there is none."""
    return NONE if p is None else f"{p:.2g}"


def threshold_table(thresholds: Thresholds) -> Table:
    """The calibrated thresholds, a row a layer: the cut of matches looked for backward, and forward."""
    columns = [Column("layer", Role.NUMBER)]
    for k in "RMA":
        columns += [Column(f"t({k})", Role.NUMBER), Column("forward", Role.NUMBER)]
    rows = tuple(
        Row(
            (
                str(layer),
                *(
                    _cut_text(cuts.get((layer, part)))
                    for part in (Part.RES, *MODULES)
                    for cuts in (thresholds.cuts, thresholds.ahead)
                ),
            )
        )
        for layer in thresholds.layers
    )
    return Table("Thresholds by layer of the residual feature", tuple(columns), rows)


def score_text(score: float | None) -> str:
    """A score with two digits, a dash where there is none."""
    if score is None:
        return NONE
    return f"{score:.2f}".replace("-0.00", "0.00")


def flow_table(graph: FlowGraph, words: Words = no_words) -> Table:
    """A row per residual feature with its modules beside it; `narrow` has a row per feature."""
    lanes = tuple(part for part in MODULES if _count(graph, part))
    columns = [Column("layer", Role.NUMBER), Column("", Role.MARK), Column("res", Role.ID)]
    columns += [Column(f"s({k})", Role.NUMBER) for k in "RMA"]
    columns += [Column("case", Role.TAG), Column("words", Role.WORDS)]
    for part in lanes:
        columns += [Column("", Role.MARK), Column(part.value, Role.ID)]
        columns += [Column("score", Role.NUMBER), Column("words", Role.WORDS)]
    rows: list[Row] = []
    for layer in _layers(graph):
        opens = True
        for res, *edges in _entries(graph, layer, lanes):
            rows.append(_wide_row(graph, words, layer, res, edges, opens=opens))
            opens = False
    narrow = Table(_CAPTION, _NARROW, tuple(_narrow_rows(graph, words)))
    return _without_empty(Table(_CAPTION, tuple(columns), tuple(rows), _without_empty(narrow)))


def edge_table(graph: FlowGraph) -> Table:
    """Every residual edge with its score and which match it is; with p-values, every edge."""
    columns = (
        Column("from", Role.ID),
        Column("to", Role.ID),
        Column("score", Role.NUMBER),
        Column("match", Role.NUMBER),
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
        return Table("Residual edges: which feature continues which", columns, tuple(map(Row, cells)))
    rows = tuple(Row((*row, p_text(e.p))) for row, e in zip(cells, ordered, strict=True))
    return Table("Edges: which feature continues which", (*columns, Column("p", Role.NUMBER)), rows)


_NARROW = (
    Column("", Role.MARK),
    Column("feature", Role.ID),
    Column("s(R)", Role.NUMBER),
    Column("s(M)", Role.NUMBER),
    Column("s(A)", Role.NUMBER),
    Column("case", Role.TAG),
    Column("words", Role.WORDS),
)

# A residual feature, and one edge (or a module feature alone) for each module lane.
_Cell = Edge | FeatureId | None


def _entries(graph: FlowGraph, layer: int, lanes: Sequence[Part]) -> Iterable[tuple[Node | _Cell | None, ...]]:
    """Rows of a layer: each residual feature with its module parents, then modules that write into none."""
    here = [node for node in graph.nodes if node.feature.layer == layer]
    shown: set[FeatureId] = set()
    for node in here:
        if node.feature.part is not Part.RES:
            continue
        found = [[e for e in graph.parents(node.feature) if e.parent.part is part] for part in lanes]
        shown.update(e.parent for edges in found for e in edges)
        for row in zip_longest([node], *found):
            yield row
    alone = [[n.feature for n in here if n.feature.part is p and n.feature not in shown] for p in lanes]
    for row in zip_longest(*alone):
        yield (None, *row)


def _wide_row(graph: FlowGraph, words: Words, layer: int, res: object, edges: Sequence[object], *, opens: bool) -> Row:
    node = res if isinstance(res, Node) else None
    cells = [str(layer) if opens else ""]
    if node is None:
        cells += [""] * 7
    else:
        cells += [_mark(graph, words, node), str(node.feature), *_scores(node), _case(node.evolution, long=True)]
        cells.append(headline(words.get(node.feature)))
    for edge in edges:
        if isinstance(edge, Edge):
            feature, score = edge.parent, score_text(edge.score)
        elif isinstance(edge, FeatureId):
            feature, score = edge, NONE
        else:
            cells += [""] * 4
            continue
        cells += [_module_mark(graph, words, edge), str(feature), score, headline(words.get(feature))]
    return Row(tuple(cells), opens, node is not None and node.feature == graph.seed, _tone(node))


def _narrow_rows(graph: FlowGraph, words: Words) -> Iterable[Row]:
    for layer in _layers(graph):
        opens = True
        for res, *edges in _entries(graph, layer, MODULES):
            if isinstance(res, Node):
                cells = (_mark(graph, words, res), str(res.feature), *_scores(res), _case(res.evolution, long=False))
                text = headline(words.get(res.feature))
                strong = res.feature == graph.seed
                yield Row((*cells, text), opens, strong, _tone(res))
                opens = False
            for edge in edges:
                if isinstance(edge, Edge | FeatureId):
                    yield _module_row(graph, words, edge, opens=opens)
                    opens = False


def _module_row(graph: FlowGraph, words: Words, edge: Edge | FeatureId, *, opens: bool) -> Row:
    feature = edge.parent if isinstance(edge, Edge) else edge
    score = score_text(edge.score) if isinstance(edge, Edge) else NONE
    scores = ("", score, "") if feature.part is Part.MLP else ("", "", score)
    mark, text = _module_mark(graph, words, edge), headline(words.get(feature))
    return Row((mark, str(feature), *scores, "", text), opens, feature == graph.seed)


def _without_empty(table: Table) -> Table:
    """`table` without columns of marks in which nothing is marked."""
    keep = [
        i
        for i, column in enumerate(table.columns)
        if column.role is not Role.MARK or any(r.cells[i] for r in table.rows)
    ]
    columns = tuple(table.columns[i] for i in keep)
    rows = tuple(Row(tuple(r.cells[i] for i in keep), r.opens, r.strong, r.tone) for r in table.rows)
    return Table(table.caption, columns, rows, table.narrow)


_SHARED_ENDS = {
    Reason.FIRST_LAYER: "In the first layer, with no residual stream of SAE features before it",
    Reason.LAST_LAYER: "In the last layer that was matched, with nothing after it",
    Reason.MODULE_OUTPUT: "Written by a module, and matching rows does not look inside modules",
}


def _end_sentences(ends: Sequence[End]) -> Iterable[str]:
    """Every end's sentence; ends that all say the same in one, which names their features."""
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


def _edge_count(graph: FlowGraph) -> str:
    """`17, 9 of them mutual best matches`; the number alone where only one direction was matched."""
    known = [edge.mutual for edge in graph.edges if edge.mutual is not None]
    return f"{len(graph.edges)}" + (f", {sum(known)} of them mutual best matches" if known else "")


def _shows_edges(graph: FlowGraph) -> bool:
    """Whether the page lists edges: where the table of features does not say all of them, or p is asked for."""
    return graph.thresholds.fdr is not None or _branches(graph)


def _branches(graph: FlowGraph) -> bool:
    sites = [node.feature.site for node in graph.nodes]
    return len(set(sites)) < len(sites)


def _layers(graph: FlowGraph) -> list[int]:
    return sorted({node.feature.layer for node in graph.nodes})


def _count(graph: FlowGraph, part: Part) -> int:
    return sum(node.feature.part is part for node in graph.nodes)


def _scores(node: Node) -> tuple[str, str, str]:
    found = node.scores
    if found is None:
        return NONE, NONE, NONE
    return score_text(found.res), score_text(found.mlp), score_text(found.att)


def _case(case: Evolution | None, *, long: bool) -> str:
    if case is None:
        return NONE
    return f"{case.case} {case.value}" if long else case.case


def _tone(node: Node | None) -> str:
    return "" if node is None or node.evolution is None else node.evolution.value


def _seed_mark(graph: FlowGraph, feature: FeatureId) -> str:
    return SEED if feature == graph.seed else ""


def _mark(graph: FlowGraph, words: Words, node: Node) -> str:
    dead = SILENT if silent(words, node.feature) else ""
    return _seed_mark(graph, node.feature) + (CIRCUIT if node.joins else "") + dead


def _module_mark(graph: FlowGraph, words: Words, edge: Edge | FeatureId) -> str:
    feature, by_chance = (edge.parent, edge.by_chance) if isinstance(edge, Edge) else (edge, False)
    dead = SILENT if silent(words, feature) else ""
    return _seed_mark(graph, feature) + dead + (CHANCE if by_chance else "")
