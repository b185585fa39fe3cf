"""Figure 4: tests that tell groups apart, by whether a module is active in one, both or neither."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from saeflow.experiments.groups import PARTS
from saeflow.experiments.origins_tables import ALPHA, FEWEST_TESTED
from saeflow.experiments.statistics import GAP, RATE, Tally, mann_whitney, ratio
from saeflow.ids import Part
from saeflow.paper.evidence import OriginsRun, once
from saeflow.paper.frame import GROUPS, Frame, in_order
from saeflow.paper.kinds import Drawing, heat
from saeflow.paper.origins import COSINE, MLP, MLP_ATT, OWN_SCORES, SCORES, first_method, share_tested, tests_passed
from saeflow.paper.style import Medium, panels
from saeflow.paper.verdicts import ABOVE_0, ClaimNumber, Rule, in_percent
from saeflow.paper.words import listed, percent

_MODULES: Final = tuple(module for module, _ in OWN_SCORES)
KINDS = {"AO": "active in only one", "AB": "active in both", "IB": "inactive in both"}


def figure(frame: Frame, medium: Medium, caption: str) -> Figure:
    """Draw the share of tests passed, by whether a module is active in one, both or neither group (fig. 4)."""
    kinds = in_order(frame.distinct("kind"), tuple(KINDS))
    modules, columns = in_order(frame.distinct("module"), _MODULES), in_order(frame.distinct("score"), SCORES)
    found = frame.lookup("kind", "module", "score")
    drawn, places = panels(medium, caption, len(kinds), 2.3 * len(modules), across=len(kinds), over=3.6)
    for i, (kind, axes) in enumerate(zip(kinds, places, strict=True)):
        rows = [[found[kind, module, score] for score in columns] for module in modules]
        what = KINDS.get(kind, "")
        tips = [
            [f"{score}, {module} {what}: {tests_passed(row)}" for score, row in zip(columns, cells, strict=True)]
            for module, cells in zip(modules, rows, strict=True)
        ]
        names = list(modules) if i == 0 else [""] * len(modules)
        heat(axes, [[share_tested(row) for row in cells] for cells in rows], (names, columns), tips)
        axes.set_title(f"{kind}, {what}" if medium.wide else kind)
    return drawn


def sentence(frame: Frame) -> str:
    """How often the score of a part tells groups apart if the part is active in one of them, and if in both."""
    frame, method = first_method(frame)
    found = frame.lookup("module", "score", "kind")
    own = [own for own in OWN_SCORES if found[*own, "AO"].count("tests")]
    one = [f"{percent(found[*key, 'AO'].number('share'))} ({', '.join(key)})" for key in own]
    both = [percent(found[*key, "AB"].number("share")) for key in own if found[*key, "AB"].count("tests")]
    if not one:
        return ""
    text = f"A module active in only one of two groups parts them by its own score in {listed(one)} of tests{method}"
    return f"{text}; active in both, in {listed(both)}." if len(both) == len(one) else f"{text}."


# --- claims -----------------------------------------------------------------------------------------------------------


_PAIRS: Final = list(itertools.combinations(range(8), 2))


@once
def _tested(run: OriginsRun) -> np.ndarray:
    """Mann-Whitney tests, (cells of data set and layer, pairs of groups, scores): 1 passed, 0 not, NaN untested."""
    groups, layer, dataset = run.groups(COSINE), run.seen["layer"].to_numpy(), run.seen["dataset"].to_numpy()
    cells = list(itertools.product(run.datasets, np.unique(layer)))
    passed = np.full((len(cells), len(_PAIRS), len(PARTS)), np.nan)
    for at, part in enumerate(PARTS):
        scores = run.matches.of_each(run.seen, COSINE, part)
        for number, cell in enumerate(cells):
            here = (dataset == cell[0]) & (layer == cell[1]) & np.isfinite(scores)
            values = [scores[here & (groups == group)] for group in range(8)]
            for place, (a, b) in enumerate(_PAIRS):
                if min(len(values[a]), len(values[b])) >= FEWEST_TESTED:
                    passed[number, place, at] = mann_whitney(values[a], values[b]) < ALPHA
    return passed


def _passed(passed: np.ndarray, *sets: np.ndarray) -> Tally:
    """Numbers of passed and of all tests in sets of (pair, score), by cell: cells are the sampling units."""
    columns = [
        np.stack([np.nansum(np.where(m, passed, np.nan), (1, 2)), (np.isfinite(passed) & m).sum((1, 2))], -1)
        for m in sets
    ]
    return Tally(np.stack(columns, 1).astype(np.float64))


def _less(passed: np.ndarray, a: np.ndarray, b: np.ndarray, words: str) -> ClaimNumber:
    """Share of passed tests in one set less that in another."""
    tally = _passed(passed, a, b)
    one, two = tally.now(ratio).tolist()
    found = tally.of_means(lambda means: means[:, 0] - means[:, 1], span=GAP)
    return ClaimNumber(words, found, ABOVE_0, beside=f"{in_percent(one)} against {in_percent(two)} of the tests")


def claim_active_in_one(run: OriginsRun) -> list[ClaimNumber]:
    """The score of a part tells groups apart more often if it is active in only one than if in both, or in neither."""
    found: list[ClaimNumber] = []
    for at, part in enumerate(PARTS):
        n_on = np.array([sum(part.name in GROUPS[group] for group in pair) for pair in _PAIRS])
        score = np.arange(len(PARTS)) == at
        for n, what in ((2, "in both"), (0, "in neither")):
            one, other = ((n_on == k)[:, None] & score for k in (1, n))
            words = f"tests passed on {SCORES[at]} where {part.name} is active in one group, less where {what}"
            found.append(_less(_tested(run), one, other, words))
    return found


def claim_alike(run: OriginsRun) -> list[ClaimNumber]:
    """Groups alike in the activity of a module are mostly not told apart by its score."""
    found: list[ClaimNumber] = []
    for at, part in enumerate(PARTS):
        same = np.array([(part.name in GROUPS[a]) == (part.name in GROUPS[b]) for a, b in _PAIRS])
        tally = _passed(_tested(run), same[:, None] & (np.arange(len(PARTS)) == at))
        estimate = tally.of_means(lambda means: means[:, 0], span=RATE)
        words = f"tests passed on {SCORES[at]} where {part.name} is active in both groups or in neither"
        found.append(ClaimNumber(words, estimate, Rule("below", 0.5), "share"))
    return found


def claim_mlp_and_att(run: OriginsRun) -> list[ClaimNumber]:
    """From MLP and From MLP & ATT differ by s(A) more often than by s(R) and s(M)."""
    pair = np.array([set(p) == {MLP, MLP_ATT} for p in _PAIRS])[:, None]
    res, mlp, att = (pair & (np.arange(len(PARTS)) == PARTS.index(part)) for part in (Part.RES, Part.MLP, Part.ATT))
    words = "tests passed by s(A) less those by {}"
    return [_less(_tested(run), att, other, words.format(name)) for other, name in ((res, "s(R)"), (mlp, "s(M)"))]


DRAWINGS: Final = {
    "activity_differences": Drawing(figure, sentence, ("module", "score", "kind", "share"), each=("method",))
}
