"""The head of a report: how many claims hold, and each with its verdict, interval and control. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from saeflow.report.document import safe
from saeflow.reproduce.claims import Claim
from saeflow.reproduce.items import by_id
from saeflow.reproduce.verdicts import Contrast, Kind, Outcome, Verdict
from saeflow.reproduce.wording import interval

CLASS: Final = {Outcome.HOLDS: "holds", Outcome.FAILS: "fails", Outcome.OPEN: "open"}
SIGN: Final = {Outcome.HOLDS: "\u2713", Outcome.FAILS: "\u2715", Outcome.OPEN: "?"}
HOW: Final = (
    "A claim holds if the 95 % interval of its number lies wholly where the paper says, and does not if it lies wholly "
    "elsewhere; otherwise it cannot be said. Of a claim of several parts each must hold; the number shown is the one "
    "that decides, and the shaded side of its strip is what is claimed. Intervals resample texts, or seeds of "
    "generated texts (features for figure 13, cells of data set and layer for figure 4); themes and data sets are "
    "taken as given. About one interval in twenty misses. The control puts something else in place of what the claim "
    "is about."
)
WIDTH, HEIGHT, EDGE = 132.0, 20.0, 8.0


def counts(verdicts: Mapping[str, Verdict]) -> dict[Outcome, int]:
    """How many claims have each outcome."""
    return {outcome: sum(v.outcome is outcome for v in verdicts.values()) for outcome in Outcome}


def in_words(verdicts: Mapping[str, Verdict]) -> str:
    """The counts as a sentence."""
    found, n = counts(verdicts), len(verdicts)
    unmeasured = sum(not v.measured for v in verdicts.values())
    rest = f", {unmeasured} of them for want of a measurement" if unmeasured else ""
    held, failed, left = found[Outcome.HOLDS], found[Outcome.FAILS], found[Outcome.OPEN]
    return (
        f"Of {n} claims {held} {_verb(held, 'holds', 'hold')}, {failed} {_verb(failed, 'does', 'do')} not, and of "
        f"{left} it cannot be said{rest}."
    )


def _verb(n: int, one: str, many: str) -> str:
    return one if n == 1 else many


def chip(outcome: Outcome) -> str:
    """A verdict as a mark with its words."""
    sign = f'<span class="sign" aria-hidden="true">{SIGN[outcome]}</span>'
    return f'<span class="verdict {CLASS[outcome]}">{sign} {outcome.value}</span>'


def summary_html(claims: Sequence[Claim], verdicts: Mapping[str, Verdict]) -> str:
    """The counts as a bar, and the table of all claims."""
    rows = "".join(_row(claim, verdicts[claim.id]) for claim in claims)
    return (
        '<section id="summary" class="result"><h2>What holds</h2>'
        f"{_bar(counts(verdicts))}"
        f'<p class="how">{HOW}</p>'
        '<div class="filter" role="group" aria-label="Show claims" hidden></div>'
        '<table class="claims"><caption class="unseen">Claims with verdict, interval and control</caption><thead><tr>'
        '<th scope="col">Claim</th><th scope="col">Verdict</th><th scope="col">Number that decides (95 % interval)</th>'
        '<th scope="col">Control</th><th scope="col" class="number">n</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></section>\n"
    )


def _row(claim: Claim, verdict: Verdict) -> str:
    decided = verdict.deciding
    measured = decided is not None and decided.found.value is not None
    if decided is not None and measured:
        value = safe(interval(decided.found, decided.unit, decided.rule))
        number = f'<span class="value">{value}</span>{plot(decided, verdict.outcome)}'
        control = safe(interval(decided.control, decided.unit))
        n = f"{decided.found.n:,}"
    else:
        number, control, n = f'<span class="why">{safe(verdict.why)}</span>', "\u2013", "\u2013"
    item = by_id()[claim.item]
    of = f" \u00b7 said of {safe(claim.said_of)}" if claim.said_of else ""
    kind = CLASS[verdict.outcome]
    return (
        f'<tr class="is-{kind}" data-outcome="{verdict.outcome.value}"><td class="claim">'
        f'<a href="#c-{claim.id}">{safe(claim.statement)}</a>'
        f'<span class="where">{item.name} \u00b7 {safe(_section(claim.section))}{of}</span></td>'
        f'<td class="is">{chip(verdict.outcome)}</td><td class="found">{number}</td>'
        f'<td class="control" data-name="control">{control}</td><td class="number" data-name="n">{n}</td></tr>'
    )


def _section(section: str) -> str:
    parts = section.split(", ")
    if all(part[0].isalpha() for part in parts):
        return f"appendix {section}"
    return f"section {section}" if len(parts) == 1 else f"sections {section}"


def plot(contrast: Contrast, outcome: Outcome) -> str:
    """The interval on a line, with the bound of the claim and the side that it claims."""
    found, rule = contrast.found, contrast.rule
    if found.value is None:
        return ""
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    two_sided = rule.kind in (Kind.WITHIN, Kind.APART)
    bounds = [-rule.bound, rule.bound] if two_sided else [rule.bound]
    least, most = min(low, *bounds), max(high, *bounds)
    margin = 0.18 * ((most - least) or 1.0)
    least, most = least - margin, most + margin

    def x(value: float) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * (value - least) / (most - least)

    spans = {
        Kind.ABOVE: [(x(rule.bound), WIDTH)],
        Kind.BELOW: [(0.0, x(rule.bound))],
        Kind.WITHIN: [(x(-rule.bound), x(rule.bound))],
        Kind.APART: [(0.0, x(-rule.bound)), (x(rule.bound), WIDTH)],
    }[rule.kind]
    shade = "".join(
        f'<rect class="claimed" x="{a:.1f}" width="{max(0.0, b - a):.1f}" height="{HEIGHT:g}"/>'
        for a, b in spans
    )
    lines = "".join(f'<line class="bound" x1="{x(b):.1f}" x2="{x(b):.1f}" y2="{HEIGHT:g}"/>' for b in bounds)
    middle = HEIGHT / 2
    return (
        f'<svg class="strip {CLASS[outcome]}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" height="{HEIGHT:g}" '
        'aria-hidden="true">'
        f'{shade}{lines}<line class="reach" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle:g}" y2="{middle:g}"/>'
        f'<circle cx="{x(found.value):.1f}" cy="{middle:g}" r="3.2"/></svg>'
    )


def _bar(found: Mapping[Outcome, int]) -> str:
    """The counts as lengths."""
    total = sum(found.values()) or 1
    at, parts = 0.0, []
    for outcome, n in found.items():
        width = 100 * n / total
        if n:
            parts.append(
                f'<rect class="{CLASS[outcome]}" x="{at:.3f}" width="{max(0.0, width - 0.25):.3f}" height="4"/>'
            )
        at += width
    legend = "".join(f"<span>{chip(outcome)} <b>{n}</b></span>" for outcome, n in found.items())
    return (
        '<div class="counts"><svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(parts)}</svg><p>{legend}</p></div>"
    )
