"""What a table of a steering sweep says, computed from its numbers (section 5.3, appendix C.3).

Rows of one theme and direction give a sentence on them; rows of many give one that counts themes. Which
setting is best is chosen on the rows that are told, except in `steering_best` and `steering_paired`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from saeflow.report.figures.frame import Frame, Row, count, decimal, decimal_interval, percent
from saeflow.report.figures.readings_trials import listed
from saeflow.report.figures.steering_marks import (
    MULTI,
    SUPPRESS,
    VERBS,
    best,
    default_of,
    dose,
    look,
    methods,
    of_methods,
    place,
    setting,
)  # fmt: skip


def _directions(frame: Frame) -> list[tuple[str, Frame]]:
    return [(word, frame.where(direction=word)) for word in frame.distinct("direction")]


def _themes(frame: Frame) -> dict[str, Frame]:
    return {theme: frame.where(theme=theme) for theme in frame.distinct("theme")}


def _verb(direction: str) -> str:
    return VERBS.get(direction, direction)


def _scored(row: Row) -> str:
    """`exponential (layers to 7, s = 4) 0.41 (0.35–0.47)`."""
    found, how = row.estimate("score"), setting(row)
    name = look(row.words("method")).name + (f" [{how}]" if how else "")
    return f"{name} {decimal_interval(found)}" if found else ""


def _unsteered(frame: Frame) -> str:
    value = default_of(frame)
    return "" if value is None else f"; unsteered it is {decimal(value)}"


def by_layer(frame: Frame) -> str:
    """The best layer of each method and how it moves with r."""
    told: list[str] = []
    for direction, rows in _directions(frame):
        themes = _themes(rows)
        tell = _layers_by_dose if direction == SUPPRESS else _best_layers
        if len(themes) == 1:
            told.append(tell(rows))
        elif direction == SUPPRESS:
            told.append(_moves(themes))
        else:
            told.append(_where_best(themes))
    return " ".join(word for word in told if word)


def _ends(frame: Frame) -> tuple[Row, Row] | None:
    """The best layers at the r nearest to 1 and at the one farthest from it, of the single-layer method."""
    rows = [row for row in frame.where(method="single").records if row.number("score") is not None]
    doses = sorted({r for row in rows if (r := row.number("value")) is not None}, key=lambda r: abs(r - 1))
    if len(doses) < 2:
        return None
    weak, strong = (best(row for row in rows if row.number("value") == r) for r in (doses[0], doses[-1]))
    return None if weak is None or strong is None else (weak, strong)


def _layers_by_dose(frame: Frame) -> str:
    ends = _ends(frame)
    if ends is None:
        return ""
    told = [
        f"at {dose(row)} the best single layer is {row.number('layer'):.0f}, with "
        f"{decimal_interval(found) if (found := row.estimate('score')) else ''}"
        for row in ends
    ]
    top = best(row for row in frame.records if row.words("method") in MULTI)
    found = top.estimate("score") if top else None
    joint = (
        f"; cumulative reaches {decimal_interval(found)} with {place(top)} at {dose(top)}"
        if top and found
        else ""
    )
    return f"{_capital(told[0])}, {told[1]}{joint}{_unsteered(frame)}."


def _moves(themes: Mapping[str, Frame]) -> str:
    pairs = [ends for rows in themes.values() if (ends := _ends(rows)) is not None]
    if not pairs:
        return ""
    moves = [(strong.number("layer") or 0) - (weak.number("layer") or 0) for weak, strong in pairs]
    earlier, later = sum(move < 0 for move in moves), sum(move > 0 for move in moves)
    weak, strong = ({dose(pair[i]) for pair in pairs} for i in (0, 1))
    of = f" from {next(iter(weak))} to {next(iter(strong))}" if len(weak) == len(strong) == 1 else ""
    return (
        f"Suppressing harder{of}, the best single layer moves earlier in {earlier} of {len(pairs)} themes and later "
        f"in {later}."
    )


def _best_layers(frame: Frame) -> str:
    tops = [row for m in methods(frame) if (row := best(frame.where(method=m).records)) is not None]
    told = [text for row in tops if (text := _scored(row))]
    return f"Best of all layers: {listed(told)}{_unsteered(frame)}." if told else ""


def _where_best(themes: Mapping[str, Frame]) -> str:
    found = {
        theme: row for theme, rows in themes.items() if (row := best(rows.where(method="single").records))
    }
    layers = {theme: int(row.number("layer") or 0) for theme, row in found.items()}
    if not layers:
        return ""
    low, high = min(layers, key=layers.__getitem__), max(layers, key=layers.__getitem__)
    if layers[low] == layers[high]:
        return f"Activating, the best single layer is {layers[low]} in each of {len(layers)} themes."
    return f"Activating, the best single layer runs from {layers[low]} ({low}) to {layers[high]} ({high})."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def by_value(frame: Frame) -> str:
    """The best coefficient of each method; over many themes, which method reaches the highest score."""
    told: list[str] = []
    for direction, rows in _directions(frame):
        themes = _themes(rows)
        told.append(_best_values(rows, direction) if len(themes) == 1 else _winners(themes, direction))
    return " ".join(word for word in told if word)


def _best_values(frame: Frame, direction: str) -> str:
    swept = [m for m in methods(frame) if m not in {"none", "prompt"}]
    tops = [row for m in swept if (row := best(frame.where(method=m).records)) is not None]
    told = [text for row in sorted(tops, key=_score, reverse=True) if (text := _scored(row))]
    symbol = "r" if direction == SUPPRESS else "s"
    return f"Highest scores over {symbol}: {listed(told)}{_unsteered(frame)}." if told else ""


def _score(row: Row) -> float:
    return row.number("score") or 0.0


def _winners(themes: Mapping[str, Frame], direction: str) -> str:
    tops = [row for rows in themes.values() if (row := best(rows.records)) is not None]
    wins = {m: sum(row.words("method") == m for row in tops) for m in {row.words("method") for row in tops}}
    told = [f"{look(m).name} in {wins[m]}" for m in sorted(wins, key=lambda m: (-wins[m], m))]
    return (
        f"{_verb(direction)}, the highest score of {len(tops)} themes is that of {listed(told)}."
        if told
        else ""
    )


def features(frame: Frame) -> str:
    """How many features the themes have, and how many layers they reach."""
    sizes: list[tuple[float, float, int]] = []
    for rows in _themes(frame).values():
        layers = {r.words("layer") for r in rows.records if r.number("features")}
        n, starts = (sum(r.number(name) or 0.0 for r in rows.records) for name in ("features", "starts"))
        sizes.append((n, starts, len(layers)))
    if not sizes:
        return ""
    n, starts, layers = (_between([size[i] for size in sizes]) for i in range(3))
    each = "Each theme has" if len(sizes) > 1 else "The theme has"
    grown = "start feature" if starts == "1" else "start features"
    return f"{each} {n} features at {layers} layers, grown from {starts} {grown}."


def _between(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def confirmed(frame: Frame) -> str:
    """The best multi-layer method against the others: its scores, or in how many themes it is above them."""
    told: list[str] = []
    for direction, rows in _directions(frame):
        themes = _themes(rows)
        told.append(_scores_of(rows, direction) if len(themes) == 1 else _above(themes, direction))
    return " ".join(word for word in told if word)


def _scores_of(frame: Frame, direction: str) -> str:
    top = best(of_methods(frame.records, *MULTI))
    known = [row for row in frame.records if row.number("score") is not None]
    rows = sorted((row for row in known if _matters(row, top)), key=_score, reverse=True)
    theme = next(iter(frame.distinct("theme")), "")
    told = [text for row in rows if (text := _scored(row))]
    return f"{_verb(direction)} {theme}: {listed(told)}." if told else ""


def _matters(row: Row, top: Row | None) -> bool:
    """Whether a row is told: random rows only where they stand in for the best multi-layer method, or for none."""
    mirrors = row.words("mirrors")
    return not mirrors or (top is not None and mirrors == top.words("method"))


def _above(themes: Mapping[str, Frame], direction: str) -> str:
    tops = {
        t: row for t, rows in themes.items() if (row := best(of_methods(rows.records, *MULTI))) is not None
    }
    if not tops:
        return ""
    told: list[str] = []
    for other in ("start", "single", "prompt", "random", "none"):
        rows = {
            t: [row for row in of_methods(themes[t].records, other) if _matters(row, top)]
            for t, top in tops.items()
        }
        rivals = {t: row for t, found in rows.items() if (row := best(found)) is not None}
        if rivals:
            higher = sum(_score(tops[t]) > _score(row) for t, row in rivals.items())
            clear = sum(_apart(tops[t], row) for t, row in rivals.items())
            apart = f" ({clear})" if told else f" (intervals apart in {clear})"
            told.append(f"{look(other).name} in {higher}{apart}")
    middle = decimal(statistics.median(_score(row) for row in tops.values()))
    above = f", and is above {listed(told)}" if told else ""
    where = f"in the median of {len(tops)} themes"
    return f"{_verb(direction)}, the best multi-layer method scores {middle} {where}{above}."


def _apart(upper: Row, lower: Row) -> bool:
    low, high = upper.number("low"), lower.number("high")
    return low is not None and high is not None and low > high


def paired(frame: Frame) -> str:
    """How often differences of multi-layer methods lie above or below zero with their whole interval."""
    told: list[str] = []
    for direction, rows in _directions(frame):
        parts: list[str] = []
        for other in ("start", "single", "prompt", "random", "none"):
            mine = [row for row in rows.where(method_b=other).records if row.words("method_a") in MULTI]
            found = [e for row in mine if (e := row.estimate("difference"))]
            above = sum(e.low is not None and e.low > 0 for e in found)
            below = sum(e.high is not None and e.high < 0 for e in found)
            if found:
                apart = f" (below in {below})" if not parts else f" ({below})"
                parts.append(f"{above} of {len(found)} against {look(other).name}{apart}")
        if parts:
            told.append(
                f"{_verb(direction)} with several layers, the whole interval of the difference is above zero in "
                f"{listed(parts)}."
            )
    return " ".join(told)


def by_share(frame: Frame) -> str:
    """In how many themes several layers beat a single one within the same limit, at the tightest and widest."""
    told: list[str] = []
    for direction, rows in _directions(frame):
        limits = sorted({share for row in rows.records if (share := row.number("share_limit")) is not None})
        parts: list[str] = []
        for share in dict.fromkeys((limits[0], limits[-1])) if limits else ():
            pairs = [pair for theme in _themes(rows).values() if (pair := _rivals(theme, share)) is not None]
            if pairs:
                wins = sum(_score(many) > _score(one) for many, one in pairs)
                norm = "" if parts else " of the hidden norm"
                parts.append(f"{wins} of {len(pairs)} themes with at most {percent(share)}{norm} changed")
        if parts:
            told.append(
                f"{_verb(direction)}, several layers score above a single one in {' and in '.join(parts)}."
            )
    return " ".join(told)


def _rivals(frame: Frame, share: float) -> tuple[Row, Row] | None:
    """The best multi-layer method and the single layer within a limit; None where one of them has no setting."""
    rows = [row for row in frame.records if row.number("share_limit") == share]
    many = best(row for row in rows if row.words("method") in MULTI)
    one = best(row for row in rows if row.words("method") == "single")
    return None if many is None or one is None else (many, one)


def sensitivity(frame: Frame) -> str:
    """By how much scores vary over the grid under each method, in the median theme."""
    told: list[str] = []
    for direction, rows in _directions(frame):
        spreads = {
            m: statistics.median(known)
            for m in methods(rows)
            if m not in {"none", "prompt"}
            and (known := [s for r in rows.where(method=m).records if (s := r.number("spread")) is not None])
        }
        parts = [
            f"{decimal(value)} with {look(m).name}"
            for m, value in sorted(spreads.items(), key=lambda i: i[1])
        ]
        of = " in the median theme" if len(_themes(rows)) > 1 else ""
        if parts:
            symbol = "r" if direction == SUPPRESS else "s"
            told.append(
                f"{_verb(direction)}, the worst and the best {symbol} of the grid lie apart by {listed(parts)}{of}."
            )
    return " ".join(told)


STEERING: Final[Mapping[str, Callable[[Frame], str]]] = {
    "steering_by_layer": by_layer,
    "steering_by_value": by_value,
    "steering_by_share": by_share,
    "steering_features": features,
    "steering_best": confirmed,
    "steering_paired": paired,
    "steering_sensitivity": sensitivity,
}
"""The teller of every table of a steering sweep that has a sentence."""
