"""How a claim is judged: contrasts with intervals, a rule for each, and three outcomes. No torch.

    estimate with its 95 % interval  ->  rule  ->  holds | does not hold | cannot be said

A claim of a difference holds only if the interval lies wholly on the claimed side, and does not hold only if it lies
wholly on the other. A claim that two things are alike names how alike: it holds if the interval lies within that
margin, and does not if it lies outside. Everything else cannot be said from this run.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from saeflow.errors import SaeflowError
from saeflow.experiments.statistics import Estimate

FEWEST: Final = 6
"""Texts that a verdict needs: five that all agree may do so by chance (sign test, 2 / 2^5 > 0.05)."""

UNKNOWN: Final = Estimate(None, None, None, 0)


class NotMeasured(SaeflowError):
    """What a claim needs is not in the run; the message says what is missing."""


class Outcome(enum.StrEnum):
    """What can be said of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "cannot be said"


class Unit(enum.StrEnum):
    """How a number of a contrast is written."""

    POINTS = "points"
    """A difference of shares, in percentage points."""
    SHARE = "share"
    """A share, in percent."""
    NUMBER = "number"
    """A difference of numbers, with its sign."""
    LEVEL = "level"
    """A number that is no difference."""
    COUNT = "count"
    """A whole number."""


class Kind(enum.StrEnum):
    """What a rule asks of a number."""

    ABOVE = "above"
    BELOW = "below"
    WITHIN = "within"
    APART = "apart"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a claim says of a number.

    Attributes:
        kind: ABOVE or BELOW `bound`; WITHIN `bound` of 0 on either side, or APART: farther from 0 than that.
        bound: in the unit of the number; at least 0 for WITHIN and APART.
    """

    kind: Kind
    bound: float = 0.0

    def judge(self, found: Estimate) -> Outcome:
        """The outcome for an estimate; OPEN without an interval, or of fewer than `FEWEST` texts."""
        low, high = found.low, found.high
        if found.value is None or low is None or high is None or _few(found):
            return Outcome.OPEN
        if self.kind in (Kind.ABOVE, Kind.BELOW):
            yes, no = low > self.bound, high < self.bound
            if self.kind is Kind.BELOW:
                yes, no = no, yes
        else:
            yes = -self.bound <= low and high <= self.bound
            no = low > self.bound or high < -self.bound
            if self.kind is Kind.APART:
                yes, no = no, yes
        return Outcome.HOLDS if yes else Outcome.FAILS if no else Outcome.OPEN

    def room(self, found: Estimate) -> float:
        """How far the interval is from the bound where the outcome is clear, in widths of the interval."""
        low, high = found.low, found.high
        if low is None or high is None:
            return 0.0
        width = max(high - low, 1e-12)
        if self.kind in (Kind.ABOVE, Kind.BELOW):
            return max(low - self.bound, self.bound - high, 0.0) / width
        outside = max(low - self.bound, -self.bound - high)
        return (outside if outside > 0 else max(0.0, min(self.bound - high, low + self.bound))) / width


ABOVE_0: Final = Rule(Kind.ABOVE)
BELOW_0: Final = Rule(Kind.BELOW)


@dataclass(frozen=True, slots=True)
class Contrast:
    """One number that a claim rests on.

    Attributes:
        words: what the number is, without a full stop: "s(M) in From MLP less that in From RES".
        found: the number with its interval and how many rows it is from.
        rule: what the claim says of it.
        unit: how it is written.
        control: the same number of the control, where there is one.
        beside: what the number is made of, or where it comes from, in words.
    """

    words: str
    found: Estimate
    rule: Rule
    unit: Unit = Unit.POINTS
    control: Estimate = UNKNOWN
    beside: str = ""

    @property
    def outcome(self) -> Outcome:
        """The rule applied."""
        return self.rule.judge(self.found)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What this run says of a claim.

    Attributes:
        outcome: of the whole claim.
        contrasts: the numbers it rests on; none where nothing was measured.
        deciding: the one that decides: the weakest where it holds, the clearest where it does not.
        why: why it cannot be said; "" otherwise.
    """

    outcome: Outcome
    contrasts: tuple[Contrast, ...] = ()
    deciding: Contrast | None = None
    why: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a number at all."""
        return any(contrast.found.value is not None for contrast in self.contrasts)


def verdict_of(contrasts: Sequence[Contrast], *, any_of: bool = False) -> Verdict:
    """The verdict on a claim that says all, or with `any_of` at least one, of several things.

    All: it holds if each part does, and does not if one part does not. Any: it holds if one part does, and does not
    if no part does; its intervals must be widened for their number by whoever makes them.
    """
    if not contrasts:
        return Verdict(Outcome.OPEN, why="Nothing was measured.")
    outcomes = [contrast.outcome for contrast in contrasts]
    settling, otherwise = Outcome.FAILS, Outcome.HOLDS
    if any_of:
        settling, otherwise = otherwise, settling
    outcome = settling if settling in outcomes else Outcome.OPEN if Outcome.OPEN in outcomes else otherwise
    among = [contrast for contrast in contrasts if contrast.outcome is outcome]
    if outcome is settling:
        deciding = max(among, key=lambda c: c.rule.room(c.found))
    elif outcome is otherwise:
        deciding = min(among, key=lambda c: c.rule.room(c.found))
    else:
        deciding = among[0]
    return Verdict(outcome, tuple(contrasts), deciding, _why(deciding) if outcome is Outcome.OPEN else "")


def _few(found: Estimate) -> bool:
    return found.texts is not None and found.texts < FEWEST


def _why(contrast: Contrast) -> str:
    found, bound = contrast.found, contrast.rule.bound
    if found.value is None:
        return "There is no row to measure it on."
    if _few(found):
        return f"It comes from {found.texts} texts or samples; a verdict needs {FEWEST}: fewer may agree by chance."
    if found.low is None:
        return "There is no interval: all texts give the same number, or it hangs on one of them."
    if contrast.rule.kind in (Kind.WITHIN, Kind.APART):
        return "The interval lies neither wholly within the margin nor wholly outside it."
    return f"The interval includes {bound:g}."
