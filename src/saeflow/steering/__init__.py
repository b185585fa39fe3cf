"""Steering with the features of flow graphs: find where to start, plan, generate, judge (sections 3.5 and 5.3).

A `SteeringPlan` is data: features with a strength or a factor each, in a file that a person reads and edits.
`build_plan` makes one from starting features and an atlas, without torch unless folding, budgets or output scores need
the weights and the model. `LanguageModel.intervening` applies it to any generation, and `saeflow.steering.generate` to
many samples at once. Names are imported at first use.
"""

# ruff: noqa: F401, PLE0604 - names are listed once, by module
# pyright: reportUnusedImport=false, reportUnsupportedDunderAll=false

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from saeflow.steering.build import PlanRequest, build_plan, plan_of
    from saeflow.steering.directions import text_means, theme_directions
    from saeflow.steering.generate import Generation, Request, Sampling
    from saeflow.steering.growth import Chosen, Reach, Target, grow, pick, targets
    from saeflow.steering.output_score import output_scores
    from saeflow.steering.plan import Dropped, SteeringDirection, SteeringPlan, Step, load_plan
    from saeflow.steering.schedule import Constant, Exponential, Linear, Schedule, ScheduleKind, schedule_from
    from saeflow.steering.sizes import (
        Budget,
        NormShares,
        PlanChange,
        centred_norms,
        fit_budget,
        fold_scales,
        norm_sites,
        plan_change,
        shares,
        typical_activations,
        within,
    )
    from saeflow.steering.starts import Candidate, HeldOutCheck, TextSearch, find_by_texts, find_by_words
    from saeflow.steering.theme import Task, Theme, load_theme, themes
    from saeflow.steering.theme_search import FoundTheme, ThemeSearch, search_themes

_NAMES: Final = {
    "build": "PlanRequest build_plan plan_of",
    "directions": "text_means theme_directions",
    "generate": "Generation Request Sampling",
    "growth": "Chosen Reach Target grow pick targets",
    "output_score": "output_scores",
    "plan": "Dropped SteeringDirection SteeringPlan Step load_plan",
    "schedule": "Constant Exponential Linear Schedule ScheduleKind schedule_from",
    "sizes": "Budget NormShares PlanChange fit_budget fold_scales centred_norms norm_sites plan_change shares "
    "typical_activations within",
    "starts": "Candidate HeldOutCheck TextSearch find_by_texts find_by_words",
    "theme": "Task Theme load_theme themes",
    "theme_search": "FoundTheme ThemeSearch search_themes",
}
_HOME: Final = dict(sorted((name, module) for module, names in _NAMES.items() for name in names.split()))

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'saeflow.steering' has no attribute {name!r}")
    return getattr(import_module(f"saeflow.steering.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)
