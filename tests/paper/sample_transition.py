"""Tables of a transition with known numbers: two pairs and their mean, one map far below every axis."""

from itertools import product

from saeflow.experiments.results import SummaryTable

PAIRS = ("all pairs", "0/res > 1/res", "1/res > 2/res")
SCALES = ("raw", "folded", "mean activation")
BASE = {
    "reconstruction": 0.9,
    "least squares": 0.86,
    "affine map of h": 0.91,
    "source reconstruction": 0.73,
    "identity": 0.8,
    "mean": 0.0,
}
METHODS = {
    "cosine top-1": 0.67,
    "permutation": 0.63,
    "permutation + encoder": 0.6,
    "permutation + encoder + b_enc": 0.2,
}
LOWER = {"raw": 0.0, "folded": -0.3, "mean activation": -0.1}
FAR = -12.5
_EV = "ev, low, high, n, scale, scaled, scaled_low, scaled_high"


def cells(ev, scaled=0.6):
    return [ev, ev - 0.01, ev + 0.02, 3000, 0.9, scaled, scaled - 0.01, scaled + 0.01]


def alone(ev):
    return [ev, ev - 0.01, ev + 0.01, 3000, None, None, None, None]


def permutations():
    rows = []
    for pair in PAIRS:
        rows += [[pair, "baseline", name, "", "", *alone(ev)] for name, ev in BASE.items()]
        for method, ev in METHODS.items():
            for matched, applied in product(("raw", "folded") if "perm" in method else ("raw",), SCALES):
                value = FAR if "b_enc" in method and (matched, applied) == ("raw", "folded") else ev + LOWER[applied]
                rows.append([pair, "matching", method, matched, applied, *cells(value)])
    return SummaryTable.of(
        "transition_permutations",
        "A match as a transcoder",
        "fig. 23",
        "How.",
        f"pair, kind, method, matched, applied, {_EV}",
        rows,
    )


def top_k():
    rows = []
    for pair in PAIRS:
        rows += [[pair, "baseline", name, "", "", "", "", *alone(ev)] for name, ev in BASE.items()]
        rows.append([pair, "matching", "permutation", "", "", "raw", "raw", *cells(0.63)])
        for weights, entries, applied in product(("W_dec W_dec", "W_dec W_enc"), ("values", "binary"), SCALES):
            for k, ev in (("1", 0.66), ("2", 0.5), ("10", -0.2), ("all", -40.0)):
                value = ev + LOWER[applied] - 0.01 * (entries == "values") - 0.02 * (weights == "W_dec W_enc")
                rows.append([pair, "matching", weights, k, entries, "raw", applied, *cells(value)])
    return SummaryTable.of(
        "transition_top_k",
        "The k largest products",
        "fig. 24",
        "How.",
        f"pair, kind, weights, k, entries, matched, applied, {_EV}",
        rows,
    )


def losses():
    known = {"reconstruction": 0.14, "least squares": 0.18, "identity": 0.21, "mean": 6.7}
    found = {"cosine top-1": 0.55, "permutation": 0.77, "permutation + encoder + b_enc, applied folded": 3.2}
    rows = [
        [pair, kind, name, change, change - 0.02, change + 0.03, 2.85, 900]
        for pair in PAIRS
        for kind, some in (("baseline", known), ("matching", found))
        for name, change in some.items()
    ]
    return SummaryTable.of(
        "transition_loss",
        "Skipping a layer",
        "appendix F, beyond the paper",
        "How.",
        "pair, kind, map, change, low, high, clean, n",
        rows,
    )


def paired():
    rows = [
        [pair, a, b, value, value - 0.004, value + 0.004, 3000]
        for pair in PAIRS
        for a, b, value in (
            ("cosine top-1", "permutation", 0.039),
            ("cosine top-1, applied folded", "cosine top-1", -0.4),
            ("permutation + encoder + b_enc, matched folded", "permutation + encoder + b_enc", 1.4),
        )
    ]
    return SummaryTable.of(
        "transition_paired",
        "Differences",
        "appendix F, beyond the paper",
        "How.",
        "pair, a, b, difference, low, high, n",
        rows,
    )


def fits():
    rows = [[pair, 0.001, 0.0001, 75531, 19574] for pair in PAIRS[1:]]
    names = "pair, least_squares_strength, affine_strength, fit_tokens, validation_tokens"
    return SummaryTable.of("transition_fits", "What was fitted", "", "How.", names, rows)


def transition_tables():
    """Every table of the experiment."""
    return [permutations(), top_k(), losses(), paired(), fits()]
