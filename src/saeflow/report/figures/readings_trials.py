"""One sentence for each table of deactivation, computed from its numbers (sections 5.2, C.2).

No rate stands without its control where the table has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from saeflow.report.figures.frame import (
    GROUPS,
    Estimate,
    Frame,
    Row,
    count,
    decimal,
    decimal_interval,
    in_order,
    percent,
    percent_interval,
    points_interval,
)  # fmt: skip

MAIN: Final = "top-1"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def only(frame: Frame, **where: str) -> Row | None:
    """The first row with these words, or None."""
    return next(iter(frame.where(**where).records), None)


def _main(frame: Frame) -> str:
    strategies = frame.distinct("strategy")
    return in_order(strategies, (MAIN,))[0] if strategies else ""


def _rate(row: Row, whence: str) -> str:
    """`70 % (68–73) of 2,712 targets from RES, control 5 % (4–6)`."""
    found = row.estimate("deactivated")
    if found is None:
        return ""
    of = "" if found.n is None else f" of {count(found.n)} targets"
    control = row.estimate("control_deactivated", "control_low", "control_high", "control_n")
    beside = "" if control is None else f", control {percent_interval(control)}"
    return f"{percent_interval(found)}{of} {whence}{beside}"


def by_strategy(frame: Frame) -> str:
    """The group in which removing everything works best, and that in which it works worst."""
    main = _main(frame)
    rows = {
        g: r
        for g in GROUPS
        if (r := only(frame, strategy=main, group=g, removed=g)) and r.number("deactivated") is not None
    }
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda g: -(rows[g].number("deactivated") or 0.0))
    ends = [_rate(rows[group], f"from {group}") for group in dict.fromkeys((ordered[0], ordered[-1]))]
    return f"Removing all that {main} names deactivates {'; and '.join(ends)}."


def by_strategy_layer(frame: Frame) -> str:
    """Each strategy with its control over all layers, or between which layers the main one varies."""
    main = _main(frame)
    every = only(frame, strategy=main, layer="all")
    if every is not None and every.number("deactivated") is not None:
        return _overall(frame, main, every)
    rows = {
        n: r
        for n in frame.layers()
        if (r := only(frame, strategy=main, layer=str(n))) and r.number("deactivated") is not None
    }
    if not rows:
        return ""
    low, high = (pick(rows, key=lambda n: rows[n].number("deactivated") or 0.0) for pick in (min, max))
    ends = [_rate(rows[layer], f"at layer {layer}") for layer in dict.fromkeys((low, high))]
    return f"{main} deactivates {'; and '.join(ends)}."


def _overall(frame: Frame, main: str, row: Row) -> str:
    found = row.estimate("deactivated")
    if found is None:
        return ""
    told = f"{main} deactivates {percent_interval(found)} of {count(found.n)} targets"
    control = row.estimate("control_deactivated", "control_low", "control_high", "control_n")
    if control is not None:
        told += f"; the active control {percent_interval(control)}"
    names = [name for name in frame.distinct("strategy") if name != main]
    others = [_briefly(name, only(frame, strategy=name, layer="all")) for name in names]
    known = [text for text in others if text]
    return f"{told}. Of the targets of each: {listed(known)}." if known else f"{told}."


def _briefly(name: str, row: Row | None) -> str:
    """`top-5 87 % (control 8 %)`; empty for a gap."""
    if row is None:
        return ""
    value = row.number("deactivated")
    return "" if value is None else f"{name} {percent(value)}{_beside(row)}"


def by_rescale(frame: Frame) -> str:
    """What the lowest, the removing and the highest r do."""
    groups = frame.distinct("group")
    group = "all" if "all" in groups else (frame.groups() or ("",))[0]
    rows = {
        r: row
        for row in frame.where(group=group).records
        if (r := row.number("r")) is not None and row.number("change") is not None
    }
    if not rows:
        return ""
    whom = "All groups together" if group == "all" else f"In {group}"
    shown = sorted({min(rows), 0.0 if 0.0 in rows else min(rows), max(rows)})
    told = [_dose(r, rows[r]) for r in shown]
    return f"{whom}: {'; '.join(told)}."


def _dose(r: float, row: Row) -> str:
    change = row.estimate("change", "change_low", "change_high")
    told = f"at r = {r:g}".replace("-", "\u2212")
    told += f" the activation change is {decimal_interval(change)}{_control(row)}" if change else ""
    rate = row.number("deactivated")
    return told if rate is None else f"{told}, {percent(rate)} deactivated{_beside(row)}"


def _beside(row: Row, column: str = "control_deactivated") -> str:
    """` (control 5 %)`; empty for a gap."""
    value = row.number(column)
    return "" if value is None else f" (control {percent(value)})"


def one_predecessor(frame: Frame) -> str:
    """What removing a part does where it is alone, and in the largest company there is."""
    told: list[str] = []
    for part in ("RES", "MLP", "ATT"):
        rows = {
            g: row
            for g in GROUPS
            if (row := only(frame, group=g, removed=part)) and row.number("change") is not None
        }
        company = [group for group in rows if group != part]
        if part in rows and company:
            last = company[-1]
            alone, joined = (f"{decimal(rows[g].number('change'))}{_control(rows[g])}" for g in (part, last))
            told.append(f"{alone} alone and {joined} in {last} for {part}")
    return f"Activation change when one predecessor is removed: {'; '.join(told)}." if told else ""


def _control(row: Row) -> str:
    value = row.number("control_change")
    return "" if value is None else f" (control {decimal(value)})"


def groups_by_strategy(frame: Frame) -> str:
    """For how many of the same features each strategy names no active predecessor."""
    rows = frame.where(group="nowhere").records
    told = [
        f"{percent(share)} under {row.words('strategy')}"
        for row in rows
        if (share := row.number("share")) is not None
    ]
    return f"The share from nowhere is {listed(told)} of the same features." if told else ""


def new_group(frame: Frame) -> str:
    """How often a target falls silent when everything is removed, and how often it stays without a predecessor."""
    main = _main(frame)
    frame = frame.where(strategy=main) if main else frame
    silent = {g: row for g in GROUPS if (row := _became(frame, g, "deactivated")) is not None}
    if not silent:
        return ""

    def rate(group: str) -> float:
        return silent[group].number("probability") or 0.0

    def told_of(row: Row) -> str:
        return f"{percent(row.number('probability'))}{_beside(row, 'control_probability')}"

    low, high = min(silent, key=rate), max(silent, key=rate)
    under = f" under {main}" if main else ""
    told = f"With all predecessors removed{under}, {told_of(silent[high])} of targets from {high} fall silent"
    if low != high:
        told += f" and {told_of(silent[low])} of those from {low}"
    stays = _became(frame, low, "nowhere")
    if stays is None:
        return f"{told}."
    return f"{told}; {told_of(stays)} of the latter stay active with no active predecessor."


def _became(frame: Frame, group: str, outcome: str) -> Row | None:
    row = only(frame, group=group, removed=group, new_group=outcome)
    return None if row is None or row.number("probability") is None else row


def counts(frame: Frame) -> str:
    """How many targets and trials there are."""
    features, trials = (
        sum(row.number(name) or 0.0 for row in frame.records) for name in ("features", "trials")
    )
    layers = frame.layers()
    told = f"{count(features)} targets and {count(trials)} trials" if trials else f"{count(features)} targets"
    return f"{told} at {len(layers)} {'layer' if len(layers) == 1 else 'layers'}." if layers else f"{told}."


def table_1(frame: Frame) -> str:
    """Every strategy on the shared targets with its control; the control of the first alone comes last."""
    rows = {row.words("strategy"): e for row in frame.records if (e := row.estimate("deactivated"))}
    if not rows:
        return ""
    beside = {row.words("strategy"): _beside(row) for row in frame.records}
    order = in_order(rows, (MAIN,))
    named = [name for name in order if name != "active control"]
    told = [
        f"{name} {'' if i else 'deactivates '}{percent_interval(rows[name])}{beside[name]}"
        for i, name in enumerate(named)
    ]
    first: Estimate = rows[order[0]]
    of = "" if first.n is None else f"On {count(first.n)} shared targets "
    control = (
        f"; the active control {percent_interval(rows['active control'])}"
        if "active control" in rows and not any(beside.values())
        else ""
    )
    return f"{of}{listed(told)}{control}."


def paired(frame: Frame) -> str:
    """The main strategy against each other one on the same targets."""
    scopes = frame.distinct("scope")
    rows = frame.where(scope=scopes[0]) if scopes else frame
    told = [
        f"{points_interval(e)} over {row.words('strategy_b')}"
        for row in rows.records
        if row.words("strategy_a") == MAIN and (e := row.estimate("difference"))
    ]
    return f"Deactivation by {MAIN} on the same targets: {', '.join(told)}." if told else ""


def remaining(frame: Frame) -> str:
    """What silences targets of all groups together."""
    rows = [row for row in frame.where(group="all").records if row.number("share") is not None]
    told = [
        f"{row.words('outcome')} {percent(row.number('share'))}{_beside(row, 'control_share')}"
        for row in rows
    ]
    n = max((row.number("n") or 0.0 for row in rows), default=0.0)
    return f"Of {count(n)} targets: {listed(told)}." if told else ""


def control_match(frame: Frame) -> str:
    """How alike in norm the controls of the main strategy are."""
    main = _main(frame)
    rows = [row for row in frame.where(strategy=main).records if row.number("median") is not None]
    if not rows:
        return ""
    medians = [row.number("median") or 0.0 for row in rows]
    n, all_n = sum(row.count("controls") for row in rows), sum(row.count("trials") for row in rows)
    reach = decimal(medians[0]) if len(rows) == 1 else f"{decimal(min(medians))} to {decimal(max(medians))}"
    have = f"{count(n)} of {count(all_n)} trials have one"
    return f"The median control of {main} has {reach} times the norm of what it controls; {have}."


TRIALS: Final[Mapping[str, Callable[[Frame], str]]] = {
    "by_strategy": by_strategy,
    "by_strategy_layer": by_strategy_layer,
    "by_rescale": by_rescale,
    "one_predecessor": one_predecessor,
    "groups_by_strategy": groups_by_strategy,
    "new_group": new_group,
    "counts": counts,
    "table_1": table_1,
    "paired": paired,
    "remaining": remaining,
    "control_match": control_match,
}
