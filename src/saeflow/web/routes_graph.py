"""Routes that need no model: info, search, graphs, feature cards, exports, results. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from saeflow.errors import InvalidArgument, UnknownSite
from saeflow.flow.graph import FlowGraph
from saeflow.flow.scores import T_MODULE, T_RES, Thresholds
from saeflow.flow.trace import neighbours as flow_neighbours
from saeflow.flow.trace import trace
from saeflow.flow.union import MORE, expand, union, within
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.folders import words_folders
from saeflow.labels.words import FeatureWords, words_sites
from saeflow.report.exports import FORMATS, export
from saeflow.report.svg import figure_svg
from saeflow.report.views import graph_data
from saeflow.steering.theme import Theme
from saeflow.version import __version__
from saeflow.web import limits
from saeflow.web.explorer import Explorer
from saeflow.web.limits import LimitedAtlas, printable
from saeflow.web.requests import (
    CompareQuery,
    ExportQuery,
    FeatureQuery,
    GraphQuery,
    GrowthQuery,
    QueryParameters,
    SearchQuery,
)
from saeflow.web.responses import (
    CaseInfo,
    CompareResponse,
    ContextInfo,
    Defaults,
    FeatureFacts,
    FeatureResponse,
    GraphResponse,
    HistogramInfo,
    Info,
    Link,
    ModelInfo,
    Neighbour,
    PromptInfo,
    ResultsResponse,
    ScoresInfo,
    SearchHit,
    SearchResponse,
    SiteInfo,
    ThemeInfo,
    ms_since,
)
from saeflow.web.results import WAITING, ResultsFolder

NEURONPEDIA: Final = "https://www.neuronpedia.org"

router: Final = APIRouter()


def explorer_of(request: Request) -> Explorer:
    """The explorer of the application."""
    return request.app.state.explorer


Explored = Annotated[Explorer, Depends(explorer_of)]
FILES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The file.",
        "content": {
            kind: {"schema": {"type": "object"} if "json" in kind else {"type": "string", "format": "binary"}}
            for kind in (chosen.media_type.partition(";")[0] for chosen in FORMATS.values())
        },
    }
}
_HTML: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}},
    202: {
        "description": "The page is being drawn; this one asks for it again.",
        "content": {"text/html": {"schema": {"type": "string"}}},
    },
}
_CSV: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The file.", "content": {"text/csv": {"schema": {"type": "string"}}}}
}


@router.get("/api/info")
def info(explorer: Explored, _: Annotated[QueryParameters, Query()]) -> Info:
    """The explored release with its sites, themes, results, picks and limits, and the state of the model."""
    atlas = explorer.atlas
    folders = words_folders(explorer.release, beside=atlas.folder)
    with_words = {site for folder in folders for site in words_sites(folder)}
    default = Thresholds()
    picks = explorer.picks.found
    return Info(
        saeflow=__version__,
        release=explorer.release,
        model=atlas.model,
        made_by=atlas.made_by,
        method=atlas.method,
        k=atlas.k,
        layers=list(explorer.layers),
        sites=[SiteInfo(site=str(site), n_features=n, words=site in with_words) for site, n in explorer.sizes.items()],
        defaults=Defaults(
            t_res=default.res, t_mlp=default.of(Part.MLP), t_att=default.of(Part.ATT), high=default.high, k=1
        ),
        calibrated=atlas.calibration is not None,
        themes=[_theme(theme) for theme in explorer.themes],
        results=[folder.info() for folder in explorer.results],
        picks=picks or [],
        picks_ready=picks is not None,
        neuronpedia=explorer.sources is not None,
        origins=explorer.origins is not None,
        formats=list(FORMATS),
        limits={
            "text": limits.MOST_TEXT,
            "prompt": limits.MOST_PROMPT,
            "samples": limits.MOST_SAMPLES,
            "new_tokens": limits.MOST_NEW_TOKENS,
            "features": limits.MOST_FEATURES,
        },
        **model_info(explorer).model_dump(),
    )


def model_info(explorer: Explorer) -> ModelInfo:
    """Whether there is a model, and whether it is loaded."""
    return ModelInfo(model_state="none", model_error=None) if explorer.model is None else explorer.model.info()


def _theme(theme: Theme) -> ThemeInfo:
    prompts: list[PromptInfo] = []
    if theme.activate is not None:
        task = theme.activate
        prompts.append(PromptInfo(direction="activate", prompt=task.prompt, new_tokens=task.max_new_tokens))
    if theme.suppress is not None:
        task = theme.suppress
        prompts.append(PromptInfo(direction="suppress", prompt=task.prompt, new_tokens=task.max_new_tokens))
    return ThemeInfo(
        name=theme.name,
        description=theme.subject,
        starts=[str(start) for start in theme.starts],
        directions=[prompt.direction for prompt in prompts],
        prompts=prompts,
    )


@router.get("/api/search")
def search(explorer: Explored, query: Annotated[SearchQuery, Query()]) -> SearchResponse:
    """Features found by words (as the user types), id, site or row."""
    explorer.first_request.set()
    start = time.perf_counter()
    site = None if query.site is None else Site.parse(query.site)
    hits = explorer.finder.find(query.q, query.limit, site)
    return SearchResponse(
        query=query.q,
        took_ms=ms_since(start),
        hits=[
            SearchHit(
                feature=str(hit.feature),
                label=printable(hit.label),
                tokens=[printable(token) for token in hit.tokens],
                frequency=hit.frequency,
            )
            for hit in hits
        ],
        indexing=explorer.finder.indexing,
        problem=printable(explorer.finder.problem) or None,
    )


@router.get("/api/graph")
def graph(explorer: Explored, query: Annotated[GraphQuery, Query()]) -> GraphResponse:
    """The flow graph of a feature, and its drawing."""
    start = time.perf_counter()
    drawn = _drawn(explorer, _grown(explorer, query))
    explorer.first_request.set()
    return GraphResponse(**drawn, took_ms=ms_since(start))


@router.get("/api/compare")
def compare(explorer: Explored, query: Annotated[CompareQuery, Query()]) -> CompareResponse:
    """The union of two flow graphs, and which of the two has each feature and edge."""
    start = time.perf_counter()
    thresholds = explorer.thresholds(query)
    one, other = (_traced(explorer, explorer.feature(name), query, thresholds) for name in (query.a, query.b))
    # cut the layers after the union, so that only the first seed has to lie in the requested ones
    whole = _bounded(within(union([one, other]), query.from_layer, query.to_layer))
    drawn = _drawn(explorer, whole)
    pairs = [{(edge.parent, edge.child) for edge in graph.edges} for graph in (one, other)]
    sides = [
        "".join(name for name, known in zip("ab", pairs, strict=True) if (edge.parent, edge.child) in known)
        for edge in whole.edges
    ]
    features = [node.feature for node in whole.nodes]
    return CompareResponse.model_validate(
        {
            **drawn,
            "took_ms": ms_since(start),
            "in_a": [str(f) for f in features if f not in other.by_feature],
            "in_b": [str(f) for f in features if f not in one.by_feature],
            "both": [str(f) for f in features if f in one.by_feature and f in other.by_feature],
            "edges_in": sides,
            "edges_a": sides.count("a"),
            "edges_b": sides.count("b"),
            "edges_both": sides.count("ab"),
        }
    )


@router.get("/api/feature")
def feature(explorer: Explored, query: Annotated[FeatureQuery, Query()]) -> FeatureResponse:
    """The card of a feature: words, scores, predecessors and successors, group shares, links."""
    atlas, named = explorer.atlas, explorer.feature(query.id)

    # 1. its scores and case, from a graph that holds only this feature
    plain = Thresholds(res=T_RES, module=T_MODULE, high=query.high)
    thresholds = plain if query.fdr is None else explorer.calibrated(query.fdr)
    alone = trace(named, atlas, thresholds=thresholds, backward=False, forward=False).nodes[0]
    case = alone.evolution

    # 2. its matches by part, without parts that were not matched
    def neighbours(*sites: Site) -> dict[Any, list[Neighbour]]:
        found: dict[Any, list[Neighbour]] = {}
        for site in sites:
            if atlas.has(named.site, site):
                null = atlas.null(named.site, site)
                found[site.part.value] = [
                    Neighbour(
                        feature=str(match.feature),
                        label=explorer.label(match.feature),
                        score=match.score,
                        p=None if null is None else null.p_value(match.score),
                    )
                    for match in atlas.best(named, site)
                ]
        return found

    near = flow_neighbours(named.site, atlas)
    return FeatureResponse(
        **dict(feature_facts(explorer, named, explorer.words.get(named))),
        scores=None if alone.scores is None else ScoresInfo(**asdict(alone.scores)),
        p=None if alone.p is None else ScoresInfo(**asdict(alone.p)),
        evolution=None
        if case is None
        else CaseInfo.model_validate({"case": case.case, "name": case.value, "sentence": alone.sentence}),
        joins=[part.value for part in alone.joins],
        predecessors=neighbours(*(site for site in near if site < named.site)),
        successors=neighbours(*(site for site in near if site > named.site)),
    )


def feature_facts(
    explorer: Explorer, named: FeatureId, known: FeatureWords | None, label: Callable[[FeatureId], str] | None = None
) -> FeatureFacts:
    """The part of a feature's card that does not depend on its matches; without words (`known`), the defaults stay.

    `label` looks up the labels of near rows, in place of `explorer.label`.
    """
    label = label or explorer.label
    words: dict[str, Any] = {}
    if known is not None:
        words = {name: getattr(known, name) for name in ("label", "by", "score", "frequency")}
        words |= {name: list(getattr(known, name)) for name in ("tokens", "promotes", "suppresses")}
        for name in ("contexts", "spread"):
            words[name] = [ContextInfo.model_validate(one, from_attributes=True) for one in getattr(known, name)]
        if known.histogram is not None:
            words["histogram"] = HistogramInfo.model_validate(known.histogram, from_attributes=True)
        near = [(FeatureId(named.site, row), cosine) for row, cosine in known.near]
        words["near"] = [Neighbour(feature=str(one), label=label(one), score=c, p=None) for one, c in near]
    source = None if explorer.sources is None else explorer.sources.at(named.site)
    page = [] if source is None else [f"{NEURONPEDIA}/{source.model}/{source.id}/{named.index}"]
    return FeatureFacts(
        feature=str(named),
        site=str(named.site),
        **words,
        groups=None if explorer.origins is None else explorer.origins.groups(named),
        links=[Link(title="Neuronpedia", url=url) for url in page],
    )


@router.get("/api/export", response_class=Response, responses=FILES)
def exported(explorer: Explored, query: Annotated[ExportQuery, Query()]) -> Response:
    """The flow graph of a feature as a file, in one of the export formats."""
    data = export(_grown(explorer, query), query.format, explorer.words)
    return file_response(data, query.format, f"{explorer.atlas.release}-{query.feature}")


def file_response(data: bytes, form: str, name: str) -> Response:
    """A response that makes the browser save a graph as a file."""
    plain = name.replace("/", "-").replace('"', "")
    safe = "".join(char if char.isascii() and char.isprintable() else "_" for char in plain)
    headers = {"content-disposition": f'attachment; filename="{safe}{FORMATS[form].suffix}"'}
    return Response(data, media_type=FORMATS[form].media_type, headers=headers)


def _grown(explorer: Explorer, query: GraphQuery) -> FlowGraph:
    """The requested graph, expanded and cut to the requested layers."""
    grown = _traced(explorer, explorer.feature(query.feature), query, explorer.thresholds(query))
    wanted = [explorer.feature(name) for name in query.expand.split(",") if name]
    if wanted:
        _bounded(grown)
        k = min(query.k + MORE, explorer.atlas.k)
        grown = expand(grown, wanted, LimitedAtlas(explorer.atlas), k=k, modules=query.k)
    return _bounded(within(grown, query.from_layer, query.to_layer))


def _traced(explorer: Explorer, seed: FeatureId, query: GrowthQuery, thresholds: Thresholds) -> FlowGraph:
    return trace(
        seed,
        LimitedAtlas(explorer.atlas),
        thresholds=thresholds,
        k=query.k,
        backward=query.direction != "forward",
        forward=query.direction != "backward",
    )


def _bounded(graph: FlowGraph) -> FlowGraph:
    """The graph; raises `InvalidArgument` if it is too large to draw."""
    if len(graph.nodes) > limits.MOST_NODES:
        raise InvalidArgument(
            f"this graph has {len(graph.nodes)} features, more than the {limits.MOST_NODES} that are drawn. Raise the "
            "thresholds, lower k, or ask for fewer layers; `saeflow graph` writes it whole."
        )
    return graph


def _drawn(explorer: Explorer, graph: FlowGraph) -> dict[str, Any]:
    """A graph with its drawing, counts, and the origin groups of its features."""
    counts = dict.fromkeys([part.value for part in Part], 0) | {"edges": len(graph.edges)}
    for node in graph.nodes:
        counts[node.feature.part.value] += 1
    groups = None
    if explorer.origins is not None:
        seen = {str(node.feature): explorer.origins.shares(node.feature) for node in graph.nodes}
        groups = {name: shares for name, shares in seen.items() if shares is not None}
    return {
        "data": graph_data(graph, explorer.words),
        "svg": figure_svg(graph, explorer.words),
        "counts": counts,
        "groups": groups,
    }


@router.get("/api/results")
def results(explorer: Explored, _: Annotated[QueryParameters, Query()]) -> ResultsResponse:
    """The results folders given at the start."""
    return ResultsResponse(results=[folder.listed() for folder in explorer.results])


@router.get("/results/{id}", response_class=Response, responses=_HTML)
def page(explorer: Explored, id: str, _: Annotated[QueryParameters, Query()]) -> Response:  # noqa: A002
    """The page of a results folder."""
    html, policy = found = _folder(explorer, id).page()
    headers = {"content-security-policy": policy}
    status = 200
    if found is WAITING:
        status, headers["retry-after"] = 202, "2"
    return Response(html.encode("utf-8", "replace"), status, headers, "text/html")


@router.get("/results/{id}/files/{number}", response_class=Response, responses=_CSV)
def file(explorer: Explored, id: str, number: str, _: Annotated[QueryParameters, Query()]) -> Response:  # noqa: A002
    """A table of a results folder, by its number."""
    files = {str(n): offered for n, offered in enumerate(_folder(explorer, id).files())}
    if number not in files:
        raise UnknownSite(f"the results {id!r} have no file {number[:40]!r}. Take its number from /api/results.")
    name, data = files[number]
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type="text/csv; charset=utf-8", headers=headers)


def _folder(explorer: Explorer, name: str) -> ResultsFolder:
    known = {folder.id: folder for folder in explorer.results}
    if name not in known:
        raise UnknownSite(
            f"there are no results {name[:40]!r}; there are {', '.join(known) or 'none'}. Give folders to "
            "`saeflow serve` with --results."
        )
    return known[name]
