"""The tables of the deactivation experiment: sections 5.2, A.2, C.2 and table 1. No torch.

Rates are over trials, intervals of texts. "deactivated" is the paper's successful deactivations: of
the targets with an available predecessor, the share that is silent afterwards. "change" is 1 - z_new / z_old.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from saeflow.experiments.comparison import CHOSEN, control_match, paired, remaining, table_1
from saeflow.experiments.outcomes import NOWHERE, SEARCHES, Trials
from saeflow.experiments.records import PARTS, Origin
from saeflow.experiments.results import Results, SummaryTable
from saeflow.experiments.statistics import CHANGE, Estimate
from saeflow.experiments.summary import ALL, LABELS, ORDER, group_place, means

DEACTIVATED = "deactivated"
_NONE = Estimate(None, None, None, 0)


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


def _means(
    trials: Trials,
    keys: Sequence[Sequence[Any]],
    where: Bool[np.ndarray, " n"],
    **more: Float[np.ndarray, " n"],
) -> dict[tuple[Any, ...], dict[str, Estimate]]:
    values = {name: trials.numbers[name] for name in (DEACTIVATED, "change")} | more
    spans = {"change": CHANGE, **dict.fromkeys(more)}
    return dict(means(keys, values, trials.cluster, trials.texts, where, spans))


def _with_controls(
    trials: Trials, keys: Sequence[Sequence[Any]], where: Bool[np.ndarray, " n"]
) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Each key with the estimates of the trials there and of their controls."""
    size = trials.numbers["n_features"]
    own = _means(trials, keys, where & ~trials.controlling, size=size)
    controls = _means(trials, keys, where & trials.controlling)
    found: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []
    for key, estimate in own.items():
        control = controls.get(key, {DEACTIVATED: _NONE, "change": _NONE})
        cells = (
            *estimate[DEACTIVATED].interval, estimate[DEACTIVATED].n, *estimate["change"].interval,
            *control[DEACTIVATED].interval, *control["change"].interval, control["change"].n,
            estimate["size"].value,
        )  # fmt: skip
        found.append((key, cells))
    return found


_RATES = (
    "deactivated, low, high, n, change, change_low, change_high, control_deactivated, control_low, control_high, "
    "control_change, control_change_low, control_change_high, control_n, features"
)


def by_strategy(trials: Trials) -> SummaryTable:
    """Success of each strategy by group and by what was removed."""
    keys = [trials.labels(name) for name in ("strategy", "group", "removed")]
    names = trials.names
    found = _with_controls(trials, keys, trials.removing)
    found.sort(key=lambda row: (names.index(row[0][0]), group_place(row[0][1]), group_place(row[0][2])))
    return SummaryTable.of(
        "by_strategy",
        "Deactivation by strategy, group of the target and predecessors removed",
        "fig. 6",
        "One trial removes what the strategy names at the parts in removed, where active, at one token: features many "
        "on average. Controls remove other active features of the same sites, as many and alike in norm. exhaustive is "
        "the best of all active features of one site, greedy a set of up to five; both carry the group of "
        f"{trials.first}, and are the only ones with targets from nowhere. {CHOSEN}",
        f"strategy, group, removed, {_RATES}",
        [(*key, *cells) for key, cells in found],
    )


def by_strategy_layer(trials: Trials) -> SummaryTable:
    """Success of each strategy by layer, all available predecessors removed."""
    strategy = trials.labels("strategy")
    layer = trials.numbers["layer"].astype(np.int64).tolist()
    where = trials.whole & ~trials.is_("group", NOWHERE)
    found = _with_controls(trials, [strategy, [ALL] * len(strategy)], where)
    found += _with_controls(trials, [strategy, layer], where)
    names = trials.names
    found.sort(key=lambda row: (names.index(row[0][0]), -1 if row[0][1] == ALL else row[0][1]))
    return SummaryTable.of(
        "by_strategy_layer",
        "Deactivation by strategy and layer",
        "fig. 6",
        "All groups together, all available predecessors removed at once. A strategy is judged on the targets it names "
        "an active predecessor for, so n differs; paired compares on the same targets. exhaustive (the best single "
        f"feature of any site) and greedy are judged on the targets of {trials.first}. {CHOSEN}",
        f"strategy, layer, {_RATES}",
        [(*key, *cells) for key, cells in found],
    )


def by_rescale(trials: Trials) -> SummaryTable:
    """What rescaling all available predecessors by r does, and what it does to others in their place."""
    old, new = trials.numbers["loss_old"], trials.numbers["loss_new"]
    same = trials.words["removed"] == trials.words["group"]
    where = same & trials.is_("strategy", trials.first) & ~trials.is_("removed", NOWHERE)
    r, group = trials.numbers["r"].tolist(), trials.labels("group")
    own: dict[tuple[Any, ...], dict[str, Estimate]] = {}
    controls: dict[tuple[Any, ...], dict[str, Estimate]] = {}
    for column in ([ALL] * len(r), group):
        for side, rows_of_it in ((own, ~trials.controlling), (controls, trials.controlling)):
            side.update(_means(trials, [r, column], where & rows_of_it, loss_change=(new - old) / old))
    rows: list[tuple[Any, ...]] = []
    for key in sorted(own, key=lambda key: (key[0], key[1] != ALL, _place(key[1]))):
        cells = [_swept(side.get(key, {})) for side in (own, controls)]
        rows.append((trials.first, *key, *cells[0], *cells[1]))
    names = (
        "deactivated, low, high, change, change_low, change_high, loss_change, loss_low, loss_high, n, loss_n, "
        "control_deactivated, control_low, control_high, control_change, control_change_low, control_change_high, "
        "control_loss_change, control_loss_low, control_loss_high, control_n, control_loss_n"
    )
    return SummaryTable.of(
        "by_rescale",
        "Rescaling all available predecessors",
        "fig. 7",
        "r = 0 removes, r = 1 keeps, r > 1 amplifies. change is below 0 where the target grew. loss_change: relative "
        "change of the text's mean next-token loss, over loss_n trials; one token of a text is edited, so it "
        "is small. Controls rescale other active features of the same sites by the same r, as many and alike in norm; "
        "a target has the same ones for all r.",
        f"strategy, r, group, {names}",
        rows,
    )


def _swept(found: Mapping[str, Estimate]) -> tuple[Any, ...]:
    """One side of a row of the sweep: rate, change and loss with their intervals, and how many trials."""
    gone, change, loss = (found.get(name, _NONE) for name in (DEACTIVATED, "change", "loss_change"))
    return *gone.interval, *change.interval, *loss.interval, gone.n, loss.n


def one_predecessor(trials: Trials) -> SummaryTable:
    """What the removal of one predecessor alone does, by group."""
    where = trials.removing & trials.is_("strategy", trials.first)
    single = np.isin(trials.words["removed"], [Origin[part.name].value for part in PARTS])
    keys = [trials.labels(name) for name in ("group", "removed")]
    own = _means(trials, keys, where & single & ~trials.controlling)
    controls = _means(trials, keys, where & single & trials.controlling)
    rows: list[tuple[Any, ...]] = []
    for key in sorted(own, key=lambda key: (group_place(key[0]), group_place(key[1]))):
        cells: list[Any] = []
        for found in (own[key], controls.get(key, {})):
            change, gone = found.get("change", _NONE), found.get(DEACTIVATED, _NONE)
            cells += [*change.interval, *gone.interval, change.n]
        rows.append((*key, *cells))
    return SummaryTable.of(
        "one_predecessor",
        "Removing one predecessor at a time",
        "fig. 8",
        f"Strategy {trials.first}. A predecessor that matters less in a group with others than alone speaks for "
        "circuit-like behaviour of the group. Controls remove another active feature of the same site, alike in norm. "
        "low, high and control_low, control_high belong to change.",
        "group, removed, change, low, high, deactivated, deactivated_low, deactivated_high, n, control_change, "
        "control_low, control_high, control_deactivated, control_deactivated_low, control_deactivated_high, control_n",
        rows,
    )


def groups_by_strategy(trials: Trials) -> SummaryTable:
    """Which groups a strategy finds."""
    rows: list[tuple[Any, ...]] = []
    for strategy in trials.names:
        groups = trials.groups(strategy).tolist()
        if strategy not in SEARCHES:
            for value in ORDER:
                n = groups.count(LABELS[value])
                rows.append((strategy, LABELS[value], n, n / len(groups)))
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
    outcomes = [DEACTIVATED, *(LABELS[value] for value in ORDER)]
    gone = trials.numbers[DEACTIVATED] == 1
    searched = np.isin(
        trials.words["strategy"], [n for n, name in enumerate(trials.names) if name in SEARCHES]
    )
    where = trials.removing & ~searched
    keys = [trials.labels(name) for name in ("strategy", "group", "removed")]
    values = {label: (~gone & trials.is_("new_group", label)).astype(np.float64) for label in outcomes[1:]}
    values[DEACTIVATED] = gone.astype(np.float64)
    own, controls = (
        dict(means(keys, values, trials.cluster, trials.texts, where & side))
        for side in (~trials.controlling, trials.controlling)
    )
    names = trials.names
    order = sorted(own, key=lambda key: (names.index(key[0]), group_place(key[1]), group_place(key[2])))
    rows: list[tuple[Any, ...]] = []
    for key in order:
        for label in outcomes:
            found, control = own[key][label], controls.get(key, {}).get(label, _NONE)
            rows.append((*key, label, *found.interval, found.n, *control.interval, control.n))
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
    first = trials.is_("strategy", trials.first) & ~trials.controlling
    layers, groups = trials.numbers["layer"].astype(np.int64), trials.words["group"]
    rows: list[tuple[Any, ...]] = []
    for layer in np.unique(layers).tolist():
        for value in ORDER:
            here = first & (layers == layer) & (groups == value)
            edited = int((here & ~trials.is_("removed", NOWHERE)).sum())
            rows.append((layer, LABELS[value], len(np.unique(trials.target[here])), edited))
    return SummaryTable.of(
        "counts",
        "Targets and trials",
        "fig. 17a",
        f"features: targets, each a feature at a token, by group under {trials.first}. trials: its edits of them, over "
        "all sets removed and all r, without controls.",
        "layer, group, features, trials",
        rows,
    )


def _place(label: str) -> int:
    return -1 if label == ALL else group_place(label)
