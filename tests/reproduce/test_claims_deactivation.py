"""Each claim on removing predecessors, on planted trials in which it is true, false and open."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from saeflow.paper.claims import claims
from saeflow.paper.evidence import Evidence
from saeflow.paper.verdicts import FAILS, HOLDS, OPEN, Verdict
from tests.reproduce.claim_worlds import Cut, mostly, trials

CLAIMS = {claim.id: claim for claim in claims()}
Text = Sequence[Sequence[Cut]]
ALL3 = "RES & MLP & ATT"


def rate(strategy: str, group: str, gone: int, kept: int, **how: object) -> list[list[Cut]]:
    """Targets of a group of which a strategy silences some."""
    return [[Cut(strategy, group, gone=i < gone, change=float(i < gone), **how)] for i in range(gone + kept)]  # pyright: ignore[reportArgumentType]


def versus(gone: Sequence[bool], other: Sequence[bool], name: str) -> list[list[Cut]]:
    """Targets of top-1 and of another strategy."""
    return [[Cut("top-1", "RES", gone=a), Cut(name, "RES", gone=b)] for a, b in zip(gone, other, strict=True)]


def changes(**groups: float) -> list[list[Cut]]:
    """One removal in each group by its name: `RES`, `RES_MLP`; `RES__RES_MLP` removes RES in RES & MLP."""
    found: list[list[Cut]] = []
    for name, change in groups.items():
        removed, _, group = name.rpartition("__")
        words = (part.replace("_", " & ") for part in (group, removed))
        found.append([Cut("top-1", next(words), next(words), change=change)])
    return found


def swept(r: float, high: str, others: Sequence[str], sign: float = 1.0) -> list[list[Cut]]:
    """A group that changes most at some r, in the midst of others."""
    names = [high, *others]
    return [
        [Cut("top-1", n, r=0.0, change=0.5), Cut("top-1", n, r=r, change=sign * (0.9 if n == high else 0.1))]
        for n in names
    ]


def two_strategies(name: str, first: dict[str, int], second: dict[str, int]) -> list[list[Cut]]:
    """Out of ten targets a group, how many each strategy silences."""
    found: list[list[Cut]] = []
    for group, n in first.items():
        found += [[Cut("top-1", group, gone=i < n), Cut(name, group, gone=i < second[group])] for i in range(10)]
    return found


def found_groups(first: Sequence[str], second: Sequence[str]) -> list[list[Cut]]:
    return [[Cut("top-1", a), Cut("top-5", b)] for a, b in zip(first, second, strict=True)]


def orphans(silent: int, orphaned: int) -> list[list[Cut]]:
    """RES removed beside a module: so many silent, so many left without any predecessor, the rest as they were."""
    found: list[list[Cut]] = []
    for group in ("RES & MLP", "RES & ATT"):
        for i in range(10):
            new = "nowhere" if i < silent + orphaned else group.removeprefix("RES & ")
            found.append([Cut("top-1", group, "RES", gone=i < silent, new=new)])
    return found


def needing(every: bool) -> list[list[Cut]]:
    """Targets that all predecessors silence, and one alone does or does not."""
    return [[Cut("top-1", "RES & MLP", "RES", gone=not every), Cut("top-1", "RES & MLP", gone=True)] for _ in range(4)]


def searched(gone: bool) -> list[list[Cut]]:
    return [[Cut("top-1", "RES"), Cut("exhaustive", "RES", change=0.5, gone=gone)] for _ in range(4)]


def losing(combined: float) -> list[list[Cut]]:
    groups = {"RES": 0.01, "RES & MLP": combined, ALL3: combined}
    return [[Cut("top-1", group, loss=loss)] for group, loss in groups.items()]


def bent(half: float) -> list[list[Cut]]:
    return [[Cut("top-1", "RES", change=0.8), Cut("top-1", "RES", r=0.5, change=half)]]


MODULES = {"MLP": 3, "ATT": 6}
COMBOS = {"RES & MLP": 5, "RES & ATT": 5, ALL3: 5}
SINGLES = ["RES", "MLP", "ATT"]
MIXED = ["RES & MLP", "RES & ATT", ALL3]
HALF = [True, False] * 5

WORLDS: dict[str, tuple[Text, Text]] = {
    "fig6-random": (versus([True] * 10, HALF, "random of top-5"), versus(HALF, [True] * 10, "random of top-5")),
    "fig6-cause": (rate("top-1", "RES", 8, 2), rate("top-1", "RES", 2, 8, control=True)),
    "fig6-modules": (two_strategies("top-5", MODULES, MODULES), two_strategies("top-5", MODULES, {"MLP": 8, "ATT": 9})),
    "fig6-combined": (
        two_strategies("top-5", MODULES | COMBOS, MODULES | dict.fromkeys(COMBOS, 9)),
        two_strategies("top-5", MODULES | COMBOS, {"MLP": 9, "ATT": 9} | COMBOS),
    ),
    "sec6-residual": (
        changes(RES=0.9, MLP=0.3, ATT=0.5, RES__RES_MLP=0.8, MLP__RES_MLP=0.2, RES__RES_ATT=0.8, ATT__RES_ATT=0.2),
        changes(RES=0.2, MLP=0.7, ATT=0.8, RES__RES_MLP=0.1, MLP__RES_MLP=0.6, RES__RES_ATT=0.1, ATT__RES_ATT=0.6),
    ),
    "fig7-positive": (
        [t for g in MIXED for t in swept(2.0, g, [], -1)] + [[Cut("top-1", g, r=2.0, change=-0.1)] for g in SINGLES],
        [t for g in SINGLES for t in swept(2.0, g, [], -1)] + [[Cut("top-1", g, r=2.0, change=-0.1)] for g in MIXED],
    ),
    "fig7-negative": (swept(-1.0, "RES", ["MLP", "ATT"]), swept(-1.0, "MLP", ["RES", "ATT"])),
    "fig7-loss": (losing(0.04), losing(0.002)),
    "fig7-bent": (bent(0.6), bent(0.4)),
    "fig8-alone": (
        changes(RES=0.9, MLP=0.5, ATT=0.7, RES__RES_MLP=0.5, MLP__RES_MLP=0.2, ATT__RES_ATT=0.2),
        changes(RES=0.4, MLP=0.1, ATT=0.1, RES__RES_MLP=0.9, MLP__RES_MLP=0.6, ATT__RES_ATT=0.6),
    ),
    "table1-alike": (versus(HALF, HALF, "pearson top-1"), versus([True] * 10, HALF, "pearson top-1")),
    "fig15-more": (
        found_groups(["nowhere", "RES", "MLP"], ["RES", "RES & MLP", "RES & MLP"]),
        found_groups(["RES", "RES & MLP", "RES & MLP"], ["nowhere", "RES", "MLP"]),
    ),
    "fig15-equal": (orphans(4, 4), orphans(8, 1)),
    "fig15-full": (needing(True), needing(False)),
    "fig15-new": (rate("top-1", "RES", 0, 20), rate("top-1", "RES", 0, 4, new="MLP")),
    "fig15-missed": (searched(True), searched(False)),
}
"""Claims with a text in which each is true, and one in which it is false."""


def verdict(name: str, texts: Sequence[Text]) -> Verdict:
    return CLAIMS[name].check(Evidence(deactivation=trials(texts)))


@pytest.mark.parametrize("name", WORLDS)
def test_a_claim_holds_fails_or_is_open_as_its_texts_are(name: str) -> None:
    true, false = WORLDS[name]
    assert verdict(name, mostly(true, false)).outcome == HOLDS
    assert verdict(name, mostly(false, true)).outcome == FAILS
    found = verdict(name, [true, false] * 3)
    assert found.outcome == OPEN
    assert found.measured


def test_every_claim_of_the_stage_is_planted() -> None:
    assert set(WORLDS) == {claim.id for claim in claims() if claim.stage == "deactivation"}


def test_the_control_stands_beside_the_number() -> None:
    """Controls silence a quarter of the targets in one group and none in the other."""
    alone = [[Cut("top-1", "MLP", gone=True, control=i < 1)] for i in range(4)]
    both = [[Cut("top-1", "RES & MLP", "MLP", gone=True, control=False)] for _ in range(4)]
    found = verdict("fig8-alone", [alone + both] * 2)
    part = next(one for one in found.findings if "MLP" in one.words)
    assert part.control.value == pytest.approx(0.25)


def test_a_strategy_is_compared_with_its_own_control_whichever_was_run_first() -> None:
    """The control of the first strategy silences every target, that of top-1 none."""
    pearson, top = Cut("pearson top-1", "RES", control=True), Cut("top-1", "RES", gone=True, control=False)
    for cuts in ([pearson, top], [top, pearson]):
        [found] = verdict("fig6-cause", [[cuts] * 4] * 6).findings
        assert found.found.value == pytest.approx(1.0)
        assert found.beside == "100.0 % against 0.0 %"


def test_a_strategy_that_was_not_run_is_named() -> None:
    found = verdict("table1-alike", [rate("top-1", "RES", 1, 1)] * 2)
    assert (found.outcome, found.why) == (OPEN, "The strategy pearson top-1 was not run.")
