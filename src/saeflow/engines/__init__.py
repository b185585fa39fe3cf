"""Engines run units of work: in this process, in a pool of processes, or on many machines through Ray.

Every long job is a list of units (a pair of sites, a text, a cell of a sweep) and one function of a unit. Engines
differ only in where they call that function; the units, the function and the output files are the same. Opening an
engine does not import torch, and only the "ray" engine imports Ray.
"""

from __future__ import annotations

from typing import Final

from saeflow.engines.engine import Engine, InProcess
from saeflow.engines.worker import device_of_worker
from saeflow.errors import InvalidArgument, nearest

ENGINES: Final = ("here", "pool", "ray")
"""The names that `open_engine` accepts."""

__all__ = ["ENGINES", "Engine", "InProcess", "device_of_worker", "open_engine"]


def open_engine(
    name: str = "here", *, workers: int | None = None, address: str = "", cpus: int = 1, gpus: float = 0
) -> Engine:
    """Open the engine with this name. Close it after use, or use it in a `with` statement.

    Args:
        name: "here", "pool" or "ray".
        workers: number of processes in the pool, or in the cluster that Ray starts on this machine; None means as many
            as the cores allow. An existing cluster decides this itself.
        address: address of a running Ray cluster, such as "auto" or "ray://head:10001"; if empty, Ray starts one.
        cpus: cores per unit: the number of threads it computes with, and the cores it requests from Ray.
        gpus: GPUs that a unit requests from Ray; fractions are allowed. A unit with a GPU computes on it.

    Raises:
        InvalidArgument: for an unknown name, a number out of range, or an argument that the engine does not take.
        MissingExtra: for "ray" when it is not installed. A cluster is only joined by the first run.
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
