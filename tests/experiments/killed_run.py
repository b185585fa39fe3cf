"""A small deactivation run on the planted model, slow enough to be killed in the middle when asked."""

import time

from saeflow.experiments.deactivation import run_deactivation
from saeflow.experiments.deactivation_tables import summarize_deactivation
from saeflow.experiments.methods import top_k
from saeflow.experiments.results import RunRequest
from saeflow.experiments.sampling import Sample
from saeflow.experiments.settings import DeactivationSize

from .planted import LAYER, TEXT, plant
from .planted_tables import cosine

WORDS = TEXT.split()
SAMPLES = [Sample("planted", n, " ".join(WORDS[n:] + WORDS[:n]), tuple(range(2, 12, 1 + n % 2))) for n in range(8)]


def run(folder, *, slow=False):
    """Into `folder`, with tables."""
    planted = plant()
    tables = cosine(planted)
    strategies = [top_k("top-1", tables), top_k("top-5", tables, 5)]
    request = RunRequest("deactivation", "planted", "planted", 0, ("planted",), {}, {"layers": [LAYER]})

    def pause(done, total, what):
        if slow:
            time.sleep(0.15)

    results = run_deactivation(
        planted.model,
        planted.dictionaries,
        strategies,
        lambda: SAMPLES,
        DeactivationSize(),
        request=request,
        out=folder,
        progress=pause,
    )
    summarize_deactivation(results)
    return results
