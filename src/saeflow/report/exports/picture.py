"""The figure of a graph as PNG, through resvg: no browser and no system library."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from saeflow.flow.graph import FlowGraph
from saeflow.labels.words import Words, no_words
from saeflow.report.svg import FACE, graph_svg

SCALE: Final = 2
"""Pixels to a pixel of the page: sharp on a dense screen and in print at 150 dots an inch."""

# resvg knows no fontconfig: a face that stands in for Helvetica has to be named.
_FACES: Final = "Helvetica, Arial, Liberation Sans, DejaVu Sans"


def png(graph: FlowGraph, words: Words = no_words, *, scale: int = SCALE) -> bytes:
    """The figure as PNG, light, `scale` times the size of the SVG; at most 16,000 pixels wide.

    Words are set in Helvetica, Arial or Liberation Sans where the machine has one, else in the DejaVu Sans that
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
