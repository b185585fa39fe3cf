"""Disk faults during long jobs: full, read-only, two writers at once, damaged files. Nothing may be lost.

    python faults/disk.py [--spoil 4] [--seed 0] [--job NAME] [--fault NAMES] [--json]

    full        the disk (a small tmpfs, if one can be mounted) fills up at 30 % and at 80 % of what the job writes
    limit       no file may grow beyond half the size of the largest (RLIMIT_FSIZE)
    read-only   the folder is mounted read-only, before the job and with its output in place
    together    two processes do the same job in the same folder
    spoiled     a job is killed, and a file that it left, or that is in its cache, is truncated or has bits flipped

A job must then end by itself, either successfully or with exit code 2 and one sentence. Run again without the fault, it
must produce the same bytes as an undisturbed run. Files from before a full disk or a read-only mount must still exist.
A spoiled file must be refused in one sentence or recreated, and never be trusted.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jobs import HUB, Job, begin, differing, fingerprint, fresh, jobs, run, warm
from mutations import bits_flipped, truncated
from services import services

SLOW = 300.0
"""Seconds after which a job counts as hanging."""


@dataclass
class Alone:
    """An undisturbed run: seconds, fingerprint of its files, size of the largest, and bytes of disk it needs."""

    seconds: float
    files: dict[str, str]
    largest: int
    on_disk: int


@dataclass
class Outcome:
    """The result of one fault on one job."""

    job: str
    fault: str
    runs: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)


@dataclass
class Trial:
    """A job under one fault: where it runs, how it runs undisturbed, and the outcome so far."""

    job: Job
    root: Path
    alone: Alone
    outcome: Outcome
    rng: random.Random

    @property
    def out(self) -> Path:
        return self.root / "disk" / "out"

    def run(self, **how: int) -> int:
        """Run the job; records a finding if it hangs, or fails other than with exit code 2 and one sentence."""
        said = self.root / "said.txt"
        code = run(self.job, self.out, SLOW, said=said, **how)
        self.outcome.runs += 1
        text = said.read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("saeflow: ")]
        if code == -9:
            self.wrong(f"did not end in {SLOW:.0f} s")
        elif code == 2 and len(lines) == 1 and "Traceback" not in text:
            self.outcome.refused += 1
        elif code != 0:
            self.wrong(f"ended with {code}: {text[-1500:]}")
        self.said = lines[-1] if lines else ""
        return code

    def expect_refused(self, what: str, *words: str, **how: int) -> None:
        """The job must refuse in a sentence with one of `words`, or succeed with all its output."""
        code = self.run(**how)
        if code == 0:
            self.compare(what)
        if code == 2 and not any(word.lower() in self.said.lower() for word in words):
            self.wrong(f"{what}: says {self.said!r}")

    def expect_whole(self, what: str) -> None:
        """Without the fault the job must succeed, with the bytes of an undisturbed run."""
        code = self.run()
        if code != 0:
            self.wrong(f"{what}: then ended with {code}: {self.said}")
            return
        self.compare(what)

    def compare(self, what: str, unless: str = "") -> None:
        """The folder must match an undisturbed run, without partial files; the file `unless` may differ."""
        found = fingerprint(self.out, self.job)
        found |= {name: self.alone.files[name] for name in self.job.elsewhere if name not in found}
        differs = [name for name in differing(self.alone.files, found) if name != unless]
        differs += [f"{path.name} is left behind" for path in self.out.rglob(".*")]
        if differs:
            self.wrong(f"{what}: then differs: {', '.join(differs[:8])}")

    def wrong(self, what: str) -> None:
        self.outcome.findings.append(what)
        print(f"{self.job.name}, {self.outcome.fault}: {what}", file=sys.stderr, flush=True)


def full(trial: Trial) -> None:
    """A disk that is too small, then large enough."""
    for share in (0.3, 0.8):
        with small_disk(trial, int(share * trial.alone.on_disk)) as grow:
            before = fingerprint(trial.out, trial.job) if trial.out.exists() else {}
            trial.expect_refused(f"a disk of {share:.0%}", "no space left", "are free")
            lost = [name for name in before if name not in fingerprint(trial.out, trial.job)]
            if lost:
                trial.wrong(f"a disk of {share:.0%}: lost {', '.join(lost)}")
            grow()
            trial.expect_whole(f"a disk of {share:.0%}")


def limit(trial: Trial) -> None:
    """A limit on the size of files, then no limit."""
    fresh(trial.out, trial.job)
    trial.expect_refused("a limit", "too large", "I/O error", limit=trial.alone.largest // 2)
    trial.expect_whole("a limit")


def read_only(trial: Trial) -> None:
    """A read-only folder, first as the job finds it, then with the job's output complete."""
    with small_disk(trial, 0) as grow:
        grow()
        trial.out.mkdir(parents=True, exist_ok=True)
        for what in ("as it was", "with the job done"):
            before = fingerprint(trial.out, trial.job)
            remount(trial.out.parent, "ro")
            trial.expect_refused(f"read-only, {what}", "read-only")
            remount(trial.out.parent, "rw")
            if fingerprint(trial.out, trial.job) != before:
                trial.wrong(f"read-only, {what}: something changed")
            trial.expect_whole(f"read-only, {what}")


def together(trial: Trial) -> None:
    """Two processes do the job in one folder, started at the same time and one shortly after the other."""
    for apart in (0.0, trial.rng.uniform(0.1, 0.9) * trial.alone.seconds):
        fresh(trial.out, trial.job)
        said = [trial.root / f"said{number}.txt" for number in range(2)]
        first = begin(trial.job, trial.out, said=said[0])
        time.sleep(apart)
        second = begin(trial.job, trial.out, said=said[1])
        for process, text in zip((first, second), said, strict=True):
            process.join(SLOW)
            trial.outcome.runs += 1
            if process.exitcode != 0:
                trial.wrong(f"{apart:.1f} s apart: ended with {process.exitcode}: {text.read_text()[-1500:]}")
        trial.compare(f"{apart:.1f} s apart")


def spoiled(trial: Trial, times: int) -> None:
    """Damage a file of a killed run, or of its cache, before the job resumes; repeated `times` times."""
    for _ in range(times):
        fresh(trial.out, trial.job)
        given = set(fingerprint(trial.out, trial.job))
        run(trial.job, trial.out, trial.rng.uniform(0.3, 1.0) * trial.alone.seconds)
        spoil(trial, given)


def spoil(trial: Trial, given: set[str]) -> None:
    """Damage one existing file and resume the job; if it refuses, restore the file and resume again.

    A file that was given to the job may stay damaged, as the job need not read it.
    """
    places = [trial.out, Path(os.environ["SAEFLOW_CACHE"])]
    there = sorted(path for place in places for path in place.rglob("*") if path.is_file())
    there = [path for path in there if not path.name.startswith(".") and path.stat().st_size]
    if not there:
        return
    path, mutation = trial.rng.choice(there), trial.rng.choice((bits_flipped, bits_flipped, truncated))
    what = f"{mutation.__name__} {path.relative_to(trial.root)}"
    good = path.read_bytes()
    told = path.stat()
    path.write_bytes(mutation(good, trial.rng))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))  # a failing disk does not change timestamps
    code = trial.run()
    if code == 0:
        name = os.path.relpath(path, trial.out)
        # some bits of a gzip header, such as its timestamp, do not affect the contents
        same = path.suffix == ".gz" and unpacked(path) == unpacked(good)
        trial.compare(what, unless=name if same or name in given else "")
    elif path.exists():
        path.write_bytes(good)
        os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
        trial.expect_whole(f"{what}, refused ({trial.said}), and mended")


def unpacked(file: Path | bytes) -> bytes | None:
    """The contents of a .gz file; None if it cannot be read."""
    try:
        return gzip.decompress(file if isinstance(file, bytes) else file.read_bytes())
    except (OSError, EOFError, zlib.error):
        return None


FAULTS: dict[str, Callable[[Trial], None]] = {
    "full": full,
    "limit": limit,
    "read-only": read_only,
    "together": together,
}


@contextmanager
def small_disk(trial: Trial, n_bytes: int) -> Generator[Callable[[], None]]:
    """Mount a tmpfs with `n_bytes` beyond what the job starts from; yields a function that enlarges it."""
    disk = trial.out.parent
    fresh(trial.out, trial.job)  # on the real disk first: this may run the jobs whose output this one starts from
    found = used(trial.out)
    fresh(trial.out, Job("", lambda out: []))
    disk.mkdir(parents=True, exist_ok=True)
    system("mount", "-t", "tmpfs", "-o", f"size={found + n_bytes + 65536}", "tmpfs", str(disk))
    try:
        fresh(trial.out, trial.job)
        yield lambda: remount(disk, f"size={1 << 30}")
    finally:
        system("umount", str(disk))


def remount(disk: Path, option: str) -> None:
    system("mount", "-o", f"remount,{option}", str(disk))


def system(program: str, *arguments: str) -> None:
    subprocess.run([shutil.which(program) or program, *arguments], check=True, capture_output=True)


def can_mount(root: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    place = root / "tried"
    place.mkdir()
    try:
        system("mount", "-t", "tmpfs", "tmpfs", str(place))
        system("umount", str(place))
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def used(folder: Path) -> int:
    """Bytes that a folder takes on disk, in pages of 4,096."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return sum(-(-size // 4096) * 4096 for size in sizes)


def undisturbed(job: Job, root: Path) -> Alone | None:
    """Run a job undisturbed; None if it fails."""
    out = root / "disk" / "out"
    fresh(out, job)
    before, began = used(out), time.perf_counter()
    if run(job, out) != 0:
        return None
    seconds = time.perf_counter() - began
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return Alone(seconds, fingerprint(out, job), max(sizes), used(out) - before)


def campaign(job: Job, root: Path, names: list[str], times: int, seed: int) -> list[Outcome]:
    """Try every named fault on one job."""
    alone = undisturbed(job, root)
    if alone is None:
        return [Outcome(job.name, "none", findings=["the job fails when it is left alone"])]
    found: list[Outcome] = []
    for name in names:
        outcome = Outcome(job.name, name)
        trial = Trial(job, root, alone, outcome, random.Random(f"{job.name} {name} {seed}"))
        if name == "spoiled":
            spoiled(trial, times)
        else:
            FAULTS[name](trial)
        found.append(outcome)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spoil", type=int, default=4, help="spoiled files of each job")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of what is spoiled")
    parser.add_argument("--job", default="", help="one job alone")
    parser.add_argument("--fault", default="", help="some faults alone, with commas between")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    asked = parser.parse_args()
    began = time.perf_counter()
    warm(asked.job)
    with tempfile.TemporaryDirectory(prefix="saeflow-disk-") as folder:
        root = Path(folder)
        os.environ["SAEFLOW_CACHE"] = str(root / "cache")
        names = [name for name in (*FAULTS, "spoiled") if not asked.fault or name in asked.fault.split(",")]
        if not can_mount(root):
            print("no disk may be mounted here: `full` and `read-only` are left out", file=sys.stderr)
            names = [name for name in names if name not in ("full", "read-only")]
        with services(root / "services", hub=asked.job in ("", HUB)) as there:
            every = jobs(root / "kept", there, run)
            found: list[Outcome] = []
            for job in (job for job in every if asked.job in ("", job.name)):
                some = campaign(job, root, names, asked.spoil, asked.seed)
                found += some
                for outcome in some:
                    print(as_line(outcome), file=sys.stderr if asked.json else sys.stdout, flush=True)
    if asked.json:
        print(json.dumps([vars(outcome) for outcome in found], indent=1))
    else:
        seconds, n = time.perf_counter() - began, sum(len(outcome.findings) for outcome in found)
        print(f"{sum(outcome.runs for outcome in found)} runs in {seconds:.0f} s, {n} findings")
    raise SystemExit(1 if any(outcome.findings for outcome in found) else 0)


def as_line(o: Outcome) -> str:
    told = f"{len(o.findings)} FINDINGS" if o.findings else "nothing lost"
    return f"{o.job:26} {o.fault:10} {o.runs:3} runs, {o.refused:2} refused: {told}"


if __name__ == "__main__":
    main()
