"""The records of a run beside its dictionaries: training.json, which identifies it, and metrics.jsonl.

    training.json   model, texts, targets and settings, "finished", and at the end the quality of every site
    metrics.jsonl   one row per site and measurement: FVE, L0, silent, dead, loss recovered, the terms of the loss

training.json binds a folder to its run: no other run resumes there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from saeflow.errors import BadFile
from saeflow.files import write_atomic
from saeflow.ids import Site
from saeflow.reading import TEXTS, parse_json, read_bytes
from saeflow.sources.formats.configs import read_json
from saeflow.training import checkpoint
from saeflow.training.metrics import Quality

METRICS: Final = "metrics.jsonl"
MANIFEST: Final = "training.json"
SHARDS: Final = "shards"
"""The folder in which the shards of a run are trained; see `shards`."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of a run: its folder, and the last measurement of each site.

    Attributes:
        folder: holds sae-lens folders, which `load_dictionaries` opens.
        quality: FVE, L0, silent features and loss recovered, on held-out texts.
        dead: share of features that fired in none of the last steps.
        massive: rows that were left out of training as massive.
    """

    folder: Path
    quality: Mapping[Site, Quality]
    dead: Mapping[Site, float]
    massive: Mapping[Site, int]


MOST_MISSED: Final = 0.1
"""Relative deviation of L0 from its target up to which it is not reported."""


def missed_by(l0: float, target: float) -> float | None:
    """The relative deviation of an L0 from its target, up or down; None within 10 %, or without a target."""
    missed = l0 / target - 1 if target else 0.0
    return missed if abs(missed) > MOST_MISSED else None


def begun(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write training.json of a new run, and remove the metrics of an earlier one.

    Raises:
        OSError: when the folder cannot be written.
    """
    (out / METRICS).unlink(missing_ok=True)
    _write(out, {**manifest, "finished": False})


def ended(out: Path, manifest: Mapping[str, Any], done: Trained, seconds: float) -> None:
    """Write training.json of a finished run.

    Raises:
        OSError: when the folder cannot be written.
    """
    target = float(manifest["settings"]["sparsity"]["l0"])
    quality = {
        str(site): {
            **asdict(found),
            "dead": done.dead[site],
            "massive_in_training": done.massive[site],
            "l0_asked": target or None,
            "l0_missed_by": missed_by(found.l0, target),
        }
        for site, found in done.quality.items()
    }
    _write(out, {**manifest, "finished": True, "seconds": round(seconds, 1), "quality": quality})


def _write(out: Path, manifest: Mapping[str, Any]) -> None:
    write_atomic(out / MANIFEST, f"{json.dumps(manifest, indent=1)}\n".encode())


def add_metrics(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to metrics.jsonl.

    Raises:
        OSError: when it cannot be written.
    """
    with (out / METRICS).open("a", encoding="utf-8") as file:
        file.write("".join(f"{json.dumps(row)}\n" for row in rows))


def cut_metrics(out: Path, step: int) -> None:
    """Remove the rows measured after `step`: a resumed run measures them again.

    Raises:
        BadFile: when the file is damaged.
        OSError: when it cannot be written.
    """
    if (out / METRICS).is_file():
        kept = [row for row in read_metrics(out) if row["step"] <= step]
        write_atomic(out / METRICS, "".join(f"{json.dumps(row)}\n" for row in kept).encode())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, in the order they were measured.

    Raises:
        BadFile: when the file cannot be read.
    """
    path = folder / METRICS
    try:
        # a byte that is not UTF-8 spoils its own line only
        lines = read_bytes(path, TEXTS).decode("utf-8", "replace").splitlines()
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be read ({error}). Give the folder of a training run.") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(dict(parse_json(line)))
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines):  # a kill may cut the last line; it is measured again
                break
            raise BadFile(f"{path}: line {number} is no JSON ({error}). Remove the folder to begin again.") from error
    return rows


_SHOWN: Final = ("fve", "l0", "silent", "dead", "loss_recovered")


def last_measured(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, float | None]]]:
    """(facts about the run, last measurement of each site) of a folder; both empty if no run wrote to it.

    Damage is reported in the first and raises no error.
    """
    if not (folder / MANIFEST).is_file():
        return {}, {}
    try:
        manifest = read_json(folder / MANIFEST)
        state = "finished" if manifest.get("finished") else "not finished; the last measurement is shown"
        rows = dict[str, Any](manifest["quality"]) if manifest.get("finished") else {}
        # later rows of a site replace earlier ones
        rows = rows or {str(row["site"]): row for row in read_metrics(folder)}
        return {"training": state}, {site: {key: _finite(row.get(key)) for key in _SHOWN} for site, row in rows.items()}
    except (BadFile, KeyError, TypeError, ValueError, AttributeError) as error:
        return {"training": f"{MANIFEST} or {METRICS} is damaged ({error})"}, {}


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(float(value), 4)


def in_short(quality: Mapping[Site, Quality], dead: Sequence[float]) -> str:
    """The means over the sites, for a progress bar: `fve 0.820, L0 5.3, dead 1 %`."""
    n = len(quality)
    fve, l0 = (sum(getattr(q, name) for q in quality.values()) / n for name in ("fve", "l0"))
    return f"fve {fve:.3f}, L0 {l0:.1f}, dead {100 * sum(dead) / n:.0f} %"


def finished(out: Path, manifest: Mapping[str, Any]) -> Trained | None:
    """The result of the finished run in `out`; None if there is no run, or it is not finished.

    Raises:
        BadFile: when the folder is damaged, or holds a run with another manifest, or something else.
    """
    path = out / MANIFEST
    if not path.is_file():
        if (out / checkpoint.POINTER).exists():
            raise BadFile(f"{out} has a checkpoint and no {MANIFEST}. Remove the folder to begin again.")
        if other := next(
            (name for name in ("manifest.json", "atlas.json", "config.json") if (out / name).is_file()), ""
        ):
            raise BadFile(f"{out} holds something else, which {other} in it describes. Give another --out.")
        return None
    try:
        found = dict[str, Any](parse_json(read_bytes(path)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadFile(f"{path} cannot be read ({error}). Remove the folder to begin again.") from error
    found.setdefault("trainer", "sae-lens")  # older runs do not name it
    other = [key for key in manifest if key != "saeflow" and found.get(key) != json.loads(json.dumps(manifest[key]))]
    if other:
        pairs = "; ".join(f"{key} {_short(found.get(key))} there, {_short(manifest[key])} now" for key in other)
        raise BadFile(f"{out} holds another run: {pairs}. Give another --out, or the same options to go on.")
    if not found.get("finished"):
        return None
    try:
        quality = {
            Site.parse(name): Quality(**{key: row[key] for key in Quality.__dataclass_fields__ if key in row})
            for name, row in found["quality"].items()
        }
        dead = {Site.parse(name): float(row["dead"]) for name, row in found["quality"].items()}
        massive = {Site.parse(name): int(row["massive_in_training"]) for name, row in found["quality"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(
            f"{path} does not say how good its dictionaries are ({error!r}). Remove the folder to begin again."
        ) from error
    return Trained(out, quality, dead, massive)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
