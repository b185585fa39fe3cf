"""Kill every long job at random moments, rerun it until it ends, and compare its output with an undisturbed run.

    python faults/kill.py [--kills 100] [--seed 0] [--job NAME] [--json]

Each job runs its command in a process that is ended with SIGKILL at a random moment within its usual duration. It is
restarted, and sometimes killed again, until it ends by itself. Its folder must then hold the same bytes as that of an
undisturbed run, and no partial files. Timestamps, durations and files that report them are ignored.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from jobs import HUB, Job, differing, fingerprint, fresh, jobs, run, warm
from services import services

TWICE = 0.3
"""Share of restarts that are killed again."""


@dataclass
class Outcome:
    job: str
    kills: int = 0
    runs: int = 0
    alone_s: float = 0.0
    differs: list[str] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills in all, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--job", default="", help="one job alone")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    asked = parser.parse_args()
    began = time.perf_counter()
    warm(asked.job)
    with tempfile.TemporaryDirectory(prefix="saeflow-kill-") as folder:
        root = Path(folder)
        os.environ["SAEFLOW_CACHE"] = str(root / "cache")
        with services(root / "services", hub=asked.job in ("", HUB)) as there:
            every = jobs(root / "kept", there, run)
            known = [job for job in every if asked.job in ("", job.name)]
            if not known:
                raise SystemExit(f"there is no job {asked.job!r}. Jobs: {', '.join(job.name for job in every)}.")
            each = -(-asked.kills // len(known))
            outcomes: list[Outcome] = []
            for job in known:
                outcomes.append(campaign(job, root, each, asked.seed))
                print(as_line(outcomes[-1]), file=sys.stderr if asked.json else sys.stdout, flush=True)
    if asked.json:
        print(json.dumps([vars(o) for o in outcomes], indent=1))
    else:
        print(f"{sum(o.kills for o in outcomes)} kills in {time.perf_counter() - began:.0f} s")
    raise SystemExit(1 if any(outcome.differs for outcome in outcomes) else 0)


def campaign(job: Job, root: Path, kills: int, seed: int) -> Outcome:
    """Run a job undisturbed, then with `kills` kills in total; the outcome lists what differs at the end of a run."""
    rng, outcome = random.Random(f"{job.name} {seed}"), Outcome(job.name)
    alone = root / "alone"
    fresh(alone, job)
    began = time.perf_counter()
    if run(job, alone) != 0:
        outcome.differs = ["the job fails when it is left alone"]
        return outcome
    outcome.alone_s = round(time.perf_counter() - began, 2)
    expected = fingerprint(alone, job)
    while outcome.kills < kills:
        disturbed = root / "disturbed"
        fresh(disturbed, job)
        outcome.runs += 1
        moment: float | None = rng.uniform(0, outcome.alone_s)
        while (ended := run(job, disturbed, moment)) != 0:
            if moment is None:
                outcome.differs = [f"ended with {ended} after a kill"]
                return outcome
            outcome.kills += 1
            moment = rng.uniform(0, outcome.alone_s) if rng.random() < TWICE else None
        differs = differing(expected, fingerprint(disturbed, job))
        differs += [f"{path.name} is left behind" for path in disturbed.rglob(".*")]
        if differs:
            outcome.differs = differs
            return outcome
        _say(f"{job.name}: {outcome.kills} of {kills} kills, all the same")
    return outcome


def as_line(o: Outcome) -> str:
    what = f"DIFFERS: {', '.join(o.differs)}" if o.differs else "the same bytes"
    return f"{o.job:26} {o.kills:4} kills in {o.runs:3} runs of {o.alone_s:5.1f} s: {what}"


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
