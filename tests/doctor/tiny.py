"""A tiny random Gemma 2, whose parts are normed before they reach the stream, and texts for it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from saeflow.sources.model import LanguageModel

sys.path.insert(0, str(Path(__file__).parents[1] / "sources"))
from tiny_models import MASSIVE, massive_model, tiny_model

__all__ = ["MASSIVE", "gemma", "massive_model"]


def gemma() -> tuple[LanguageModel, list[str]]:
    words = random.Random(0)  # noqa: S311
    return tiny_model("gemma2"), [" ".join(f"w{words.randrange(3, 48)}" for _ in range(40)) for _ in range(12)]
