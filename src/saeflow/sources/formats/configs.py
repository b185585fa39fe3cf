"""Configurations next to the tensors: read JSON and YAML objects, and take checked numbers from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from saeflow import reading
from saeflow.errors import BadFile

_MOST: Final = 1e18
_LONGEST: Final = 1 << 17
"""Most bytes of YAML that are read; its parser is written in Python and reads some 50,000 per second."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises BadFile when the file cannot be read or holds anything else."""
    try:
        data: Any = reading.read_json(path)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read as JSON ({error}). Fetch the file again.") from error
    if not isinstance(data, dict):
        raise BadFile(f"{path}: holds {type(data).__name__}, expected an object. Fetch the file again.")
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the strings, numbers and nulls of a YAML object; lists and nested objects are left out.

    Raises:
        BadFile: when the file cannot be read, is too large for a configuration, or holds anything else.
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
    """A number between 1e-18 and 1e18, so that the product of two such numbers fits into float32.

    Raises:
        BadFile: when the entry is missing or anything else.
    """
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 / _MOST < value < _MOST:
        raise BadFile(f"{where}: {key} is {value!r}, expected a positive number. Fetch the file again.")
    return float(value)


def count(config: Mapping[str, Any], key: str, where: str | Path, *, least: int = 1) -> int:
    """An integer of `least` or more. Raises BadFile when the entry is missing or anything else."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadFile(f"{where}: {key} is {value!r}, expected an integer of {least} or more. Fetch the file again.")
    return value
