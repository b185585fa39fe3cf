"""What answers hold: the bodies of the OpenAPI schema. Features are written "4/res/123", sites "4/res"."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from saeflow.web.asked import PartText

CaseText: TypeAlias = Literal["translated", "processed", "newborn", "unexplained"]
ModelState: TypeAlias = Literal["none", "idle", "loading", "ready", "failed"]
Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class Answer(BaseModel):
    """A body that is sent; floats are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Problem(Answer):
    """Every error: what is wrong, with the values, and what to do."""

    error: str
    what_to_do: str


class SiteInfo(Answer):
    """A site of the atlas."""

    site: str
    n_features: int
    words: Annotated[bool, Field(description="Whether there are words of its features.")]


class Defaults(Answer):
    """Thresholds where none are given."""

    t_res: float
    t_mlp: float
    t_att: float
    high: float
    k: int


class PromptInfo(Answer):
    """What a theme is steered on."""

    direction: Literal["activate", "suppress"]
    prompt: str
    new_tokens: int


class ThemeInfo(Answer):
    """A theme that comes with saeflow."""

    name: str
    description: str
    starts: list[str]
    directions: list[Literal["activate", "suppress"]]
    prompts: list[PromptInfo]


class ResultInfo(Answer):
    """A results folder; its page is /results/{id}."""

    id: str
    title: str
    kind: str
    finished: bool


class Pick(Answer):
    """A feature worth a look."""

    feature: str
    label: str
    why: str


class LimitsInfo(Answer):
    """The most a request may ask for."""

    text: int
    prompt: int
    samples: int
    new_tokens: int
    features: int


class ModelInfo(Answer):
    """Whether a model is there. "idle": one is, and is loaded at first need."""

    model_state: ModelState
    model_error: str | None


class Info(ModelInfo):
    """What is explored."""

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
    picks: list[Pick]
    picks_ready: Annotated[bool, Field(description="Picks are looked for after the start; ask again.")]
    neuronpedia: bool
    origins: Annotated[bool, Field(description="Whether there are shares of origin groups.")]
    formats: list[str]
    limits: LimitsInfo


class Hit(Answer):
    """A feature that was found."""

    feature: str
    label: str
    tokens: list[str]
    frequency: float | None


class Indexing(Answer):
    """How far the index of words is, in sites."""

    done: int
    total: int


class SearchAnswer(Answer):
    """Features, best first."""

    query: str
    took_ms: float
    hits: list[Hit]
    indexing: Annotated[Indexing | None, Field(description="Words are being indexed: ask again.")]
    problem: Annotated[str | None, Field(description="Why words cannot be searched.")]


class ScoresData(Answer):
    """s(R), s(M), s(A), or their p-values; null where nothing was matched."""

    res: float | None
    mlp: float | None
    att: float | None


class ContextData(Answer):
    """A passage, with the feature's activation on each token."""

    tokens: list[str]
    values: list[float]
    source: str


class WordsData(Answer):
    """What is known of a feature."""

    label: str
    tokens: list[str]
    promotes: list[str]
    contexts: list[ContextData]
    frequency: float | None
    by: str
    score: float | None


class NodeData(Answer):
    """A feature of a graph."""

    feature: str
    scores: ScoresData | None
    evolution: CaseText | None
    joins: list[PartText]
    p: ScoresData | None
    words: WordsData | None
    silent: bool | None
    case: Literal["A", "B", "C", "D"] | None
    sentence: str | None


class EdgeData(Answer):
    """`child` continues `parent`."""

    parent: str
    child: str
    score: float
    rank: int
    p: float | None
    mutual: bool | None
    by_chance: bool | None


class EndData(Answer):
    """Where the flow stops, and why."""

    feature: str
    direction: Literal["backward", "forward"]
    reason: str
    score: float | None
    threshold: float | None
    sentence: str


class CutData(Answer):
    """A calibrated threshold."""

    layer: int
    part: PartText
    cut: float | None
    ahead: float | None


class ThresholdsData(Answer):
    """Where the graph was cut."""

    res: float
    module: float
    mlp: float | None
    att: float | None
    high: float
    fdr: float | None
    layers: list[CutData]


class GraphData(Answer):
    """A flow graph with the words of its features: what `saeflow graph --json` prints."""

    format: Literal["saeflow-graph"]
    version: int
    release: str
    seed: str
    span: list[int] | None
    thresholds: ThresholdsData
    p_floor: float | None
    nodes: list[NodeData]
    edges: list[EdgeData]
    ends: list[EndData]


class Counts(Answer):
    """How much a graph holds."""

    res: int
    mlp: int
    att: int
    edges: int


class OriginShares(Answer):
    """In which group of appendix A.1 a feature was seen: shares of its `n` observations."""

    n: int
    shares: Annotated[dict[str, Share], Field(description='By group: "nowhere", "RES", "RES & MLP", ...')]


class GraphAnswer(Answer):
    """A graph and its drawing."""

    data: GraphData
    svg: str
    took_ms: float
    counts: Counts
    groups: Annotated[
        dict[str, OriginShares] | None, Field(description="Of the features that were seen; null without results.")
    ]


class CompareAnswer(Answer):
    """Two graphs as one: `data` and `svg` are those of their union, with the seed of the first."""

    data: GraphData
    svg: str
    took_ms: float
    counts: Counts
    groups: Annotated[
        dict[str, OriginShares] | None, Field(description="Of the features that were seen; null without results.")
    ]
    in_a: Annotated[list[str], Field(description="Features of the first alone.")]
    in_b: Annotated[list[str], Field(description="Features of the second alone.")]
    both: list[str]
    edges_in: Annotated[list[Literal["a", "b", "ab"]], Field(description="Of each edge of `data`, in its order.")]
    edges_a: int
    edges_b: int
    edges_both: int


class Neighbour(Answer):
    """A match of a feature."""

    feature: str
    label: str
    score: float
    p: float | None


class CaseData(Answer):
    """The case A to D of section 3.3."""

    case: Literal["A", "B", "C", "D"]
    name: CaseText
    sentence: str


class Interval(Answer):
    """A share with its 95 % interval, of texts; null where one text does not give it."""

    share: Share
    low: float | None
    high: float | None


class Groups(Answer):
    """In which group of appendix A.1 the feature was seen, over `n` observations in `texts` texts."""

    n: int
    texts: int
    method: str
    result: Annotated[str, Field(description="The id of the results.")]
    shares: dict[str, Interval]


class Link(Answer):
    """A page elsewhere."""

    title: str
    url: str


class FeatureAnswer(Answer):
    """The card of a feature."""

    feature: str
    site: str
    label: str
    by: str
    score: float | None
    tokens: list[str]
    promotes: list[str]
    contexts: list[ContextData]
    frequency: float | None
    scores: ScoresData | None
    p: ScoresData | None
    evolution: CaseData | None
    joins: list[PartText]
    predecessors: dict[PartText, list[Neighbour]]
    successors: dict[PartText, list[Neighbour]]
    groups: Groups | None
    links: list[Link]
