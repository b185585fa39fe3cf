"""The tables of the deactivation experiment: sections 5.2, A.2, C.2 and table 1, and additions to them. No torch.

    rows -> trials_frame: one line per trial; outcomes: one line per target -> queries

Rates are over trials; intervals treat texts as the independent units. "deactivated" is the paper's rate of successful
deactivations: the share of targets with an available predecessor that are silent afterwards. "change" is
1 - z_new / z_old.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from saeflow.errors import InvalidArgument
from saeflow.experiments.groups import ALL, EXHAUSTIVE, GREEDY, GROUPS, PARTS, SEARCHES, Origin
from saeflow.experiments.results import Results, Row, SummaryTable
from saeflow.experiments.statistics import (
    CHANGE,
    GAP,
    RATE,
    TEXT,
    Span,
    mean_difference,
    means,
    means_and_controls,
    shares,
    with_all,
)

NOWHERE = Origin.NOWHERE.label
TOP_1, PEARSON, CONTROL = "top-1", "pearson top-1", "active control"
DEACTIVATED = "deactivated"
BY_FIRST = "deactivated by its predecessors"
BY_ANOTHER = "by another single feature"
BY_SET = "by a set of up to five"
BY_NONE = "by none tried"

CHOSEN = (
    "A search reports the best of all it tries, and `exhaustive` tries every active feature: a random choice with as "
    "many tries would be the same search, so its control is one random feature for each that it removes, and says "
    "what an edit of that size does, not what choosing adds."
)
"""The note on how to read the controls of searches."""

_BOTH: dict[str, Span | None] = {DEACTIVATED: RATE, "change": CHANGE}
_SINGLE = [part.name for part in PARTS]
_SHARE = ["share", "low", "high", "n"]


def trials_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Every trial of a run, one line each, from the rows of a results folder; each text must have all its rows.

    Columns: dataset, text, position, layer, control, r, norm, deactivated (0 or 1), change, loss_old and loss_new, as
    in the rows; strategy, categorical in the order of the run (the first is swept over r, and decides the groups of
    searches); group, removed and new_group, categorical in the order of every table; n_features: how many features
    were rescaled; target: a number for each pair of feature and token; controls: for a control, the line that it
    controls, else -1; removing: whether r = 0 and something is removed; whole: marks one trial per target and strategy,
    and its control, that removes everything named at once (for exhaustive search the best single feature of any site,
    for greedy search its set).

    Raises:
        InvalidArgument: when there are no trials.
    """
    frame = pd.DataFrame({**row, "features": len(row["features"])} for row in rows)
    if frame.empty:
        raise InvalidArgument("the run has no trial: no target is active. Give more texts or tokens.")
    first = np.maximum.accumulate(np.where(frame["trial"] == 0, np.arange(len(frame)), 0))
    numbers = ("r", "norm", DEACTIVATED, "change", "loss_old", "loss_new")
    frame = frame.rename(columns={"features": "n_features"}).assign(
        strategy=pd.Categorical(frame["strategy"], frame["strategy"].unique()),
        controls=(frame["controls"] + first).fillna(-1).astype(np.int64),
        target=frame.groupby([*TEXT, "position", "target"], sort=False).ngroup(),
        **{name: pd.Categorical(frame[name], GROUPS) for name in ("group", "removed", "new_group")},
        **{name: frame[name].astype(np.float64) for name in numbers},
    )
    frame["removing"] = (frame["r"] == 0) & (frame["removed"] != NOWHERE)
    searched = (frame["strategy"] == EXHAUSTIVE) & ~frame["control"]
    by_change = frame[searched].sort_values("change", ascending=False, kind="stable")
    best = frame.index.isin(by_change.drop_duplicates("target").index)
    same = (frame["removed"] == frame["group"]) | (frame["strategy"] == GREEDY)
    whole = pd.Series(np.where(searched, best, same), frame.index) & (frame["r"] == 0)
    whole[frame["control"]] = whole[frame.loc[frame["control"], "controls"]].to_numpy()
    return frame.assign(whole=whole)


def outcomes(trials: pd.DataFrame, strategy: str, *, control: bool = False) -> pd.DataFrame | None:
    """The outcome for each target of removing everything that a strategy, or its control, names: one line per target.

    Columns: dataset, text; group under the strategy, deactivated (1 if the target is silent afterwards) and change
    (1 - z_new / z_old), all missing where the strategy was not tried; named: whether it names an active predecessor.

    A search is tried on every target; `named` is then that of the first strategy. Where a strategy removes nothing, its
    control removes nothing either, and the target counts as kept, with change 0, in both. "active control" is the
    control of the first strategy. None for a strategy that was not run, or that has no control.
    """
    if strategy == CONTROL:
        strategy, control = _first(trials), True
    if strategy not in trials["strategy"].cat.categories:
        return None
    targets = trials.drop_duplicates("target").set_index("target")[TEXT]
    mine = trials[trials["strategy"] == strategy]
    group = mine.drop_duplicates("target", keep="last").set_index("target")["group"]
    mine = mine[mine["whole"] & ((mine["control"] == control) | (mine["removed"] == NOWHERE))]
    last = mine.drop_duplicates("target", keep="last").set_index("target")[[DEACTIVATED, "change"]]
    named = targets.index.isin(mine.loc[mine["group"] != NOWHERE, "target"])
    return None if control and not named.any() else targets.join(group).join(last).assign(named=named)


def summarize_deactivation(results: Results) -> dict[str, SummaryTable]:
    """Make the tables of a run from its rows and write them as summary.json and CSV files.

    Raises:
        BadFile: when a file of the folder is damaged.
        InvalidArgument: when it has no rows.
    """
    trials = trials_frame(results.rows())
    return results.write_tables(
        [
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
    )


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


def _first(trials: pd.DataFrame) -> str:
    """The first strategy, which was swept over r and decides the groups of searches."""
    return trials["strategy"].cat.categories[0]


def _columns(frame: pd.DataFrame, columns: str, short: Mapping[str, str] = _SHORT) -> pd.DataFrame:
    """Some columns of a frame, including its index, after renaming by `short`."""
    return frame.reset_index().rename(columns=short)[columns.split(", ")]


def by_strategy(trials: pd.DataFrame) -> SummaryTable:
    """The success of each strategy, by group and by parts removed."""
    first = _first(trials)
    found = means_and_controls(
        trials[trials["removing"]], ["strategy", "group", "removed"], _BOTH | {"n_features": None}
    )
    columns = f"strategy, group, removed, {_RATES}"
    return SummaryTable.from_frame(
        "by_strategy",
        "Deactivation by strategy, group of the target and predecessors removed",
        "fig. 6",
        "One trial removes what the strategy names at the parts in `removed`, where active, at one token: `features` "
        "many on average. Controls remove other active features of the same sites, as many and alike in norm. "
        f"`exhaustive` is the best of all active features of one site; it carries the group of {first}, and has "
        f"targets from nowhere too. `greedy` is a set of up to five, with the same groups and targets. {CHOSEN}",
        _columns(found, columns),
    )


def by_strategy_layer(trials: pd.DataFrame) -> SummaryTable:
    """The success of each strategy by layer, with all available predecessors removed."""
    first = _first(trials)
    frame = trials[trials["whole"] & (trials["group"] != NOWHERE)]
    layers = pd.Categorical(frame["layer"], sorted(frame["layer"].unique()))
    every = with_all(frame.assign(layer=layers), "layer")
    found = means_and_controls(every, ["strategy", "layer"], _BOTH | {"n_features": None})
    columns = f"strategy, layer, {_RATES}"
    return SummaryTable.from_frame(
        "by_strategy_layer",
        "Deactivation by strategy and layer",
        "fig. 6",
        "All groups together, all available predecessors removed at once. A strategy is judged on the targets it names "
        "an active predecessor for, so `n` differs. `exhaustive` (the best single feature of any site) is judged on "
        f"the targets of {first}. So is `greedy`. {CHOSEN}",
        _columns(found, columns),
    )


def by_rescale(trials: pd.DataFrame) -> SummaryTable:
    """The effect of rescaling all available predecessors by r, and of rescaling other features in their place."""
    frame = trials[trials["strategy"] == _first(trials)]
    frame = frame[(frame["removed"] == frame["group"]) & (frame["removed"] != NOWHERE)]
    loss = (frame["loss_new"] - frame["loss_old"]) / frame["loss_old"]
    every = with_all(frame.assign(loss_change=loss), "group")
    found = means_and_controls(every, ["strategy", "r", "group"], _BOTH | {"loss_change": None})
    short = _SHORT | {
        f"{side}loss_change_{end}": f"{side}loss_{end}" for side in ("", "control_") for end in ("low", "high", "n")
    }
    columns = (
        "strategy, r, group, deactivated, low, high, change, change_low, change_high, loss_change, loss_low, "
        "loss_high, n, loss_n, control_deactivated, control_low, control_high, control_change, control_change_low, "
        "control_change_high, control_loss_change, control_loss_low, control_loss_high, control_n, control_loss_n"
    )
    return SummaryTable.from_frame(
        "by_rescale",
        "Rescaling all available predecessors",
        "fig. 7",
        "r = 0 removes, r = 1 keeps, r > 1 amplifies. `change` is below 0 where the target grew. `loss_change`: "
        "relative change of the text's mean next-token loss, over `loss_n` trials; one token of a text is edited, so "
        "it is small. Controls rescale other active features of the same sites by the same r, as many and alike in "
        "norm; a target has the same ones for all r.",
        _columns(found, columns, short),
    )


def one_predecessor(trials: pd.DataFrame) -> SummaryTable:
    """The effect of removing one predecessor, by group."""
    first = _first(trials)
    single = trials["removed"].isin(_SINGLE)
    frame = trials[trials["removing"] & (trials["strategy"] == first) & single]
    found = means_and_controls(frame, ["group", "removed"], _BOTH)
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
    return SummaryTable.from_frame(
        "one_predecessor",
        "Removing one predecessor at a time",
        "fig. 8",
        f"Strategy {first}. A predecessor that matters less in a group with others than alone speaks for "
        "circuit-like behaviour of the group. Controls remove another active feature of the same site, alike in norm. "
        "`low`, `high` and `control_low`, `control_high` belong to `change`.",
        _columns(found, columns, short),
    )


def groups_by_strategy(trials: pd.DataFrame) -> SummaryTable:
    """The groups of the targets under each strategy."""
    frame = trials[~trials["strategy"].isin(SEARCHES)].drop_duplicates(["strategy", "target"], keep="last")
    found = frame.groupby(["strategy", "group"], observed=False).size().rename("features").reset_index()
    found = found[~found["strategy"].isin(SEARCHES)]
    return SummaryTable.from_frame(
        "groups_by_strategy",
        "Groups of the targets under each strategy",
        "fig. 15a",
        "Every target under every strategy; shares of a strategy sum to 1. Nothing is edited yet, hence no control.",
        found.assign(share=found["features"] / trials["target"].nunique()),
    )


def new_group(trials: pd.DataFrame) -> SummaryTable:
    """The group of a target after the edit."""
    frame = trials[trials["removing"] & ~trials["strategy"].isin(SEARCHES)]
    after = frame["new_group"].astype(str).mask(frame[DEACTIVATED] == 1, DEACTIVATED)
    frame = frame.assign(new_group=pd.Categorical(after, [DEACTIVATED, *GROUPS]))
    keys = ["strategy", "group", "removed"]
    own, controls = (shares(frame[frame["control"] == side], keys, "new_group") for side in (False, True))
    found = own.merge(controls, "left", on=[*keys, "new_group"], suffixes=("", "_control"))
    numbers = {"share": "probability", "low": "low", "high": "high", "n": "n"}
    found = found.rename(columns=numbers | {f"{name}_control": f"control_{to}" for name, to in numbers.items()})
    return SummaryTable.from_frame(
        "new_group",
        "Group of the target after the edit",
        "fig. 15b",
        "Which of the predecessors the strategy names are active once the layer is computed again; deactivated where "
        "the target is silent, whatever its predecessors do. Probabilities of one (strategy, group, removed) sum to 1. "
        "`control_probability` is the same after the removal of other active features of the same sites, as many and "
        "alike in norm: the strategy's own predecessors are then left in place.",
        found.assign(control_n=found["control_n"].fillna(0).astype(np.int64)),
    )


def counts(trials: pd.DataFrame) -> SummaryTable:
    """The number of targets and trials, by layer and group."""
    first = _first(trials)
    frame = trials[(trials["strategy"] == first) & ~trials["control"]]
    frame = frame.assign(edited=frame["removed"] != NOWHERE)
    found = frame.groupby(["layer", "group"], observed=False).agg(
        features=("target", "nunique"), trials=("edited", "sum")
    )
    return SummaryTable.from_frame(
        "counts",
        "Targets and trials",
        "fig. 17a",
        f"`features`: targets, each a feature at a token, by group under {first}. `trials`: its edits of them, over "
        "all sets removed and all r, without controls.",
        found.reset_index(),
    )


def table_1(trials: pd.DataFrame) -> SummaryTable:
    """All strategies on the targets for which the first strategy or Pearson finds a predecessor at exactly one part."""
    first, names = _first(trials), list(trials["strategy"].cat.categories)
    named = [outcomes(trials, name) for name in (first, PEARSON) if name == first or name in names]
    shared = np.logical_or.reduce([one["group"].isin(_SINGLE) for one in named if one is not None])
    order = list(dict.fromkeys((first, PEARSON, EXHAUSTIVE, GREEDY, CONTROL, *names)))
    tried = [
        found[shared].assign(strategy=strategy, control=control)
        for strategy in order
        for control in (False, True)
        if not (control and strategy == CONTROL) and (found := outcomes(trials, strategy, control=control)) is not None
    ]
    frame = pd.concat(tried)
    found = means_and_controls(frame.assign(strategy=pd.Categorical(frame["strategy"], order)), ["strategy"], _BOTH)
    short = _SHORT | {"deactivated_n": "n"}
    columns = (
        "strategy, deactivated, low, high, change, change_low, change_high, n, control_deactivated, control_low, "
        "control_high, control_change, control_change_low, control_change_high, control_n"
    )
    return SummaryTable.from_frame(
        "table_1",
        "Strategies on shared targets",
        "table 1",
        f"Targets that {first} or {PEARSON} puts into From RES, From MLP or From ATT. A strategy removes all it "
        "names; where it names nothing active the target counts as kept, with change 0. `exhaustive`: the best single "
        "active feature of any site, by change. `greedy`: sets of up to five. Controls remove other active features of "
        "the same sites, as many and alike in norm, on the targets where there are some; where the strategy names "
        f"nothing its control removes nothing either. `{CONTROL}`: the control of {first}. {CHOSEN}",
        _columns(found, columns, short),
    )


def paired(trials: pd.DataFrame) -> SummaryTable:
    """The difference in deactivation between two strategies on the same targets."""
    first, *others = trials["strategy"].cat.categories
    pairs = [(first, other) for other in (*others, CONTROL)]
    if EXHAUSTIVE in others and GREEDY in others:
        pairs.append((EXHAUSTIVE, GREEDY))
    rows: list[tuple[Any, ...]] = []
    for a, b in pairs:
        one, two = outcomes(trials, a), outcomes(trials, b)
        if one is None or two is None:
            continue
        scopes = {"both name": one["named"] & two["named"]}
        if b != CONTROL:
            scopes["either names"] = one["named"] | two["named"]
        both = one[TEXT].assign(a=one[DEACTIVATED], b=two[DEACTIVATED])
        for scope, chosen in scopes.items():
            difference, p = mean_difference(both[chosen], "a", "b", GAP)
            rows.append((a, b, scope, *difference.interval, p, difference.n))
    return SummaryTable.of(
        "paired",
        "Difference in deactivation on the same targets",
        "beyond the paper",
        "Rate of `strategy_a` less that of `strategy_b`, all named predecessors removed. `scope`: targets where both "
        "name an active predecessor, or where either does, the other counting as a failure. `p`: two-sided, of the t "
        "that gives the interval; no less than 2 / 2^texts.",
        "strategy_a, strategy_b, scope, difference, low, high, p, n",
        rows,
    )


def remaining(trials: pd.DataFrame) -> SummaryTable:
    """What else silences the targets that removing matched predecessors does not."""
    first = _first(trials)
    columns = ["group", "outcome", *_SHARE, *(f"control_{name}" for name in _SHARE)]
    known = [outcomes(trials, name) for name in (first, EXHAUSTIVE, GREEDY)]
    tried = [one for one in known if one is not None]
    found = pd.DataFrame(columns=columns)
    if len(tried) == len(known):
        names = (BY_FIRST, BY_ANOTHER, BY_SET, BY_NONE)
        chosen = np.select([(one[DEACTIVATED] == 1).to_numpy() for one in tried], names[:3], BY_NONE)
        targets = tried[0].assign(outcome=pd.Categorical(chosen, names))
        every = pd.MultiIndex.from_product([[ALL, *GROUPS], names], names=["group", "outcome"])
        found = shares(with_all(targets, "group"), ["group"], "outcome").set_index(["group", "outcome"]).reindex(every)
        control = outcomes(trials, first, control=True)
        if control is not None:
            kept = means(with_all(control, "group"), ["group"], {DEACTIVATED: RATE}).drop(NOWHERE, errors="ignore")
            kept.columns = [f"control_{name}" for name in _SHARE]
            found = found.join(kept.assign(outcome=BY_FIRST).set_index("outcome", append=True))
        found = found.reset_index().reindex(columns=columns)
        found = found.assign(**{name: found[name].fillna(0).astype(np.int64) for name in ("n", "control_n")})
    return SummaryTable.from_frame(
        "remaining",
        "What silences a target",
        "beyond the paper",
        f"Targets by group under {first}: silenced by removing all available predecessors; else by the removal "
        "of another single active feature of the predecessor sites; else by a greedy set of up to five of them; else "
        "by none tried, which leaves what the dictionaries do not reconstruct, and larger sets. `control_share`: "
        f"targets silenced by the control of {first}, other active features in place of its predecessors; targets from "
        "nowhere, of which neither removes anything, count as kept in both. The outcomes after the first are the best "
        "of many tries by definition, so that no random choice is a control of theirs.",
        found,
    )


def control_match(trials: pd.DataFrame) -> SummaryTable:
    """How closely controls match in norm what they control."""
    controls = trials[trials["control"]]
    ratio = controls["norm"] / trials.loc[controls["controls"], "norm"].to_numpy()
    # controls of the sweep over r edit the same features as at r = 0, so r = 0 covers them
    frame = trials.assign(ratio=ratio)[trials["removing"]]
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
        "Ratio of the norms removed, control over trial. `within_2`: share between a half and two. `controls` of "
        "`trials`: the other trials have none, since too few other features of the site are active.",
        "strategy, removed, q05, q25, median, q75, q95, within_2, controls, trials",
        rows,
    )
