"""Where measurements go besides metrics.jsonl and results folders: TensorBoard, Weights & Biases, or any callback.

    train(..., log=tensorboard("runs/one"))
    train(..., log=lambda rows: print(rows[-1]))
    tensorboard("runs/sweep")(summarize_sweep(folder)["steering_best"].dicts())

A logger is called with rows as they are measured. A row's `step` is its step; its other numbers are what is logged,
under its words: `4/res/fve`. The packages are imported at first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from saeflow.errors import InvalidArgument, MissingExtra, nearest

Log: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], None]
"""Called with rows: `step`, words that say what was measured, and numbers."""


def tensorboard(folder: Path | str) -> Log:
    """A logger that writes a TensorBoard run: `tensorboard --logdir FOLDER` shows it.

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
    begun = cache(lambda: SummaryWriter(str(folder)))  # it makes the folder

    def log(rows: Sequence[Mapping[str, Any]]) -> None:
        for name, value, step in scalars(rows):
            begun().add_scalar(name, value, step)
        begun().flush()

    return log


def wandb(folder: Path | str) -> Log:
    """A logger of a Weights & Biases run, named after the folder; WANDB_PROJECT and WANDB_MODE say the rest.

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
"""By the name that `--log` takes."""


def logger(name: str, folder: Path | str) -> Log | None:
    """The logger of a name; None for an empty one.

    Raises:
        InvalidArgument: for another name.
        MissingExtra: when its package is not installed.
    """
    if name and name not in LOGGERS:
        raise InvalidArgument(f"--log {name!r} is unknown.{nearest(name, LOGGERS)} Known: {', '.join(LOGGERS)}.")
    return LOGGERS[name](folder) if name else None


def scalars(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number of some rows; rows without a step are counted."""
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
