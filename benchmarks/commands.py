"""Time every command as a separate process, cold and warm, with its peak memory.

    python benchmarks/commands.py [--json] [--quick] [--release smollm2-135m] [--repeats 3] [--only graph,steer]
    python benchmarks/commands.py --beside ../older/src    alternate with another version of saeflow

Each command runs in its own process, in an empty working folder. `seconds` is the median of the runs after the first;
the note gives the first run and the processor time. `extra MB` is the peak memory of the whole process. Numbers of
texts are small and equal for both releases; `saeflow reproduce RECIPE --dry-run` estimates the cost of other sizes. The
other version may know options by their old names; a command that fails there has no row for it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import track

from _timing import Row, arguments, memory, show
from saeflow.cli.vocabulary import NUMBER_OF_TEXTS, OLD

SUBJECTS = {
    "demo": ("4/res/72", "3/res", "playtime", "“Come,” said the man, and they went."),
    "smollm2-135m": ("13/res/62", "12/res", "clothing", "She took the dress and said it was"),
}
"""For each release: a feature, the site below it, a theme, and a text on which the feature fires."""

COMMANDS = {
    "help": "--help",
    "releases": "releases",
    "graph": "graph {release} {feature}",
    "graph html": "graph {release} {feature} --out g.html",
    "match": "match {release} {site} {below}",
    "atlas info": "atlas info {release}",
    "atlas build": "atlas build {release} --out atlas",
    "calibrate": "atlas calibrate {release} --atlas atlas",
    "labels show": "labels show {release} {feature}",
    "labels search": "labels search {release} reason",
    "labels make": "labels make {release} --texts {release} --tokens 20000 --out words",
    "doctor": "doctor {release}",
    "doctor with the model": "doctor {release} --model {release} --texts {release}",
    "agreement": "agreement {release}",
    "find": "find {release} --words reason",
    "plan": "plan {release} --theme {theme}",
    "steer": "steer {release} 'I think' --theme {theme}",
    "trace": "trace {release} --text 'She took the book and began to'",
    "deactivate a text": "deactivate {release} {feature} --text '{text}'",
    "origins": "origins {release} --n-texts 4 --tokens-per-text 3 --out origins",
    "deactivate": "deactivate {release} --n-texts 1 --tokens-per-text 3 --n-targets 10 --out deactivation",
    "correlate": "correlate {release} --texts {release} --tokens 10000 --out pearson",
    "transition": "transition {release} --layers {layer} --tokens 2000 --fit-tokens 5000 --n-loss-texts 2 --k 1,5 "
    "--out t",
    "publish": "publish {release} --out site",
}
"""The commands by name; files are written to the working folder, which is new for every run."""

QUICK = ("help", "graph")
Measured = tuple[float, float, float]


def measure(command: str, source: str = "") -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MB of one command, run in an empty folder.

    Raises:
        SystemExit: when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["saeflow", *shlex.split(command)]
        if "--atlas atlas" in command:
            _wait([*words[:1], "atlas", "build", words[3], "--out", "atlas"], folder, source)
        return _wait(words, folder, source)


def _wait(words: list[str], folder: str, source: str) -> tuple[float, float, float]:
    """Run a command and ask the kernel for its resource usage; its output is shown if it fails.

    The process itself writes down its memory: for a spawned process, the kernel's figure includes the parent's memory.
    """
    told, status = Path(folder) / "told.txt", Path(folder) / "status"
    noted = f"atexit.register(lambda: shutil.copyfile('/proc/self/status', {str(status)!r}))"
    program = f"import atexit, shutil, sys; {noted}; sys.argv = {words!r}; from saeflow import cli; cli.main()"
    with told.open("wb") as out:
        began = time.perf_counter()
        spawned = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", f"import os; os.chdir({folder!r}); {program}"],
            {**os.environ, "PYTHONPATH": source} if source else os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)],
        )
        _, ended, used = os.wait4(spawned, 0)
    if code := os.waitstatus_to_exitcode(ended):
        raise SystemExit(f"{shlex.join(words)} ended with exit code {code}:\n{told.read_text()}")
    seconds = time.perf_counter() - began
    return seconds, used.ru_utime + used.ru_stime, memory(status=status)


def with_old_names(command: str) -> str:
    """A command as versions before the renaming of options took it."""
    renamed = [(old, new) for old, new, commands in OLD if command.startswith(commands)]
    if command.startswith(NUMBER_OF_TEXTS):
        renamed.append(("--texts", "--n-texts"))
    for old, new in renamed:
        command = command.replace(f" {new} ", f" {old} ")
    return command


def row(command: str, name: str, found: Sequence[Measured]) -> Row:
    seconds, processor, peak = (statistics.median(values) for values in zip(*(found[1:] or found), strict=True))
    note = f"first {found[0][0]:.2f} s; {processor:.2f} s of processor"
    return Row(f"`saeflow {command}`", name, seconds, extra_mb=peak, note=note)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--release", default="demo", choices=sorted(SUBJECTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="names of commands, by commas; all by default")
    parser.add_argument("--beside", type=Path, help="the src folder of another version")
    asked = parser.parse_args()
    feature, below, theme, text = SUBJECTS[asked.release]
    site = feature.rsplit("/", 1)[0]
    names = asked.only.split(",") if asked.only else QUICK if asked.quick else COMMANDS
    words = {"release": asked.release, "feature": feature, "below": below, "site": site, "theme": theme, "text": text}
    words["layer"] = below.split("/")[0]
    rows: list[Row] = []
    for name in track(names, description="commands", transient=True):
        command = COMMANDS[name].format(**words)
        found, before = list[Measured](), list[Measured]()
        for _ in range(1 if asked.quick else asked.repeats):
            found.append(measure(command))
            if asked.beside:
                for spelled in dict.fromkeys((command, with_old_names(command))):
                    with contextlib.suppress(SystemExit):
                        before.append(measure(spelled, str(asked.beside.resolve())))
                        break
        mine = row(command, name, found)
        if not before:
            rows.append(mine)
            continue
        other = row(command, f"{name}, the other version", before)
        rows += [replace(mine, ratio=mine.seconds / other.seconds, against="the other version"), other]
    show(rows, as_json=asked.json)


if __name__ == "__main__":
    main()
