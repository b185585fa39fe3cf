"""Judges texts at a slow endpoint, to be killed in the middle: python killed_run.py URL CACHE."""

import sys

from saeflow.llm.endpoint import Pacing
from saeflow.steering.judges import Judged
from saeflow.steering.judges.llm import LLMJudge
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Theme

TEXTS = [Judged(f"text {n}", "I think") for n in range(40)]


def run(url, cache):
    """The scores and the judge that gave them."""
    judge = LLMJudge("m", url, key="k", cache=cache, pacing=Pacing(concurrency=3, backoff=0.01))
    return judge.score(Theme("t", "numbers", "", ()), SteeringDirection.ACTIVATE, TEXTS), judge


if __name__ == "__main__":
    run(*sys.argv[1:])
