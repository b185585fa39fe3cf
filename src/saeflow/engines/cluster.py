"""Cluster: many machines through Ray, an extra. A unit is a Ray task with the cores and GPUs it asks for.

Ray places tasks, notices machines that are gone, and begins their tasks again elsewhere. The work goes into its object
store once, and each worker process fetches it once; results, some kilobytes, come back the same way. Weights do not: a
worker opens the files itself, so every machine needs them, in its own cache or on shared storage.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, cast

from saeflow.engines.engine import TRIES, Engine, Result, Unit, lost
from saeflow.engines.worker import Packed, Slot, UnitResult, pack, run_unit
from saeflow.errors import InvalidArgument, MissingExtra, Unreachable, WorkerLost

AHEAD: Final = 2
"""Units in flight for each place: one that runs, and one that waits."""

_LOOK: Final = 5.0
"""Seconds between looks at how many places the cluster has, and to wait for an address to answer."""


class Cluster(Engine):
    """A Ray cluster; see the head of the file."""

    def __init__(self, workers: int | None = None, *, address: str = "", cpus: int = 1, gpus: float = 0) -> None:
        """Nothing is joined or started before the first run.

        Raises:
            MissingExtra: when Ray is not installed.
        """
        self._ray = _ray()
        self._asked, self._address, self._slot = workers, address, Slot(cpus, gpus)
        self._started, self._looked, self._seen = False, 0.0, 0

    def _join(self) -> None:
        """Join the cluster at the address, or the one this process has joined, or start one on this machine.

        Raises:
            Unreachable: when the cluster does not answer.
            InvalidArgument: when a cluster that was started here has no place for a unit.
        """
        if self._ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address:
            _knock(self._address)
            options["address"] = self._address
        else:
            cores = None if self._asked is None else self._asked * self._slot.cpus
            options |= {"num_cpus": cores, "include_dashboard": False}
        try:
            self._ray.init(**options)
        except (OSError, ConnectionError, RuntimeError, ValueError) as error:
            raise _unjoined(self._address, error) from error
        self._started, self._looked = True, 0.0
        if not self._address and not self.workers:
            self.close()
            raise InvalidArgument(
                f"this machine has no {self._slot.cpus} cores and {self._slot.gpus:g} GPUs for a unit. Ask for less, "
                "or give the --address of a cluster that has them."
            )

    @property
    def workers(self) -> int:
        """Units that fit the cluster at a time, as of the last look; 0 before the first run."""
        if not self._ray.is_initialized():
            return 0
        now = time.monotonic()
        if not self._looked or now - self._looked > _LOOK:
            there = self._ray.cluster_resources()
            self._looked, self._seen = now, int(there.get("CPU", 0) // self._slot.cpus)
            if self._slot.gpus:
                self._seen = min(self._seen, int(there.get("GPU", 0) // self._slot.gpus))
        return self._seen

    def run(
        self, work: Callable[[Unit], Result], units: Iterable[tuple[int, Unit]], *, name: str
    ) -> Iterator[tuple[int, Result]]:
        """As `Engine.run` says; twice as many units are in flight as have a place."""
        if getattr(work, "__module__", "") == "__main__":
            raise InvalidArgument(
                f"{name}: the work is defined in the script that is run, which a worker on another machine does not "
                "have. Put it into a module that all machines can import."
            )
        packed = pack(work, name)
        self._join()
        # in a list: Ray fetches an argument for every task, and what is inside one when it is requested
        held = [self._ray.put(packed)]
        task = self._ray.remote(
            num_cpus=self._slot.cpus, num_gpus=self._slot.gpus or None, max_retries=TRIES - 1, name=f"saeflow {name}"
        )(_unit)
        flying: dict[Any, tuple[int, Any]] = {}
        drawn, more = iter(units), True
        try:
            while True:
                while more and len(flying) < AHEAD * max(1, self.workers):
                    found = next(drawn, None)
                    more = found is not None
                    if found is not None:
                        flying[task.remote(held, packed.key, found[1], self._slot)] = found
                if not flying:
                    return
                ended, _ = self._ray.wait(list(flying), num_returns=1)
                number, unit = flying.pop(ended[0])
                try:
                    answer = cast("UnitResult", self._ray.get(ended[0]))
                except self._ray.exceptions.RayError as error:
                    raise WorkerLost(lost(name, unit, TRIES, f"Ray says {error}")) from error
                yield number, answer.result()
        finally:
            for left in flying:
                with contextlib.suppress(Exception):  # the cluster may be what is gone
                    self._ray.cancel(left, force=True)

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here; one that was joined before is left alone."""
        if self._started and self._ray.is_initialized():
            self._ray.shutdown()
        self._started = False


def _knock(address: str) -> None:
    """Try the port of HOST:PORT or ray://HOST:PORT: Ray itself asks an address where nothing is for minutes.

    Raises:
        Unreachable: when nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK).close()
    except (OSError, OverflowError) as error:
        raise _unjoined(address, error) from error


def _unjoined(address: str, error: Exception) -> Unreachable:
    where = f"the Ray cluster at {address!r}" if address else "a Ray cluster on this machine"
    return Unreachable(f"{where} cannot be joined ({error}). Start it with `ray start --head`.")


def _unit(held: list[Any], key: str, unit: Any, slot: Slot) -> UnitResult:
    """One unit, in a worker process of Ray."""
    return run_unit(key, lambda: cast("Packed", _ray().get(held[0])), unit, slot)


def _ray() -> Any:
    """The package.

    Raises:
        MissingExtra: when it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("the engine ray needs the package ray, which is not installed.", "ray") from error
