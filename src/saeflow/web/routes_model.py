"""Routes of the steering bench and the text view. The model runs in its own thread.

Without a model, a plan's strengths are lengths along unit decoder rows. With one they are folded, in units of each
feature's threshold (appendix B.2), and can be held within a budget; such a plan is made in the model's thread. Nothing
here imports torch before that; `steering.build` does when it folds.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response

from saeflow.errors import BadFile, InvalidArgument
from saeflow.flow.scores import Thresholds
from saeflow.ids import Part, Site
from saeflow.interventions import EVERYWHERE
from saeflow.report.html import legend_html
from saeflow.report.svg import figure_svg
from saeflow.report.views import graph_data
from saeflow.steering.build import PlanRequest, build_plan
from saeflow.steering.growth import Reach
from saeflow.steering.plan import SteeringDirection, SteeringPlan
from saeflow.steering.schedule import STRENGTH_END, schedule_from
from saeflow.web.explorer import Explorer
from saeflow.web.limits import MOST_FEATURES, MOST_NESTED, LimitedAtlas
from saeflow.web.model_thread import ModelThread
from saeflow.web.problems import NoModel
from saeflow.web.requests import (
    DeactivateBody,
    JsonBody,
    PlanBody,
    PlanCheckBody,
    QueryParameters,
    SteerBody,
    TextBody,
    TraceBody,
    TraceExportBody,
)
from saeflow.web.responses import (
    DeactivateResponse,
    ModelInfo,
    PlanResponse,
    PlanRow,
    TextResponse,
    TraceResponse,
    ms_since,
)
from saeflow.web.routes_graph import FILES, Explored, file_response, model_info
from saeflow.web.streams import Outlet, Streamed

if TYPE_CHECKING:
    from saeflow.prompt_graph import PromptGraph

TEXTS_EACH: Final = 4
"""Texts per domain of the demo pack on which centred norms are measured when the theme has no texts."""

_ALONE: Final = Thresholds(res=1.0, mlp=1.0, att=1.0)
"""Thresholds that give graphs of one node, so that only the picked features are changed."""

_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": (
            "A line of JSON for each step: state, token, sample, scores, note, done or error (see docs/explorer.md)."
        ),
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
}

router: Final = APIRouter()


@router.get("/api/model")
def model(explorer: Explored, _: Annotated[QueryParameters, Query()]) -> ModelInfo:
    """Whether there is a model, and whether it is loaded."""
    return model_info(explorer)


@router.post("/api/model")
def load_model(explorer: Explored, body: JsonBody, _: Annotated[QueryParameters, Query()]) -> ModelInfo:  # noqa: ARG001
    """Start loading the model if it is not loaded yet; returns at once."""
    thread = explorer.model
    if thread is not None and thread.state in ("idle", "failed") and thread.pending == 0:
        thread.submit(lambda worker: None)  # noqa: ARG005 - an empty job: the thread loads the model for it
    return model_info(explorer)


@router.post("/api/plan")
def plan(explorer: Explored, body: PlanBody, _: Annotated[QueryParameters, Query()]) -> PlanResponse:
    """A steering plan for picked features, or for the graphs grown from starts."""
    request = _plan_request(explorer, body)

    def built(dictionaries: Any = None, model: Any = None) -> SteeringPlan:
        texts: list[str] = []
        own = request.theme and explorer.theme(request.theme).examples
        if model is not None and not own:
            from saeflow.steering.judges.offline import pack_background

            texts = pack_background(explorer.release, TEXTS_EACH)
        return build_plan(
            request,
            atlas=LimitedAtlas(explorer.atlas),
            dictionaries=dictionaries,
            model=model,
            words=explorer.words,
            texts=texts,
        )

    # build it once without weights, which is fast, so that mistakes are reported before waiting for the model
    build_plan(request.from_graphs_alone(), atlas=LimitedAtlas(explorer.atlas))
    if request.needs_dictionaries:
        thread = _thread(explorer, "folding and budgets")
        made = thread.submit(lambda worker: worker.lend(built)).result()
    else:
        made = built()
    if body.features:
        made = replace(made, steps=tuple(replace(step, why="picked") for step in made.steps))
    return _plan_response(explorer, made)


def _plan_request(explorer: Explorer, body: PlanBody) -> PlanRequest:
    if body.features and body.starts:
        raise InvalidArgument(
            "features and starts are both given. Give features to change exactly these, or starts to grow graphs."
        )
    theme = explorer.theme(body.theme).name if body.theme else ""
    if not (body.features or body.starts or theme):
        raise InvalidArgument("a plan needs features. Give features, starts or a theme.")
    chosen = tuple(explorer.feature(name) for name in dict.fromkeys(body.features or body.starts))
    parts = body.parts or (["res", "mlp", "att"] if body.features else ["res"])
    left_out = [str(feature) for feature in chosen if feature.part.value not in parts]
    if body.features and left_out:
        raise InvalidArgument(f"{', '.join(left_out[:5])} are of parts that are left out. Add these to parts.")
    thresholds = explorer.thresholds(body.thresholds)
    asked = body.schedule.model_dump(exclude_none=True)
    return PlanRequest(
        release=explorer.release,
        direction=SteeringDirection(body.direction),
        theme=theme,
        starts=chosen,
        schedule=schedule_from({"s_end": STRENGTH_END} | asked if asked["kind"] == "linear" else asked),
        r=body.r,
        reach=Reach(body.reach),
        upto=body.upto,
        thresholds=_ALONE if body.features else thresholds,
        k=body.thresholds.k,
        parts=tuple(Part(part) for part in dict.fromkeys(parts)),
        keep=chosen if body.features else None,
        fold=explorer.model is not None if body.fold is None else body.fold,
        budget_layer=body.budget_layer,
        budget_total=body.budget_total,
        shares=False,  # measured only for a budget: it takes seconds, and users move the sliders often
    )


@router.post("/api/plan/check")
def check(explorer: Explored, body: PlanCheckBody, _: Annotated[QueryParameters, Query()]) -> PlanResponse:
    """A plan file in the form that the page shows, or what is wrong with it."""
    return _plan_response(explorer, _read_plan(explorer, body.plan))


@router.post("/api/steer", response_class=Response, responses=_STREAM)
async def steer(explorer: Explored, body: SteerBody, _: Annotated[QueryParameters, Query()]) -> Response:
    """Generate text with and without a plan; both texts are streamed, one line of JSON per step."""
    thread = _thread(explorer, "steering")
    made = _read_plan(explorer, body.plan)
    if not made.steps:
        raise InvalidArgument("the plan changes no feature. Pick one or more.")
    theme = None if body.theme is None else explorer.theme(body.theme)
    outlet = Outlet(thread.closed)
    state = "ready" if thread.state == "ready" else "loading"
    job = thread.submit(lambda worker: worker.steer(body, made, theme, explorer.themes, outlet.put))
    return Streamed(outlet, job, {"type": "state", "model": state})


@router.post("/api/text")
def text(explorer: Explored, body: TextBody, _: Annotated[QueryParameters, Query()]) -> TextResponse:
    """The features that are active on each token of a text."""
    thread = _thread(explorer, "reading a text")
    sites = [Site.parse(name) for name in dict.fromkeys(body.sites)] or list(explorer.sizes)
    for site in sites:
        explorer.site(site)
    return thread.submit(lambda worker: worker.text(body, sites, explorer.words)).result()


@router.post("/api/deactivate")
def deactivated(explorer: Explored, body: DeactivateBody, _: Annotated[QueryParameters, Query()]) -> DeactivateResponse:
    """A residual feature's activation at a token, before and after each removal of its matched predecessors."""
    explorer.feature(body.feature)
    thread = _thread(explorer, "removing features")
    return thread.submit(lambda worker: worker.deactivate(body, explorer.atlas)).result()


@router.post("/api/trace")
def traced(explorer: Explored, body: TraceBody, _: Annotated[QueryParameters, Query()]) -> TraceResponse:
    """The prompt graph of a token of a text, with measured edges."""
    from saeflow.report.prompt import flow_graph, prompt_page

    start = time.perf_counter()
    graph = _prompt_graph(explorer, body)
    drawn = flow_graph(graph, explorer.words)
    if drawn is None:
        raise InvalidArgument(f"no edge leads to the target with an effect of {body.effect:g}. Lower it.")
    page = prompt_page(graph, explorer.words)
    return TraceResponse(
        data=graph_data(*drawn),
        svg=figure_svg(*drawn),
        legend="".join(legend_html(drawn[0])),
        facts={name: value for name, value in page.facts if name not in {"release", "tokens"}},
        notes=list(graph.notes),
        took_ms=ms_since(start),
    )


@router.post("/api/trace/export", response_class=Response, responses=FILES)
def traced_file(explorer: Explored, body: TraceExportBody, _: Annotated[QueryParameters, Query()]) -> Response:
    """A prompt graph as a file."""
    from saeflow.report.prompt import export_prompt

    data = export_prompt(_prompt_graph(explorer, body), body.format, explorer.words)
    return file_response(data, body.format, f"{explorer.atlas.release}-token-{body.token}")


def _prompt_graph(explorer: Explorer, body: TraceBody) -> PromptGraph:
    thread = _thread(explorer, "tracing a text")
    return thread.submit(lambda worker: worker.trace(body, explorer.atlas)).result()


def _thread(explorer: Explorer, what: str) -> ModelThread:
    if explorer.model is None:
        raise NoModel(what)
    return explorer.model


def _read_plan(explorer: Explorer, data: dict[str, Any]) -> SteeringPlan:
    """Read a plan for this atlas from the parsed JSON of its file; refuse what could not be sent back as JSON.

    Raises:
        BadFile: when it is not a plan, its values are nested too deeply, or it has text that is not valid Unicode.
        UnknownSite: when the atlas has no dictionary at a feature's site.
        UnknownFeature: when a feature's index lies outside its dictionary.
        InvalidArgument: when it is for another release, or has too many features.
    """
    # 1. the values of the file: not nested too deeply, and valid Unicode
    level: list[Any] = [data]
    for _ in range(MOST_NESTED):
        containers = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [one for container in containers for one in container]
        if not level:
            break
    else:
        raise BadFile(f"the plan has more than {MOST_NESTED} levels. Write it as `saeflow plan` does.")
    text = json.dumps(data, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadFile(f"the plan has text that is no Unicode ({error.reason}). Write it again.") from None

    # 2. the plan, and whether it is one for this atlas
    made = SteeringPlan.from_json(text)
    if made.release and made.release != explorer.release:
        raise InvalidArgument(
            f"this is a plan for the features of {made.release}, and this page is of {explorer.release}. Serve "
            f"{made.release}, or correct the file."
        )
    if len(made.steps) > MOST_FEATURES:
        raise InvalidArgument(f"the plan has {len(made.steps)} features. Give {MOST_FEATURES} or fewer.")
    for step in made.steps:
        explorer.feature(str(step.feature))
    return made


def _plan_response(explorer: Explorer, made: SteeringPlan) -> PlanResponse:
    """A plan as table rows, with notes on what its reader should know."""
    notes: list[str] = []
    if made.direction == "activate" and made.made_by.get("folded") is False:
        notes.append("Strengths are lengths along unit rows: they are not folded (appendix B.2).")
    share = _noted(made, "shares", "total")
    if share == 0:
        notes.append("None of these features fires on the texts that were measured: nothing is changed there.")
    elif share is not None:
        notes.append(f"All together change {share:.1%} of the centred norm at the last layer changed.")
    if made.tokens != EVERYWHERE:
        notes.append(f"Only {made.tokens} are changed.")
    scale = _noted(made, "budget", "scale")
    if scale is not None and scale <= 0.9995:
        notes.append(f"Weakened to {scale:.1%} to hold the budget.")
    if made.dropped:
        notes.append(f"{len(made.dropped)} features of the graphs were left out.")
    if made.release == "":
        notes.append(f"The file names no release; its features are taken as those of {explorer.release}.")
    return PlanResponse(
        plan=json.loads(made.to_json()),
        table=[
            PlanRow(
                feature=str(step.feature),
                label=step.label or explorer.label(step.feature),
                value=step.value,
                layer=step.feature.layer,
                why=step.why,
            )
            for step in made.steps
        ],
        span=None if made.span is None else list(made.span),
        folded=bool(made.made_by.get("folded", False)),
        notes=notes,
    )


def _noted(made: SteeringPlan, group: str, name: str) -> float | None:
    """A number that the plan records in `made_by`; None if it is missing or not a number."""
    noted = made.made_by.get(group)
    value = noted.get(name) if isinstance(noted, dict) else None
    return value if isinstance(value, int | float) else None
