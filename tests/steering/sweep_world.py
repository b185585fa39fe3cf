"""A sweep small enough for tests: the planted model, a theme of its words, judges whose answers are known."""

import hashlib
import itertools
import time
from dataclasses import dataclass, field

from saeflow.ids import FeatureId, Part, Site
from saeflow.matching.methods import match
from saeflow.steering.judges import Score
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.inputs import SweepInputs
from saeflow.steering.sweep.run import Design, run_sweep
from saeflow.steering.sweep.settings import Grid, Variant
from saeflow.steering.theme import Task, Theme

from ..experiments.planted import N_LAYERS, plant
from ..experiments.planted_tables import cosine

TEXTS = ("nothing carry source write nothing double orphan carry", "write double nothing carry carry source")
SMALL = Grid(activate=(1.0, 40.0), suppress=(0.0, -2.0), samples=4, confirm=6)


@dataclass(frozen=True)
class Tables:
    """Match tables as `trace` asks them."""

    tables: dict

    def has(self, source: Site, target: Site) -> bool:
        return (source, target) in self.tables

    def best(self, feature: FeatureId, target: Site, k: int | None = None):
        table = self.tables.get((feature.site, target))
        return table.best(feature, k=k) if table else ()


def inputs(**changes):
    """The planted model with its atlas."""
    planted = plant()
    made = planted.dictionaries
    stream = [Site(layer, Part.RES) for layer in range(N_LAYERS)]
    forward = {pair: match(made[pair[0]], made[pair[1]], k=1) for pair in itertools.pairwise(stream)}
    told = {"background": TEXTS, "release": "planted", "matched": "cosine", "batch": 16}
    return SweepInputs(planted.model, made, Tables(cosine(planted) | forward), **(told | changes))


def theme(name="carrying", start="carried", **changes):
    """A theme that starts at one feature of layer 1."""
    told = {
        "subject": "carry",
        "release": "planted",
        "starts": (plant().feature("1/res", start),),
        "examples": TEXTS,
        "activate": Task("nothing", "nothing carry", 4),
        "suppress": Task("carry", "nothing nothing", 5),
    }
    return Theme(name, **(told | changes))


def design(*themes, grid=SMALL, variant=None, directions=tuple(SteeringDirection), seed=0):
    return Design(themes or (theme(),), directions, grid, variant or Variant(), seed)


@dataclass
class WordJudge:
    """Behavior: the share of words that are "carry"; coherence: the share that differ. Counts what it is asked."""

    name: str = "words"
    asked: list = field(default_factory=list)

    def score(self, theme, direction, texts, *, progress=None):
        self.asked.append((theme.name, direction, len(texts)))
        found = []
        for text in texts:
            words = text.text.split() or ["-"]
            found.append(Score(5 * len(set(words)) / len(words), 5 * words.count("carry") / len(words)))
        return found


@dataclass
class NoiseJudge:
    """Scores that depend on nothing but chance: a hash of the text."""

    name: str = "noise"

    def score(self, theme, direction, texts, *, progress=None):
        return [Score(5.0, 5 * luck(text.text)) for text in texts]


def luck(text):
    """A number that looks uniform on 0 to 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def run(folder, *, slow=False, judge=None, **changes):
    """The whole sweep into a folder, with tables; slow enough to be killed in the middle when asked."""
    from saeflow.steering.sweep.summary import summarize_sweep

    def progress(name):
        def pause(done, total, what):
            if slow and "texts" not in what:
                time.sleep(0.15)

        return pause

    made = judge or WordJudge()
    results = run_sweep(inputs(), design(**changes), lambda _: made, out=folder, progress=progress)
    summarize_sweep(folder)
    return results
