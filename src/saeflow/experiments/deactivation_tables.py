"""The tables of the deactivation experiment: sections 5.2, A.2, C.2 and table 1, and beyond them. No torch.

Rates are over trials, intervals of texts. "deactivated" is the paper's successful deactivations: of
the targets with an available predecessor, the share that is silent afterwards. "change" is 1 - z_new / z_old.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from saeflow.experiments.records import EXHAUSTIVE, GREEDY, PARTS, SEARCHES
from saeflow.experiments.results import Results, SummaryTable
from saeflow.experiments.statistics import CHANGE, GAP, RATE, Span
from saeflow.experiments.tables import ALL, LABELS, ORDER
from saeflow.experiments.tidy import beside_controls, less, means, with_all
from saeflow.experiments.trials import CONTROL, NOWHERE, PEARSON, Trials

DEACTIVATED = "deactivated"
BY_FIRST = "deactivated by its predecessors"
BY_ANOTHER = "by another single feature"
BY_SET = "by a set of up to five"
BY_NONE = "by none tried"

CHOSEN = (
    "A search reports the best of all it tries, and exhaustive tries every active feature: a random choice with as "
    "many tries would be the same search. So its control is one random feature for each that it removes, and says "
    "what an edit of that size does, not what choosing adds."
)
"""What the controls of searches mean."""

_BOTH: dict[str, Span | None] = {DEACTIVATED: RATE, "change": CHANGE}
_GROUPS = [LABELS[value] for value in ORDER]


def deactivation_tables(results: Results) -> list[SummaryTable]:
    """All tables of a deactivation run.

    Raises:
        BadFile: when a file of the folder is damaged.
        InvalidArgument: when it has no rows.
    """
    trials = Trials.of(results.rows())
    return [
        by_strategy(trials),
        by_strategy_layer(trials),
        by_rescale(trials),
        one_predecessor(trials),
        groups_by_strategy(trials),
        new_group(trials),
        counts(trials),
        table_1(trials),
        paired(trials),
        remaining(trials),
        control_match(trials),
    ]


_RATES = (
    "deactivated, low, high, n, change, change_low, change_high, control_deactivated, control_low, control_high, "
    "control_change, control_change_low, control_change_high, control_n, features"
)
_SHORT = {
    "deactivated_low": "low",
    "deactivated_high": "high",
    "deactivated_n": "n",
    "n_features": "features",
    "control_deactivated_low": "control_low",
    "control_deactivated_high": "control_high",
    "control_change_n": "control_n",
}


def _rows(frame: pd.DataFrame, columns: str, short: Mapping[str, str] = _SHORT) -> list[tuple[Any, ...]]:
    """Some columns of a frame, index included, renamed by `short`, as the rows of a table."""
    named = frame.reset_index().rename(columns=short)
    return list(named[columns.split(", ")].astype(object).itertuples(index=False, name=None))


def by_strategy(trials: Trials) -> SummaryTable:
    """Success of each strategy by group and by what was removed."""
    found = beside_controls(
        trials.frame[trials.removing], ["strategy", "group", "removed"], _BOTH | {"n_features": None}
    )
    columns = f"strategy, group, removed, {_RATES}"
    return SummaryTable.of(
        "by_strategy",
        "Deactivation by strategy, group of the target and predecessors removed",
        "fig. 6",
        "One trial removes what the strategy names at the parts in removed, where active, at one token: features many "
        "on average. Controls remove other active features of the same sites, as many and alike in norm. exhaustive is "
        "the best of all active features of one site, greedy a set of up to five; both carry the group of "
        f"{trials.first}, and are the only ones with targets from nowhere. {CHOSEN}",
        columns,
        _rows(found, columns),
    )


def by_strategy_layer(trials: Trials) -> SummaryTable:
    """Success of each strategy by layer, all available predecessors removed."""
    frame = trials.frame[trials.whole & ~trials.is_("group", NOWHERE)]
    layers = pd.Categorical(frame["layer"], sorted(frame["layer"].unique()))
    every = with_all(frame.assign(layer=layers), "layer")
    found = beside_controls(every, ["strategy", "layer"], _BOTH | {"n_features": None})
    columns = f"strategy, layer, {_RATES}"
    return SummaryTable.of(
        "by_strategy_layer",
        "Deactivation by strategy and layer",
        "fig. 6",
        "All groups together, all available predecessors removed at once. A strategy is judged on the targets it names "
        "an active predecessor for, so n differs; paired compares on the same targets. exhaustive (the best single "
        f"feature of any site) and greedy are judged on the targets of {trials.first}. {CHOSEN}",
        columns,
        _rows(found, columns),
    )


def by_rescale(trials: Trials) -> SummaryTable:
    """What rescaling all available predecessors by r does, and what it does to others in their place."""
    whole = trials.is_("strategy", trials.first) & (trials.origins("removed") == trials.origins("group"))
    frame = trials.frame[whole & ~trials.is_("removed", NOWHERE)]
    loss = (frame["loss_new"] - frame["loss_old"]) / frame["loss_old"]
    every = with_all(frame.assign(loss_change=loss), "group")
    found = beside_controls(every, ["strategy", "r", "group"], _BOTH | {"loss_change": None})
    short = _SHORT | {
        f"{side}loss_change_{end}": f"{side}loss_{end}" for side in ("", "control_") for end in ("low", "high", "n")
    }
    columns = (
        "strategy, r, group, deactivated, low, high, change, change_low, change_high, loss_change, loss_low, "
        "loss_high, n, loss_n, control_deactivated, control_low, control_high, control_change, control_change_low, "
        "control_change_high, control_loss_change, control_loss_low, control_loss_high, control_n, control_loss_n"
    )
    return SummaryTable.of(
        "by_rescale",
        "Rescaling all available predecessors",
        "fig. 7",
        "r = 0 removes, r = 1 keeps, r > 1 amplifies. change is below 0 where the target grew. loss_change: relative "
        "change of the text's mean next-token loss, over loss_n trials; one token of a text is edited, so it "
        "is small. Controls rescale other active features of the same sites by the same r, as many and alike in norm; "
        "a target has the same ones for all r.",
        columns,
        _rows(found, columns, short),
    )


def one_predecessor(trials: Trials) -> SummaryTable:
    """What the removal of one predecessor alone does, by group."""
    single = trials.frame["removed"].isin([part.name for part in PARTS])
    frame = trials.frame[trials.removing & trials.is_("strategy", trials.first) & single]
    found = beside_controls(frame, ["group", "removed"], _BOTH)
    columns = (
        "group, removed, change, low, high, deactivated, deactivated_low, deactivated_high, n, control_change, "
        "control_low, control_high, control_deactivated, control_deactivated_low, control_deactivated_high, control_n"
    )
    short = {
        "change_low": "low",
        "change_high": "high",
        "change_n": "n",
        "control_change_low": "control_low",
        "control_change_high": "control_high",
        "control_change_n": "control_n",
    }
    return SummaryTable.of(
        "one_predecessor",
        "Removing one predecessor at a time",
        "fig. 8",
        f"Strategy {trials.first}. A predecessor that matters less in a group with others than alone speaks for "
        "circuit-like behaviour of the group. Controls remove another active feature of the same site, alike in norm. "
        "low, high and control_low, control_high belong to change.",
        columns,
        _rows(found, columns, short),
    )


def groups_by_strategy(trials: Trials) -> SummaryTable:
    """Which groups a strategy finds."""
    rows: list[tuple[Any, ...]] = []
    for strategy in trials.names:
        groups = trials.groups(strategy).tolist()
        if strategy not in SEARCHES:
            rows += [(strategy, group, n, n / len(groups)) for group in _GROUPS for n in [groups.count(group)]]
    return SummaryTable.of(
        "groups_by_strategy",
        "Groups of the targets under each strategy",
        "fig. 15a",
        "Every target under every strategy; shares of a strategy sum to 1. Nothing is edited yet, hence no control.",
        "strategy, group, features, share",
        rows,
    )


def new_group(trials: Trials) -> SummaryTable:
    """The group of a target after the edit."""
    frame = trials.frame[trials.removing & ~trials.frame["strategy"].isin(SEARCHES)]
    gone = frame[DEACTIVATED] == 1
    outcomes = {DEACTIVATED: gone} | {label: ~gone & (frame["new_group"] == label) for label in _GROUPS}
    keys = ["strategy", "group", "removed"]
    shares = pd.DataFrame(outcomes).astype(np.float64).add_prefix("to ")
    frame = pd.concat([frame.drop(columns=DEACTIVATED), shares], axis=1)
    found = beside_controls(frame, keys, dict.fromkeys(shares.columns, RATE))
    cells = [f"{side}{end}" for side in ("{0}", "control_{0}") for end in ("", "_low", "_high", "_n")]
    rows = [
        (*key, label, *(one[cell.format(f"to {label}")] for cell in cells))
        for key, one in zip(found.index, found.to_dict("records"), strict=True)
        for label in outcomes
    ]
    return SummaryTable.of(
        "new_group",
        "Group of the target after the edit",
        "fig. 15b",
        "Which of the predecessors the strategy names are active once the layer is computed again; deactivated where "
        "the target is silent, whatever its predecessors do. Probabilities of one (strategy, group, removed) sum to 1. "
        "control_probability is the same after the removal of other active features of the same sites, as many and "
        "alike in norm: the strategy's own predecessors are then left in place.",
        "strategy, group, removed, new_group, probability, low, high, n, control_probability, control_low, "
        "control_high, control_n",
        rows,
    )


def counts(trials: Trials) -> SummaryTable:
    """How many targets and trials there are."""
    frame = trials.frame[trials.is_("strategy", trials.first) & ~trials.controlling]
    frame = frame.assign(edited=frame["removed"] != NOWHERE)
    found = frame.groupby(["layer", "group"], observed=False).agg({"target": "nunique", "edited": "sum"})
    rows = list(found.reset_index().itertuples(index=False, name=None))
    return SummaryTable.of(
        "counts",
        "Targets and trials",
        "fig. 17a",
        f"features: targets, each a feature at a token, by group under {trials.first}. trials: its edits of them, over "
        "all sets removed and all r, without controls.",
        "layer, group, features, trials",
        rows,
    )


def _per_target(trials: Trials, strategy: str, *, control: bool = False) -> pd.DataFrame | None:
    """What a strategy did to each target, or its control; None where it was not run, or has no control."""
    name, control = (trials.first, True) if strategy == CONTROL else (strategy, control)
    if name not in trials.names:
        return None
    result = trials.per_target(name, control=control)
    if control and not result.named.any():
        return None
    known = {DEACTIVATED: result.deactivated, "change": result.change, "named": result.named}
    return trials.targets.assign(**known)


def table_1(trials: Trials) -> SummaryTable:
    """All strategies on the targets that cosine or Pearson name from one part."""
    single = [part.name for part in PARTS]
    shared = np.isin(trials.groups(trials.first).astype(str), single)
    if PEARSON in trials.names:
        shared |= np.isin(trials.groups(PEARSON).astype(str), single)
    order = list(dict.fromkeys((trials.first, PEARSON, EXHAUSTIVE, GREEDY, CONTROL, *trials.names)))
    tried = [
        found[shared].assign(strategy=strategy, control=control)
        for strategy in order
        for control in (False, True)
        if not (control and strategy == CONTROL)
        and (found := _per_target(trials, strategy, control=control)) is not None
    ]
    frame = pd.concat(tried)
    found = beside_controls(frame.assign(strategy=pd.Categorical(frame["strategy"], order)), ["strategy"], _BOTH)
    short = _SHORT | {"deactivated_n": "n"}
    columns = (
        "strategy, deactivated, low, high, change, change_low, change_high, n, control_deactivated, control_low, "
        "control_high, control_change, control_change_low, control_change_high, control_n"
    )
    return SummaryTable.of(
        "table_1",
        "Strategies on shared targets",
        "table 1",
        f"Targets that {trials.first} or {PEARSON} puts into From RES, From MLP or From ATT. A strategy removes all it "
        "names; where it names nothing active the target counts as kept, with change 0. exhaustive: the best single "
        "active feature of any site, by change. greedy: sets of up to five. Controls remove other active features of "
        "the same sites, as many and alike in norm, on the targets where there are some; where the strategy names "
        f"nothing its control removes nothing either. {CONTROL}: the control of {trials.first}. {CHOSEN}",
        columns,
        _rows(found, columns, short),
    )


def paired(trials: Trials) -> SummaryTable:
    """The difference in deactivation between two strategies on the same targets."""
    first = trials.first
    others = [name for name in trials.names if name != first]
    pairs = [(first, other) for other in (*others, CONTROL)]
    if EXHAUSTIVE in others and GREEDY in others:
        pairs.append((EXHAUSTIVE, GREEDY))
    rows: list[tuple[Any, ...]] = []
    for a, b in pairs:
        one, two = _per_target(trials, a), _per_target(trials, b)
        if one is None or two is None:
            continue
        scopes = {"both name": one["named"] & two["named"]}
        if b != CONTROL:
            scopes["either names"] = one["named"] | two["named"]
        both = trials.targets.assign(a=one[DEACTIVATED], b=two[DEACTIVATED])
        for scope, chosen in scopes.items():
            difference, p = less(both[chosen], "a", "b", GAP)
            rows.append((a, b, scope, *difference.interval, p, difference.n))
    return SummaryTable.of(
        "paired",
        "Difference in deactivation on the same targets",
        "beyond the paper",
        "Rate of strategy_a less that of strategy_b, all named predecessors removed. scope: targets where both name an "
        "active predecessor, or where either does, the other counting as a failure. p: two-sided, of the t that "
        "gives the interval; no less than 2 / 2^texts.",
        "strategy_a, strategy_b, scope, difference, low, high, p, n",
        rows,
    )


def remaining(trials: Trials) -> SummaryTable:
    """What would have silenced the targets that matching did not."""
    found = [_per_target(trials, name) for name in (trials.first, EXHAUSTIVE, GREEDY)]
    rows: list[tuple[Any, ...]] = []
    if all(one is not None for one in found):
        gone = [(one[DEACTIVATED] == 1).to_numpy() for one in found if one is not None]
        outcomes = (BY_FIRST, BY_ANOTHER, BY_SET, BY_NONE)
        chosen = np.select(gone, outcomes[:3], BY_NONE)
        groups = pd.Categorical(trials.groups(trials.first), _GROUPS)
        told = trials.targets.assign(group=groups, **{name: (chosen == name).astype(float) for name in outcomes})
        own = means(with_all(told, "group"), ["group"], dict.fromkeys(outcomes, RATE))
        control = _per_target(trials, trials.first, control=True)
        beside = None
        if control is not None:
            beside = means(with_all(control.assign(group=groups), "group"), ["group"], {DEACTIVATED: RATE})
        nothing = (None, None, None, 0)
        for group in (ALL, *_GROUPS):
            for name in outcomes:
                share, other = nothing, nothing
                if group in own.index:
                    share = tuple(own.loc[group, [name, f"{name}_low", f"{name}_high", f"{name}_n"]])
                if beside is not None and name == BY_FIRST and group != NOWHERE and group in beside.index:
                    other = tuple(beside.loc[group])
                rows.append((group, name, *share, *other))
    return SummaryTable.of(
        "remaining",
        "What silences a target",
        "beyond the paper",
        f"Targets by group under {trials.first}: silenced by removing all available predecessors; else by the removal "
        "of another single active feature of the predecessor sites; else by a greedy set of up to five of them; else "
        "by none tried, which leaves what the dictionaries do not reconstruct, and larger sets. control_share: targets "
        f"silenced by the control of {trials.first}, other active features in place of its predecessors; targets from "
        "nowhere, of which neither removes anything, count as kept in both. The outcomes after the first are the best "
        "of many tries by definition, so that no random choice is a control of theirs.",
        "group, outcome, share, low, high, n, control_share, control_low, control_high, control_n",
        rows,
    )


def control_match(trials: Trials) -> SummaryTable:
    """How well controls are matched in norm."""
    norm, control = trials["norm"], trials.controlling
    ratio = np.full(len(norm), np.nan)
    ratio[control] = norm[control] / norm[trials["controls"][control]]
    # a control of the sweep edits what that of r = 0 does
    frame = trials.frame.assign(ratio=ratio)[trials.removing]
    rows: list[tuple[Any, ...]] = []
    for key, some in frame.groupby(["strategy", "removed"], observed=True):
        values = some["ratio"].dropna().to_numpy()
        if len(values):
            cuts = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
            within = float(((values > 0.5) & (values < 2)).mean())
            rows.append((*key, *cuts, within, len(values), len(some) - len(values)))  # pyright: ignore[reportGeneralTypeIssues]
    return SummaryTable.of(
        "control_match",
        "How controls compare in norm with what they control",
        "beyond the paper",
        "Ratio of the norms removed, control over trial. within_2: share between a half and two. controls of trials: "
        "the other trials have none, since too few other features of the site are active.",
        "strategy, removed, q05, q25, median, q75, q95, within_2, controls, trials",
        rows,
    )
