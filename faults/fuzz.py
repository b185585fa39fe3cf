"""Corrupt files of every format that saeflow reads, and read them: only a clear error or an answer may result.

    python faults/fuzz.py [--files 10000] [--seed 0] [--format NAME] [--json]

Each corrupted file must either be read or be refused with a SaeflowError that says what is wrong. Anything else is a
finding: a different answer from a format with a checksum, another exception, a Python object made from a pickle, a
program started, a file written, more than a gigabyte of memory, or more than ten seconds. Findings are printed with
the options that reproduce them.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mutations import MUTATIONS, PLACED

ROOT = Path(__file__).parent.parent
MEMORY = 1 << 30
SECONDS = 10.0
FORBIDDEN = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
)


@dataclass
class Format:
    """A format: a function that writes its files, and one that reads them completely.

    What `read` returns for intact files is the only answer it may give for corrupted ones; None allows any answer.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    files: dict[Path, bytes] = field(default_factory=dict)
    answer: object = None


@dataclass
class Finding:
    format: str
    seed: int
    file: str
    mutation: str
    what: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="spoiled files in all")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--format", default="", help="one format alone")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    asked = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # transformers would show a progress bar for every file
    from formats import formats  # after parsing the arguments, since it imports torch

    with tempfile.TemporaryDirectory(prefix="saeflow-fuzz-") as folder:
        known = [f for f in formats(Path(folder)) if asked.format in ("", f.name)]
        if not known:
            raise SystemExit(f"there is no format {asked.format!r}.")
        counts, findings, took = fuzz(known, Path(folder), asked.files, asked.seed)
    told = {
        "files": asked.files,
        "seconds": round(took, 1),
        "counts": {n: dict(c) for n, c in counts.items()},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "findings": [vars(found) for found in findings],
    }
    if asked.json:
        print(json.dumps(told, indent=1))
    else:
        show(told)
    raise SystemExit(1 if findings else 0)


def fuzz(known: list[Format], folder: Path, n: int, seed: int) -> tuple[dict, list[Finding], float]:
    """Try `n` corrupted files, cycling through the formats; returns counts of outcomes, findings and seconds."""
    watch = Watch()
    sys.addaudithook(watch.see)
    for form in known:
        place = folder / "good" / form.name
        place.mkdir(parents=True)
        form.write(place)
        form.files = {path.relative_to(place): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
        form.answer = form.read(place)  # intact files must be readable
    limit_memory()
    signal.signal(signal.SIGALRM, too_long)
    counts: dict = collections.defaultdict(collections.Counter)
    findings: list[Finding] = []
    began = time.perf_counter()
    for number in range(n):
        form = known[number % len(known)]
        outcome, found = one(form, folder / "spoiled", seed + number, watch)
        counts[form.name][outcome] += 1
        if found:
            findings.append(found)
            print(
                f"\n{found.format} --seed {found.seed} --files 1: {found.file}, {found.mutation}\n{found.what}",
                file=sys.stderr,
            )
        if sys.stderr.isatty() and number % 100 == 0:
            print(f"\r{number}/{n} files, {len(findings)} findings", end="", file=sys.stderr)
    return counts, findings, time.perf_counter() - began


def one(form: Format, place: Path, seed: int, watch: Watch) -> tuple[str, Finding | None]:
    """Corrupt one file of a format, and read all its files."""
    from saeflow.errors import SaeflowError

    rng = random.Random(f"{form.name} {seed}")
    shutil.rmtree(place, ignore_errors=True)
    target = rng.choice(sorted(form.files))
    mutation = rng.choice((*MUTATIONS, *PLACED))
    for path, data in form.files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        if path == target and mutation in PLACED:
            mutation(place / path, data, rng)
        else:
            (place / path).write_bytes(mutation(data, rng) if path == target else data)
    before, began, outcome, wrong = listing(place), time.perf_counter(), "read", ""
    watch.begin()
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
    try:
        answer = form.read(place)
        if form.answer is not None and answer != form.answer:
            outcome, wrong = "failed", f"another answer: {str(answer)[:500]}"
    except SaeflowError as error:
        outcome = "refused"
        if not str(error).strip() or "Traceback" in str(error):
            wrong = f"an error that says nothing: {error!r}"
    except BaseException:
        outcome, wrong = "failed", traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seen = watch.end()
    if seen:
        outcome, wrong = "failed", f"did {', '.join(sorted(set(seen)))}"
    if time.perf_counter() - began > SECONDS:
        outcome, wrong = "failed", f"took {time.perf_counter() - began:.0f} s"
    if listing(place) - before:
        outcome, wrong = "failed", f"wrote {listing(place) - before}"
    if not wrong:
        return outcome, None
    return outcome, Finding(form.name, seed, str(target), mutation.__name__, wrong)


def too_long(*_: object) -> None:
    raise TimeoutError("it hangs")


class Watch:
    """An audit hook that records forbidden events while a file is read."""

    def __init__(self) -> None:
        self._on, self._seen = False, []

    def begin(self) -> None:
        self._on, self._seen = True, []

    def end(self) -> list[str]:
        self._on = False
        return self._seen

    def see(self, event: str, arguments: tuple) -> None:
        if self._on and event in FORBIDDEN:
            self._seen.append(f"{event}{arguments[:2]!r}")


def limit_memory() -> None:
    """Limit the growth of private memory from now on to MEMORY."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now = int(status["VmData"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + MEMORY, now + MEMORY))


def listing(place: Path) -> set[str]:
    """The files in a folder, except .sqlite files: an index of words is created next to the words."""
    return {os.path.relpath(path, place) for path in place.rglob("*") if path.suffix != ".sqlite"}


def show(told: dict) -> None:
    print(f"{told['files']:,} spoiled files in {told['seconds']:.0f} s, {told['peak_mb']} MB at most")
    for name, counts in told["counts"].items():
        print(f"  {name:28} " + ", ".join(f"{what} {n:,}" for what, n in sorted(counts.items())))
    print(f"{len(told['findings'])} findings")


if __name__ == "__main__":
    main()
