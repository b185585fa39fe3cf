"""The engine for a pool of processes on this machine, each with one unit at a time.

Processes are spawned, not forked, because torch's threads do not survive a fork. Each has its own pipe, so that the
loss of a worker is noticed at once and costs one unit, and so that workers end when their driver is gone. A pool of
`concurrent.futures` would break as a whole, and would leave processes behind when its driver is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from saeflow.engines.engine import TRIES, Engine, Result, Unit, lost
from saeflow.engines.worker import Packed, Slot, UnitResult, pack, run_unit
from saeflow.errors import WorkerLost

_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PATIENCE: Final = 3.0
"""Seconds that a worker gets to exit and release what it shares with the driver before it is killed."""

_SPAWN: Final = multiprocessing.get_context("spawn")


@dataclass
class _Task:
    """A unit in flight, with the number of times it was started."""

    number: int
    unit: Any
    tries: int = 0


class _Process:
    """A worker process and the driver's end of its pipe."""

    def __init__(self, slot: Slot) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self.process: SpawnProcess = _SPAWN.Process(
            target=_serve, args=(theirs, slot), daemon=True, name="saeflow worker"
        )
        with _threads(slot.cpus):
            self.process.start()
        theirs.close()  # so that the pipe closes when the process ends
        self.holds = ""
        self.task: _Task | None = None

    def send(self, packed: Packed, task: _Task) -> None:
        """Start a unit. If the process is gone, this is only noticed while waiting for its answer."""
        self.task, task.tries = task, task.tries + 1
        sent = None if self.holds == packed.key else packed
        self.holds = packed.key
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((packed.key, sent, task.unit))

    def stop(self) -> None:
        """Ask the process to end: closing the pipe ends an idle one, a busy one is terminated."""
        self.connection.close()
        if self.task is not None:
            self.process.terminate()

    def join(self) -> None:
        """Wait for the process to end, and kill it if that takes too long."""
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class Pool(Engine):
    """A pool of processes on this machine; see the module docstring."""

    def __init__(self, workers: int | None = None, *, cpus: int = 1) -> None:
        """Use as many processes as the cores allow when `workers` is None; each starts with its first unit."""
        self._workers = workers or max(1, cores() // cpus)
        self._slot = Slot(cpus)
        self._processes: list[_Process] = []

    @property
    def workers(self) -> int:
        """The maximum number of processes."""
        return self._workers

    def run(
        self, work: Callable[[Unit], Result], units: Iterable[tuple[int, Unit]], *, name: str
    ) -> Iterator[tuple[int, Result]]:
        """See `Engine.run`; as many units are in flight as there are processes."""
        packed, drawn, again = pack(work, name), iter(units), deque[_Task]()
        try:
            while True:
                self._hand_out(packed, drawn, again)
                busy = {process.connection: process for process in self._processes if process.task}
                if not busy:
                    return
                for connection in wait(list(busy)):
                    process = busy[connection]  # type: ignore[index]
                    task = process.task
                    assert task is not None  # noqa: S101  (it is busy)
                    try:
                        found: UnitResult = process.connection.recv()
                    except (EOFError, ConnectionResetError):  # the process is gone
                        again.append(self._lost(process, task, name))
                        continue
                    process.task = None
                    yield task.number, found.result()
        finally:
            self._end([process for process in self._processes if process.task])

    def close(self) -> None:
        """End all processes."""
        self._end(self._processes)

    def _hand_out(self, packed: Packed, drawn: Iterator[tuple[int, Any]], again: deque[_Task]) -> None:
        """Give a unit to every idle process while there are units, lost units first."""
        ready: list[tuple[_Process, _Task]] = []
        free = deque(process for process in self._processes if process.task is None)
        while free or len(self._processes) < self._workers:
            if again:
                task = again.popleft()
            elif (found := next(drawn, None)) is not None:
                task = _Task(*found)
            else:
                break
            if not free:  # start all processes before the first gets a unit, so that they start in parallel
                self._processes.append(_Process(self._slot))
                free.append(self._processes[-1])
            ready.append((free.popleft(), task))
        for process, task in ready:
            process.send(packed, task)

    def _lost(self, process: _Process, task: _Task, name: str) -> _Task:
        """Remove a dead process and return its task, which must be run again.

        Raises:
            WorkerLost: when the unit was already started TRIES times.
        """
        process.process.join()
        code = process.process.exitcode
        self._end([process])
        if task.tries >= TRIES:
            raise WorkerLost(lost(name, task.unit, task.tries, f"exit code {code}"))
        return task

    def _end(self, processes: Sequence[_Process]) -> None:
        self._processes = [process for process in self._processes if process not in processes]
        for process in processes:
            process.stop()
        for process in processes:
            process.join()


def cores() -> int:
    """The number of cores this process may use, or all of the machine's if the system does not say."""
    allowed: Any = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


@contextlib.contextmanager
def _threads(cpus: int) -> Generator[None]:
    """Set the thread counts that a process started inside inherits: they must be set before it imports anything."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(cpus)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, slot: Slot) -> None:
    """The main loop of a worker: answer until the pipe closes or the driver ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver ends the workers
    signal.signal(signal.SIGTERM, _leave)
    os.environ["TQDM_DISABLE"] = "1"  # the driver shows progress
    threading.Thread(target=_end_with_driver, daemon=True).start()
    # runs after the finalizers that release shared resources: skips torch's teardown, which would take seconds
    util.Finalize(None, os._exit, args=(0,), exitpriority=-100)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            key, packed, unit = connection.recv()
            connection.send(run_unit(key, lambda packed=packed: packed, unit, slot))


def _leave(*_: object) -> None:
    raise SystemExit(1)


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        wait([driver.sentinel])
        os._exit(1)
