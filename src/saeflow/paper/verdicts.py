"""How a claim of the paper is judged: findings with intervals, a rule for each, an outcome, and its wording. No torch.

    estimate with its 95 % interval  ->  rule  ->  holds | does not hold | cannot be said

A claim of a difference holds only if the interval lies wholly on the claimed side, and does not hold if it lies wholly
on the other side. It may name the smallest difference that matters: then it does not hold either if the interval
includes 0 and does not reach that far on the claimed side (one of the two one-sided tests of Schuirmann 1987, at
2.5 %). A claim that two things are alike names a margin: it holds if the interval lies within the margin, and does not
hold if it lies outside. All other cases cannot be decided from this run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from saeflow.errors import SaeflowError
from saeflow.experiments.statistics import Estimate

FEWEST: Final = 6
"""Fewest texts for a verdict: five may all agree by chance (sign test, 2 / 2^5 > 0.05)."""

UNKNOWN: Final = Estimate(None, None, None, 0)
MINUS: Final = "\u2212"

VerdictOutcome: TypeAlias = Literal["holds", "does not hold", "cannot be said"]
HOLDS: Final = "holds"
FAILS: Final = "does not hold"
OPEN: Final = "cannot be said"
OUTCOMES: Final[tuple[VerdictOutcome, ...]] = (HOLDS, FAILS, OPEN)

FindingUnit: TypeAlias = Literal["points", "share", "number", "level", "count"]
"""How a number is written: as a difference of shares in percentage points, a share in percent, a signed difference of
numbers, a number that is not a difference, or a whole number.
"""


class NotMeasured(SaeflowError):
    """The run lacks what a claim needs; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a claim says about a number.

    Attributes:
        kind: "above" or "below" `bound`; "within" `bound` of 0 on either side, or "apart": farther from 0 than `bound`.
        bound: in the unit of the number; at least 0 for "within" and "apart".
        least: for "above" and "below", the smallest difference from the bound that matters; 0 if any does. A claim also
            fails if the interval includes the bound and reaches less than this beyond it on the claimed side.
    """

    kind: Literal["above", "below", "within", "apart"]
    bound: float = 0.0
    least: float = 0.0

    def judge(self, found: Estimate) -> VerdictOutcome:
        """The outcome for an estimate; OPEN without an interval, or with fewer than `FEWEST` texts."""
        low, high = found.low, found.high
        if found.value is None or low is None or high is None or _few(found):
            return OPEN
        if self.too_small(found):
            return FAILS
        if self.kind in ("above", "below"):
            yes, no = low > self.bound, high < self.bound
        else:
            yes, no = -self.bound <= low and high <= self.bound, low > self.bound or high < -self.bound
        if self.kind in ("below", "apart"):
            yes, no = no, yes
        return HOLDS if yes else FAILS if no else OPEN

    def too_small(self, found: Estimate) -> bool:
        """Whether the interval includes the bound and reaches less than `least` beyond it on the claimed side."""
        low, high = found.low, found.high
        if low is None or high is None or not low <= self.bound <= high:
            return False
        return self._reach(low, high) < self.least

    def _reach(self, low: float, high: float) -> float:
        """How far an interval goes beyond the bound on the claimed side; infinite for "within" and "apart"."""
        return {"above": high - self.bound, "below": self.bound - low}.get(self.kind, math.inf)

    def room(self, found: Estimate) -> float:
        """How clear an outcome is: how far the interval is from the bound, in widths of the interval; 0 if open."""
        low, high = found.low, found.high
        if low is None or high is None:
            return 0.0
        width = max(high - low, 1e-12)
        if self.too_small(found):
            return (self.least - self._reach(low, high)) / width
        if self.kind in ("above", "below"):
            return max(low - self.bound, self.bound - high, 0.0) / width
        outside = max(low - self.bound, -self.bound - high)
        return (outside if outside > 0 else max(0.0, min(self.bound - high, low + self.bound))) / width


ABOVE_0: Final = Rule("above")
BELOW_0: Final = Rule("below")


@dataclass(frozen=True, slots=True)
class ClaimNumber:
    """One number that a claim rests on.

    Attributes:
        words: what the number is, without a full stop: "s(M) in From MLP less that in From RES".
        found: the number with its interval and the number of rows behind it.
        rule: what the claim says about it.
        unit: how it is written.
        control: the same number for the control, if there is one.
        beside: what the number is made of, or where it comes from, in words.
    """

    words: str
    found: Estimate
    rule: Rule
    unit: FindingUnit = "points"
    control: Estimate = UNKNOWN
    beside: str = ""

    @property
    def outcome(self) -> VerdictOutcome:
        """The outcome of its rule."""
        return self.rule.judge(self.found)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What this run says about a claim.

    Attributes:
        outcome: of the whole claim.
        findings: the numbers it rests on; empty if nothing was measured.
        deciding: the finding that decides: the clearest where one settles the claim, the weakest where all agree, the
            first open one where it cannot be said.
        why: why it cannot be said; "" otherwise.
    """

    outcome: VerdictOutcome
    findings: tuple[ClaimNumber, ...] = ()
    deciding: ClaimNumber | None = None
    why: str = ""

    @property
    def measured(self) -> bool:
        """Whether any number was measured."""
        return any(one.found.value is not None for one in self.findings)


def verdict_of(findings: Sequence[ClaimNumber], *, any_of: bool = False) -> Verdict:
    """The verdict on a claim whose parts all have to hold, or with `any_of` at least one of them.

    All: it holds if every part does, and does not hold if one part does not. Any: it holds if one part does, and does
    not hold if no part does; the caller has to widen the intervals for the number of parts.
    """
    if not findings:
        return Verdict(OPEN, why="Nothing was measured.")
    outcomes = [one.outcome for one in findings]
    settling, otherwise = (HOLDS, FAILS) if any_of else (FAILS, HOLDS)
    outcome = settling if settling in outcomes else OPEN if OPEN in outcomes else otherwise
    among = [one for one in findings if one.outcome == outcome]
    if outcome == settling:
        deciding = max(among, key=lambda one: one.rule.room(one.found))
    elif outcome == otherwise:
        deciding = min(among, key=lambda one: one.rule.room(one.found))
    else:
        deciding = among[0]
    return Verdict(outcome, tuple(findings), deciding, _why(deciding) if outcome == OPEN else "")


def _few(found: Estimate) -> bool:
    return found.texts is not None and found.texts < FEWEST


def _why(finding: ClaimNumber) -> str:
    """Why a finding leaves its claim open."""
    found = finding.found
    if found.value is None:
        return "There is no row to measure it on."
    if _few(found):
        return f"It comes from {found.texts} texts or samples; a verdict needs {FEWEST}: fewer may agree by chance."
    if found.low is None:
        return "There is no interval: all texts give the same number, or it hangs on one of them."
    if finding.rule.kind in ("within", "apart"):
        return "The interval lies neither wholly within the margin nor wholly outside it."
    return f"The interval includes {finding.rule.bound:g}."


# --- in words ---------------------------------------------------------------------------------------------------------

_SAID: Final = {
    ("above", HOLDS): "above {0}, as claimed",
    ("above", FAILS): "below {0}",
    ("below", HOLDS): "below {0}, as claimed",
    ("below", FAILS): "above {0}",
    ("within", HOLDS): "within {0} of 0",
    ("within", FAILS): "farther than {0} from 0",
    ("apart", HOLDS): "farther than {0} from 0",
    ("apart", FAILS): "within {0} of 0",
}
_SIGNS: Final = {"points": "\u00a0pp", "share": "\u00a0%"}


def interval(found: Estimate, unit: FindingUnit, rule: Rule | None = None) -> str:
    """`+4.9 pp (4.3 to 5.5)`; the value only if its interval is unknown or a point; a dash without a value.

    The width of the interval sets the number of digits. With a rule there are enough digits to see on which side of its
    bound the interval ends.
    """
    if found.value is None:
        return "\u2013"
    scale, digits = (100 if unit in _SIGNS else 1), 0
    if unit != "count":
        width = abs((found.high or 0.0) - (found.low or 0.0)) or abs(found.value)
        digits = 1 if unit in _SIGNS else min(5, max(2, -math.floor(math.log10(width)))) if width > 0 else 2
        bounds = () if rule is None else (rule.bound, -rule.bound)
        while digits < 5 and any(
            end is not None and end != edge and round(scale * end, digits) == round(scale * edge, digits)
            for end, edge in itertools.product((found.low, found.high), bounds)
        ):
            digits += 1

    def number(value: float, *, signed: bool = False) -> str:
        shown = f"{scale * value:.{digits}f}"
        if float(shown) == 0:
            return shown.lstrip("-")
        return shown.replace("-", MINUS) if value < 0 else f"+{shown}" if signed else shown

    value = number(found.value, signed=unit in ("points", "number")) + _SIGNS.get(unit, "")
    if found.low is None or found.high is None or found.low == found.high:
        return value
    return f"{value} ({number(found.low)} to {number(found.high)})"


def finding_text(finding: ClaimNumber) -> str:
    """A finding as a sentence without a full stop."""
    unit = finding.unit

    def written(bound: float) -> str:
        if unit == "points":
            return "0" if bound == 0 else f"{100 * bound:g} points"
        return f"{100 * bound:g}\u00a0%" if unit == "share" else f"{bound:.4g}"

    edge, least = written(finding.rule.bound), written(finding.rule.least)
    text = f"{finding.words[:1].upper()}{finding.words[1:]}: {interval(finding.found, unit, finding.rule)}"
    if finding.outcome == FAILS and finding.rule.too_small(finding.found):
        text += f", which includes {edge} and nothing {least} {finding.rule.kind} it: no difference that matters"
    elif finding.outcome != OPEN:
        text += f", {_SAID[finding.rule.kind, finding.outcome].format(edge)}"
    elif finding.found.low is not None and finding.rule.kind in ("above", "below"):
        text += f", which includes {edge}"
    elif finding.found.low is not None:
        text += f", neither wholly within {edge} of 0 nor wholly outside"
    if finding.beside:
        text += f"; {finding.beside}"
    if finding.control.value is not None:
        text += f"; its control {interval(finding.control, unit)}"
    return text


def sentence(verdict: Verdict, *, any_of: bool = False) -> str:
    """The verdict in words: the number that decides it, and how many parts of the claim hold, fail or stay open."""
    if verdict.deciding is None or verdict.deciding.found.value is None:
        return verdict.why
    parts = verdict.findings
    text = f"{finding_text(verdict.deciding)}."
    if len(parts) == 1:
        return text
    held, failed, left = (sum(part.outcome == outcome for part in parts) for outcome in OUTCOMES)
    said = f"{held or 'None'} of its {len(parts)} parts {'hold' if held > 1 else 'holds'}"
    if any_of:
        said = f"It holds in {held} of {len(parts)}"
    if failed:
        said += f", {failed} {'do not' if failed != 1 else 'does not'}"
    if left:
        said += f", {left} cannot be said"
    return f"{text} {said}."


def in_percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"
