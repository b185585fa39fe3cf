"""Engines: where units of work run. In this process, in a pool of processes, or on many machines through Ray.

Every long job is a list of units (a pair of sites, a text, a cell of a sweep) and one function of a unit. Engines
differ in where they call it and in nothing else: the unit, the function and what is written are the same. Opening an
engine imports no torch, and Ray only where it is asked for.
"""

from __future__ import annotations

from typing import Final

from saeflow.engines.engine import Engine, InProcess
from saeflow.engines.worker import device_of_worker
from saeflow.errors import InvalidArgument, nearest

ENGINES: Final = ("here", "pool", "ray")
"""Names that `open_engine` takes."""

__all__ = ["ENGINES", "Engine", "InProcess", "device_of_worker", "open_engine"]


def open_engine(
    name: str = "here", *, workers: int | None = None, address: str = "", cpus: int = 1, gpus: float = 0
) -> Engine:
    """The engine of that name. Close it, or use it in a `with`.

    Args:
        name: "here", "pool" or "ray".
        workers: processes of the pool, or of the cluster that Ray starts here; as many as there are cores for when
            None. A cluster that is joined decides by itself.
        address: of a running Ray cluster, such as "auto" or "ray://head:10001"; Ray starts one of its own when empty.
        cpus: cores of a unit: threads it computes with, and what it asks Ray for.
        gpus: GPUs a unit asks Ray for; a part of one is allowed. A unit that has one computes there.

    Raises:
        InvalidArgument: for another name, a number out of range, or an argument that the engine does not take.
        MissingExtra: for "ray" where it is not installed. A cluster is joined by the first run.
    """
    if name not in ENGINES:
        raise InvalidArgument(f"there is no engine {name!r}.{nearest(name, ENGINES)} Engines: {', '.join(ENGINES)}.")
    if (workers is not None and workers < 1) or cpus < 1 or gpus < 0:
        raise InvalidArgument(
            f"workers = {workers}, cpus = {cpus}, gpus = {gpus}: give 1 or more workers and cpus, and 0 or more gpus."
        )
    if name != "ray" and (address or gpus):
        raise InvalidArgument(
            f"the engine {name!r} takes no address and hands out no GPUs (address = {address!r}, gpus = {gpus}). Give "
            "these with the engine ray."
        )
    if name == "here":
        if workers not in (None, 1):
            raise InvalidArgument(f"the engine here is this one process; {workers} workers were asked for. Take pool.")
        return InProcess()
    if name == "pool":
        from saeflow.engines.pool import Pool

        return Pool(workers, cpus=cpus)
    from saeflow.engines.cluster import Cluster

    return Cluster(workers, address=address, cpus=cpus, gpus=gpus)
