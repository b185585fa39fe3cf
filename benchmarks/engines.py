"""Engines: the overhead of dispatching work, and one worker against two.

    python benchmarks/engines.py [--json] [--quick] [--repeats 5] [--engines here,pool,ray]

    empty       a unit that does nothing: its time is the engine's overhead
    match       two dictionaries of 2,048 features of width 512, drawn by the worker: takes about as long as a text

Every engine is opened once and runs each kind of unit before the first round, so that starting processes and importing
torch are reported separately. Workers compute with one thread, and so does this process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch

from _timing import Row, arguments, interleaved, show
from _units import empty, match
from saeflow.engines import Engine, InProcess, open_engine


def opened(name: str, stack: ExitStack) -> dict[str, Engine]:
    """The engine `here`, or a pair with one and two workers. Not for Ray: a process joins one cluster at a time."""
    if name == "here":
        return {"here": InProcess()}
    return {f"{name}, {n} workers": stack.enter_context(open_engine(name, workers=n)) for n in (1, 2)}


def ended(engine: Engine, work: Callable[[int], object], n: int) -> list[object]:
    return [found for _, found in sorted(engine.run(work, enumerate(range(n)), name=work.__name__))]


def started(engine: Engine) -> float:
    """Seconds for the first units of each kind, which start processes and import packages."""
    begun = time.perf_counter()
    ended(engine, empty, max(1, engine.workers))
    ended(engine, match, max(2, engine.workers))
    return time.perf_counter() - begun


def rows_of(names: dict[str, float], kind: str, n: int, first: str) -> list[Row]:
    base = names[first] / n
    return [
        Row(
            f"{name}", f"{kind}, {n} units", seconds / n, seconds / n / base, first, None, f"{n / seconds:,.0f} units/s"
        )
        for name, seconds in names.items()
    ]


def measure(names: list[str], n_empty: int, n_match: int, repeats: int) -> tuple[list[Row], dict[str, float]]:
    starts: dict[str, float] = {}
    medians: dict[str, dict[str, float]] = {"empty": {}, "match": {}}
    with ExitStack() as stack:
        together: dict[str, Engine] = {}
        for name in (name for name in names if name != "ray"):
            together |= opened(name, stack)
        time_all(together, starts, medians, n_empty, n_match, repeats)
    if "ray" in names:  # a process joins one cluster at a time
        for n in (1, 2):
            with open_engine("ray", workers=n) as engine:
                time_all({f"ray, {n} workers": engine, "here": InProcess()}, starts, medians, n_empty, n_match, repeats)
    found = [*rows_of(medians["empty"], "empty", n_empty, "here"), *rows_of(medians["match"], "match", n_match, "here")]
    return found, starts


def time_all(
    engines: dict[str, Engine],
    starts: dict[str, float],
    medians: dict[str, dict[str, float]],
    n_empty: int,
    n_match: int,
    repeats: int,
) -> None:
    """Time the engines in turn and record medians; all must give the same results."""
    truth = ended(InProcess(), match, n_match)
    for name, engine in engines.items():
        taken = started(engine)
        if name != "here":
            starts[name] = taken
        assert ended(engine, match, n_match) == truth, name
    for kind, work, n in (("empty", empty, n_empty), ("match", match, n_match)):
        taken_all = interleaved(
            {name: lambda e=engine, w=work, m=n: ended(e, w, m) for name, engine in engines.items()}, repeats
        )
        for name, seconds in taken_all.items():
            before = medians[kind].get(name)
            medians[kind][name] = seconds if before is None else statistics.median([before, seconds])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", default="here,pool,ray")
    told = parser.parse_args()
    torch.set_num_threads(1)
    names = told.engines.split(",")
    sizes = (20, 4, 1) if told.quick else (400, 16, told.repeats)
    rows, starts = measure(names, *sizes)
    show(rows, as_json=told.json, seconds_to_start={name: round(value, 2) for name, value in starts.items()})


if __name__ == "__main__":
    main()
