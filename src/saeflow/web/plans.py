"""Plans as the page asks for them: of exactly the features picked, or of the graphs of some starts.

Without a model a plan has strengths as lengths along unit rows; with one they are folded, in units of each feature's
threshold (appendix B.2), and can be held within a budget: then the plan is made at the desk. Imports no torch by
itself; `steering.build` does where it folds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from saeflow.errors import InvalidArgument
from saeflow.flow.scores import Thresholds
from saeflow.ids import Part
from saeflow.steering.build import PlanRequest, build_plan
from saeflow.steering.growth import Reach
from saeflow.steering.plan import Direction, SteeringPlan
from saeflow.steering.schedule import Schedule, schedule_from
from saeflow.web.asked import PlanAsked
from saeflow.web.desk import Desk
from saeflow.web.explorer import Explorer
from saeflow.web.lookups import Bounded
from saeflow.web.problems import NoModel

TEXTS_EACH: Final = 4
"""Texts of each domain of the demo pack that hidden norms are measured on where a theme has none."""

_ALONE: Final = Thresholds(res=1.0, mlp=1.0, att=1.0)
"""Graphs of one node: what is picked is changed, and nothing else."""


def make_plan(explorer: Explorer, asked: PlanAsked) -> SteeringPlan:
    """The plan that was asked for.

    Raises:
        NoModel: when it needs a model, and there is none.
        Busy: when the model has too much to do.
        SaeflowError: when it cannot be made as asked.
    """
    request = _request(explorer, asked)
    # grown once without weights, which takes no time: a slip is told before the model is waited for
    build_plan(request.from_graphs_alone(), atlas=Bounded(explorer.atlas))
    if not request.needs_dictionaries:
        made = build_plan(request, atlas=Bounded(explorer.atlas), words=explorer.words)
    else:
        made = _at(_desk(explorer), explorer, request)
    if asked.features:
        made = replace(made, steps=tuple(replace(step, why="picked") for step in made.steps))
    return made


def _request(explorer: Explorer, asked: PlanAsked) -> PlanRequest:
    if asked.features and asked.starts:
        raise InvalidArgument(
            "features and starts are both given. Give features to change exactly these, or starts to grow graphs."
        )
    theme = explorer.theme(asked.theme).name if asked.theme else ""
    if not (asked.features or asked.starts or theme):
        raise InvalidArgument("a plan needs features. Give features, starts or a theme.")
    chosen = tuple(explorer.feature(name) for name in dict.fromkeys(asked.features or asked.starts))
    left_out = [str(feature) for feature in chosen if feature.part.value not in asked.parts]
    if asked.features and left_out:
        raise InvalidArgument(f"{', '.join(left_out[:5])} are of parts that are left out. Add these to parts.")
    cuts = asked.thresholds
    plain = {"t_res", "t_mlp", "t_att"} & cuts.model_fields_set
    if cuts.fdr is not None and plain:
        raise InvalidArgument(f"calibrated thresholds replace {', '.join(sorted(plain))}. Give either those, or fdr.")
    thresholds = explorer.thresholds(res=cuts.t_res, mlp=cuts.t_mlp, att=cuts.t_att, fdr=cuts.fdr)
    return PlanRequest(
        release=explorer.release,
        direction=Direction(asked.direction),
        theme=theme,
        starts=chosen,
        schedule=_schedule(asked),
        r=asked.r,
        reach=Reach(asked.reach),
        upto=asked.upto,
        thresholds=_ALONE if asked.features else thresholds,
        k=cuts.k,
        parts=tuple(Part(part) for part in dict.fromkeys(asked.parts)),
        keep=chosen if asked.features else None,
        fold=explorer.desk is not None if asked.fold is None else asked.fold,
        budget_layer=asked.budget_layer,
        budget_total=asked.budget_total,
        shares=False,  # measured with a budget alone: it takes seconds, and a slider is moved often
    )


def _schedule(asked: PlanAsked) -> Schedule:
    told = asked.schedule.model_dump(exclude_none=True)
    return schedule_from(told)


def _desk(explorer: Explorer) -> Desk:
    if explorer.desk is None:
        raise NoModel("folding and budgets")
    return explorer.desk


def _at(desk: Desk, explorer: Explorer, request: PlanRequest) -> SteeringPlan:
    """The plan, made with the weights and the model."""

    def build(dictionaries: Any, model: Any) -> SteeringPlan:
        return build_plan(
            request,
            atlas=Bounded(explorer.atlas),
            dictionaries=dictionaries,
            model=model,
            words=explorer.words,
            texts=_texts(explorer, request),
        )

    return desk.submit(lambda worker: worker.lend(build)).result()


def _texts(explorer: Explorer, request: PlanRequest) -> list[str]:
    """What hidden norms are measured on: texts of the demo pack, unless a theme has its own."""
    if explorer.release != "demo" or (request.theme and explorer.theme(request.theme).examples):
        return []
    from saeflow.demo.texts import DOMAINS, texts

    return [text for domain in DOMAINS for text in texts(domain, TEXTS_EACH, 0)]
