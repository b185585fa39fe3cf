"""Engine: calls one function of a unit for many units, and gives the results back as they come.

    with open_engine("pool", workers=8) as engine:
        for number, result in engine.run(work, enumerate(units), name="texts"):
            write(number, result)

The side that calls `run` writes: under a name that the unit decides, whole or not at all. So a worker that is lost
costs the unit it was at, and a run that is killed costs what was in flight. Units are drawn when there is a place for
them, never all at once.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, TypeVar

Unit = TypeVar("Unit")
Result = TypeVar("Result")

TRIES: Final = 4
"""How often a unit is begun before a run gives up: three workers may be lost under it."""


class Engine(abc.ABC):
    """Where units run."""

    @property
    @abc.abstractmethod
    def workers(self) -> int:
        """How many units run at a time; on a cluster, as of now."""

    @abc.abstractmethod
    def run(
        self, work: Callable[[Unit], Result], units: Iterable[tuple[int, Unit]], *, name: str
    ) -> Iterator[tuple[int, Result]]:
        """Call `work` on every unit.

        Args:
            work: a pure function of its unit. It may keep what it loads between units. Engines other than `InProcess`
                send it to each worker once: it must pickle, and holds models and dictionaries that were opened by
                name, which each worker opens itself.
            units: (number, unit), drawn as places come free. A unit is small: a dict, a tuple.
            name: of the job, for messages.

        Yields:
            (number, result) in the order in which they end.

        Raises:
            InvalidArgument: when the work cannot be sent, as with weights held in memory.
            WorkerLost: when several workers were lost under one unit.
            Unreachable: when a cluster cannot be joined.
            Whatever `work` raises, which ends the run; it is not tried again.
        """

    def close(self) -> None:
        """End what the engine started, if anything. May be called twice."""
        return

    def __enter__(self) -> Engine:
        """The engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class InProcess(Engine):
    """This process, one unit after the other, in their order; nothing is pickled."""

    @property
    def workers(self) -> int:
        """One."""
        return 1

    def run(
        self, work: Callable[[Unit], Result], units: Iterable[tuple[int, Unit]], *, name: str
    ) -> Iterator[tuple[int, Result]]:
        """As `Engine.run` says."""
        del name  # there is no worker to lose
        for number, unit in units:
            yield number, work(unit)


def lost(name: str, unit: Any, tries: int, why: str) -> str:
    """What is said of a unit under which workers were lost."""
    shown = repr(unit)
    return (
        f"{name}: {tries} workers were lost one after the other at the unit {shown[:200]}{'…' * (len(shown) > 200)} "
        f"({why}). Exit code -9 mostly means that memory ran out: give fewer --workers, or more --cpus to each unit. "
        "The same command goes on where this one stopped."
    )
