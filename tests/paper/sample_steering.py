"""Made-up tables of a steering sweep with the columns of the real ones: a seeded little world with its trade-offs.

Pushing harder brings the topic (or drives it out) and costs coherence; a layer in the middle works best, and
earlier the harder one pushes; many layers do with less each. Themes differ in all of that.
"""

import math
import random
from dataclasses import dataclass

from saeflow.experiments.results import SummaryTable

THEMES = ("religion and God", "anger", "wedding and marriage", "London", "medicine", "sea", "money", "science")
DIRECTIONS = ("activate", "suppress")
DOSES = {"activate": (0.5, 1, 2, 4, 8, 16), "suppress": (-8, -4, -2, -1, 0, 0.5)}
LAYERED = {"activate": ("single", "constant", "linear", "exponential"), "suppress": ("single", "cumulative")}
SWEPT = {way: ("start", *names) for way, names in LAYERED.items()}
MULTI = {"activate": ("constant", "linear", "exponential"), "suppress": ("cumulative",)}
AT_START = "single (start layer)"
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
EVERY = {way: ("none", "prompt", *names) for way, names in SWEPT.items()}
POWER = {
    "single": 1.0,
    "constant": 2.4,
    "linear": 1.6,
    "exponential": 1.9,
    "cumulative": 2.2,
    "start": 0.8,
    "random": 0.05,
}
NOTE = "Judged by the offline judge. 95 % intervals over samples."


@dataclass(frozen=True)
class World:
    """What steering does to one theme."""

    name: str
    depth: int
    n: int
    taste: float
    middle: float
    draw: random.Random

    def marks(self, direction, method, layer, value):
        """(behavior, coherence) in [0, 5]."""
        rest = 0.6 if direction == "activate" else 3.2
        if method == "none":
            return rest, 4.3
        if method == "prompt":
            return (3.0 if direction == "activate" else 2.2) + 0.4 * self.taste, 4.1
        dose = value / 4 if direction == "activate" else (1 - value) / 3
        middle = self.middle - 0.05 * dose if layer >= 0 else self.middle
        at = layer / max(1, self.depth - 1)
        fit = 0.75 if layer < 0 else math.exp(-(((at - middle) / 0.35) ** 2))
        push = self.taste * POWER[method] * dose * fit
        gain = 1 - math.exp(-push)
        cost = min(3.9, (0.5 if method != "random" else 8) * max(push, 0.1) ** 1.5 * 0.6)
        behavior = rest + (4.6 - rest) * gain if direction == "activate" else rest * (1 - 0.9 * gain)
        noise = self.draw.uniform(-0.12, 0.12)
        return min(5.0, max(0.0, behavior + noise)), min(5.0, max(0.1, 4.3 - cost + noise))

    def score(self, direction, behavior, coherence):
        topic = behavior / 5 if direction == "activate" else 1 - behavior / 5
        return topic * coherence / 5

    def cell(self, direction, method, layer, value):
        behavior, coherence = self.marks(direction, method, layer, value)
        return behavior, coherence, *interval(self.score(direction, behavior, coherence), self.n)


def interval(value, n, top=1.0):
    """A value with ends that n samples would give."""
    half = 2.0 * top * 0.24 / math.sqrt(n)
    return value, max(0.0, value - half), min(top, value + half)


def worlds(themes=THEMES, depth=6, n=64, seed=0):
    draw = random.Random(seed)  # noqa: S311 made-up numbers
    return [World(t, depth, n, draw.uniform(0.5, 1.6), draw.uniform(0.3, 0.75), draw) for t in themes]


def steering_tables(themes=THEMES, depth=6, n=64, seed=0, directions=DIRECTIONS):
    """Every table of a sweep."""
    cells = {
        (world, way, method, layer, value): world.cell(way, method, layer, value)
        for world in worlds(themes, depth, n, seed)
        for way in directions
        for method in EVERY[way]
        for layer in (range(depth) if method in LAYERED[way] else (-1,))
        for value in (DOSES[way] if method in SWEPT[way] else (0,))
    }
    top = {key: max(found, key=lambda k: cells[k][2]) for key, found in _grouped(cells, 3).items()}
    yield _best(top)
    yield _paired(top)
    yield _features(worlds(themes, depth, n, seed))
    yield _cells(cells)
    yield _by_layer(cells)
    yield _by_value(cells)
    yield _sensitivity(cells)
    yield _by_share(cells)
    yield samples_table(top)


def _grouped(cells, parts):
    found = {}
    for key in cells:
        found.setdefault(key[:parts], []).append(key)
    return found


def _default(cells, world, way):
    return cells[world, way, "none", -1, 0][2]


def _by_layer(cells):
    rows = []
    for (world, way, method, layer), keys in _grouped(cells, 4).items():
        if layer >= 0:
            kept = [max(keys, key=lambda k: cells[k][2])] if way == "activate" else keys
            rows += [
                [world.name, way, method, layer, k[4], world.n, *cells[k][2:], _default(cells, world, way)]
                for k in kept
            ]
    columns = "theme, direction, method, layer, value, n, score, low, high, default"
    return SummaryTable.of("steering_by_layer", "Score by layer", "figures 9, 16, 17b", NOTE, columns, rows)


def _by_value(cells):
    rows = []
    for (world, way, method), keys in _grouped(cells, 3).items():
        for value in DOSES[way] if method in SWEPT[way] else ():
            k = max((k for k in keys if k[4] == value), key=lambda k: cells[k][2])
            rows.append([world.name, way, method, value, k[3], world.n, *cells[k], _default(cells, world, way)])
    columns = "theme, direction, method, value, layer, n, behavior, coherence, score, low, high, default"
    title = "Score by strength, at the best layer"
    return SummaryTable.of("steering_by_value", title, "figures 10, 11", NOTE, columns, rows)


def _features(made):
    draw = random.Random(7)  # noqa: S311 made-up numbers
    rows = []
    for world in made:
        start = round(world.middle * (world.depth - 1))
        for layer in range(world.depth):
            for part, most in (("res", 3), ("mlp", 2), ("att", 1)):
                is_start = layer == start and part == "res"
                features = draw.randint(0, most) + is_start
                if features:
                    rows.append([world.name, layer, part, features, int(is_start)])
    columns = "theme, layer, part, features, starts"
    return SummaryTable.of(
        "steering_features", "Features to steer, found by the flow graphs", "figure 17a", NOTE, columns, rows
    )


def confirmed(top):
    """(world, way, method, layer, value, mirrors, choice) of everything that is measured again."""
    for (world, way, method), key in top.items():
        choice = "best" if method in LAYERED[way] else "baseline"
        yield world, way, method, *key[3:], "", choice
        if method in LAYERED[way]:
            yield world, way, "random", -1, key[4], method, "baseline"
        if method == "single":
            yield world, way, method, round(world.middle * (world.depth - 1)), key[4], "", "start layer"


def _best(top):
    rows = []
    for world, way, method, layer, value, mirrors, choice in confirmed(top):
        b, c, *score = world.cell(way, method, layer, value)
        rows.append(
            [
                world.name,
                way,
                method,
                layer,
                value,
                world.n,
                *interval(b, world.n, 5),
                *interval(c, world.n, 5),
                *score,
                12.5,
                0.9,
                0.2,
                mirrors,
                choice,
                score[0] + 0.02,
            ]
        )
    columns = (
        "theme, direction, method, layer, value, n, behavior, behavior_low, behavior_high, coherence, coherence_low, "
        "coherence_high, score, low, high, perplexity, distinct_2, share_total, mirrors, choice, grid_score"
    )
    title = "The best setting of each method, on fresh samples"
    return SummaryTable.of("steering_best", title, "figures 10, 11", NOTE, columns, rows)


def _paired(top):
    rows = []
    for world, way in dict.fromkeys(key[:2] for key in top):
        scores = {
            (AT_START if choice == "start layer" else method, mirrors): world.cell(way, method, layer, value)[2]
            for w, d, method, layer, value, mirrors, choice in confirmed(top)
            if (w, d) == (world, way)
        }
        others = ("start", "single", AT_START, "prompt", "random", "none")
        pairs = [(a, b) for a in MULTI[way] for b in others]
        pairs += [("single", b) for b in ("start", "prompt", "random", "none")]
        for a, b in [*pairs, ("start", "prompt"), ("start", "none")]:
            gap = scores[a, ""] - scores[b, a if b == "random" else ""]
            half = 2.2 * 0.24 / math.sqrt(world.n)
            p = min(1.0, math.exp(-((2.4 * gap / half) ** 2) / 2))
            rows.append([world.name, way, a, b, world.n, gap, gap - half, gap + half, p, min(1.0, 2 * p)])
    columns = "theme, direction, method_a, method_b, n, difference, low, high, p, q"
    title = "Differences between methods on the same seeds"
    return SummaryTable.of("steering_paired", title, "beyond the paper", NOTE, columns, rows)


def _sensitivity(cells):
    rows = []
    for (world, way, method), keys in _grouped(cells, 3).items():
        if method in SWEPT[way]:
            best = [max(cells[k][2] for k in keys if k[4] == value) for value in DOSES[way]]
            mean, spread = (interval(sum(best) / len(best), 2 * world.n), interval(max(best) - min(best), world.n))
            ends = (min(best), max(best), *spread, _default(cells, world, way))
            rows.append([world.name, way, method, len(best), *mean, *ends])
    columns = (
        "theme, direction, method, values, mean_score, low, high, worst_score, best_score, spread, spread_low, "
        "spread_high, default"
    )
    return SummaryTable.of("steering_sensitivity", "Sensitivity to the strength", "figures 10, 11", NOTE, columns, rows)


def _by_share(cells):
    rows = []
    for (world, way, method), keys in _grouped(cells, 3).items():
        for limit in SHARES if method in SWEPT[way] else ():
            shares = {k: POWER[method] * abs(k[4] - (way == "suppress")) / 20 for k in keys}
            kept = [k for k in keys if shares[k] <= limit]
            if kept:
                k = max(kept, key=lambda k: cells[k][2])
                ends = (*cells[k][2:], _default(cells, world, way))
                rows.append([world.name, way, method, limit, *k[3:], shares[k], world.n, *ends])
    columns = "theme, direction, method, share_limit, layer, value, share_total, n, score, low, high, default"
    title = "Score within a limit on the change of hidden states"
    return SummaryTable.of("steering_by_share", title, "section 5.3", NOTE, columns, rows)


def _cells(cells):
    rows = [
        [k[0].name, *k[1:4], "constant", k[4], k[0].n, *found, 14.0, 0.8, 0.05, 0.2, 9] for k, found in cells.items()
    ]
    columns = (
        "theme, direction, method, layer, schedule, value, n, behavior, coherence, score, low, high, perplexity, "
        "distinct_2, share_layer, share_total, n_features"
    )
    return SummaryTable.of(
        "steering_cells", "Every setting that was tried", "figures 9, 10, 11, 16", NOTE, columns, rows
    )


WORDS = (
    "the",
    "house",
    "quiet",
    "and",
    "she",
    "thought",
    "about",
    "long",
    "road",
    "while",
    "rain",
    "fell",
    "he",
    "said",
)


def samples_table(top, samples=4):
    """A few texts of every method, with a line break, a tag and marks beside each."""
    rows = []
    for world, way, method, layer, value, mirrors, choice in confirmed(top):
        for sample in range(samples):
            draw = random.Random(f"{world.name} {way} {method} {mirrors} {choice} {sample}")  # noqa: S311 made-up texts
            words = [draw.choice([world.name, *WORDS]) for _ in range(30)]
            text = f" {' '.join(words[:18])}.\n\nAnd <b>{' '.join(words[18:])}</b>"
            b, c = world.marks(way, method, layer, value)
            mark = [round(min(5, max(0, v + draw.uniform(-1, 1)))) for v in (b, c)]
            rows.append([world.name, way, method, layer, value, sample, *mark, "I think", text, mirrors])
    columns = "theme, direction, method, layer, value, sample, behavior, coherence, prompt, text, mirrors"
    title = "Texts of each method, side by side"
    return SummaryTable.of("steering_samples", title, "beyond the paper", NOTE, columns, rows)
