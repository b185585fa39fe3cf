"""Themes and texts whose judgement is known: sailing, against cooking and gardens."""

from __future__ import annotations

import numpy as np

from saeflow.steering.judges import Judged
from saeflow.steering.theme import Task, Theme

SEA = ("sail", "mast", "harbour", "captain", "wave", "deck", "anchor", "rope", "crew", "tide", "storm", "keel")
LAND = ("bread", "oven", "butter", "recipe", "garden", "tomato", "soup", "pepper", "kitchen", "flower", "apple")
COMMON = ("the", "a", "of", "and", "to", "in", "was", "on", "with", "that", "they", "it", "for", "then", "near", "old")
PROMPT = "I think"


def written(words: tuple[str, ...], n: int, seed: int, length: int = 32) -> list[str]:
    """Texts of which a third are words of a topic."""
    draw = np.random.default_rng(seed)
    return [" ".join(str(draw.choice(words if at % 3 == 1 else COMMON)) for at in range(length)) for _ in range(n)]


def theme(**changes) -> Theme:
    told = {
        "name": "sailing",
        "subject": "sailing: ships and the sea",
        "release": "",
        "starts": (),
        "examples": tuple(written(SEA, 20, seed=1)),
        "activate": Task(PROMPT, "A text about ships. I think", 36),
    }
    return Theme(**(told | changes))


def unsteered(n: int = 30, seed: int = 5, prompt: str = PROMPT) -> list[Judged]:
    """Samples with losses around 3 nats and ids of their own."""
    draw = np.random.default_rng(seed)
    return [
        Judged(text, prompt, float(draw.normal(3, 0.3)), tuple(draw.integers(500, size=36).tolist()))
        for text in written(LAND, n, seed)
    ]
