"""Shared by the benchmarks: interleaved timing, memory beyond the inputs, one table, --json and --quick.

Functions are timed in turn, round after round, and the median of each is reported, so that other load on the
machine affects all of them. Ratios carry over to other machines; seconds do not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a benchmark: `ratio` is the time relative to `against`, `extra_mb` the memory beyond the inputs.

    `cpu_ratio` is the same ratio in process time, which other load on the machine affects less.
    """

    method: str
    size: str
    seconds: float
    ratio: float | None = None
    against: str = ""
    extra_mb: float | None = None
    note: str = ""
    cpu_ratio: float | None = None


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each function, called in turn."""
    return {name: wall for name, (wall, _) in wall_and_cpu(functions, repeats).items()}


def wall_and_cpu(functions: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, tuple[float, float]]:
    """Median seconds of each function, called in turn: (wall time, processor time)."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in track(range(repeats), description="timing", transient=True):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (statistics.median(w for w, _ in pairs), statistics.median(c for _, c in pairs))
        for name, pairs in taken.items()
    }


def peak_memory(prepare: Callable[[], Any], act: Callable[[Any], object]) -> float:
    """Peak memory in MB that `act` needs beyond what `prepare` made, measured in a separate process. Linux only."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_watched, args=(prepare, act, send))
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"the measured process ended with exit code {child.exitcode}")
    return float(receive.recv())


def _watched(prepare: Callable[[], Any], act: Callable[[Any], object], send: Any) -> None:
    made = prepare()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak: count from here
    before = memory("VmRSS")
    act(made)
    send.send(memory("VmHWM") - before)


def memory(name: str = "VmHWM", status: Path = Path("/proc/self/status")) -> float:
    """A process's memory in MB, by default the peak of this one. Linux only."""
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(name + ":"))


def machine() -> str:
    """A description of the machine and versions."""
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return (
        f"{threads} thread{'s' * (threads != 1)} of {platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
        f"{device}, torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}"
    )


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with --json and --quick, which every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    return parser


def as_markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    cpu = any(row.cpu_ratio is not None for row in rows)
    head = f"| method | size | seconds | ratio |{' of CPU time |' * cpu} against | extra MB | note |\n"
    head += f"|---|---|---:|---:|{'---:|' * cpu}---|---:|---|\n"

    def two(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio:.2f}"

    lines = [
        f"| {r.method} | {r.size} | {r.seconds:.3g} | {two(r.ratio)} |{f' {two(r.cpu_ratio)} |' * cpu} {r.against} | "
        f"{'' if r.extra_mb is None else f'{r.extra_mb:,.0f}'} | {r.note} |"
        for r in rows
    ]
    return head + "\n".join(lines) + "\n"


def show(rows: list[Row], *, as_json: bool, **more: object) -> None:
    """Print the results and the machine."""
    if as_json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows], **more}, indent=1))
        return
    print(f"{machine()}\n\n{as_markdown(rows)}")
    for name, value in more.items():
        print(f"{name}: {value}")
