"""Claims of sections 5.2, 6 and C.2: what removing predecessors does (figures 6 to 8, 15, table 1)."""

from __future__ import annotations

from typing import Final

import numpy as np

from saeflow.experiments.deactivation_tables import CONTROL, PEARSON, TOP_1
from saeflow.experiments.groups import EXHAUSTIVE, LABELS, PARTS, Origin
from saeflow.experiments.statistics import GAP, RATE, Tally, mean_estimates
from saeflow.reproduce.cases import Cases, Trials, named, paired, percent
from saeflow.reproduce.verdicts import ABOVE_0, Contrast, Kind, NotMeasured, Rule, Unit

TOP_5, RANDOM_5 = "top-5", "random of top-5"
RES, MLP, ATT = (Origin[part.name].value for part in PARTS)
SINGLES: Final = (RES, MLP, ATT)
WITH_RES: Final = (RES | MLP, RES | ATT, RES | MLP | ATT)
COMBINED: Final = (*WITH_RES, MLP | ATT)
ALIKE: Final = 0.1
"""Rates that differ by less are called alike where the paper says similar or almost equal."""

CLOSE: Final = 0.05
"""The same where the paper says comparable."""


# --- figure 6 ---------------------------------------------------------------------------------------------------------


def fig6_random(trials: Trials) -> list[Contrast]:
    """Top-1 silences more than one of the top five at random, on targets both name something for."""
    return [paired(trials, TOP_1, RANDOM_5)]


def fig6_cause(trials: Trials) -> list[Contrast]:
    """Removing the match silences more than removing another active feature of the same site."""
    return [paired(trials, TOP_1, CONTROL)]


def fig6_modules(trials: Trials) -> list[Contrast]:
    """Top-5 does about as well as top-1 where the predecessor is of the MLP or of attention alone."""
    gone = trials["deactivated"]
    one, five = Cases(trials, TOP_1), Cases(trials, TOP_5)
    return [
        one.between(
            gone,
            five.removing([group]),
            one.removing([group]),
            f"rate of top-5 less that of top-1, From {LABELS[group]}",
            rule=Rule(Kind.WITHIN, ALIKE),
            span=GAP,
        )
        for group in (MLP, ATT)
    ]


def fig6_combined(trials: Trials) -> list[Contrast]:
    """What top-5 gains, it gains where a residual predecessor stands with a module."""
    one, five = Cases(trials, TOP_1), Cases(trials, TOP_5)
    sets = [cases.removing(groups) for groups in (WITH_RES, (MLP, ATT)) for cases in (five, one)]
    words = "gain of top-5 over top-1 where RES stands with a module, less that in From MLP and From ATT"
    gone = trials["deactivated"]
    sides = "{} against {} beside a module, {} against {} in From MLP and From ATT"
    return [
        one.contrast(gone, sets, lambda m: (m[:, 0] - m[:, 1]) - (m[:, 2] - m[:, 3]), words, sides=sides, span=(-2, 2))
    ]


def residual_most(trials: Trials) -> list[Contrast]:
    """A residual predecessor matters more than a module's, alone and beside it."""
    cases, change = Cases(trials), trials["change"]
    found: list[Contrast] = []
    for part in (MLP, ATT):
        a, b = cases.removing([RES], [RES]), cases.removing([part], [part])
        found.append(
            cases.between(change, a, b, f"change by RES in From RES less that by {LABELS[part]} in From {LABELS[part]}")
        )
        both = RES | part
        a, b = cases.removing([both], [RES]), cases.removing([both], [part])
        found.append(
            cases.between(change, a, b, f"change by RES less that by {LABELS[part]}, both in From {LABELS[both]}")
        )
    return found


# --- figure 7 ---------------------------------------------------------------------------------------------------------


def fig7_positive(trials: Trials) -> list[Contrast]:
    """r > 1 makes targets grow more where RES stands with a module than in groups of one."""
    cases = Cases(trials)
    where = cases.swept(1, np.inf)
    grown = -trials["change"]
    a, b = (where & np.isin(cases.group, groups) for groups in (WITH_RES, SINGLES))
    words = "growth of the target at r > 1 where RES stands with a module, less that in groups of one predecessor"
    return [cases.between(grown, a, b, words)]


def fig7_negative(trials: Trials) -> list[Contrast]:
    """r < 1 changes From RES more than any other group."""
    cases = Cases(trials)
    where = cases.swept(-np.inf, 1)
    change = trials["change"]
    a = where & (cases.group == RES)
    others = [g for g in range(1, 8) if g != RES and (where & (cases.group == g)).any()]
    return [
        cases.between(
            change, a, where & (cases.group == g), f"change at r < 1 in From RES less that in From {LABELS[g]}"
        )
        for g in others
    ]


def fig7_loss(trials: Trials) -> list[Contrast]:
    """Removing RES & MLP, or all three, costs more loss than removing RES alone."""
    old = trials["loss_old"]
    with np.errstate(invalid="ignore", divide="ignore"):
        loss = (trials["loss_new"] - old) / old
    if not np.isfinite(loss).any():
        raise NotMeasured("No loss was measured.")
    cases = Cases(trials)
    b = cases.removing([RES])
    return [
        cases.between(
            loss,
            cases.removing([g]),
            b,
            f"relative loss change at r = 0 in From {LABELS[g]} less that in From RES",
            unit=Unit.NUMBER,
        )
        for g in (RES | MLP, RES | MLP | ATT)
    ]


def fig7_bent(trials: Trials) -> list[Contrast]:
    """Removing half of a predecessor changes the target by another amount than half of what removing all does."""
    cases, r = Cases(trials), trials["r"]
    half = cases.of & cases.whole & (r == 0.5)
    if not half.any():
        raise NotMeasured("r = 0.5 was not tried.")
    change = np.where(r == 0.5, 2 * trials["change"], trials["change"])
    every = list(range(1, 8))
    words = "change at r = 0 less twice that at r = 0.5"
    return [cases.between(change, cases.removing(every), half, words, rule=Rule(Kind.APART, 0.02), unit=Unit.NUMBER)]


# --- figure 8 ---------------------------------------------------------------------------------------------------------


def fig8_alone(trials: Trials) -> list[Contrast]:
    """A predecessor matters more alone than beside others."""
    cases, change = Cases(trials), trials["change"]
    return [
        cases.between(
            change,
            cases.removing([part], [part]),
            cases.removing([g for g in COMBINED if g & part], [part]),
            f"change by {LABELS[part]} where it is alone less that where others are active",
        )
        for part in SINGLES
    ]


# --- table 1 ----------------------------------------------------------------------------------------------------------


def table1_alike(trials: Trials) -> list[Contrast]:
    """Cosine and Pearson silence about as many of the targets that either puts into a group of one predecessor."""
    named(trials, PEARSON)
    single = [LABELS[part] for part in SINGLES]
    scope = np.isin(trials.per_target(TOP_1)["group"].astype(str), single) | np.isin(
        trials.per_target(PEARSON)["group"].astype(str), single
    )
    return [paired(trials, TOP_1, PEARSON, scope=scope, rule=Rule(Kind.WITHIN, CLOSE))]


# --- figure 15 --------------------------------------------------------------------------------------------------------


def fig15_more(trials: Trials) -> list[Contrast]:
    """Top-5 finds an active predecessor for more targets, and more combined groups, RES & MLP above all."""
    for name in (TOP_1, TOP_5):
        named(trials, name)
    groups = [trials.per_target(name)["group"].astype(str) for name in (TOP_1, TOP_5)]
    where = np.full(len(groups[0]), True)
    asked = {
        "targets with an active predecessor": [LABELS[g] for g in range(1, 8)],
        "targets in combined groups": [LABELS[g] for g in COMBINED],
        "targets in From RES & MLP": [LABELS[RES | MLP]],
    }
    found: list[Contrast] = []
    for what, labels in asked.items():
        own = [np.isin(group, labels).astype(np.float64) for group in groups]
        columns = [trials.by_text(v, where) for v in (*own, np.ones(len(where)))]
        tally = Tally(np.stack(columns, -1), trials.datasets)
        estimate = tally.told(lambda x: (x[:, 1] - x[:, 0]) / x[:, 2], n=len(where), span=GAP, sizes=tally.sums[:, 2])
        beside = f"{percent(float(own[1].mean()))} against {percent(float(own[0].mean()))}"
        found.append(Contrast(f"{what} by top-5 less those by top-1", estimate, ABOVE_0, beside=beside))
    return found


def fig15_equal(trials: Trials) -> list[Contrast]:
    """Without its RES predecessor, a target falls silent about as often as it loses the module's predecessor too."""
    cases, gone = Cases(trials), trials["deactivated"]
    orphan = ((gone == 0) & (trials.origins("new_group") == 0)).astype(np.float64)
    return [
        cases.mean(
            gone - orphan,
            cases.removing([g], [RES]),
            f"targets silenced less targets left without a predecessor, RES removed in From {LABELS[g]}",
            rule=Rule(Kind.WITHIN, ALIKE),
            unit=Unit.POINTS,
            span=GAP,
        )
        for g in (RES | MLP, RES | ATT)
    ]


def fig15_full(trials: Trials) -> list[Contrast]:
    """Of the targets of combined groups that removing all predecessors silences, most need the removal of all."""
    cases, gone = Cases(trials), trials["deactivated"] == 1
    real = ~trials["control"]
    n = len(trials.targets)
    whole, part = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    whole[trials["target"][cases.removing(COMBINED) & gone & real]] = True
    fewer = cases.of & trials["removing"] & ~cases.whole & np.isin(cases.group, COMBINED)
    part[trials["target"][fewer & gone & real]] = True
    columns = [trials.by_text(v, whole) for v in ((~part).astype(np.float64), np.ones(n))]
    tally = Tally(np.stack(columns, -1), trials.datasets)
    found = tally.told(n=float(whole.sum()), span=RATE, sizes=tally.sums[:, 1])
    words = "targets of combined groups silenced by removing all predecessors and by no fewer"
    return [Contrast(words, found, Rule(Kind.ABOVE, 0.5), Unit.SHARE)]


def fig15_new(trials: Trials) -> list[Contrast]:
    """After an edit a target seldom has a predecessor at a part where it had none."""
    cases, group = Cases(trials), trials.origins("group")
    fresh = (trials["deactivated"] == 0) & ((trials.origins("new_group") & ~group) > 0)
    words = "trials after which a part has an active predecessor that had none"
    return [cases.mean(fresh.astype(np.float64), cases.of & trials["removing"], words, rule=Rule(Kind.BELOW, 0.1))]


def missed(trials: Trials) -> list[Contrast]:
    """Of the targets that stay, another single active feature silences some: causes that matching misses."""
    named(trials, EXHAUSTIVE)
    first, other = trials.per_target(trials.first), trials.per_target(EXHAUSTIVE)
    beside = trials.per_target(EXHAUSTIVE, control=True)
    stay = first.named & (first.deactivated == 0)
    estimates = [
        mean_estimates(
            trials.by_text(result.deactivated, where)[:, None],
            trials.by_text(np.ones(len(where)), where)[:, None],
            trials.datasets,
            span=RATE,
        )[0]
        for result in (other, beside)
        if (where := stay & np.isfinite(result.deactivated)) is not None
    ]
    words = "targets that their predecessors do not silence and another single active feature does"
    return [Contrast(words, estimates[0], Rule(Kind.ABOVE, 0.05), Unit.SHARE, estimates[1])]
