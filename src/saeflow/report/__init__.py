"""Reports: blocks, and their lowering to terminal text, a single HTML file, SVG and JSON. No torch."""

from saeflow.report.blocks import GraphFigure, Notes, Page, Table
from saeflow.report.render import render
from saeflow.report.svg import graph_svg
from saeflow.report.views import graph_page

__all__ = ["GraphFigure", "Notes", "Page", "Table", "graph_page", "graph_svg", "render"]
