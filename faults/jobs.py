"""Every long-running command that must resume after a kill, each small enough to take a few seconds."""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services import EXPORTS, Services, use_hub

MOMENTS = re.compile(
    rb'"(started|finished|made|seconds)": ?("[^"]*"|[\d.]+|null)|<dt>(started|took)</dt><dd>[^<]*</dd>'
)
WARM = (
    "cli",
    "experiments.deactivation_tables",
    "experiments.origins_tables",
    "labels.exports",
    "labels.explain",
    "labels.from_texts",
    "labels.search",
    "matching.build",
    "matching.calibration",
    "matching.correlation",
    "sources.hub",
    "sources.model",
    "steering.sweep",
    "training.run",
)


RECIPE = """
title = "Very small"
release = "demo"
model = "demo"
datasets = ["demo:stories", "demo:python"]
seed = 0

[transition]
layers = [2]
k = [1]
tokens = 600
fit_tokens = 3000
loss_texts = 2
"""


@dataclass(frozen=True)
class Job:
    """A long job.

    Attributes:
        name: the name in the table.
        command: gives its command line for an output folder.
        before: puts what the job needs into the folder before it starts.
        ready: called in its process before the command, to set up what replaces a network or a missing extra.
        elsewhere: files that go to the cache when the folder is not writable.
        unequal: files that differ between runs, because they contain durations or memory use.
    """

    name: str
    command: Callable[[Path], list[str]]
    before: Callable[[Path], None] = lambda out: None
    ready: Callable[[], None] = lambda: None
    elsewhere: tuple[str, ...] = ()
    unequal: tuple[str, ...] = ()


def run(job: Job, out: Path, moment: float | None = None, *, said: Path | None = None, limit: int = 0) -> int:
    """Run a job in a separate process; returns its exit code, or -9 when it was killed after `moment` seconds.

    Its standard error goes to `said`; with a `limit`, no file it writes may grow beyond that many bytes.
    """
    process = begin(job, out, said=said, limit=limit)
    process.join(moment)
    if process.exitcode is None:
        process.kill()
        process.join()
    return int(process.exitcode or 0)


def begin(job: Job, out: Path, *, said: Path | None = None, limit: int = 0) -> multiprocessing.process.BaseProcess:
    """Start a job as `run` does, without waiting for it."""
    process = multiprocessing.get_context("fork").Process(target=_as_command, args=(job, out, said, limit))
    process.start()
    return process


def fingerprint(folder: Path, job: Job) -> dict[str, str]:
    """SHA-256 of every file of a job by name, ignoring timestamps and durations."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(MOMENTS.sub(b"", path.read_bytes())).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and str(path.relative_to(folder)) not in job.unequal and not path.name.startswith(".")
    }


def differing(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The names of files that differ or that only one side has."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def fresh(out: Path, job: Job) -> None:
    """Reset the folder to what the job starts from, and empty the cache."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(os.environ["SAEFLOW_CACHE"], ignore_errors=True)
    job.before(out)


HUB = "atlas build from a hub"


def warm(job: str) -> None:
    """Import the package before forking, so that kills hit the work of a job and not its imports.

    When only one job runs, its process imports what it needs.
    """
    for name in () if job else WARM:
        importlib.import_module(f"saeflow.{name}")


def _as_command(job: Job, out: Path, said: Path | None, limit: int) -> None:
    """The main function of a job's process: run its command as in a shell."""
    from saeflow.cli import main

    with open(os.devnull, "w") as nowhere, open(said or os.devnull, "w") as errors:
        os.dup2(nowhere.fileno(), 1)
        if said is not None or "SHOW" not in os.environ:
            os.dup2(errors.fileno(), 2)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        job.ready()
        sys.argv = ["saeflow", *job.command(out)]
        main()


def jobs(folder: Path, there: Services, alone: Callable[[Job, Path], object]) -> list[Job]:
    """All jobs; `alone` runs a job undisturbed, whose output other jobs start from and which is kept in `folder`."""
    texts = _texts(folder / "texts.txt")
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE)
    few = ["--texts", "demo:stories,demo:python", "--max-length", "64"]
    made = Job(
        "labels make",
        lambda out: ["labels", "make", "demo", "--texts", str(texts), "--tokens", "1500", "--out", str(out)],
        ready=_checkpoints_often,
    )
    atlas = Job("atlas build", lambda out: ["atlas", "build", "demo", "--out", str(out)])

    def from_run(job: Job) -> Callable[[Path], None]:
        def before(out: Path) -> None:
            kept = folder / job.name.replace(" ", "-")
            if not kept.exists():
                alone(job, kept)
            shutil.copytree(kept, out)

        return before

    return [
        atlas,
        Job(
            "atlas calibrate",
            lambda out: ["atlas", "calibrate", "demo", "--atlas", str(out), "--rows", "256"],
            from_run(atlas),
        ),
        Job(
            "atlas build, permutation",
            lambda out: ["atlas", "build", "demo", "--method", "permutation", "--parts", "res", "--out", str(out)],
        ),
        Job(HUB, lambda out: ["atlas", "build", there.recipe, "--out", str(out)], ready=lambda: use_hub(there.hub)),
        Job(
            "correlate", lambda out: ["correlate", "demo", "--texts", str(texts), "--tokens", "3000", "--out", str(out)]
        ),
        made,
        Job(
            "labels fetch",
            lambda out: [
                "labels",
                "fetch",
                "mine",
                "--sites",
                "0/res,1/res,2/res",
                "--neuronpedia-source",
                f"{EXPORTS}/{{layer}}-{{part}}",
                "--bucket",
                there.exports,
                "--out",
                str(out),
            ],
        ),
        Job(
            "labels search",
            lambda out: ["labels", "search", str(out), "the"],
            from_run(made),
            elsewhere=("search.sqlite",),
        ),
        Job(
            "labels explain",
            lambda out: [
                "labels",
                "explain",
                "demo",
                "--sites",
                "1/res",
                "--n-features",
                "30",
                "--words-folder",
                str(out),
                "--llm-url",
                there.chat,
                "--llm-model",
                "reader",
            ],
            from_run(made),
            ready=lambda: os.environ.update(OPENAI_API_KEY="none"),
        ),
        Job(
            "origins",
            lambda out: [
                "origins",
                "demo",
                *few,
                "--n-texts",
                "30",
                "--methods",
                "cosine,cosine-top-5",
                "--out",
                str(out),
            ],
        ),
        Job(
            "deactivate",
            lambda out: [
                "deactivate",
                "demo",
                *few,
                "--n-texts",
                "4",
                "--tokens-per-text",
                "2",
                "--n-targets",
                "8",
                "--strategies",
                "top-1,top-5,exhaustive",
                "--r",
                "0,1,2",
                "--n-loss-targets",
                "1",
                "--out",
                str(out),
            ],
        ),
        Job(
            "transition",
            lambda out: [
                "transition",
                "demo",
                *few,
                "--layers",
                "1,2",
                "--k",
                "1,2",
                "--tokens",
                "3000",
                "--fit-tokens",
                "3000",
                "--n-loss-texts",
                "2",
                "--out",
                str(out),
            ],
        ),
        Job(
            "sweep",
            lambda out: [
                "sweep",
                "demo",
                "--themes",
                "physics",
                "--activate",
                "--samples",
                "4",
                "--confirm",
                "4",
                "--strengths",
                "1,2",
                "--layers",
                "2,3",
                "--steering-methods",
                "start,single,constant",
                "--out",
                str(out),
            ],
        ),
        Job(
            "train",
            lambda out: [
                "train",
                "demo",
                "--texts",
                "demo:stories",
                "--layers",
                "1-2",
                "--sites",
                "att,res",
                "--width",
                "20,40",
                "--tokens",
                "5120",
                "--batch",
                "128",
                "--buffer",
                "400",
                "--windows",
                "4",
                "--max-length",
                "64",
                "--n-eval-texts",
                "2",
                "--metrics-every",
                "512",
                "--checkpoint-every",
                "384",
                "--out",
                str(out),
            ],
        ),
        Job(
            "reproduce",
            lambda out: ["reproduce", str(recipe), "--only", "fig23", "--out", str(out)],
            unequal=("index.html", "reproduction.json"),
        ),
    ]


def _checkpoints_often() -> None:
    """Save a checkpoint after each batch of texts rather than after some time."""
    from saeflow.labels import local

    local.make_words.__kwdefaults__["checkpoint_seconds"] = 0.0


def _texts(path: Path) -> Path:
    from saeflow.demo.texts import texts

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(text.replace("\n\n", "\n") for text in texts("stories", 60)), encoding="utf-8")
    return path
