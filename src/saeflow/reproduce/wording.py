"""Verdicts in words: numbers with their intervals, and one sentence for each claim. No torch."""

from __future__ import annotations

import itertools
import math
from typing import Final

from saeflow.experiments.statistics import Estimate
from saeflow.reproduce.verdicts import Contrast, Kind, Outcome, Rule, Unit, Verdict

MINUS: Final = "\u2212"
_SAID: Final = {
    (Kind.ABOVE, Outcome.HOLDS): "above {0}, as claimed",
    (Kind.ABOVE, Outcome.FAILS): "below {0}",
    (Kind.BELOW, Outcome.HOLDS): "below {0}, as claimed",
    (Kind.BELOW, Outcome.FAILS): "above {0}",
    (Kind.WITHIN, Outcome.HOLDS): "within {0} of 0",
    (Kind.WITHIN, Outcome.FAILS): "farther than {0} from 0",
    (Kind.APART, Outcome.HOLDS): "farther than {0} from 0",
    (Kind.APART, Outcome.FAILS): "within {0} of 0",
}


def interval(found: Estimate, unit: Unit, rule: Rule | None = None) -> str:
    """`+4.9 pp (4.3 to 5.5)`; the value alone where there is no interval or it is a point; a dash without one.

    With a rule there are digits enough to see on which side of its bound the interval ends.
    """
    if found.value is None:
        return "\u2013"
    digits = _digits(found, unit, rule)
    value = _number(found.value, unit, digits, signed=unit in (Unit.POINTS, Unit.NUMBER)) + _UNITS[unit]
    if found.low is None or found.high is None or found.low == found.high:
        return value
    return f"{value} ({_number(found.low, unit, digits)} to {_number(found.high, unit, digits)})"


_UNITS: Final = {Unit.POINTS: "\u00a0pp", Unit.SHARE: "\u00a0%", Unit.NUMBER: "", Unit.LEVEL: "", Unit.COUNT: ""}


def _digits(found: Estimate, unit: Unit, rule: Rule | None) -> int:
    """So many that the width of the interval shows, and that an end beside a bound does not look like it."""
    if unit is Unit.COUNT:
        return 0
    share = unit in (Unit.POINTS, Unit.SHARE)
    width = abs((found.high or 0.0) - (found.low or 0.0)) or abs(found.value or 0.0)
    digits = 1 if share else min(5, max(2, -math.floor(math.log10(width)))) if width > 0 else 2
    bounds = () if rule is None else (rule.bound, -rule.bound)
    scale = 100 if share else 1
    while digits < 5 and any(
        end is not None and end != edge and round(scale * end, digits) == round(scale * edge, digits)
        for end, edge in itertools.product((found.low, found.high), bounds)
    ):
        digits += 1
    return digits


def _number(value: float, unit: Unit, digits: int, *, signed: bool = False) -> str:
    shown = f"{100 * value if unit in (Unit.POINTS, Unit.SHARE) else value:.{digits}f}"
    if float(shown) == 0:
        return shown.lstrip("-")
    return shown.replace("-", MINUS) if value < 0 else f"+{shown}" if signed else shown


def bound(contrast: Contrast) -> str:
    """The bound of a rule in the unit of its number."""
    value, unit = contrast.rule.bound, contrast.unit
    if unit is Unit.POINTS:
        return "0" if value == 0 else f"{100 * value:g} points"
    return f"{100 * value:g}\u00a0%" if unit is Unit.SHARE else f"{value:.4g}"


def told(contrast: Contrast) -> str:
    """A contrast as a sentence without a full stop."""
    words = contrast.words[:1].upper() + contrast.words[1:]
    text = f"{words}: {interval(contrast.found, contrast.unit, contrast.rule)}"
    if contrast.outcome is not Outcome.OPEN:
        text += f", {_SAID[contrast.rule.kind, contrast.outcome].format(bound(contrast))}"
    elif contrast.found.low is not None and contrast.rule.kind in (Kind.ABOVE, Kind.BELOW):
        text += f", which includes {bound(contrast)}"
    elif contrast.found.low is not None:
        text += f", neither wholly within {bound(contrast)} of 0 nor wholly outside"
    if contrast.beside:
        text += f"; {contrast.beside}"
    if contrast.control.value is not None:
        text += f"; its control {interval(contrast.control, contrast.unit)}"
    return text


def sentence(verdict: Verdict, *, any_of: bool = False) -> str:
    """The verdict with the number that decides it, and how many parts of the claim go which way."""
    if verdict.deciding is None or verdict.deciding.found.value is None:
        return verdict.why
    parts = verdict.contrasts
    text = f"{told(verdict.deciding)}."
    if len(parts) == 1:
        return text
    count = {outcome: sum(part.outcome is outcome for part in parts) for outcome in Outcome}
    held = f"It holds in {count[Outcome.HOLDS]} of {len(parts)}"
    if not any_of:
        n = count[Outcome.HOLDS]
        held = f"{n or 'None'} of its {len(parts)} parts {'hold' if n > 1 else 'holds'}"
    rest = [
        f"{count[outcome]} {word if count[outcome] != 1 else single}"
        for outcome, word, single in (
            (Outcome.FAILS, "do not", "does not"),
            (Outcome.OPEN, "cannot be said", "cannot be said"),
        )
        if count[outcome]
    ]
    return f"{text} {held}{''.join(f', {word}' for word in rest)}."
