"""Compare calibrated thresholds with 0.5 and 0.15 on the demo pack. Does not import torch.

    python scripts/calibration_on_demo.py [--fdr 0.01] [--release demo]

Prints the tables of docs/calibration.md: the thresholds of every layer with the share of features they keep; cases
A to D and joining modules for all residual features; and, for the features of the middle layer, how many layers
and module features their graphs span.
"""

from __future__ import annotations

import argparse
import collections
import statistics

from saeflow.flow import Evolution, FlowGraph, Thresholds, trace
from saeflow.ids import FeatureId, Part
from saeflow.matching.atlas import Atlas, open_atlas
from saeflow.report.tables import calibration_rows


def print_thresholds(atlas: Atlas, fdr: float) -> None:
    print("| predecessor | layer | null q50 | null q99 | threshold | kept | kept at 0.5 / 0.15 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in calibration_rows(atlas, fdr):
        if row["direction"] == "backward":
            cut = "none" if row["threshold"] >= 1 else f"{row['threshold']:.2f}"
            print(
                f"| {row['part']} | {row['layer']} | {row['null q50']:.2f} | {row['null q99']:.2f} | {cut} | "
                f"{row['kept']:.0%} | {row['kept plain']:.0%} |"
            )


def print_cases(atlas: Atlas, thresholds: dict[str, Thresholds]) -> None:
    """Print the cases of all residual features and how many are joined by a module, by layer of the feature."""
    print("\n| layer | thresholds | A translated | B processed | C newborn | D unexplained | joined by a module |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for site in (s for s in atlas.sites if s.part is Part.RES):
        if not site.layer:
            continue
        for name, cuts in thresholds.items():
            width = atlas[site, site.predecessors[0]].n_source
            nodes = [node_of(atlas, FeatureId(site, i), cuts) for i in range(width)]
            cases = collections.Counter(node.evolution for node in nodes)
            shares = " | ".join(f"{cases[case] / width:.0%}" for case in Evolution)
            print(f"| {site.layer} | {name} | {shares} | {sum(bool(n.joins) for n in nodes) / width:.0%} |")


def node_of(atlas: Atlas, feature: FeatureId, thresholds: Thresholds):
    return trace(feature, atlas, thresholds=thresholds, forward=False).by_feature[feature]


def print_graphs(atlas: Atlas, thresholds: dict[str, Thresholds]) -> None:
    """Print statistics of the whole graphs of the middle residual layer's features."""
    layers = [s for s in atlas.sites if s.part is Part.RES]
    site = layers[len(layers) // 2]
    width = atlas[site, site.predecessors[0]].n_source
    print(f"\nGraphs of the {width} features at {site}:\n")
    print("| thresholds | mean layers spanned | whole depth | module features a graph | edges with p above 0.01 |")
    print("|---|---:|---:|---:|---:|")
    for name, cuts in thresholds.items():
        graphs = [trace(FeatureId(site, i), atlas, thresholds=cuts) for i in range(width)]
        spans = [g.span[1] - g.span[0] + 1 for g in graphs if g.span]
        modules = [sum(n.feature.part is not Part.RES for n in g.nodes) for g in graphs]
        print(
            f"| {name} | {statistics.fmean(spans):.2f} | {sum(s == len(layers) for s in spans) / width:.0%} | "
            f"{statistics.fmean(modules):.2f} | {doubtful(graphs):.0%} |"
        )


def doubtful(graphs: list[FlowGraph]) -> float:
    """The share of edges whose score a feature without a counterpart reaches more than once in a hundred (p > 0.01)."""
    edges = [edge for graph in graphs for edge in graph.edges if edge.p is not None]
    return sum(edge.p > 0.01 for edge in edges if edge.p is not None) / max(len(edges), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fdr", type=float, default=0.01)
    parser.add_argument("--release", default="demo")
    asked = parser.parse_args()
    atlas = open_atlas(asked.release)
    thresholds = {"0.5 / 0.15": Thresholds(), f"FDR {asked.fdr:g}": Thresholds.calibrated(atlas, asked.fdr)}
    print_thresholds(atlas, asked.fdr)
    print_cases(atlas, thresholds)
    print_graphs(atlas, thresholds)


if __name__ == "__main__":
    main()
