"""Loggers that receive measurements in addition to metrics.jsonl and results folders: TensorBoard, Weights & Biases.

    train(..., log=tensorboard("runs/one"))
    train(..., log=lambda rows: print(rows[-1]))
    tensorboard("runs/sweep")(summarize_sweep(folder)["steering_best"].dicts())

A logger is any callback that takes rows as they are measured. A row's `step` is its step; its other numbers are logged
under the row's strings and their own key: `4/res/fve`. The packages are imported on first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from saeflow.errors import InvalidArgument, MissingExtra, nearest

Log: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], None]
"""Called with rows, each holding a `step`, strings that say what was measured, and numbers."""


def tensorboard(folder: Path | str) -> Log:
    """A logger that writes a TensorBoard run, shown by `tensorboard --logdir FOLDER`.

    Raises:
        MissingExtra: when the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra(
            "TensorBoard's logs are written with the package tensorboard, which is not installed. Run "
            "`pip install tensorboard`."
        ) from None
    begun = cache(lambda: SummaryWriter(str(folder)))  # delayed: it creates the folder

    def log(rows: Sequence[Mapping[str, Any]]) -> None:
        for name, value, step in scalars(rows):
            begun().add_scalar(name, value, step)
        begun().flush()

    return log


def wandb(folder: Path | str) -> Log:
    """A logger for a Weights & Biases run named after the folder; configure it with WANDB_PROJECT and WANDB_MODE.

    Raises:
        MissingExtra: when the package wandb is not installed.
    """
    try:
        import wandb as package  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra(
            "Weights & Biases is logged to with the package wandb, which is not installed. Run `pip install wandb`."
        ) from None

    @cache
    def begun() -> Any:
        return package.init(name=Path(folder).name, dir=str(Path(folder).parent))

    def log(rows: Sequence[Mapping[str, Any]]) -> None:
        steps: dict[int, dict[str, float]] = {}
        for name, value, step in scalars(rows):
            steps.setdefault(step, {})[name] = value
        for step, values in steps.items():
            begun().log(values, step=step)

    return log


LOGGERS: Final[Mapping[str, Callable[[Path | str], Log]]] = {"tensorboard": tensorboard, "wandb": wandb}
"""Loggers by the name that `--log` accepts."""


def logger(name: str, folder: Path | str) -> Log | None:
    """The logger with this name, or None for an empty name.

    Raises:
        InvalidArgument: for an unknown name.
        MissingExtra: when its package is not installed.
    """
    if name and name not in LOGGERS:
        raise InvalidArgument(f"--log {name!r} is unknown.{nearest(name, LOGGERS)} Known: {', '.join(LOGGERS)}.")
    return LOGGERS[name](folder) if name else None


def scalars(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float, int]]:
    """Yield (name, value, step) for every finite number in the rows; a row without a step uses its index."""
    for place, row in enumerate(rows):
        step = int(row.get("step", place))
        words = [value for value in row.values() if isinstance(value, str) and value]
        for key, value in row.items():
            inner = value.items() if isinstance(value, Mapping) else [("", value)]
            for part, number in inner:
                if key == "step" or isinstance(number, bool) or not isinstance(number, int | float):
                    continue
                if math.isfinite(number):
                    yield "/".join([*words, key, *([part] if part else [])]), float(number), step
