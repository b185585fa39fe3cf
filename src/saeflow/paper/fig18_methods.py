"""Figure 18: the groups under each matching method, by data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from saeflow.experiments.groups import ALL, PARTS
from saeflow.experiments.sampling import PYTHON
from saeflow.experiments.statistics import GAP, Tally, ratio
from saeflow.ids import Part
from saeflow.paper.evidence import OriginsRun
from saeflow.paper.frame import Frame, in_order, most
from saeflow.paper.kinds import DotPanel, DotRow, Drawing, Mark, dots, said
from saeflow.paper.origins import COSINE, PEARSON, WITH_ATT, GroupShares, every_of, name_of
from saeflow.paper.style import Medium, Sign, colour
from saeflow.paper.verdicts import ABOVE_0, BELOW_0, ClaimNumber, NotMeasured, Rule, in_percent
from saeflow.paper.words import count, listed, percent_interval

_SHAPES = ("o", "D", "s", "^")


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw groups under each matching method by data set (fig. 18), marking data sets new to the Pearson tables."""
    datasets, groups = in_order(frame.distinct("dataset"), (ALL,)), frame.groups()
    out = _new_to_pearson(frame)
    shapes = {method: _SHAPES[i % len(_SHAPES)] for i, method in enumerate(frame.distinct("method"))}
    found = frame.lookup("dataset", "group", "method")
    close = 0.45  # spacing of the methods in a group, in rows
    shown: list[DotPanel] = []
    for dataset in datasets:
        rows: list[DotRow] = []
        for group in groups:
            marks = [
                Mark(e, said(f"{m}, {group}", e), colour(group), shapes[m], j > 0, close * (j - (len(shapes) - 1) / 2))
                for j, m in enumerate(shapes)
                if (e := found[dataset, group, m].estimate("share"))
            ]
            rows.append(DotRow(group, marks, height=close * len(shapes) + 0.5))
        n = most(frame.where(dataset=dataset).records)
        name = name_of(dataset) + (" †" if dataset in out else "")
        shown.append(DotPanel(name, rows, more=f"n = {count(n)}" if n else "", unit="%", within=(0.0, 1.0)))
    signs = [Sign(method, shape=shape, hollow=i > 0) for i, (method, shape) in enumerate(shapes.items())]
    if out:
        signs.append(Sign("† texts the Pearson tables were not made on", shape=""))
    return dots(shown, medium, caption, signs=signs, least=16.0)


def sentence(frame: Frame) -> str:
    """The share from nowhere under each method, on all data and on data new to Pearson."""
    text = _nowhere_by_method(frame, every_of(frame))
    if not text:
        return ""
    new = "".join(f" On {d}, new to Pearson: {listed(_nowhere_by_method(frame, d))}." for d in _new_to_pearson(frame))
    return f"The share from nowhere is {listed(text)}.{new}"


def _new_to_pearson(frame: Frame) -> tuple[str, ...]:
    """The data sets that the Pearson tables were not made on."""
    out = (r.words("dataset") for r in frame.records if r.words("in_distribution") in {"False", "0"})
    return tuple(dict.fromkeys(out))


def _nowhere_by_method(frame: Frame, dataset: str) -> list[str]:
    rows = frame.where(dataset=dataset, group="nowhere").records
    return [f"{percent_interval(e)} under {r.words('method')}" for r in rows if (e := r.estimate("share"))]


# --- claims -----------------------------------------------------------------------------------------------------------


def _both(run: OriginsRun) -> tuple[Tally, int]:
    """Group counts under cosine and Pearson on the same observations, (methods, data sets, groups), and their sum."""
    shares = [GroupShares(run, method) for method in (COSINE, PEARSON)]
    sums = np.stack([one.tally.sums.sum(1) for one in shares], 1)
    return Tally(sums, run.texts[1]), shares[0].n


def _pearson_less(run: OriginsRun, datasets: Sequence[str], groups: list[int], rule: Rule, what: str) -> ClaimNumber:
    """The share of some groups under Pearson less that under cosine, on some data sets."""
    tally, _ = _both(run)
    places = [run.datasets.index(name) for name in datasets]

    def of_both(x: np.ndarray) -> np.ndarray:
        counts = x[:, :, places].sum(2)
        return counts[..., groups].sum(-1) / counts.sum(-1)

    cosine, pearson = tally.now(of_both).tolist()
    sizes = tally.sums[:, 0, places].sum((1, 2))
    found = tally.estimate(lambda x: of_both(x)[:, 1] - of_both(x)[:, 0], n=float(sizes.sum()), span=GAP, sizes=sizes)
    words = f"{what} by Pearson less that by cosine, on {', '.join(datasets)}"
    return ClaimNumber(words, found, rule, beside=f"{in_percent(pearson)} against {in_percent(cosine)}")


def _seen_by_pearson(run: OriginsRun, *, new: bool) -> list[str]:
    """The data sets that the Pearson tables were made on, or if `new` those they were not."""
    run.groups(PEARSON)
    found = [name for name in run.datasets if (name in run.new_to_pearson) == new]
    if not found:
        raise NotMeasured(f"No data set is {'new to' if new else 'seen by'} the Pearson tables.")
    return found


def claim_nowhere(run: OriginsRun) -> list[ClaimNumber]:
    """Pearson leaves fewer features in nowhere, on data like that its tables were made on."""
    return [_pearson_less(run, _seen_by_pearson(run, new=False), [0], BELOW_0, "share of nowhere")]


def claim_python(run: OriginsRun) -> list[ClaimNumber]:
    """Pearson leaves more features in nowhere on Python code, new to its tables."""
    code = [name for name in _seen_by_pearson(run, new=True) if name in PYTHON]
    if not code:
        raise NotMeasured(f"No data set of Python code is new to the Pearson tables ({', '.join(PYTHON)}).")
    return [_pearson_less(run, code, [0], ABOVE_0, "share of nowhere")]


def claim_attention(run: OriginsRun) -> list[ClaimNumber]:
    """Pearson finds more attention predecessors."""
    words = "share of features with an attention predecessor"
    return [_pearson_less(run, run.datasets, WITH_ATT, ABOVE_0, words)]


def claim_par(run: OriginsRun) -> list[ClaimNumber]:
    """Over all data both find about as many predecessors: shares of nowhere differ by less than five points."""
    return [_pearson_less(run, run.datasets, [0], Rule("within", 0.05), "share of nowhere")]


def claim_datasets(run: OriginsRun) -> list[ClaimNumber]:
    """Under Pearson the shares depend more on the data set than under cosine."""
    tally, n = _both(run)
    if len(run.datasets) < 2:
        raise NotMeasured("There is one data set only.")

    def apart(x: np.ndarray) -> np.ndarray:
        """Mean distance of data sets from their mean, (cases, methods)."""
        p = x / x.sum(-1, keepdims=True)
        return (np.abs(p - p.mean(2, keepdims=True)).sum(-1) / 2).mean(-1)

    beside = " against ".join(in_percent(value) for value in tally.now(apart)[::-1].tolist())
    found = tally.estimate(lambda x: apart(x)[:, 1] - apart(x)[:, 0], n=n, span=GAP)
    words = "distance of data sets from their mean under Pearson less that under cosine"
    return [ClaimNumber(words, found, ABOVE_0, beside=beside)]


def claim_agreement(run: OriginsRun) -> list[ClaimNumber]:
    """Both methods name the same residual predecessor more often than the same module predecessor."""
    run.groups(PEARSON)
    text, datasets = run.texts
    sums = np.zeros((len(datasets), len(PARTS), 2))
    for at, part in enumerate(PARTS):
        one, two = (run.matches.of_each(run.seen, method, part, "index") for method in (COSINE, PEARSON))
        both = np.isfinite(one) & np.isfinite(two)
        for place, weights in enumerate(((one == two)[both].astype(float), None)):
            sums[:, at, place] = np.bincount(text[both], weights, len(datasets))
    found: list[ClaimNumber] = []
    for part in (Part.MLP, Part.ATT):
        pair = [PARTS.index(Part.RES), PARTS.index(part)]
        tally = Tally(sums[:, pair], datasets)
        sizes = tally.sums[..., 1]
        if not sizes.sum(0).all():
            continue
        estimate = tally.estimate(lambda x: ratio(x)[:, 0] - ratio(x)[:, 1], n=sizes[:, 1].sum(), span=GAP, sizes=sizes)
        words = f"features for which both methods name the same RES predecessor, less the same {part.name} predecessor"
        beside = " against ".join(map(in_percent, tally.now(ratio).tolist()))
        found.append(ClaimNumber(words, estimate, ABOVE_0, beside=beside))
    if not found:
        raise NotMeasured("No module was matched by both methods.")
    return found


DRAWINGS: Final = {"methods": Drawing(figure, sentence, ("method", "dataset", "group", "share"))}
