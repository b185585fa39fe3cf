"""Where saeflow finds and keeps files: the embedded demo pack and the cache folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

PACK: Final = Path(__file__).parent / "demo" / "pack"
"""The demo pack: `model/`, `saes/`, `atlas/` with its words, `texts/`, `quality.json`, `CARD.md`."""


def cache_folder() -> Path:
    """Where atlases built by name are kept: SAEFLOW_CACHE, else ~/.cache/saeflow."""
    return Path(os.environ.get("SAEFLOW_CACHE", "~/.cache/saeflow")).expanduser()
