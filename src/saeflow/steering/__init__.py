"""Steering with the features of flow graphs: find where to start, plan, generate, judge (sections 3.5 and 5.3).

A `SteeringPlan` is data: features with a strength or a factor each, in a file that a person reads and edits.
`grow`, `targets` and `activation_plan` or `suppression_plan` make one from starting features and an atlas, without
torch; folding, budgets and output scores bring the weights and the model in; `LanguageModel.intervening` applies it
to any generation, and `saeflow.steering.generate` to many samples at once. Names are imported at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeflow.steering.build import PlanRequest, build_plan, plan_of
    from saeflow.steering.generate import Generation, Request
    from saeflow.steering.growth import Chosen, Reach, Target, grow, pick, targets
    from saeflow.steering.output_score import output_scores
    from saeflow.steering.plan import Dropped, SteeringDirection, SteeringPlan, Step, load_plan
    from saeflow.steering.sampling import Sampling
    from saeflow.steering.schedule import Constant, Exponential, Linear, Schedule, ScheduleKind, schedule_from
    from saeflow.steering.sizes import (
        Budget,
        NormShares,
        PlanChange,
        fit_budget,
        hidden_norms,
        norm_sites,
        plan_change,
        shares,
        within,
    )
    from saeflow.steering.starts import Candidate, HeldOutCheck, TextSearch, find_by_texts, find_by_words
    from saeflow.steering.stream_rows import fold_scales, typical_activations
    from saeflow.steering.theme import Task, Theme, load_theme, themes

_HOME = {
    "Budget": "sizes",
    "Constant": "schedule",
    "SteeringDirection": "plan",
    "Dropped": "plan",
    "Exponential": "schedule",
    "Candidate": "starts",
    "Chosen": "growth",
    "Generation": "generate",
    "HeldOutCheck": "starts",
    "Linear": "schedule",
    "PlanChange": "sizes",
    "PlanRequest": "build",
    "Reach": "growth",
    "Request": "generate",
    "Sampling": "sampling",
    "Schedule": "schedule",
    "ScheduleKind": "schedule",
    "NormShares": "sizes",
    "SteeringPlan": "plan",
    "Step": "plan",
    "Target": "growth",
    "Task": "theme",
    "TextSearch": "starts",
    "Theme": "theme",
    "build_plan": "build",
    "find_by_texts": "starts",
    "find_by_words": "starts",
    "fit_budget": "sizes",
    "fold_scales": "stream_rows",
    "grow": "growth",
    "hidden_norms": "sizes",
    "load_plan": "plan",
    "load_theme": "theme",
    "norm_sites": "sizes",
    "output_scores": "output_score",
    "pick": "growth",
    "plan_change": "sizes",
    "plan_of": "build",
    "schedule_from": "schedule",
    "shares": "sizes",
    "targets": "growth",
    "themes": "theme",
    "typical_activations": "stream_rows",
    "within": "sizes",
}

__all__ = [
    "Budget",
    "Candidate",
    "Chosen",
    "Constant",
    "Dropped",
    "Exponential",
    "Generation",
    "HeldOutCheck",
    "Linear",
    "NormShares",
    "PlanChange",
    "PlanRequest",
    "Reach",
    "Request",
    "Sampling",
    "Schedule",
    "ScheduleKind",
    "SteeringDirection",
    "SteeringPlan",
    "Step",
    "Target",
    "Task",
    "TextSearch",
    "Theme",
    "build_plan",
    "find_by_texts",
    "find_by_words",
    "fit_budget",
    "fold_scales",
    "grow",
    "hidden_norms",
    "load_plan",
    "load_theme",
    "norm_sites",
    "output_scores",
    "pick",
    "plan_change",
    "plan_of",
    "schedule_from",
    "shares",
    "targets",
    "themes",
    "typical_activations",
    "within",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'saeflow.steering' has no attribute {name!r}")
    return getattr(import_module(f"saeflow.steering.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)
