"""Blocks as one self-contained HTML file: it loads nothing, and opens offline from an e-mail or a disk.

The figure is drawn by svg.py, so a page without scripts still shows and prints it. The scripts under static/ add zoom,
paths and cards, from JSON next to the figure. Text from label files is escaped here and set with `textContent` there,
and a Content-Security-Policy allows only the inlined style and script, by their hashes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape

from saeflow.flow.graph import FlowGraph
from saeflow.flow.scores import Evolution
from saeflow.labels.words import Words
from saeflow.report.blocks import Block, ColumnRole, Notes, Page, Table
from saeflow.report.document import document
from saeflow.report.svg import KINDS, figure_svg, wire_opacity, wire_width
from saeflow.report.views import graph_data

_STYLES = ("palette.css", "page.css", "graph.css", "figure.css")
_SCRIPTS = ("card.js", "figure.js", "keys.js", "page.js")


def page_html(page: Page) -> str:
    """The page as one HTML document."""
    from markupsafe import Markup

    # the last word of a title is set as code if it is an id
    head, _, last = page.title.rpartition(" ")
    title = f"{escape(head)} <code>{escape(last)}</code>" if "/" in last else escape(page.title)
    subtitle = f'<p class="subtitle">{escape(page.subtitle)}</p>' if page.subtitle else ""
    pairs = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in page.facts)
    blocks = "".join(_block(block) for block in page.blocks)
    body = f"<header><h1>{title}</h1>{subtitle}<dl>{pairs}</dl>\n</header>\n<main>\n{blocks}\n</main>"
    # The explorer loads the same scripts as modules; here they share one scope.
    text = document("document.html.j2", page.title, styles=_STYLES, scripts=_SCRIPTS, body=Markup(body))  # noqa: S704
    # UTF-8 cannot encode lone surrogates, which a tokenizer can leave in a token.
    return text.encode("utf-8", "replace").decode("utf-8")


def _block(block: Block) -> str:
    if isinstance(block, Notes):
        items = "".join(f"<li>{escape(item)}</li>" for item in block.items)
        return f'<section class="notes"><h2>{escape(block.title)}</h2><ul>{items}</ul></section>\n'
    if isinstance(block, Table):
        wide = _table(block, "wide" if block.narrow else "")
        narrow = _table(block.narrow, "narrow") if block.narrow else ""
        return f'<section class="table"><h2>{escape(block.caption)}</h2>{wide}{narrow}</section>\n'
    return _figure(block.graph, block.words)


def _table(table: Table, kind: str) -> str:
    head = "".join(f'<th scope="col" class="{c.role}">{escape(c.header)}</th>' for c in table.columns)
    rows: list[str] = []
    for row in table.rows:
        cells: list[str] = []
        for text, column in zip(row.cells, table.columns, strict=True):
            if column.role is ColumnRole.ID and text:
                cells.append(f'<td class="id"><a href="#flow" data-feature="{escape(text)}">{escape(text)}</a></td>')
            else:
                toned = f" case-{row.tone}" if column.role is ColumnRole.TAG and row.tone else ""
                cells.append(f'<td class="{column.role}{toned}">{escape(text)}</td>')
        classes = " ".join(name for name, on in (("opens", row.opens), ("strong", row.strong)) if on)
        rows.append(f'<tr class="{classes}">{"".join(cells)}</tr>')
    return (
        f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{escape(table.caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(graph: FlowGraph, words: Words) -> str:
    data = json.dumps(graph_data(graph, words), ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":  # so that no HTML parser mistakes the JSON for markup
        data = data.replace(char, f"\\u{ord(char):04x}")
    measured = graph.measured
    widths = "larger its effect; dashes: matching did not name it" if measured else "higher its cosine"
    return (
        '<figure id="flow" class="graph"><div class="bar">'
        f'<div class="legend">{"".join(legend_html(graph))}</div>'
        '<div class="tools" role="toolbar" aria-label="Zoom" hidden></div></div>'
        f'<div class="frame">{figure_svg(graph, words)}</div><div class="overview" hidden></div>'
        f"<figcaption>Layers run from left to right; the wider an edge, the {widths}. "
        '<span class="hint" hidden>Point at a feature to read it, click to follow its path, '
        "<kbd>Esc</kbd> to let go. Arrow keys move along edges; "
        "drag to pan, <kbd>Ctrl</kbd> + wheel to zoom.</span></figcaption>"
        f'<script type="application/json">{data}</script></figure>\n'
    )


def legend_html(graph: FlowGraph) -> Iterable[str]:
    """The meaning of a figure's colours, marks and widths, as elements of a `.legend`."""
    measured = graph.measured
    for kind, (_, name) in KINDS.items() if measured else ():
        yield f'<span class="key"><i class="swatch {kind}"></i>{name}</span>'
    for case in () if measured else Evolution:
        yield (
            f'<span class="key" title="{escape(case.sentence)}"><i class="swatch case-{case.value}">'
            f"<b>{case.case}</b></i>{case.value}</span>"
        )
    if not measured:
        yield '<span class="key" title="What a module writes"><i class="swatch module"></i>module</span>'
    if graph.circuits:
        yield (
            '<span class="key" title="A module joins the residual stream with a high score">'
            '<i class="joint module">⊕</i>linear circuit</span>'
        )
    ringed = "strongest on the target" if measured else "seed"
    yield f'<span class="key"><i class="ringed"></i>{ringed}</span>'
    lines = "".join(
        f'<line x1="{4 + 30 * i}" x2="{26 + 30 * i}" y1="7" y2="7" stroke="currentColor" '
        f'stroke-width="{wire_width(s):.2f}" stroke-opacity="{wire_opacity(s):.2f}"/>'
        for i, s in enumerate((0.2, 0.5, 0.9))
    )
    yield f'<span class="key"><svg width="90" height="14" aria-hidden="true">{lines}</svg>'
    yield f"{'effect' if measured else 'cosine'} 0.2, 0.5, 0.9</span>"
    if measured:
        yield '<span class="key"><svg width="26" height="14" aria-hidden="true"><line x1="2" x2="24" y1="7" y2="7" '
        yield 'stroke="currentColor" stroke-width="2" stroke-dasharray="2 4"/></svg>not named by matching</span>'
