"""One sentence for each table of origins, computed from its numbers (sections 5.1, C.1, C.4).

A sentence reports; it does not explain. It names the method, gives intervals where the table has them,
and leaves out whatever the table leaves open. A table that supports no sentence gives an empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from saeflow.report.figures.frame import (
    GROUPS,
    Estimate,
    Frame,
    Row,
    TableLike,
    count,
    decimal,
    in_order,
    percent,
    percent_interval,
)  # fmt: skip
from saeflow.report.figures.readings_steering import STEERING
from saeflow.report.figures.readings_transition import TRANSITION
from saeflow.report.figures.readings_trials import TRIALS, listed, only

PARTS: Final = (("RES", "s(R)"), ("MLP", "s(M)"), ("ATT", "s(A)"))


def reading(table: TableLike) -> str:
    """A sentence or two on what a table says; empty where it has no rows or nothing to say it from."""
    frame = Frame.of(table)
    teller = READINGS.get(frame.name)
    return teller(frame) if teller is not None and frame.rows else ""


def _first_method(frame: Frame) -> tuple[Frame, str]:
    """The rows of cosine, or else of the first method there is, with its name in words."""
    methods = frame.distinct("method")
    if not methods:
        return frame, ""
    name = in_order(methods, ("cosine",))[0]
    return frame.where(method=name), f" under {name}"


def _shares(frame: Frame, **where: str) -> dict[str, Estimate]:
    rows = frame.where(**where).records
    return {r.words("group"): e for r in rows if r.words("group") in GROUPS and (e := r.estimate("share"))}


def _largest(shares: Mapping[str, Estimate]) -> str:
    return max(shares, key=lambda group: shares[group].value)


def _every(frame: Frame) -> str:
    datasets = frame.distinct("dataset")
    return in_order(datasets, ("all",))[0] if datasets else ""


def shares_by_layer(frame: Frame) -> str:
    """How nowhere and the largest group change from the first layer to the last."""
    frame, method = _first_method(frame)
    layers = frame.layers()
    if not layers:
        return ""
    ends = [_shares(frame, dataset=_every(frame), layer=str(layer)) for layer in (layers[0], layers[-1])]
    if not all(ends):
        return ""
    told: list[str] = []
    for layer, shares in zip((layers[0], layers[-1]), ends, strict=True):
        largest = _largest(shares)
        whose = "" if told else method
        told.append(f"at layer {layer} {largest} is largest{whose} with {percent_interval(shares[largest])}")
    if layers[0] == layers[-1]:
        return f"{_capital(told[0])}."
    nowhere = ""
    if all("nowhere" in shares for shares in ends):
        nowhere = (
            f"; nowhere goes from {percent(ends[0]['nowhere'].value)} to {percent(ends[1]['nowhere'].value)}"
        )
    return f"{_capital(told[0])}, {told[1]}{nowhere}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def shares_by_dataset(frame: Frame) -> str:
    """Nowhere and the largest group, and between which data sets nowhere varies."""
    frame, method = _first_method(frame)
    every = _shares(frame, dataset=_every(frame))
    if "nowhere" not in every:
        return ""
    of = f"Of {count(every['nowhere'].n)} active features" if every["nowhere"].n else "Of the active features"
    told = f"{of}, {percent_interval(every['nowhere'])} have no active predecessor{method}"
    others = {group: share for group, share in every.items() if group != "nowhere"}
    if others:
        told += f"; the largest other group is {_largest(others)} with {percent_interval(others[_largest(others)])}"
    sets = {
        d: s["nowhere"].value
        for d in frame.distinct("dataset")
        if d != "all" and "nowhere" in (s := _shares(frame, dataset=d))
    }
    if len(sets) > 1:
        low, high = min(sets, key=sets.__getitem__), max(sets, key=sets.__getitem__)
        told += f". Nowhere runs from {percent(sets[low])} ({low}) to {percent(sets[high])} ({high})"
    return f"{told}."


def scores(frame: Frame) -> str:
    """Each score in the group of its own part, and in nowhere."""
    frame, method = _first_method(frame)
    layer = "all" if "all" in frame.distinct("layer") else (frame.distinct("layer") or ("",))[0]
    found = frame.where(layer=layer).lookup("score", "group")
    told: list[str] = []
    for group, score in PARTS:
        own, none = found.get((score, group)), found.get((score, "nowhere"))
        if own and none and own.number("median") is not None and none.number("median") is not None:
            told.append(
                f"{score} is {decimal(own.number('median'))} in {group} and {decimal(none.number('median'))} in nowhere"
            )
    where = "" if layer == "all" else f" at layer {layer}"
    return f"The median of {', '.join(told)}{method}{where}." if told else ""


def _pooled(rows: Iterable[Row]) -> float | None:
    given = list(rows)
    tests = sum(row.count("tests") for row in given)
    return sum(row.count("passed") for row in given) / tests if tests else None


def separability(frame: Frame) -> str:
    """By which score groups are told apart most often, and the pair that is hardest."""
    frame, method = _first_method(frame)
    by_score = {
        s: share
        for s in frame.distinct("score")
        if (share := _pooled(frame.where(score=s).records)) is not None
    }
    if not by_score:
        return ""
    differ = listed([f"{s} in {percent(share)}" for s, share in by_score.items()])
    told = f"Two groups differ by {differ} of the tests{method}"
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in frame.records:
        pairs.setdefault((row.words("group_a"), row.words("group_b")), []).append(row)
    tested = {pair: share for pair, rows in pairs.items() if (share := _pooled(rows)) is not None}
    hardest = min(tested, key=tested.__getitem__)
    if len(tested) > 1:
        a, b = hardest
        told += f"; hardest to tell apart are {a} and {b} ({percent(tested[hardest])} over the scores)"
    return f"{told}."


def activity_differences(frame: Frame) -> str:
    """A part's own score where it is active in one of the groups, and where in both."""
    frame, method = _first_method(frame)
    found = frame.lookup("module", "score", "kind")
    own = [
        (module, score, found.get((module, score, "AO")), found.get((module, score, "AB")))
        for module, score in PARTS
    ]
    one = [
        f"{percent(row.number('share'))} ({module}, {score})"
        for module, score, row, _ in own
        if row and row.count("tests")
    ]
    both = [
        percent(row.number("share"))
        for _, _, first, row in own
        if first and first.count("tests") and row and row.count("tests")
    ]
    if not one:
        return ""
    told = f"A module active in only one of two groups parts them by its own score in {listed(one)} of tests{method}"
    return f"{told}; active in both, in {listed(both)}." if len(both) == len(one) else f"{told}."


def transition(frame: Frame) -> str:
    """Which group features keep most often and least, and where they go otherwise."""
    frame, method = _first_method(frame)
    found = frame.lookup("group_a", "group_b")
    stay = {
        g: p for g in GROUPS if (row := found.get((g, g))) and (p := row.number("probability")) is not None
    }
    if not stay:
        return ""
    low, high = min(stay, key=stay.__getitem__), max(stay, key=stay.__getitem__)
    told = (
        f"A feature seen in {high} is in the same group in another context with probability {percent(stay[high])}, "
        f"one seen in {low} with {percent(stay[low])}{method}"
    )
    away = [
        (p, g)
        for g in GROUPS
        if g != high and (row := found.get((high, g))) and (p := row.number("probability"))
    ]
    if away:
        told += f"; out of {high} it most often goes to {max(away)[1]} ({percent(max(away)[0])})"
    return f"{told}."


def most_probable(frame: Frame) -> str:
    """The group that most features have most often, each feature counted once."""
    frame, method = _first_method(frame)
    totals = {g: sum(r.number("features") or 0 for r in frame.where(group=g).records) for g in GROUPS}
    whole = sum(totals.values())
    if not whole:
        return ""
    first, second = sorted(totals, key=lambda g: -totals[g])[:2]
    return (
        f"Of {count(whole)} features, each counted once{method}, {percent(totals[first] / whole)} are "
        f"mostly from {first} and {percent(totals[second] / whole)} mostly from {second}."
    )


def methods(frame: Frame) -> str:
    """How large nowhere is under each method, on all data and on data new to Pearson."""
    told = _nowhere_by_method(frame, _every(frame))
    if not told:
        return ""
    out = [r.words("dataset") for r in frame.records if r.words("in_distribution") == "False"]
    new = "".join(
        f" On {d}, new to Pearson: {listed(_nowhere_by_method(frame, d))}." for d in dict.fromkeys(out)
    )
    return f"The share from nowhere is {listed(told)}.{new}"


def _nowhere_by_method(frame: Frame, dataset: str) -> list[str]:
    rows = frame.where(dataset=dataset, group="nowhere").records
    return [f"{percent_interval(e)} under {r.words('method')}" for r in rows if (e := r.estimate("share"))]


def agreement(frame: Frame) -> str:
    """For each pair of methods the share of the same best match, by part."""
    pairs = tuple(dict.fromkeys((r.words("method_a"), r.words("method_b")) for r in frame.records))
    told: list[str] = []
    for a, b in pairs:
        rows = frame.where(method_a=a, method_b=b)
        parts = [
            f"{percent(share)} at {part}"
            for part in rows.distinct("part")
            if (share := _agreed(rows.where(part=part))) is not None
        ]
        if parts:
            told.append(f"{a} and {b} name the same predecessor in {listed(parts)}")
    return f"{_capital('; '.join(told))}." if told else ""


def _agreed(frame: Frame) -> float | None:
    """The share over all layers: as the table gives it, else the mean by the numbers of features."""
    every = only(frame, layer="all")
    if every is not None:
        return every.number("same", "share")
    known = [
        (share, row.number("n") or 1.0)
        for row in frame.records
        if (share := row.number("same", "share")) is not None
    ]
    return sum(share * n for share, n in known) / sum(n for _, n in known) if known else None


def calibrated_thresholds(frame: Frame) -> str:
    """Between which values the calibrated threshold of each part lies."""
    told: list[str] = []
    for part in frame.distinct("part"):
        values = [v for row in frame.where(part=part).records if (v := row.number("threshold")) is not None]
        if values:
            told.append(f"{decimal(min(values))} to {decimal(max(values))} for {part}")
    return (
        f"Calibrated thresholds run from {listed(told)}; the fixed ones are 0.5 for res and 0.15 for modules."
        if told
        else ""
    )


READINGS: Final[Mapping[str, Callable[[Frame], str]]] = {
    "shares_by_layer": shares_by_layer,
    "shares_by_dataset": shares_by_dataset,
    "scores": scores,
    "separability": separability,
    "activity_differences": activity_differences,
    "transition": transition,
    "most_probable": most_probable,
    "methods": methods,
    "agreement": agreement,
    "agreement_by_layer": agreement,
    "calibrated_thresholds": calibrated_thresholds,
    **TRIALS,
    **STEERING,
    **TRANSITION,
}
"""The teller of every table that has a sentence."""
