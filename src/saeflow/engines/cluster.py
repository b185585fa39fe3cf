"""The engine for many machines, through Ray (an extra). A unit is a Ray task with the cores and GPUs it requests.

Ray places tasks, notices machines that disappear, and restarts their tasks elsewhere. The work goes into Ray's object
store once, and each worker process fetches it once; results, a few kilobytes each, come back through the same store.
Weights are not sent: each worker opens the files itself, so every machine needs them in its cache or on shared storage.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, cast

from saeflow.engines.engine import TRIES, Engine, Result, Unit, lost
from saeflow.engines.worker import Packed, Slot, UnitResult, pack, run_unit
from saeflow.errors import InvalidArgument, MissingExtra, Unreachable, WorkerLost

AHEAD: Final = 2
"""Units in flight per place in the cluster: one running and one waiting."""

_LOOK: Final = 5.0
"""Seconds between checks of how many places the cluster has; also the timeout for an address to answer."""


class Cluster(Engine):
    """A Ray cluster; see the module docstring."""

    def __init__(self, workers: int | None = None, *, address: str = "", cpus: int = 1, gpus: float = 0) -> None:
        """Prepare only: nothing is joined or started before the first run.

        Raises:
            MissingExtra: when Ray is not installed.
        """
        self._ray = _ray()
        self._asked, self._address, self._slot = workers, address, Slot(cpus, gpus)
        self._started, self._looked, self._seen = False, 0.0, 0

    def _join(self) -> None:
        """Use the cluster this process has already joined, or join the one at the address, or start one locally.

        Raises:
            Unreachable: when the cluster does not answer.
            InvalidArgument: when a locally started cluster has no place for a unit.
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
        """The number of units that fit in the cluster at a time, as of the last check; 0 before the first run."""
        if not self._ray.is_initialized():
            return 0
        now = time.monotonic()
        if not self._looked or now - self._looked > _LOOK:
            there = self._ray.cluster_resources()
            self._looked, self._seen = now, _places(there.get("CPU", 0), self._slot.cpus)
            if self._slot.gpus:
                self._seen = min(self._seen, _places(there.get("GPU", 0), self._slot.gpus))
        return self._seen

    def run(
        self, work: Callable[[Unit], Result], units: Iterable[tuple[int, Unit]], *, name: str
    ) -> Iterator[tuple[int, Result]]:
        """See `Engine.run`; twice as many units are in flight as have a place."""
        if getattr(work, "__module__", "") == "__main__":
            raise InvalidArgument(
                f"{name}: the work is defined in the script that is run, which a worker on another machine does not "
                "have. Put it into a module that all machines can import."
            )
        packed = pack(work, name)
        self._join()
        # inside a list, because Ray fetches a direct argument for every task, but a nested one only on request
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
                with contextlib.suppress(Exception):  # the cluster itself may be gone
                    self._ray.cancel(left, force=True)

    def close(self) -> None:
        """Leave the cluster, and end it if this engine started it; one that was joined before is left alone."""
        if self._started and self._ray.is_initialized():
            self._ray.shutdown()
        self._started = False


def _knock(address: str) -> None:
    """Try the port of HOST:PORT or ray://HOST:PORT first: Ray itself retries a dead address for minutes.

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


def _places(there: float, each: float) -> int:
    """How many shares of `each` fit; the nearest whole number counts, since 1 // 0.1 is 9."""
    return math.floor(there / each + 1e-9)


def _unit(held: list[Any], key: str, unit: Any, slot: Slot) -> UnitResult:
    """Run one unit in a Ray worker process."""
    return run_unit(key, lambda: cast("Packed", _ray().get(held[0])), unit, slot)


def _ray() -> Any:
    """Import and return the package ray.

    Raises:
        MissingExtra: when it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("the engine ray needs the package ray, which is not installed.", "ray") from error
