"""Response schemas: the bodies of the OpenAPI schema. Features are written "4/res/123", sites "4/res"."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from saeflow.web.requests import PartText

ModelState: TypeAlias = Literal["none", "idle", "loading", "ready", "failed"]
Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class ResponseBody(BaseModel):
    """A response body; floats are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def ms_since(start: float) -> float:
    """The milliseconds since a reading of `time.perf_counter`, as in the fields `took_ms`."""
    return round(1000 * (time.perf_counter() - start), 2)


class Problem(ResponseBody):
    """The body of every error: what is wrong, with the values, and what to do."""

    error: str
    what_to_do: str


# /api/info, /api/model


class SiteInfo(ResponseBody):
    """A site of the atlas."""

    site: str
    n_features: int
    words: Annotated[bool, Field(description="Whether there are words of its features.")]


class Defaults(ResponseBody):
    """The default thresholds and k."""

    t_res: float
    t_mlp: float
    t_att: float
    high: float
    k: int


class PromptInfo(ResponseBody):
    """The prompt on which a theme is steered."""

    direction: Literal["activate", "suppress"]
    prompt: str
    new_tokens: int


class ThemeInfo(ResponseBody):
    """A theme that ships with saeflow."""

    name: str
    description: str
    starts: list[str]
    directions: list[Literal["activate", "suppress"]]
    prompts: list[PromptInfo]


class ResultInfo(ResponseBody):
    """A results folder; its page is /results/{id}."""

    id: str
    title: str
    kind: str
    finished: bool


class PickInfo(ResponseBody):
    """A feature worth a first look."""

    feature: str
    label: str
    why: str


class ModelInfo(ResponseBody):
    """The state of the model: "none" without one; an "idle" one is loaded when first needed."""

    model_state: ModelState
    model_error: str | None


class Info(ModelInfo):
    """The explored release, and what the explorer offers for it."""

    saeflow: str
    release: str
    model: str
    made_by: str
    method: str
    k: Annotated[int, Field(description="Matches the atlas keeps: the most `k` may be.")]
    layers: list[int]
    sites: list[SiteInfo]
    defaults: Defaults
    calibrated: Annotated[bool, Field(description="Whether `fdr` can be given.")]
    themes: list[ThemeInfo]
    results: list[ResultInfo]
    picks: list[PickInfo]
    picks_ready: Annotated[bool, Field(description="Picks are looked for after the start; ask again.")]
    neuronpedia: bool
    origins: Annotated[bool, Field(description="Whether there are shares of origin groups.")]
    formats: list[str]
    limits: Annotated[
        dict[Literal["text", "prompt", "samples", "new_tokens", "features"], int],
        Field(description="The most a request may ask for; texts in characters."),
    ]


# /api/search


class SearchHit(ResponseBody):
    """A feature found by a search."""

    feature: str
    label: str
    tokens: list[str]
    frequency: float | None


class Indexing(ResponseBody):
    """The progress of the word index, in sites."""

    done: int
    total: int


class SearchResponse(ResponseBody):
    """The features found, best match first."""

    query: str
    took_ms: float
    hits: list[SearchHit]
    indexing: Annotated[Indexing | None, Field(description="Words are being indexed: ask again.")]
    problem: Annotated[str | None, Field(description="Why words cannot be searched.")]


# /api/graph, /api/compare


class OriginShares(ResponseBody):
    """How often a feature fell into each group of appendix A.1, as shares of its `n` observations."""

    n: int
    shares: Annotated[dict[str, Share], Field(description='By group: "nowhere", "RES", "RES & MLP", ...')]


class GraphResponse(ResponseBody):
    """A graph and its drawing."""

    data: Annotated[
        dict[str, Any],
        Field(description="The graph with the words of its features: what `saeflow graph --json` prints."),
    ]
    svg: str
    took_ms: float
    counts: Annotated[dict[Literal["res", "mlp", "att", "edges"], int], Field(description="How much the graph holds.")]
    groups: Annotated[
        dict[str, OriginShares] | None, Field(description="Of the features that were seen; null without results.")
    ]


class TraceResponse(ResponseBody):
    """The prompt graph of a token of a text, and its drawing."""

    data: Annotated[dict[str, Any], Field(description="The figure: nodes with their words, edges with both numbers.")]
    svg: str
    legend: Annotated[str, Field(description="What colours and widths mean, as elements.")]
    facts: Annotated[dict[str, str], Field(description="The head of its page: target, size, fidelity.")]
    notes: Annotated[list[str], Field(description="What was left out.")]
    took_ms: float


class CompareResponse(GraphResponse):
    """The union of two graphs, which `data` and `svg` describe, with the seed of the first."""

    in_a: Annotated[list[str], Field(description="Features of the first alone.")]
    in_b: Annotated[list[str], Field(description="Features of the second alone.")]
    both: list[str]
    edges_in: Annotated[list[Literal["a", "b", "ab"]], Field(description="Of each edge of `data`, in its order.")]
    edges_a: int
    edges_b: int
    edges_both: int


# /api/feature


class ScoresInfo(ResponseBody):
    """s(R), s(M), s(A), or their p-values; null where nothing was matched."""

    res: float | None
    mlp: float | None
    att: float | None


class ContextInfo(ResponseBody):
    """A passage, with the feature's activation on each token."""

    tokens: list[str]
    values: list[float]
    source: str
    quantile: Annotated[
        Share | None, Field(description="Share of the feature's activations that are weaker; null for its strongest.")
    ] = None


class HistogramInfo(ResponseBody):
    """Histogram of a feature's activations: `counts[i]` of them lie from `i * width` to `(i + 1) * width`."""

    width: float
    counts: list[int]


class Neighbour(ResponseBody):
    """A match of a feature, or a nearby row of the same dictionary."""

    feature: str
    label: str
    score: float
    p: float | None


class CaseInfo(ResponseBody):
    """A feature's case, A to D, of section 3.3."""

    case: Literal["A", "B", "C", "D"]
    name: Literal["translated", "processed", "newborn", "unexplained"]
    sentence: str


class ShareInterval(ResponseBody):
    """A share with its 95 % interval over texts; the bounds are null where a single text gives no interval."""

    share: Share
    low: float | None
    high: float | None


class OriginGroups(ResponseBody):
    """How often the feature fell into each group of appendix A.1, over `n` observations in `texts` texts."""

    n: int
    texts: int
    method: str
    result: Annotated[str, Field(description="The id of the results.")]
    shares: dict[str, ShareInterval]


class Link(ResponseBody):
    """A link to a page elsewhere."""

    title: str
    url: str


class FeatureFacts(ResponseBody):
    """What is known about a feature besides its matches; a published site stores this for every feature."""

    feature: str
    site: str
    label: str = ""
    by: str = ""
    score: float | None = None
    tokens: list[str] = []
    promotes: list[str] = []
    suppresses: list[str] = []
    contexts: Annotated[list[ContextInfo], Field(description="The strongest passages.")] = []
    spread: Annotated[
        list[ContextInfo], Field(description="A passage from each quarter of its activations, strong ones first.")
    ] = []
    histogram: Annotated[HistogramInfo | None, Field(description="Null where its words do not say.")] = None
    near: Annotated[list[Neighbour], Field(description="Rows of its dictionary with the highest cosine.")] = []
    frequency: float | None = None
    groups: OriginGroups | None
    links: list[Link]


class FeatureResponse(FeatureFacts):
    """The card of a feature: its facts, and what its matches say."""

    scores: ScoresInfo | None
    p: ScoresInfo | None
    evolution: CaseInfo | None
    joins: list[PartText]
    predecessors: dict[PartText, list[Neighbour]]
    successors: dict[PartText, list[Neighbour]]


# /api/plan, /api/plan/check


class PlanRow(ResponseBody):
    """A step of a plan."""

    feature: str
    label: str
    value: float
    layer: int
    why: str


class PlanResponse(ResponseBody):
    """A plan, both as a file to keep and as table rows."""

    plan: Annotated[dict[str, Any], Field(description="A plan's file, as `saeflow steer --plan` reads it.")]
    table: list[PlanRow]
    span: list[int] | None
    folded: bool
    notes: list[str]


# /api/text


class TokenInfo(ResponseBody):
    """A token of a text."""

    text: str
    id: int


class ActiveFeature(ResponseBody):
    """A feature that fires on a token."""

    index: int
    value: float
    share: Annotated[
        float | None,
        Field(description="`value` over its strongest activation in the passages of its words; null without them."),
    ]
    label: str


class TextResponse(ResponseBody):
    """The tokens of a text and, for each site and token, the features with the highest `share`, highest first."""

    tokens: list[TokenInfo]
    active: dict[str, list[list[ActiveFeature]]]
    took_ms: float


class Removal(ResponseBody):
    """What remains of a feature at a token without some of its matched predecessors (section 5.2)."""

    removed: Annotated[str, Field(description='Parts: "RES", "RES & MLP"; "nowhere" where none is active.')]
    features: list[str]
    after: Annotated[float, Field(description="Its activation without them.")]
    change: Annotated[float, Field(description="1 - after / before: 1 is silent.")]
    control: Annotated[list[str], Field(description="As many other active features of the same sites, alike in norm.")]
    control_change: Annotated[float | None, Field(description="The same without the control; null without one.")]


class DeactivateResponse(ResponseBody):
    """A feature's activation at a token, before and after each removal of its matched predecessors."""

    before: float
    removals: list[Removal]
    took_ms: float


# /api/results


class FileInfo(ResponseBody):
    """A file of a results folder, at /results/{id}/files/{n}."""

    n: int
    name: str
    bytes: int


class ResultFiles(ResultInfo):
    """A results folder with the files it offers, or the reason why it has none yet."""

    files: list[FileInfo]
    problem: str | None


class ResultsResponse(ResponseBody):
    """Results folders."""

    results: list[ResultFiles]
