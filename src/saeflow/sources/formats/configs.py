"""JSON and YAML files next to the tensors: read as an object, and entries of one kind taken from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from saeflow import reading
from saeflow.errors import BadFile

_MOST: Final = 1e18
_LONGEST: Final = 1 << 17
"""Bytes of YAML, of which a parser in Python reads some 50,000 a second."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BadFile when the file cannot be read or holds something else."""
    try:
        data: Any = reading.read_json(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read as JSON ({error}). Fetch the file again.") from error
    if not isinstance(data, dict):
        raise BadFile(f"{path}: holds {type(data).__name__}, expected an object. Fetch the file again.")
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """The entries of a YAML object that are one value each; lists and objects in it are left out.

    Raises:
        BadFile: when the file cannot be read, is larger than a configuration, or holds something else.
    """
    import yaml

    try:
        data: Any = yaml.safe_load(reading.read_text(path, _LONGEST))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise BadFile(f"{path}: cannot be read as YAML ({error}). Fetch the file again.") from error
    if not isinstance(data, dict):
        raise BadFile(f"{path}: holds {type(data).__name__}, expected an object. Fetch the file again.")
    return {str(key): value for key, value in data.items() if isinstance(value, str | int | float | None)}


def positive_number(config: Mapping[str, Any], key: str, where: str | Path) -> float:
    """A number above 0, of a size that products of two such numbers fit into float32.

    Raises:
        BadFile: when the entry is missing or something else.
    """
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 / _MOST < value < _MOST:
        raise BadFile(f"{where}: {key} is {value!r}, expected a positive number. Fetch the file again.")
    return float(value)


def count(config: Mapping[str, Any], key: str, where: str | Path, *, least: int = 1) -> int:
    """An integer of `least` or more. Raises BadFile when the entry is missing or something else."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadFile(f"{where}: {key} is {value!r}, expected an integer of {least} or more. Fetch the file again.")
    return value
