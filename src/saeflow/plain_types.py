"""Plain types shared by the parts of saeflow. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple, TypeAlias

from saeflow.ids import FeatureId


class Match(NamedTuple):
    """A matched feature and its score; for cosine matching, the cosine of two decoder rows, in [-1, 1]."""

    feature: FeatureId
    score: float


Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (steps done, total steps, description of the current step)."""


def as_html(thing: Any) -> str:
    """HTML for a notebook: the repr as a caption, then the rows if there are any (at most 20: the first and last)."""
    rows: Any = thing.to_pandas() if hasattr(thing, "to_pandas") else ()
    told = f"<p><code>{escape(repr(thing))}</code></p>"
    return told + rows.to_html(max_rows=20, index=False, border=0) if len(rows) else told
