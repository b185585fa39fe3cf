"""Whether the packages of the extra "web" are there: asked before anything that needs them is imported."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from saeflow.errors import MissingExtra

PACKAGES: Final = ("pydantic", "fastapi", "uvicorn")


def need_the_extra() -> None:
    """Say which package is missing, if one is.

    Raises:
        MissingExtra: naming it and the extra.
    """
    for name in PACKAGES:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"the explorer needs {error.name}, which is not installed. Install it with: pip install 'saeflow[web]'"
            ) from None
