"""saeflow: feature flow through a language model, from the weights of its sparse autoencoders only.

    import saeflow as sf

    atlas = sf.open_atlas("demo")
    graph = sf.trace("4/res/123", atlas)
    print(sf.render(graph, to="text"))

The method is from Laptev et al., "Analyze Feature Flow to Enhance Interpretation and Steering in
Language Models" (arXiv 2502.03032). Every name below is imported on first use, so opening an atlas
and tracing a graph does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from saeflow.version import __version__

if TYPE_CHECKING:
    from saeflow.comparison.results import Comparison, open_comparison, open_results
    from saeflow.comparison.run import compare
    from saeflow.comparison.settings import ComparisonSettings
    from saeflow.errors import SaeflowError
    from saeflow.experiments.one_text import deactivate, origins
    from saeflow.flow import Edge, End, Evolution, FlowGraph, Node, Scores, Thresholds, trace
    from saeflow.ids import FeatureId, Part, Site
    from saeflow.interventions import Add, AddVector, Rescale
    from saeflow.matching.atlas import Atlas, open_atlas
    from saeflow.matching.build import build_atlas
    from saeflow.matching.calibration import calibrate
    from saeflow.matching.correlation import correlate
    from saeflow.matching.direct import DirectMatches
    from saeflow.matching.methods import match
    from saeflow.matching.table import MatchTable
    from saeflow.paper.results import plot
    from saeflow.prompt_graph import PromptGraph
    from saeflow.prompt_graph.trace import trace_text
    from saeflow.publishing.run import publish
    from saeflow.report import render
    from saeflow.sources.dictionary import Dictionary
    from saeflow.sources.in_memory import dictionaries_from
    from saeflow.sources.library import DictionarySet, load_dictionaries
    from saeflow.sources.model import LanguageModel, load_model
    from saeflow.steering.ask import plan, steer

_HOME = {
    "Add": "saeflow.interventions",
    "AddVector": "saeflow.interventions",
    "Atlas": "saeflow.matching.atlas",
    "Comparison": "saeflow.comparison.results",
    "ComparisonSettings": "saeflow.comparison.settings",
    "Dictionary": "saeflow.sources.dictionary",
    "DictionarySet": "saeflow.sources.library",
    "DirectMatches": "saeflow.matching.direct",
    "Edge": "saeflow.flow",
    "End": "saeflow.flow",
    "Evolution": "saeflow.flow",
    "FeatureId": "saeflow.ids",
    "FlowGraph": "saeflow.flow",
    "LanguageModel": "saeflow.sources.model",
    "MatchTable": "saeflow.matching.table",
    "Node": "saeflow.flow",
    "Part": "saeflow.ids",
    "PromptGraph": "saeflow.prompt_graph",
    "Rescale": "saeflow.interventions",
    "SaeflowError": "saeflow.errors",
    "Scores": "saeflow.flow",
    "Site": "saeflow.ids",
    "Thresholds": "saeflow.flow",
    "build_atlas": "saeflow.matching.build",
    "calibrate": "saeflow.matching.calibration",
    "compare": "saeflow.comparison.run",
    "correlate": "saeflow.matching.correlation",
    "deactivate": "saeflow.experiments.one_text",
    "dictionaries_from": "saeflow.sources.in_memory",
    "load_dictionaries": "saeflow.sources.library",
    "load_model": "saeflow.sources.model",
    "match": "saeflow.matching.methods",
    "open_atlas": "saeflow.matching.atlas",
    "open_comparison": "saeflow.comparison.results",
    "open_results": "saeflow.comparison.results",
    "origins": "saeflow.experiments.one_text",
    "plan": "saeflow.steering.ask",
    "plot": "saeflow.paper.results",
    "publish": "saeflow.publishing.run",
    "render": "saeflow.report",
    "steer": "saeflow.steering.ask",
    "trace": "saeflow.flow",
    "trace_text": "saeflow.prompt_graph.trace",
}

__all__ = [
    "Add",
    "AddVector",
    "Atlas",
    "Comparison",
    "ComparisonSettings",
    "Dictionary",
    "DictionarySet",
    "DirectMatches",
    "Edge",
    "End",
    "Evolution",
    "FeatureId",
    "FlowGraph",
    "LanguageModel",
    "MatchTable",
    "Node",
    "Part",
    "PromptGraph",
    "Rescale",
    "SaeflowError",
    "Scores",
    "Site",
    "Thresholds",
    "__version__",
    "build_atlas",
    "calibrate",
    "compare",
    "correlate",
    "deactivate",
    "dictionaries_from",
    "load_dictionaries",
    "load_model",
    "match",
    "open_atlas",
    "open_comparison",
    "open_results",
    "origins",
    "plan",
    "plot",
    "publish",
    "render",
    "steer",
    "trace",
    "trace_text",
]


def __getattr__(name: str) -> object:
    """Import a public name on first access (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'saeflow' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)
