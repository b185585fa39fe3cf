"""The Engine interface: call one function on many units, and yield the results as they arrive.

    with open_engine("pool", workers=8) as engine:
        for number, result in engine.run(work, enumerate(units), name="texts"):
            write(number, result)

The caller of `run` writes the results, each under a name determined by its unit, and completely or not at all. A lost
worker therefore costs only its current unit, and a killed run only the units in flight. Units are drawn from the
iterable as places become free, never all at once.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, TypeVar

Unit = TypeVar("Unit")
Result = TypeVar("Result")

TRIES: Final = 4
"""How many times a unit is started before the run gives up: it survives the loss of three workers."""


class Engine(abc.ABC):
    """Where units run."""

    @property
    @abc.abstractmethod
    def workers(self) -> int:
        """The number of units that run at a time; on a cluster this may change."""

    @abc.abstractmethod
    def run(
        self, work: Callable[[Unit], Result], units: Iterable[tuple[int, Unit]], *, name: str
    ) -> Iterator[tuple[int, Result]]:
        """Call `work` on every unit.

        Args:
            work: a pure function of its unit, which may keep what it loads between units. Engines other than
                `InProcess` send it to each worker once, so it must be picklable; its models and dictionaries must have
                been opened by name, because each worker opens them itself.
            units: (number, unit) pairs, drawn as places become free. A unit is small: a dict, a tuple.
            name: the name of the job, for messages.

        Yields:
            (number, result) in the order in which units finish.

        Raises:
            InvalidArgument: when the work cannot be sent, for example because it holds weights in memory.
            WorkerLost: when several workers were lost at the same unit.
            Unreachable: when a cluster cannot be joined.
            Whatever `work` raises, which ends the run; the unit is not retried.
        """

    def close(self) -> None:
        """Stop whatever the engine started. May be called twice."""
        return

    def __enter__(self) -> Engine:
        """Return the engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""
        self.close()


class InProcess(Engine):
    """Runs the units in this process, one after the other and in order; nothing is pickled."""

    @property
    def workers(self) -> int:
        """Always 1."""
        return 1

    def run(
        self, work: Callable[[Unit], Result], units: Iterable[tuple[int, Unit]], *, name: str
    ) -> Iterator[tuple[int, Result]]:
        """See `Engine.run`."""
        del name  # there is no worker to lose
        for number, unit in units:
            yield number, work(unit)


def lost(name: str, unit: Any, tries: int, why: str) -> str:
    """The error message for a unit at which workers were lost."""
    shown = repr(unit)
    return (
        f"{name}: {tries} workers were lost one after the other at the unit {shown[:200]}{'…' * (len(shown) > 200)} "
        f"({why}). Exit code -9 mostly means that memory ran out: give fewer --workers, or more --cpus to each unit. "
        "The same command goes on where this one stopped."
    )
