"""Plain types that pass between the parts of saeflow. No torch."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple, TypeAlias

from saeflow.ids import FeatureId


class Match(NamedTuple):
    """A matched feature and its score: for cosine matching that of two decoder rows, in [-1, 1]."""

    feature: FeatureId
    score: float


Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is being done)."""


def as_html(thing: Any) -> str:
    """What a notebook shows: the repr as a caption, and the rows where there are some, the first and last of many."""
    rows: Any = thing.to_pandas() if hasattr(thing, "to_pandas") else ()
    told = f"<p><code>{escape(repr(thing))}</code></p>"
    return told + rows.to_html(max_rows=20, index=False, border=0) if len(rows) else told
