"""Kill every long job at random moments, run it again until it ends, and compare all it wrote with a run left alone.

    python faults/kill.py [--kills 100] [--seed 0] [--job NAME] [--json]

Each job runs as its command does, in a process that is ended with SIGKILL at a moment drawn between its start and the
time it takes; it is started again, and perhaps killed again, until it ends by itself. Its folder must then hold the
same bytes as that of an undisturbed run. Left out are moments in time, the page that shows them, and hidden files that
a kill in the middle of writing leaves behind: those are counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MOMENTS = re.compile(rb'"(started|finished|made|seconds)": ?("[^"]*"|[\d.]+|null)')
UNEQUAL = ("page.html",)
"""Shows how long a run took."""

TWICE = 0.3
"""Share of the restarts that are killed as well."""


@dataclass(frozen=True)
class Job:
    """A long job: its command line for an output folder, and what must lie there before."""

    name: str
    command: Callable[[Path], list[str]]
    before: Callable[[Path], None] = lambda out: None


@dataclass
class Outcome:
    job: str
    kills: int = 0
    runs: int = 0
    alone_s: float = 0.0
    left_behind: int = 0
    differs: list[str] | None = None


def jobs(texts: Path) -> list[Job]:
    """Every command that takes long and must go on, on the demo pack, each for a few seconds."""
    few = ["--datasets", "demo:stories,demo:python", "--max-length", "64"]
    return [
        Job("atlas build", lambda out: ["atlas", "build", "demo", "--out", str(out)]),
        Job(
            "atlas calibrate",
            lambda out: ["atlas", "calibrate", "demo", "--atlas", str(out), "--rows", "256"],
            _built,
        ),
        Job(
            "atlas build, permutation",
            lambda out: ["atlas", "build", "demo", "--method", "permutation", "--parts", "res", "--out", str(out)],
        ),
        Job(
            "correlate",
            lambda out: ["correlate", "demo", "--texts", str(texts), "--tokens", "3000", "--out", str(out)],
        ),
        Job(
            "labels make",
            lambda out: ["labels", "make", "demo", "--texts", str(texts), "--tokens", "1500", "--out", str(out)],
        ),
        Job(
            "origins",
            lambda out: [
                "origins", "demo", *few, "--texts", "30", "--methods", "cosine,cosine-top-5", "--out", str(out),
            ],
        ),
        Job(
            "deactivate",
            lambda out: [
                "deactivate", "demo", *few, "--texts", "4", "--tokens", "2", "--features", "8",
                "--strategies", "top-1,top-5,exhaustive", "--r", "0,1,2", "--loss", "1", "--out", str(out),
            ],
        ),
        Job(
            "transition",
            lambda out: [
                "transition", "demo", *few, "--layers", "1,2", "--k", "1,2", "--tokens", "3000", "--fit-tokens", "3000",
                "--loss", "2", "--out", str(out),
            ],
        ),
        Job(
            "sweep",
            lambda out: [
                "sweep", "demo", "--themes", "physics", "--direction", "activate", "--samples", "4", "--confirm", "4",
                "--s", "1,2", "--layers", "2,3", "--methods", "start,single,constant", "--out", str(out),
            ],
        ),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="kills in all, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--job", default="", help="one job alone")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="saeflow-kill-") as folder:
        root = Path(folder)
        os.environ["SAEFLOW_CACHE"] = str(root / "cache")
        known = [job for job in jobs(_texts(root / "texts.txt")) if asked.job in ("", job.name)]
        if not known:
            raise SystemExit(f"there is no job {asked.job!r}.")
        each = -(-asked.kills // len(known))
        outcomes = [campaign(job, root, each, asked.seed) for job in known]
    print(json.dumps([vars(o) for o in outcomes], indent=1) if asked.json else as_text(outcomes))
    raise SystemExit(1 if any(outcome.differs for outcome in outcomes) else 0)


def campaign(job: Job, root: Path, kills: int, seed: int) -> Outcome:
    """Run a job alone, then with `kills` kills in all; what differs at the end of each run."""
    rng, outcome = random.Random(f"{job.name} {seed}"), Outcome(job.name)
    alone = root / "alone"
    _fresh(alone, job)
    began = time.perf_counter()
    if run(job, alone, None) != 0:
        outcome.differs = ["the job fails when it is left alone"]
        return outcome
    outcome.alone_s = round(time.perf_counter() - began, 2)
    expected = fingerprint(alone)
    while outcome.kills < kills:
        disturbed = root / "disturbed"
        _fresh(disturbed, job)
        outcome.runs += 1
        moment: float | None = rng.uniform(0, outcome.alone_s)
        while (ended := run(job, disturbed, moment)) != 0:
            if moment is None:
                outcome.differs = [f"ended with {ended} after a kill"]
                return outcome
            outcome.kills += 1
            moment = rng.uniform(0, outcome.alone_s) if rng.random() < TWICE else None
        outcome.left_behind += sum(path.name.startswith(".") for path in disturbed.rglob("*"))
        found = fingerprint(disturbed)
        differs = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        if differs:
            outcome.differs = differs
            return outcome
        _say(f"{job.name}: {outcome.kills} of {kills} kills, all the same")
    return outcome


def run(job: Job, out: Path, moment: float | None) -> int:
    """Run a job in a process of its own; its exit code, or -9 when it was killed at `moment` seconds."""
    process = multiprocessing.get_context("fork").Process(target=_command, args=(job.command(out),))
    process.start()
    process.join(moment)
    if process.exitcode is None:
        process.kill()
        process.join()
    return int(process.exitcode or 0)


def fingerprint(folder: Path) -> dict[str, str]:
    """sha256 of every file by name, moments in time left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(MOMENTS.sub(b"", path.read_bytes())).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in UNEQUAL and not path.name.startswith(".")
    }


def as_text(outcomes: list[Outcome]) -> str:
    lines = [
        f"{o.job:26} {o.kills:4} kills in {o.runs:3} runs of {o.alone_s:5.1f} s: "
        + (
            f"the same bytes, {o.left_behind} files left behind"
            if not o.differs
            else f"DIFFERS: {', '.join(o.differs)}"
        )
        for o in outcomes
    ]
    return "\n".join([*lines, f"{sum(o.kills for o in outcomes)} kills"])


def _command(arguments: list[str]) -> None:
    """What the process does: the command, unseen."""
    from saeflow.cli.app import app

    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        if "SHOW" not in os.environ:
            os.dup2(nowhere.fileno(), 2)
        app(arguments, standalone_mode=False)


def _fresh(out: Path, job: Job) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(os.environ["SAEFLOW_CACHE"], ignore_errors=True)
    job.before(out)


def _built(out: Path) -> None:
    """An atlas of the demo pack without its nulls."""
    run(Job("", lambda to: ["atlas", "build", "demo", "--out", str(to)]), out, None)


def _texts(path: Path) -> Path:
    from saeflow.demo.texts import texts

    path.write_text(
        "\n\n".join(text.replace("\n\n", "\n") for text in texts("stories", 60)), encoding="utf-8"
    )
    return path


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}", end="", file=sys.stderr)


if __name__ == "__main__":
    # Imported once, before the processes are made, so that a kill falls into the work and not into imports.
    import saeflow.cli
    import saeflow.experiments.summary
    import saeflow.matching.build
    import saeflow.sources.model
    import saeflow.steering.sweep  # noqa: F401

    main()
