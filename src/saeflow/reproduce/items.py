"""Every figure and table of the paper in its order: what it shows, what the paper says of it, what of ours answers it.

Tables 2 to 4 are inputs, figures 1 and 22 drawings; the other items are answered by tables of a stage, filtered to what
the paper shows: cosine matching, one direction of steering, all pairs of sites together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

RESULT, GRAPH, INPUT, SCHEMA = "result", "graph", "input", "schema"


@dataclass(frozen=True, slots=True)
class Shown:
    """A table of a stage that an item shows, and which of its rows."""

    table: str
    where: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Item:
    """A figure or a table of the paper.

    Attributes:
        id: "fig5", "table1".
        title: what it shows.
        states: what the paper says of it, in our words; "" where it says nothing that is not a claim of its own.
        stage: the stage that answers it; "" for none.
        shows: what is drawn of ours.
        kind: "result", "graph", "input" or "schema".
        seed: of a graph, the feature it was grown from in the paper.
        also: items of ours that show the same for this run.
        untested: what the paper says of it and no run can check, each with the reason.
    """

    id: str
    title: str
    states: str
    stage: str = ""
    shows: tuple[Shown, ...] = ()
    kind: str = RESULT
    seed: str = ""
    also: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """ "Figure 5", "Table 1"."""
        kind = self.id.rstrip("0123456789")
        return f"{'Figure' if kind == 'fig' else 'Table'} {self.id[len(kind) :]}"


@cache
def items() -> tuple[Item, ...]:
    """All figures and tables, in the order of the paper."""
    text = (files("saeflow.reproduce") / "paper" / "items.toml").read_text(encoding="utf-8")
    return tuple(_item(told) for told in tomllib.loads(text)["item"])


def _item(told: dict[str, Any]) -> Item:
    changed: dict[str, Any] = dict(told)
    changed["shows"] = tuple(
        Shown(row["table"], {key: value for key, value in row.items() if key != "table"})
        for row in told.get("shows", ())
    )
    changed |= {key: _flowed(told.get(key, "")) for key in ("title", "states")}
    changed["untested"] = tuple(_flowed(text) for text in told.get("untested", ()))
    changed["also"] = tuple(told.get("also", ()))
    return Item(**changed)


def _flowed(text: str) -> str:
    return " ".join(text.split())


@cache
def by_id() -> dict[str, Item]:
    """Every item under its id."""
    return {item.id: item for item in items()}
