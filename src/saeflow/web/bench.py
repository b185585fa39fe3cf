"""Routes of the steering bench and the text view. No torch by itself: the model works at the desk."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response

from saeflow.errors import BadFile, InvalidArgument
from saeflow.ids import Site
from saeflow.interventions import EVERYWHERE
from saeflow.steering.plan import SteeringPlan
from saeflow.web.answers import ModelInfo
from saeflow.web.answers_bench import PlanAnswer, PlanRow, TextAnswer
from saeflow.web.asked import MOST_FEATURES, CheckAsked, ModelAsked, Nothing, PlanAsked, SteerAsked, TextAsked
from saeflow.web.desk import Desk
from saeflow.web.explorer import Explorer
from saeflow.web.info import model_of
from saeflow.web.problems import NoModel
from saeflow.web.reading import Explored
from saeflow.web.streams import Outlet, Streamed

router: Final = APIRouter()
MOST_DEEP: Final = 30
"""Levels of values in a plan's file."""

_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": (
            "A line of JSON for each step: state, token, sample, scores, note, done or error (see docs/explorer.md)."
        ),
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
}


@router.get("/api/model")
def model(explorer: Explored, _: Annotated[Nothing, Query()]) -> ModelInfo:
    """Whether there is a model, and whether it is loaded."""
    return model_of(explorer)


@router.post("/api/model")
def load_model(explorer: Explored, asked: ModelAsked, _: Annotated[Nothing, Query()]) -> ModelInfo:  # noqa: ARG001
    """Begin to load the model, if there is one that is not loaded; answers at once."""
    desk = explorer.desk
    if desk is not None and desk.state in ("idle", "failed") and desk.pending == 0:
        desk.submit(lambda worker: None)  # noqa: ARG005 - loading is all
    return model_of(explorer)


@router.post("/api/plan")
def plan(explorer: Explored, asked: PlanAsked, _: Annotated[Nothing, Query()]) -> PlanAnswer:
    """A steering plan of picked features, or of the graphs of some starts."""
    return _shown(explorer, explorer.planner(explorer, asked))


@router.post("/api/plan/check")
def check(explorer: Explored, asked: CheckAsked, _: Annotated[Nothing, Query()]) -> PlanAnswer:
    """A plan's file as the page shows it, or what is wrong with it."""
    return _shown(explorer, read_plan(explorer, asked.plan))


@router.post("/api/steer", response_class=Response, responses=_STREAM)
async def steer(explorer: Explored, asked: SteerAsked, _: Annotated[Nothing, Query()]) -> Response:
    """Write with and without a plan; both texts come as they are written, a line of JSON for each step."""
    desk = _desk(explorer, "steering")
    made = read_plan(explorer, asked.plan)
    if not made.steps:
        raise InvalidArgument("the plan changes no feature. Pick one or more.")
    theme = None if asked.theme is None else explorer.theme(asked.theme)
    outlet = Outlet(desk.closed)
    state = "ready" if desk.state == "ready" else "loading"
    job = desk.submit(lambda worker: worker.steer(asked, made, theme, explorer.themes, outlet.put))
    return Streamed(outlet, job, {"type": "state", "model": state})


@router.post("/api/text")
def text(explorer: Explored, asked: TextAsked, _: Annotated[Nothing, Query()]) -> TextAnswer:
    """The features that are active on each token of a text."""
    desk = _desk(explorer, "reading a text")
    sites = [Site.parse(name) for name in dict.fromkeys(asked.sites)] or list(explorer.sizes)
    for site in sites:
        explorer.site(site)
    return desk.submit(lambda worker: worker.text(asked, sites, explorer.label)).result()


def read_plan(explorer: Explorer, data: dict[str, Any]) -> SteeringPlan:
    """A plan of features of this atlas, from the values of its file.

    Raises:
        BadFile: when it is no plan.
        UnknownSite: when a feature's site is not of this atlas.
        UnknownFeature: when a feature's index lies outside its dictionary.
        InvalidArgument: when it is of another release, or has too many features.
    """
    made = SteeringPlan.from_json(_as_text(data))
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


def _desk(explorer: Explorer, what: str) -> Desk:
    if explorer.desk is None:
        raise NoModel(what)
    return explorer.desk


def _shown(explorer: Explorer, made: SteeringPlan) -> PlanAnswer:
    return PlanAnswer(
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
        notes=list(_notes(explorer, made)),
    )


def _notes(explorer: Explorer, made: SteeringPlan) -> list[str]:
    """What a reader of the plan should know."""
    told: list[str] = []
    if made.direction == "activate" and made.made_by.get("folded") is False:
        told.append("Strengths are lengths along unit rows: they are not folded (appendix B.2).")
    if share := _percent(made, "shares", "total"):
        told.append(f"All together change {share} of the hidden norm at the last layer changed.")
    if made.tokens != EVERYWHERE:
        told.append(f"Only {made.tokens} are changed.")
    if scale := _percent(made, "budget", "scale"):
        told.append(f"Weakened to {scale} to hold the budget.")
    if made.dropped:
        told.append(f"{len(made.dropped)} features of the graphs were left out.")
    if made.release == "":
        told.append(f"The file names no release; its features are taken as those of {explorer.release}.")
    return told


def _percent(made: SteeringPlan, group: str, name: str) -> str:
    """A number that the plan notes of itself as a percentage; empty where there is none."""
    told = made.made_by.get(group)
    value = told.get(name) if isinstance(told, dict) else None
    return f"{value:.1%}" if isinstance(value, int | float) else ""


def _as_text(data: dict[str, Any]) -> str:
    """A plan's values as the text of its file; refuses what could not be sent back.

    Raises:
        BadFile: for values nested too deep, or text that has no UTF-8.
    """
    level: list[Any] = [data]
    for _ in range(MOST_DEEP):
        level = [one for value in level for one in _inside(value)]
        if not level:
            break
    else:
        raise BadFile(f"the plan has more than {MOST_DEEP} levels. Write it as `saeflow plan` does.")
    text = json.dumps(data, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadFile(f"the plan has text that is no Unicode ({error.reason}). Write it again.") from None
    return text


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
