"""Means and differences over DataFrames of rows, with the one interval of `saeflow.experiments.statistics`. No torch.

    trials = results.frame()                       one line per row of the folder
    means(trials, ["strategy"], {"change": CHANGE})    change, change_low, change_high, change_n per strategy
    less(targets, "top-1", "random", GAP)          the difference of two columns on the same lines

Every frame has the columns `dataset` and `text`: what is drawn are texts, in each dataset by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saeflow.experiments.statistics import Estimate, Span, Tally, by_text, mean_estimates

TEXT = ["dataset", "text"]


def means(frame: pd.DataFrame, by: Sequence[str], values: Mapping[str, Span | None]) -> pd.DataFrame:
    """The mean of each column of `values` in each group of `by`: NAME, NAME_low, NAME_high, NAME_n; not a number where
    nothing is known.

    Args:
        frame: one line per observation, with `dataset` and `text`; what is not a number is left out.
        by: columns that together name a group. Groups come in the order of their values (or categories).
        values: columns to average, with the bounds of their values; None for none.
    """
    grouped = frame.groupby(list(by), observed=True)
    texts = frame.groupby(TEXT, observed=True)
    group, text = grouped.ngroup().to_numpy(), texts.ngroup().to_numpy()
    keys = grouped.size().index
    datasets = pd.factorize(texts.size().index.get_level_values("dataset"))[0]
    shape = len(datasets), len(keys)
    found: dict[str, list[float | None]] = {}
    for name, span in values.items():
        column = frame[name].to_numpy(dtype=np.float64)
        known = np.isfinite(column)
        at = text[known], group[known]
        sums, counts = (by_text(*at, each, shape) for each in (column[known], np.ones(int(known.sum()))))
        estimates = mean_estimates(sums, counts, datasets, span=span)
        found |= _columns(name, estimates)
    return (
        pd.DataFrame(found, index=keys, dtype=object).infer_objects().astype({f"{name}_n": np.int64 for name in values})
    )


def less(frame: pd.DataFrame, a: str, b: str, span: Span | None) -> tuple[Estimate, float | None]:
    """The mean of column `a` less column `b` over the lines that know both, with its interval and two-sided p."""
    known = frame[np.isfinite(frame[a]) & np.isfinite(frame[b])]
    each = pd.DataFrame({"difference": known[a] - known[b], "n": 1.0})
    sums = each.groupby([known[name] for name in TEXT], observed=True).sum()
    datasets = pd.factorize(sums.index.get_level_values("dataset"))[0]
    return Tally(sums.to_numpy(), datasets).difference(n=len(known), span=span)


def beside_controls(frame: pd.DataFrame, by: Sequence[str], values: Mapping[str, Span | None]) -> pd.DataFrame:
    """`means` of the lines that are no control, and with the prefix `control_` of those that are."""
    own, controls = (means(frame[frame["control"] == side], by, values) for side in (False, True))
    both = own.join(controls.add_prefix("control_"))
    return both.astype(object).fillna({f"control_{name}_n": 0 for name in values})


def with_all(frame: pd.DataFrame, column: str, name: str = "all") -> pd.DataFrame:
    """The lines twice: first with `name` in a column of categories, then as they are."""
    known = [name, *frame[column].cat.categories]
    every = frame.assign(**{column: pd.Categorical([name] * len(frame), known)})
    return pd.concat([every, frame.assign(**{column: pd.Categorical(frame[column], known)})])


def _columns(name: str, estimates: Sequence[Estimate]) -> dict[str, list[float | None]]:
    return {
        name: [one.value for one in estimates],
        f"{name}_low": [one.low for one in estimates],
        f"{name}_high": [one.high for one in estimates],
        f"{name}_n": [one.n for one in estimates],
    }
