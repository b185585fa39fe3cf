"""Every claim of the paper that a run can check: what is said and where, as data, and what measures it. No torch.

    paper/claims.toml  ->  Claim;   Evidence  ->  the claim's contrasts  ->  Verdict

Claims that the paper makes of one release are checked on any, and say of which they were made.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import ModuleType
from typing import Any, Final

from saeflow.errors import SaeflowError
from saeflow.reproduce import (
    claims_activation,
    claims_deactivation,
    claims_graphs,
    claims_methods,
    claims_origins,
    claims_scores,
    claims_steering,
    claims_transition,
)
from saeflow.reproduce.evidence import Evidence
from saeflow.reproduce.verdicts import Contrast, NotMeasured, Outcome, Verdict, verdict_of

_MODULES: Final[dict[str, ModuleType]] = {
    "origins": claims_origins,
    "scores": claims_scores,
    "methods": claims_methods,
    "deactivation": claims_deactivation,
    "steering": claims_steering,
    "activation": claims_activation,
    "transition": claims_transition,
    "graphs": claims_graphs,
}


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim.

    Attributes:
        id: stable, for `claims.json`.
        item: the figure or table it belongs to.
        section: where the paper says it.
        statement: what it says.
        stage: the stage of a reproduction it needs.
        measure: from that stage's run to the numbers it rests on.
        any_of: whether one of them is enough.
        said_of: the release it was said of, where it was not said in general.
    """

    id: str
    item: str
    section: str
    statement: str
    stage: str
    measure: Callable[[Any], Sequence[Contrast]]
    any_of: bool = False
    said_of: str = ""

    def check(self, evidence: Evidence) -> Verdict:
        """The verdict of a reproduction; what is missing is told, never raised."""
        try:
            contrasts = self.measure(getattr(evidence, self.stage))
        except NotMeasured as error:
            return Verdict(Outcome.OPEN, why=str(error))
        except SaeflowError as error:
            return Verdict(Outcome.OPEN, why=f"It cannot be measured: {error}")
        return verdict_of(contrasts, any_of=self.any_of)


@cache
def claims() -> tuple[Claim, ...]:
    """All claims, in the order of the paper's figures and tables."""
    text = (files("saeflow.reproduce") / "paper" / "claims.toml").read_text(encoding="utf-8")
    found: list[Claim] = []
    rows: list[dict[str, Any]] = tomllib.loads(text)["claim"]
    for told in rows:
        module, name = told["measure"].split(".")
        told["statement"] = " ".join(told["statement"].split())
        told["measure"] = getattr(_MODULES[module], name)
        found.append(Claim(**told))
    return tuple(found)
