"""What a fit of a transition says of itself, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from saeflow.errors import BadFile
from saeflow.ids import Site
from saeflow.reading import parse_json, safetensors

KEY: Final = "fit"
"""The one entry of a fit's header."""


def fit_path(folder: Path, pair: tuple[Site, Site]) -> Path:
    """Where the fit of a pair is in a results folder."""
    a, b = (f"{site.layer}.{site.part.value}" for site in pair)
    return folder / "fits" / f"{a}-{b}.safetensors"


def pair_of(name: str) -> tuple[Site, Site]:
    """The sites of a pair from its name in rows, `0/res > 1/res`."""
    a, b = name.split(" > ")
    return Site.parse(a), Site.parse(b)


def read_facts(folder: Path, pair: str) -> dict[str, Any]:
    """`facts` and `scales` of the fit of a pair, named as in rows.

    Raises:
        BadFile: when it is missing or cannot be read.
    """
    path = fit_path(folder, pair_of(pair))
    try:
        with safe_open(safetensors(path), framework="numpy") as file:
            told: dict[str, Any] = parse_json((file.metadata() or {})[KEY])
            return {"facts": told["facts"], "scales": told["scales"]}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise BadFile(f"{path} cannot be read ({error!r}). Remove it and run the command again.") from None
