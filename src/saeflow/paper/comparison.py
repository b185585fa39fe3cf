"""Figures of two or more dictionaries side by side: what is shared, distributions of cosines, features over a chain."""

from __future__ import annotations

import math
from typing import Final

from matplotlib.figure import Figure

from saeflow.paper.frame import Frame, FrameRow, Interval
from saeflow.paper.kinds import DotPanel, DotRow, Drawing, Mark, Strip, Tone, dots, heat, line, stack, strips
from saeflow.paper.style import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    PAPER,
    SQUARE,
    Medium,
    Sign,
    colour,
    nothing,
    on,
    panels,
    title,
    value_axis,
)
from saeflow.paper.words import count, decimal, listed, percent

KINDS: Final[dict[str, Tone]] = {
    "shared": (colour("RES"), on("RES")),
    "related": (colour("RES & ATT"), on("RES & ATT")),
    "only": (colour("MLP"), on("MLP")),
}
"""How a feature relates to the other dictionary, with the colours of each case."""
_LINES: Final = {
    "best match": (ACCENT, False),
    "partner": (colour("ATT"), False),
    "rotation": (MUTED, True),
    "chance": (INK, True),
}


def scores_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the mean cosine of matches for each pair, signed (filled) and absolute (hollow), against chance."""
    rows: list[DotRow] = []
    for (a, b), found in _by_pair(frame).items():
        signed = [row for row in found if row.words("sign") == "signed"]
        absolute = {row.words("measure"): row for row in found if row.words("sign") == "absolute"}
        for place, row in enumerate(signed):
            measure = row.words("measure")
            marks: list[Mark] = []
            if (mean := row.number("mean")) is not None:
                chance = [v for v in (row.number("rotation q50"), row.number("chance q50")) if v is not None]
                ends = (min(chance), max(chance)) if chance else None
                said = f"{_pair_words(measure, a, b)}: mean cosine {decimal(mean, 3)}, n = {count(row.number('n'))}"
                marks.append(Mark(Interval(mean), said, ACCENT, ends=ends))
            if measure in absolute and (mean := absolute[measure].number("mean")) is not None:
                said = f"{_pair_words(measure, a, b)}: mean |cosine| {decimal(mean, 3)}"
                marks.append(Mark(Interval(mean), said, ACCENT, hollow=True))
            if (mean := row.number("by density")) is not None:
                said = f"{_pair_words(measure, a, b)}: by density {decimal(mean, 3)}"
                marks.append(Mark(Interval(mean), said, colour("MLP"), "D"))
            shares = [percent(row.number(f"above {line:g}")) for line in (0.5, 0.7, 0.9)]
            head = (f"A {_cut(a, medium)}, B {_cut(b, medium)}", ACCENT) if place == 0 else ("", INK)
            rows.append(DotRow(measure, marks, shares, head))
    signs = [
        Sign("mean cosine", ACCENT),
        Sign("mean |cosine|", ACCENT, hollow=True),
        Sign("weighted by density", colour("MLP"), "D"),
        Sign("line: medians of what chance gives", shape=""),
    ]
    shown = DotPanel("", rows, heads=("> 0.5", "> 0.7", "> 0.9"), within=(-1.0, 1.0))
    return dots([shown], medium, caption, signs=signs)


def scores_sentence(frame: Frame) -> str:
    """The mean max cosine both ways and the mean of one-to-one partners, for the first pair."""
    pairs = _by_pair(frame)
    if not pairs:
        return ""
    (a, b), rows = next(iter(pairs.items()))
    known = {row.words("measure"): row.number("mean") for row in rows if row.words("sign") == "signed"}
    text = f"Features of A ({a}) have a mean best cosine of {decimal(known.get('A in B'))} in B ({b}), those of B of "
    return f"{text}{decimal(known.get('B in A'))} in A, and partners one to one {decimal(known.get('one to one'))}."


def cosines_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw how cosines of best matches and partners are distributed, against rows without a counterpart."""
    ways = frame.distinct("of")
    across = medium.across(len(ways), 20, beside=3)
    signs = [Sign(name, tone, LINE) for name, (tone, _) in _LINES.items() if frame.where(measure=name).rows]
    drawn, places = panels(medium, caption, len(ways), 11.0, across=across, signs=signs)
    top = max(0.05, *(row.number("share") or 0.0 for row in frame.records if row.words("measure") in _LINES))
    for way, axes in zip(ways, places, strict=True):
        for name, (tone, hollow) in _LINES.items():
            rows = frame.where(of=way, measure=name).records
            at = [(row.number("low") or 0.0) + 0.025 for row in rows]
            shares = [Interval(row.number("share") or 0.0) for row in rows]
            tips = [
                f"{name}: {percent(e.value, 1)} between {x - 0.025:.2f} and {x + 0.025:.2f}"
                for x, e in zip(at, shares, strict=True)
            ]
            if rows:
                line(axes, at, shares, tips, tone=tone, hollow=hollow)
        value_axis(axes, "y", 0, 1.05 * top, unit="%", most=5)
        value_axis(axes, "x", 0, 1)
        axes.set_xlabel("cosine")
        title(axes, way, room=medium.ems / across - 3.0)
    return drawn


def cosines_sentence(frame: Frame) -> str:
    """The share of best matches with a cosine of 0.9 or more."""
    phrases: list[str] = []
    for way in frame.distinct("of"):
        rows = frame.where(of=way, measure="best match").records
        share = sum(row.number("share") or 0.0 for row in rows if (row.number("low") or 0.0) >= 0.9 - 1e-9)
        phrases.append(f"{percent(share)} of {way}")
    return f"A best match of 0.9 or more have {listed(phrases)}." if phrases else ""


def kinds_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw which shares of each dictionary are shared, related, or found in it only."""
    rows = [
        Strip(
            _cut(row.words("a"), medium),
            {kind: row.number(kind) or 0.0 for kind in KINDS},
            f"{row.words('a')} against {row.words('b')}",
            f"of {count(row.number('n'))}",
        )
        for row in frame.records
        if row.number("n")
    ]
    if not rows:
        return nothing(medium, caption, "no feature has a direction")
    signs = [Sign(kind, tone[0], SQUARE) for kind, tone in KINDS.items()]
    return strips({"": rows}, medium, caption, signs=signs, tones=KINDS)


def kinds_sentence(frame: Frame) -> str:
    """The shares of each dictionary that are shared, and found in it only."""
    phrases = [
        f"{percent(row.number('shared'))} of {row.words('a')} are shared with {row.words('b')} and "
        f"{percent(row.number('only'))} are in it alone"
        for row in frame.records[:4]
    ]
    return f"{listed(phrases)}." if phrases else ""


def density_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw cosines of matches by how often a feature fires."""
    ways = frame.distinct("of")
    across = medium.across(len(ways), 20, beside=3)
    signs = [Sign("partner one to one", colour("ATT"), LINE), Sign("best match", ACCENT, LINE)]
    drawn, places = panels(medium, caption, len(ways), 10.0, across=across, signs=signs)
    lows = [row.number("low") or 0.0 for row in frame.records]
    decades = sorted({round(_log10(low)) for low in lows})
    for way, axes in zip(ways, places, strict=True):
        rows = frame.where(of=way).records
        at = [round(_log10(row.number("low") or 0.0)) for row in rows]
        for column, tone in (("partner", colour("ATT")), ("best", ACCENT)):
            found = [row.estimate(column) for row in rows]
            tips = [f"{column}: {decimal(e.value, 3)}, n = {count(e.n)}" if e else "" for e in found]
            line(axes, at, found, tips, tone=tone)
        value_axis(axes, "y", 0, 1)
        axes.set_xticks(decades, [f"1e{decade}" for decade in decades])
        axes.set_xlim(decades[0] - 0.3, decades[-1] + 0.3)
        axes.set_xlabel("fires on this share of tokens, at least")
        title(axes, way, room=medium.ems / across - 3.0)
    return drawn


def density_sentence(frame: Frame) -> str:
    """Partners of the rarest and of the most frequent features, in the first direction."""
    rows = frame.where(of=frame.distinct("of")[0]).records if frame.distinct("of") else ()
    if len(rows) < 2:
        return ""
    rare, often = rows[0], rows[-1]
    return (
        f"Of the rarest features ({count(rare.number('n'))}) partners have a mean cosine of "
        f"{decimal(rare.number('partner'))}, of those that fire most ({count(often.number('n'))}) "
        f"{decimal(often.number('partner'))}."
    )


def matrix_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the PW-MCC of all pairs of dictionaries."""
    names = frame.distinct("a")
    known = frame.lookup("a", "b")
    values = [[1.0 if a == b else _number(known.get((a, b)), "pw_mcc") for b in names] for a in names]
    tips = [
        [f"{a} and {b}: PW-MCC {decimal(values[i][j], 3)}" for j, b in enumerate(names)] for i, a in enumerate(names)
    ]
    drawn, (axes,) = panels(medium, caption, 1, 1.9 * len(names), over=3.0)
    heat(axes, values, (names, [str(i + 1) for i in range(len(names))]), tips)
    labels = [f"{i + 1}  {_cut(name, medium)}" for i, name in enumerate(names)]
    axes.set_yticks([i + 0.5 for i in range(len(names))], labels)
    return drawn


def matrix_sentence(frame: Frame) -> str:
    """The mean, the lowest and the highest PW-MCC over all pairs."""
    values = [value for row in frame.records if (value := row.number("pw_mcc")) is not None]
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"PW-MCC is {decimal(mean)} on average, from {decimal(min(values))} to {decimal(max(values))}."


def presence_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw in how many of the other dictionaries the features of each are found."""
    most = max((row.count("others") for row in frame.records), default=1)
    tones: dict[str, Tone] = {
        str(n): ((ACCENT, 0.08 + 0.9 * n / max(most, 1)), PAPER if n > 0.6 * most else INK) for n in range(most + 1)
    }
    rows: list[Strip] = []
    for name in frame.distinct("name"):
        found = frame.where(name=name).records
        shares = {row.words("others"): row.number("share") or 0.0 for row in found}
        agreed = next((row.number("consistent") for row in found if row.number("consistent") is not None), None)
        rows.append(Strip(_cut(name, medium), shares, f"{name}, found in others", f"{percent(agreed)} in all"))
    signs = [Sign(f"in {n} others" if n else "in no other", tone[0], SQUARE) for n, tone in tones.items()]
    return strips({"": rows}, medium, caption, signs=signs, tones=tones)


def presence_sentence(frame: Frame) -> str:
    """The share of the first dictionary's features that are consistent in all dictionaries."""
    names = frame.distinct("name")
    name = names[0] if names else ""
    for row in frame.where(name=name).records if names else ():
        if (share := row.number("consistent")) is not None:
            return f"{percent(share)} of the features of {name} are the same in all dictionaries, partner by partner."
    return ""


def steps_figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw features carried, born and lost at every step, and how stable the dictionary is."""
    rows = frame.records
    at = list(range(len(rows)))
    tones = {"carried": ACCENT, "born": colour("MLP"), "lost": MUTED}
    curves = {"pw_mcc": (ACCENT, "PW-MCC with the step before"), "pw_mcc last": (INK, "PW-MCC with the last step")}
    curves["there"] = (colour("ATT"), "of the last step's features, those already there")
    signs = [Sign(name, tone, SQUARE) for name, tone in tones.items()]
    signs += [Sign(words, tone, LINE) for tone, words in curves.values()]
    across = medium.across(2, 22, beside=3)
    drawn, (counts, stable) = panels(medium, caption, 2, 11.0, across=across, signs=signs)
    for offset, names in ((-0.2, ("carried", "born")), (0.2, ("lost",))):
        parts = {
            name: (
                tones[name],
                [row.number(name) for row in rows],
                [f"{row.words('name')}: {count(row.number(name))} {name}" for row in rows],
            )
            for name in names
        }
        stack(counts, [x + offset for x in at], parts, width=0.36)
    highest = max((sum(row.number(name) or 0.0 for name in ("carried", "born")) for row in rows), default=1.0)
    value_axis(counts, "y", 0, 1.05 * max(highest, 1.0))
    title(counts, "features")
    for column, (tone, words) in curves.items():
        found = [Interval(value) if (value := row.number(column)) is not None else None for row in rows]
        tips = [
            f"{row.words('name')}: {words}, {decimal(e.value, 3)}" if e else ""
            for row, e in zip(rows, found, strict=True)
        ]
        line(stable, at, found, tips, tone=tone)
    value_axis(stable, "y", 0, 1)
    title(stable, "stability")
    for axes in (counts, stable):
        axes.set_xticks(at, [str(x) for x in at])
        axes.set_xlim(-0.6, len(at) - 0.4)
        axes.set_xlabel("step")
    return drawn


def steps_sentence(frame: Frame) -> str:
    """How many features were born and lost over the chain, and what share of the last step's existed at the first."""
    chains = frame.distinct("chain")
    if not chains:
        return ""
    rows = frame.where(chain=chains[0]).records
    born, lost = (sum(row.count(name) for row in rows) for name in ("born", "lost"))
    there = percent(rows[0].number("there"))
    return (
        f"Over {len(rows)} steps {count(born)} features are born and {count(lost)} lost; {there} of the last step's "
        f"features are there at the first."
    )


def _cut(name: str, medium: Medium) -> str:
    """Shorten a long name to its two ends, to leave room for what stands beside it."""
    most = int(0.36 * medium.ems)
    return name if len(name) <= most else f"{name[: most - most // 2 - 1]}…{name[-(most // 2) :]}"


def _by_pair(frame: Frame) -> dict[tuple[str, str], list[FrameRow]]:
    found: dict[tuple[str, str], list[FrameRow]] = {}
    for row in frame.records:
        found.setdefault((row.words("a"), row.words("b")), []).append(row)
    return found


def _pair_words(measure: str, a: str, b: str) -> str:
    return {"A in B": f"{a} in {b}", "B in A": f"{b} in {a}"}.get(measure, f"{a} and {b} one to one")


def _number(row: FrameRow | None, column: str) -> float | None:
    return None if row is None else row.number(column)


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else -9.0


DRAWINGS: Final = {
    "compare_scores": Drawing(scores_figure, scores_sentence, ("a", "b", "measure", "sign", "mean")),
    "compare_kinds": Drawing(kinds_figure, kinds_sentence, ("a", "b", "n", "shared", "related", "only")),
    "compare_cosines": Drawing(
        cosines_figure, cosines_sentence, ("pair", "of", "measure", "low", "share"), each=("pair",)
    ),
    "compare_density": Drawing(
        density_figure, density_sentence, ("pair", "of", "low", "n", "partner", "best"), each=("pair",)
    ),
    "compare_matrix": Drawing(matrix_figure, matrix_sentence, ("chain", "a", "b", "pw_mcc"), each=("chain",)),
    "compare_presence": Drawing(
        presence_figure, presence_sentence, ("chain", "name", "others", "share", "consistent"), each=("chain",)
    ),
    "compare_steps": Drawing(
        steps_figure, steps_sentence, ("chain", "step", "name", "carried", "born", "lost"), each=("chain",)
    ),
}
