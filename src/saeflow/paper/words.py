"""Numbers and lists as people write them: percentages, intervals, points, `a, b and c`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saeflow.paper.frame import Interval


def percent(share: float | None, digits: int = 0) -> str:
    """`0.713` as `71 %`; with one more digit below 1 %, and a dash for a gap."""
    if share is None:
        return "–"
    if digits == 0 and 0 < abs(share) < 0.00995:
        digits = 1
    text = f"{100 * share:.{digits}f}".replace("-", "\u2212")
    zero = text.strip("\u22120.") == ""
    return f"{text.lstrip(chr(0x2212)) if zero else text}\u00a0%"


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with a fixed number of decimals and a true minus sign; a dash for a gap."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\u2212")


def count(n: float | None) -> str:
    """`5601` as `5,601`; a dash for a gap."""
    return "–" if n is None else f"{round(n):,}"


def percent_interval(found: Interval) -> str:
    """`71 % (68–74)`; only the value if the interval is unknown."""
    return _with_interval(percent(found.value), found, lambda v: percent(v).removesuffix("\u00a0%"))


def decimal_interval(found: Interval, digits: int = 2) -> str:
    """`0.71 (0.68–0.74)`; only the value if the interval is unknown."""
    return _with_interval(decimal(found.value, digits), found, lambda v: decimal(v, digits))


def points(value: float | None) -> str:
    """A difference of shares in percentage points with its sign: `+3.1`; a dash for a gap."""
    if value is None:
        return "–"
    text = decimal(100 * value, 1)
    return text if value <= 0 or text == "0.0" else f"+{text}"


def points_interval(found: Interval) -> str:
    """`+3.1 (+1.0 to +5.2) pp`: percentage points."""
    if found.low is None or found.high is None:
        return f"{points(found.value)} pp"
    return f"{points(found.value)} ({points(found.low)} to {points(found.high)}) pp"


def _with_interval(value: str, found: Interval, bound: Callable[[float], str]) -> str:
    if found.low is None or found.high is None:
        return value
    # A dash between negative numbers would read as one more minus sign.
    join = " to " if found.low < 0 else "–"
    return f"{value} ({bound(found.low)}{join}{bound(found.high)})"


def capital(text: str) -> str:
    """The text with its first letter capitalised."""
    return text[:1].upper() + text[1:]


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
