"""Training in shards: groups of targets, each trained separately as a unit of an engine, then joined into one folder.

    OUT/training.json          describes the whole run; binds the folder to it
    OUT/shards/shards.json     the sites of each shard, decided when the run begins
    OUT/shards/00/             what `train` writes: a checkpoint, metrics, at the end the dictionaries

What a dictionary is trained on does not depend on the other sites, so the weights are those of a single run, bit for
bit, on like machines with the same number of threads. The model reads all tokens once per shard. A killed shard resumes
from its checkpoint on any worker: all workers must see the folder, the texts and the weights.
"""

from __future__ import annotations

import itertools
import json
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from saeflow.engines import Engine, InProcess
from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import write_atomic
from saeflow.plain_types import Progress
from saeflow.reading import read_json
from saeflow.sources.formats.sae_lens import CONFIG
from saeflow.training import checkpoint, record
from saeflow.training.record import SHARDS, Trained
from saeflow.training.run import identity, kept_folder
from saeflow.training.settings import TrainingTarget, check_targets
from saeflow.training.text_run import TextRun

PLAN: Final = "shards.json"
_Told = Mapping[str, Any]
_Plan = dict[str, list[str]]
"""The sites of each shard, by the name of its folder."""


def train_in_shards(
    run: TextRun,
    out: Path,
    *,
    shards: int | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a run in shards, each a unit of an engine, and join them; `out` ends up as a single run leaves it.

    Only the seconds differ. A killed run resumes with the shards it began with: finished shards are kept, the others
    resume from their checkpoints. A run killed while joining finishes joining.

    Args:
        run: what to train.
        out: a folder for this run only, on storage that all workers see.
        shards: maximum number of shards; the number of the engine's workers when None.
        engine: where they run; in this process, one after the other, when None.
        progress: called with (shards done, shards in all, a line about the last one).

    Raises:
        BadFile: when `out` holds another run, this one in one piece, or a damaged one.
        InvalidArgument: for fewer than 1 shard, a run that cannot be sent, or a worker that does not see `out`.
        Whatever `train` and `Engine.run` raise.
    """
    if shards is not None and shards < 1:
        raise InvalidArgument(f"{shards} shards of a training run. Give 1 or more.")
    check_targets(run.targets, run.settings)
    # fixed here: another process may open the model from another path
    run = replace(run, model_name=run.model_name or run.model.name)
    manifest = identity(run.model, run.targets, run.settings, run.start, run.texts, run.model_name, run.trainer.name)
    done = record.finished(out, manifest)
    if done is None:
        engine = engine or InProcess()
        plan = _planned(run, out, manifest, shards, engine)
        done = _join(run, out, manifest, plan, _trained(run, out, manifest, plan, engine, progress))
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    return done


def grouped(targets: Sequence[TrainingTarget], n: int) -> list[list[TrainingTarget]]:
    """At most `n` groups of neighbouring layers with about the same number of features each, in order of sites."""
    ordered = sorted(targets, key=lambda target: target.site)
    total, before = sum(target.width for target in ordered), 0
    groups: dict[int, list[TrainingTarget]] = {}
    for target in ordered:
        # a target goes to the group in which the middle of its features lies
        groups.setdefault((2 * before + target.width) * n // (2 * total), []).append(target)
        before += target.width
    return list(groups.values())


@dataclass(frozen=True, eq=False)
class _TrainShard:
    """The work of an engine: trains one shard of a run, in its folder."""

    run: TextRun
    folder: Path

    def __call__(self, unit: Mapping[str, Any]) -> Trained:
        if not (self.folder / PLAN).is_file():
            raise InvalidArgument(
                f"the worker on {socket.gethostname()} does not see {self.folder / PLAN}. Give an --out on storage "
                "that all workers share."
            )
        mine = [target for target in self.run.targets if str(target.site) in unit["sites"]]
        return self.run.train(self.folder / unit["shard"], targets=mine)


def _planned(run: TextRun, out: Path, manifest: _Told, shards: int | None, engine: Engine) -> _Plan:
    """The sites of each shard: as decided when the run began, or decided now."""
    if (out / checkpoint.POINTER).exists():
        raise BadFile(
            f"{out} holds this run in one piece, and it is not finished. Go on without --shards and with the engine "
            "here, or give another --out."
        )
    path = out / SHARDS / PLAN
    if not path.is_file():
        groups = grouped(run.targets, shards or _places(engine))
        record.begun(out, manifest)
        plan = {f"{n:02d}": [str(target.site) for target in group] for n, group in enumerate(groups)}
        write_atomic(path, f"{json.dumps(plan)}\n".encode())
        return plan
    try:
        plan = {str(name): list[str](sites) for name, sites in read_json(path).items()}
        same = sorted(itertools.chain(*plan.values())) == sorted(str(target.site) for target in run.targets)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadFile(f"{path} cannot be read ({error}). Remove {out} to begin again.") from error
    if not same:
        raise BadFile(f"{path} does not have the sites of the run. Remove {out} to begin again.")
    return plan


def _places(engine: Engine) -> int:
    """How many units run at a time. A cluster reports its workers once it is joined, which its first unit does."""
    if not engine.workers:
        for _ in engine.run(len, [(0, "")], name="workers"):
            pass
    return max(1, engine.workers)


def _trained(
    run: TextRun, out: Path, manifest: _Told, plan: _Plan, engine: Engine, progress: Progress | None
) -> dict[str, Trained]:
    """The result of each shard; those that are not finished are trained."""
    done: dict[str, Trained] = {}
    for name, sites in plan.items():
        own = {**manifest, "targets": [row for row in manifest["targets"] if row[0] in sites]}
        if there := record.finished(out / SHARDS / name, own):
            done[name] = there
    names = [name for name in plan if name not in done]
    tell: Progress = progress or (lambda _done, _total, _now: None)
    tell(len(done), len(plan), "")
    work = _TrainShard(run, (out / SHARDS).absolute())
    units = enumerate({"shard": name, "sites": plan[name]} for name in names)
    for number, found in engine.run(work, units, name="shards") if names else ():
        done[names[number]] = found
        tell(len(done), len(plan), record.in_short(found.quality, list(found.dead.values())))
    return done


def _join(run: TextRun, out: Path, manifest: _Told, plan: _Plan, shards: Mapping[str, Trained]) -> Trained:
    """Join all shards in one folder. Each step may be repeated; training.json, marked as finished, comes last."""
    shard_of = {site: name for name, sites in plan.items() for site in sites}
    for target in run.targets:
        _move(out / SHARDS / shard_of[str(target.site)] / target.name, out / target.name)
    for name in plan:
        for step in sorted(kept_folder(out / SHARDS / name).glob("*")):
            (kept_folder(out) / step.name).mkdir(parents=True, exist_ok=True)
            for target in sorted(step.iterdir()):
                _move(target, kept_folder(out) / step.name / target.name)
    rows, seconds = _measured([out / SHARDS / name for name in plan], run.targets)
    write_atomic(out / record.METRICS, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    sites = {target.site: shards[shard_of[str(target.site)]] for target in run.targets}
    quality = {site: found.quality[site] for site, found in sites.items()}
    dead, massive = ({site: getattr(one, name)[site] for site, one in sites.items()} for name in ("dead", "massive"))
    done = Trained(out, quality, dead, massive)
    record.ended(out, manifest, done, seconds)
    return done


def _move(source: Path, target: Path) -> None:
    """Move the folder of a dictionary into place, unless that was done before."""
    if source.is_dir():
        if target.is_dir():  # left by a run that training.json no longer describes
            shutil.rmtree(target)
        source.rename(target)
    if not (target / CONFIG).is_file():
        raise BadFile(f"{target} is missing from a shard that was finished. Remove {target.parent} to begin again.")


def _measured(folders: Sequence[Path], targets: Sequence[TrainingTarget]) -> tuple[list[dict[str, Any]], float]:
    """The metrics rows of all shards, in the order of a single run, and their seconds in total."""
    order = {str(target.site): place for place, target in enumerate(targets)}
    rows, seconds = list[dict[str, Any]](), 0.0
    for folder in folders:
        own = record.read_metrics(folder)
        try:
            own.sort(key=lambda row: (int(row["step"]), order[row["site"]]))
            seconds += float(own[-1]["seconds"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadFile(
                f"{folder / record.METRICS} is not as it was written ({error!r}). Remove {folder} to train it again."
            ) from error
        rows += own
    return sorted(rows, key=lambda row: (row["step"], order[row["site"]])), seconds
