"""Compare a traced graph with a published one: node by node, and by the scores that the paper's text gives. No torch.

Published graphs are data, in `NAME.graphs.toml` next to the recipe of a release: the features, the parts that were
matched, the thresholds of the graph, and any scores. Tracing a graph with those thresholds and comparing it shows
whether weights and method reproduce the publication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from saeflow.errors import BadFile, InvalidArgument, InvalidId
from saeflow.flow.graph import FlowGraph
from saeflow.flow.scores import Thresholds
from saeflow.ids import FeatureId, Part, Site
from saeflow.reading import read_toml
from saeflow.sources import releases

ROUNDING: Final = 0.005
"""The largest rounding error of a score printed with two digits."""


@dataclass(frozen=True, slots=True)
class PublishedScore:
    """The cosine between a feature and its predecessor, as printed."""

    child: FeatureId
    parent: FeatureId
    score: float


@dataclass(frozen=True)
class PublishedGraph:
    """A graph from a publication.

    Attributes:
        source: the publication, and where in it the graph is.
        seed: the feature that the graph was traced from.
        parts: the parts that it shows; features at other parts are not compared.
        thresholds: the thresholds it was traced with.
        nodes: its features, in order of computation.
        scores: the scores that the publication gives.
    """

    source: str
    seed: FeatureId
    parts: frozenset[Part]
    thresholds: Thresholds
    nodes: tuple[FeatureId, ...]
    scores: tuple[PublishedScore, ...] = ()


@dataclass(frozen=True, slots=True)
class ComparedSite:
    """The features of both graphs at one site; graphs of best matches (k = 1) usually have one feature per site."""

    site: Site
    published: tuple[FeatureId, ...]
    found: tuple[FeatureId, ...]

    @property
    def agrees(self) -> bool:
        """Whether both graphs have the same features here."""
        return self.published == self.found


@dataclass(frozen=True, slots=True)
class ComparedScore:
    """A printed score and the score of the same edge in the graph; None if the graph lacks the edge."""

    published: PublishedScore
    found: float | None

    @property
    def agrees(self) -> bool:
        """Whether the score agrees with the printed one to within rounding."""
        return self.found is not None and abs(self.found - self.published.score) <= ROUNDING + 1e-9


@dataclass(frozen=True)
class GraphComparison:
    """A graph compared with a published one, site by site from the last layer back."""

    published: PublishedGraph
    sites: tuple[ComparedSite, ...]
    scores: tuple[ComparedScore, ...]

    @property
    def agrees(self) -> bool:
        """Whether every site and every score agrees."""
        return all(site.agrees for site in self.sites) and all(score.agrees for score in self.scores)

    @property
    def n_same(self) -> int:
        """How many of the published features the graph has."""
        return sum(len(set(site.published) & set(site.found)) for site in self.sites)

    @property
    def sentence(self) -> str:
        """The outcome in a sentence."""
        total, right = len(self.published.nodes), sum(score.agrees for score in self.scores)
        scores = f", {right} of {len(self.scores)} scores" if self.scores else ""
        extra = sum(len(set(site.found) - set(site.published)) for site in self.sites)
        return (
            f"{self.n_same} of {total} features of {self.published.source} agree{scores}; the graph has {extra} "
            "that it does not have."
        )

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values; features are written `24/res/14548`."""
        return {
            "source": self.published.source,
            "seed": str(self.published.seed),
            "agrees": self.agrees,
            "n_same": self.n_same,
            "n_published": len(self.published.nodes),
            "sites": [
                {
                    "site": str(site.site),
                    "published": list(map(str, site.published)),
                    "found": list(map(str, site.found)),
                    "agrees": site.agrees,
                }
                for site in self.sites
            ],
            "scores": [
                {
                    "child": str(score.published.child),
                    "parent": str(score.published.parent),
                    "published": score.published.score,
                    "found": score.found,
                    "agrees": score.agrees,
                }
                for score in self.scores
            ],
        }


def published_graphs(release: str) -> tuple[PublishedGraph, ...]:
    """The published graphs of a release; empty if there are none. Parameters in the name (after "@") are ignored.

    Raises:
        BadFile: when the data next to the recipe does not have the form described at the top of this module.
    """
    path = releases.RELEASES / f"{release.partition('@')[0]}{releases.BESIDE}.toml"
    if "/" in release or not path.is_file():
        return ()
    try:
        data = read_toml(path)
        return tuple(_read(entry) for entry in data["graphs"])
    except (OSError, ValueError, KeyError, TypeError, InvalidId) as error:
        raise BadFile(f"{path}: holds no published graphs ({error!r}). Install saeflow again.") from error


def published_graph(release: str, seed: FeatureId) -> PublishedGraph:
    """The published graph of a release whose seed is `seed`.

    Raises:
        InvalidArgument: when there is none; the message lists the known seeds.
        BadFile: when the data cannot be read.
    """
    graphs = published_graphs(release)
    for graph in graphs:
        if graph.seed == seed:
            return graph
    have = ", ".join(str(graph.seed) for graph in graphs) or "none"
    raise InvalidArgument(f"no published graph of {release} grows from {seed}. Seeds of published graphs: {have}.")


def compare(graph: FlowGraph, published: PublishedGraph) -> GraphComparison:
    """Compare a graph with a published one. Features at parts that the publication does not show are left out.

    Raises:
        InvalidArgument: when the graph has another seed.
    """
    if graph.seed != published.seed:
        raise InvalidArgument(
            f"the graph grew from {graph.seed}, and that of {published.source} from {published.seed}. Grow it from "
            "there."
        )
    found = [node.feature for node in graph.nodes if node.feature.part in published.parts]
    sites = sorted({feature.site for feature in (*found, *published.nodes)}, reverse=True)
    edges = {(edge.child, edge.parent): edge.score for edge in graph.edges}
    return GraphComparison(
        published,
        tuple(ComparedSite(site, _at(site, published.nodes), _at(site, found)) for site in sites),
        tuple(ComparedScore(score, edges.get((score.child, score.parent))) for score in published.scores),
    )


def _at(site: Site, features: tuple[FeatureId, ...] | list[FeatureId]) -> tuple[FeatureId, ...]:
    return tuple(sorted(feature for feature in features if feature.site == site))


def _read(entry: dict[str, Any]) -> PublishedGraph:
    parse, cuts = FeatureId.parse, entry["thresholds"]
    return PublishedGraph(
        source=str(entry["source"]),
        seed=parse(entry["seed"]),
        parts=frozenset(Part(part) for part in entry["parts"]),
        thresholds=Thresholds(res=float(cuts["res"]), mlp=float(cuts["mlp"])),
        nodes=tuple(sorted(parse(feature) for feature in entry["nodes"])),
        scores=tuple(
            PublishedScore(parse(s["child"]), parse(s["parent"]), float(s["score"])) for s in entry.get("scores", ())
        ),
    )
