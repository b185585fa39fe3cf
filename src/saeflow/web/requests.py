"""Request schemas: the parameters and bodies of the OpenAPI schema, validated before any work is done."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from saeflow.flow.scores import HIGH, T_MODULE, T_RES
from saeflow.steering.schedule import STRENGTH
from saeflow.web.limits import (
    MOST_FEATURES,
    MOST_NEW_TOKENS,
    MOST_PROMPT,
    MOST_SAMPLES,
    MOST_TEXT,
    MOST_TOKENS,
    MOST_TRACED,
)

FEATURE: Final = r"^(0|[1-9][0-9]{0,3})/(att|mlp|res)/(0|[1-9][0-9]{0,8})$"
SITE: Final = r"^(0|[1-9][0-9]{0,3})/(att|mlp|res)$"
FEATURES: Final = FEATURE[:-1] + r"(,(0|[1-9][0-9]{0,3})/(att|mlp|res)/(0|[1-9][0-9]{0,8})){0,63}$"

FeatureText: TypeAlias = Annotated[str, StringConstraints(pattern=FEATURE)]
SiteText: TypeAlias = Annotated[str, StringConstraints(pattern=SITE)]
Cosine: TypeAlias = Annotated[float, Field(ge=-1.0, le=1.0)]
Layer: TypeAlias = Annotated[int, Field(ge=0, le=9999)]
PartText: TypeAlias = Literal["res", "mlp", "att"]
Prompt: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=MOST_PROMPT)]
NodeText: TypeAlias = Annotated[str, StringConstraints(max_length=100)]
Strength: TypeAlias = Annotated[float, Field(ge=-1e6, le=1e6)]


class QueryParameters(BaseModel):
    """Query parameters; unknown ones are refused. Used directly, it allows no parameters at all."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JsonBody(BaseModel):
    """A JSON body; unknown keys are refused, and strings are not read as numbers. Used directly: an empty object."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class SearchQuery(QueryParameters):
    """A search for features."""

    q: Annotated[str, Field(max_length=200, description="Words, the beginning of one, or an id.")]
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    site: Annotated[SiteText | None, Field(description="Only features of this site.")] = None


class GrowthQuery(QueryParameters):
    """How a graph is grown."""

    t_res: Annotated[Cosine, Field(description="t(R): the flow stops below it.")] = T_RES
    t_mlp: Annotated[Cosine, Field(description="t(M): MLP features below it are dropped.")] = T_MODULE
    t_att: Annotated[Cosine, Field(description="t(A): attention features below it are dropped.")] = T_MODULE
    high: Annotated[Cosine, Field(description="The line between high and low, for the cases A to D.")] = HIGH
    k: Annotated[int, Field(ge=1, le=100, description="Matches followed at each site.")] = 1
    fdr: Annotated[
        float | None,
        Field(gt=0.0, lt=1.0, description="Calibrated thresholds at this false-discovery rate, in place of t_*."),
    ] = None
    direction: Literal["both", "backward", "forward"] = "both"
    from_layer: Annotated[Layer | None, Field(description="Leave out earlier layers.")] = None
    to_layer: Annotated[Layer | None, Field(description="Leave out later layers.")] = None


class GraphQuery(GrowthQuery):
    """The flow graph of a feature."""

    feature: FeatureText
    expand: Annotated[
        str, Field(pattern=f"^$|{FEATURES}", description="Features whose own matches are added, commas between.")
    ] = ""


class CompareQuery(GrowthQuery):
    """The flow graphs of two features."""

    a: FeatureText
    b: FeatureText


class FeatureQuery(QueryParameters):
    """The card of a feature."""

    id: FeatureText
    high: Annotated[Cosine, Field(description="The line between high and low, for the case A to D.")] = HIGH
    fdr: Annotated[float | None, Field(gt=0.0, lt=1.0, description="The calibrated line instead.")] = None


FormatName: TypeAlias = Literal["html", "json", "graphml", "svg", "png", "dot", "mermaid", "circuit-tracer"]


class ExportQuery(GraphQuery):
    """The flow graph of a feature as a file."""

    format: FormatName = "json"


class TraceBody(JsonBody):
    """A prompt graph: which features led to the prediction at a token of a text."""

    text: Prompt
    token: Annotated[int, Field(ge=0, le=MOST_TOKENS - 1, description="Counted from 0, with the begin-of-text token.")]
    before: Annotated[int, Field(ge=0, le=MOST_TRACED, description="Tokens before it that are traced too.")] = 0
    target: Annotated[str, Field(max_length=60, description="Token that is explained; empty: the likeliest.")] = ""
    against: Annotated[str, Field(max_length=60, description="Token whose logit is taken off the target's.")] = ""
    effect: Annotated[float, Field(ge=0.0, le=100.0, description="The smallest effect of an edge, either way.")] = 0.1
    cosine: Annotated[Cosine, Field(description="The smallest cosine of an edge between features.")] = -1.0
    share: Annotated[Cosine, Field(description="The smallest share of its site of a feature.")] = -1.0
    pins: Annotated[list[NodeText], Field(max_length=MOST_FEATURES, description="Nodes that stay: 4/res/12@7.")] = []
    groups: Annotated[
        dict[str, list[NodeText]], Field(max_length=MOST_FEATURES, description="Nodes by the name of their group.")
    ] = {}


class DeactivateBody(JsonBody):
    """A residual feature before and after its matched predecessors are removed at a token."""

    text: Prompt
    token: Annotated[int, Field(ge=0, le=MOST_TOKENS - 1, description="Counted from 0, with the begin-of-text token.")]
    feature: FeatureText


class TraceExportBody(TraceBody):
    """A prompt graph as a file."""

    format: FormatName = "json"


class ScheduleBody(JsonBody):
    """How a strength is spread over layers (appendix B.2)."""

    kind: Literal["constant", "linear", "exponential"] = "linear"
    s: Strength = STRENGTH
    s_end: Annotated[Strength | None, Field(description="Of a linear schedule: the strength at the last layer.")] = None
    alpha: Annotated[
        float | None, Field(ge=-10.0, le=1.0, description="Of an exponential schedule: the decay per layer.")
    ] = None


class ThresholdsBody(JsonBody):
    """The thresholds at which the graphs grown from a plan's starts are cut."""

    t_res: Cosine = T_RES
    t_mlp: Cosine = T_MODULE
    t_att: Cosine = T_MODULE
    fdr: Annotated[float | None, Field(gt=0.0, lt=1.0)] = None
    k: Annotated[int, Field(ge=1, le=100)] = 1


class PlanBody(JsonBody):
    """A plan that changes exactly the given features, or the graphs grown from given starts."""

    features: Annotated[
        list[FeatureText], Field(max_length=MOST_FEATURES, description="Exactly these are changed.")
    ] = []
    starts: Annotated[
        list[FeatureText], Field(max_length=64, description="Graphs grow from these, and all of them is changed.")
    ] = []
    theme: Annotated[str, Field(max_length=100, description="Name of a theme of /api/info, noted in the plan.")] = ""
    direction: Literal["activate", "suppress"] = "activate"
    schedule: Annotated[ScheduleBody, Field(description="To activate.")] = ScheduleBody()
    r: Annotated[Strength, Field(description="To suppress: 0 removes, 1 changes nothing.")] = 0.0
    reach: Literal["single", "cumulative", "span"] = "span"
    upto: Annotated[Layer | None, Field(description="The layer of the reaches single and cumulative.")] = None
    thresholds: ThresholdsBody = ThresholdsBody()
    parts: Annotated[
        list[PartText] | None,
        Field(min_length=1, max_length=3, description="Those of picked features by default, and res of graphs."),
    ] = None
    fold: Annotated[
        bool | None,
        Field(description="Count s in units of each feature's threshold; null: where the weights can be read."),
    ] = None
    budget_layer: Annotated[float | None, Field(gt=0.0, le=100.0, description="Most a layer may change.")] = None
    budget_total: Annotated[float | None, Field(gt=0.0, le=100.0, description="Most all layers may change.")] = None


class PlanCheckBody(JsonBody):
    """A plan file."""

    plan: Annotated[dict[str, Any], Field(description="As `saeflow plan` writes it.")]


class SteerBody(JsonBody):
    """Text to generate with and without a plan."""

    plan: Annotated[dict[str, Any], Field(description="As /api/plan gives it, or `saeflow plan`.")]
    prompt: Prompt
    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = 1
    new_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] = 36
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 0.8
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    seed: Annotated[int, Field(ge=0, lt=2**53, description="Of the first sample; the others follow.")] = 0
    theme: Annotated[
        str | None, Field(max_length=100, description="Name of a theme of /api/info, to score the texts by.")
    ] = None


class TextBody(JsonBody):
    """A text in which to find active features."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=MOST_TEXT)]
    sites: Annotated[list[SiteText], Field(max_length=200, description="All sites when empty.")] = []
    top: Annotated[int, Field(ge=1, le=20, description="The strongest features at each token and site.")] = 5
