"""Measure the coverage of 95 % intervals for few texts, few failures and correlated rows (docs/experiments.md).

    python scripts/coverage_of_intervals.py [--trials 2000]

Each cell draws texts from a distribution whose true value is known, and counts how often this value lies in the
interval of `saeflow.experiments.statistics` and, for comparison, in the percentile interval of 500 bootstrap draws over
texts. Texts have 1 to about 50 rows (log-normal). For rates, each text's own rate is drawn from a beta distribution, so
that rows of one text are correlated (0 means independent).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np

from saeflow.experiments.statistics import CHANGE, GAP, RATE, Span, Tally

TEXTS = (2, 3, 5, 10, 20, 50)
RATES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
CORRELATIONS = (0.0, 0.1, 0.5)
Plant = Callable[[np.random.Generator, np.ndarray], np.ndarray]
"""From the number of rows of each text to the sum of their values."""


def rate(p: float, correlation: float) -> Plant:
    """Plant counts of successes with rate `p` and the given correlation within texts."""
    spread = (1 - correlation) / correlation if correlation else np.inf
    still = not correlation or p in (0.0, 1.0)

    def plant(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        of_text = np.full(len(rows), p) if still else rng.beta(p * spread, (1 - p) * spread, len(rows))
        return rng.binomial(rows, of_text).astype(np.float64)

    return plant


def of_texts(draw: Callable[[np.random.Generator, int], np.ndarray]) -> Plant:
    """Plant the same value in all rows of a text."""
    return lambda rng, rows: draw(rng, len(rows)) * rows


def worlds() -> Iterator[tuple[str, float, Span | None, Plant]]:
    """Yield what is planted: description, true value, its bounds, and the function that plants it."""
    for correlation in CORRELATIONS:
        for p in RATES:
            if 0 < p < 1 or not correlation:
                yield f"rate {p:g}, correlation {correlation:g}", p, RATE, rate(p, correlation)
    a, b = rate(0.8, 0.3), rate(0.4, 0.3)
    yield "rate 0.8 less rate 0.4", 0.4, GAP, lambda rng, rows: a(rng, rows) - b(rng, rows)
    a_high, b_low = rate(0.97, 0.3), rate(0.03, 0.3)
    yield "rate 0.97 less rate 0.03", 0.94, GAP, lambda rng, rows: a_high(rng, rows) - b_low(rng, rows)
    yield ("difference in one text of ten", 0.05, GAP, of_texts(lambda rng, n: rng.random(n) * (rng.random(n) < 0.1)))
    yield "mean, normal", 0.0, None, of_texts(lambda rng, n: rng.normal(size=n))
    yield ("mean, log-normal (skew 6)", float(np.exp(0.5)), None, of_texts(lambda rng, n: rng.lognormal(size=n)))
    yield (
        "activation change, two in three at 1",
        2 / 3 - 1 / 6,
        CHANGE,
        of_texts(lambda rng, n: np.where(rng.random(n) < 2 / 3, 1.0, rng.normal(-0.5, 0.5, n))),
    )


def percentile(sums: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The percentile interval of a bootstrap over texts."""
    weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=500)
    low, high = np.quantile((weights @ sums) / (weights @ rows), (0.025, 0.975))
    return float(low), float(high)


def coverage(truth: float, span: Span | None, plant: Plant, texts: int, trials: int) -> tuple[float, float, float]:
    """Coverage of the bootstrap intervals and of saeflow's, and the share of trials where saeflow's has no interval."""
    rng = np.random.default_rng([texts, trials])
    before = after = none = 0
    for _ in range(trials):
        rows = np.maximum(1, np.round(rng.lognormal(2, 0.9, texts))).astype(np.int64)
        sums = plant(rng, rows)
        low, high = percentile(sums, rows, rng)
        before += low - 1e-9 <= truth <= high + 1e-9
        found = Tally(np.stack([sums, rows], -1)).estimate(span=span, sizes=rows)
        if found.low is None or found.high is None:
            none += 1
        else:
            after += found.low - 1e-9 <= truth <= found.high + 1e-9
    return before / trials, after / max(1, trials - none), none / trials


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print(f"| planted | {' | '.join(f'{n} texts' for n in TEXTS)} |\n|---|{'---:|' * len(TEXTS)}")
    for words, truth, span, plant in worlds():
        cells: list[str] = []
        for texts in TEXTS:
            before, after, none = coverage(truth, span, plant, texts, trials)
            told = "none" if none == 1 else f"{100 * after:.0f}"
            cells.append(f"{100 * before:.0f} → {told}")
        print(f"| {words} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
