"""The stages of a reproduction, and which figures and tables of arXiv 2502.03032 each answers. No torch.

atlas         match tables of the release, and what scores are by chance
graphs        flow graphs: figures 2, 20, 21 and table 5
origins       section 5.1, appendices C.1, C.4 and D: figures 3, 4, 5, 12, 13, 14, 18, 19
deactivation  section 5.2, appendix C.2: figures 6, 7, 8, 15 and table 1
steering      section 5.3, appendices B and C.3: figures 9, 10, 11, 16, 17, from tables 2, 3, 4
transition    appendix F: figures 23 and 24
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.reproduce.recipe import Recipe


class Stage(enum.StrEnum):
    """A part of a run, in the order in which they are done."""

    ATLAS = "atlas"
    GRAPHS = "graphs"
    ORIGINS = "origins"
    DEACTIVATION = "deactivation"
    STEERING = "steering"
    TRANSITION = "transition"


class State(enum.StrEnum):
    """How far a stage has come, as `reproduction.json` says it."""

    DONE = "done"
    PARTIAL = "partial"
    LEFT_OUT = "left out"


ITEMS: Final[Mapping[Stage, tuple[str, ...]]] = {
    Stage.ATLAS: (),
    Stage.GRAPHS: ("fig2", "fig20", "fig21", "table5"),
    Stage.ORIGINS: ("fig3", "fig4", "fig5", "fig12", "fig13", "fig14", "fig18", "fig19"),
    Stage.DEACTIVATION: ("fig6", "fig7", "fig8", "fig15", "table1"),
    Stage.STEERING: ("fig9", "fig10", "fig11", "fig16", "fig17", "table2", "table3", "table4"),
    Stage.TRANSITION: ("fig23", "fig24"),
}
"""What each stage answers."""

SCHEMAS: Final[Mapping[str, str]] = {
    "fig1": "a drawing that explains the method; nothing is measured",
    "fig22": "a drawing that explains the method; nothing is measured",
}
"""Figures that no run can answer."""

FROM_WEIGHTS: Final = frozenset({"table5"})
"""Items that need no atlas: a single graph is grown faster from the weights."""


def items_of(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """The figures and tables that a stage of a recipe answers."""
    if stage not in recipe.sizes:
        return ()
    return tuple(item for item in ITEMS[stage] if item not in recipe.unanswered)


def parse_only(recipe: Recipe, names: Iterable[str]) -> tuple[str, ...]:
    """The items asked for, in the paper's order; none for all.

    "fig5", "figure 5" and "Figure5" are the same; "5" alone is refused, for there are tables too.

    Raises:
        InvalidArgument: for a name that is no figure or table, or one that the recipe cannot answer, with the reason.
    """
    known = [item for items in ITEMS.values() for item in items]
    found: set[str] = set()
    for name in names:
        item = name.strip().lower().replace(" ", "").replace("figure", "fig")
        if item in recipe.unanswered:
            raise InvalidArgument(
                f"the recipe {recipe.name} does not answer {item}: {recipe.unanswered[item]}. Leave it out of --only."
            )
        if item not in known:
            raise InvalidArgument(
                f"--only names {name.strip()!r}, which is no figure or table of the paper. Write figures as fig5 and "
                f"tables as table1; this recipe answers {', '.join(sorted(answered(recipe), key=order))}."
            )
        if item not in answered(recipe):
            raise InvalidArgument(f"the recipe {recipe.name} has no stage for {item}. Leave it out of --only.")
        found.add(item)
    return tuple(sorted(found, key=order))


def answered(recipe: Recipe) -> tuple[str, ...]:
    """Every item that a recipe answers."""
    return tuple(item for stage in Stage for item in items_of(recipe, stage))


def order(item: str) -> tuple[str, int]:
    """Sorts items: figures by number, then tables."""
    kind = item.rstrip("0123456789")
    return kind, int(item[len(kind) :])


def stages_for(recipe: Recipe, only: Collection[str]) -> tuple[Stage, ...]:
    """The stages that the items asked for need, all of the recipe's when none is named, in order."""
    if not only:
        return tuple(stage for stage in Stage if stage in recipe.sizes)
    needed = {stage for stage in Stage if set(items_of(recipe, stage)) & set(only)}
    # transitions come from the weights themselves, and so does a single published graph
    if any(set(items_of(recipe, stage)) & set(only) - FROM_WEIGHTS for stage in needed - {Stage.TRANSITION}):
        needed.add(Stage.ATLAS)
    return tuple(stage for stage in Stage if stage in needed and stage in recipe.sizes)


def short(items: Sequence[str]) -> str:
    """Figures and tables in few letters, for a terminal: "fig 3-5 18, table 1"."""
    kinds = {"fig": [int(i[3:]) for i in items if i[:3] == "fig"], "table": [int(i[5:]) for i in items if i[0] == "t"]}
    return ", ".join(f"{kind} {_ranges(sorted(numbers))}" for kind, numbers in kinds.items() if numbers)


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs)
