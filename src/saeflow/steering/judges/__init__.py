"""Judges of generated text: language quality and presence of a theme, 0 to 5 each (section 4.2, appendix B).

    LLMJudge       asks a language model, with the rubrics of the paper; costs requests, answers are kept
    OfflineJudge   the unsteered model's loss and a classifier of topics; no key, no network, deterministic

Both come with the extra "judge". Any object with a `name` and a `score` is a judge too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saeflow.steering.judges.scores import HIGHEST, Judge, Judged, Score

if TYPE_CHECKING:
    from saeflow.steering.judges.llm import LLMJudge
    from saeflow.steering.judges.offline import OfflineJudge

__all__ = ["HIGHEST", "Judge", "Judged", "LLMJudge", "OfflineJudge", "Score"]

_HOME = {"LLMJudge": "llm", "OfflineJudge": "offline"}


def __getattr__(name: str) -> Any:
    """The two judges, each imported at first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
