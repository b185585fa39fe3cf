"""Judging as a second step over the rows of a sweep: `scores.jsonl.gz` next to them. No torch.

    rows/*.jsonl.gz  ->  a judge  ->  scores.jsonl.gz: row, judge, coherence, behavior

Generating texts is slow and judges change, so the rows hold no scores: another judge can score them later without
generating anything again. A line refers to its row by number among all rows of the folder.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Float

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.results import Results, significant
from saeflow.files import write_atomic
from saeflow.plain_types import Progress
from saeflow.reading import PACKED_WRONG, gzip_lines, parse_json
from saeflow.steering.judges import HIGHEST, Judge, Judged, Score
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.settings import NONE
from saeflow.steering.theme import Theme

SCORES: Final = "scores.jsonl.gz"

References: TypeAlias = Mapping[tuple[str, SteeringDirection], Sequence[Judged]]
"""The unsteered texts of the grid by theme and direction, for a judge to compare with."""

MakeJudge: TypeAlias = Callable[[References], Judge]


@dataclass(frozen=True, slots=True, eq=False)
class JudgeScores:
    """A judge's marks for every row of a folder, in the order of the rows; both from 0 to 5."""

    judge: str
    coherence: Float[np.ndarray, " n"]
    behavior: Float[np.ndarray, " n"]


def judged(row: Mapping[str, Any]) -> Judged:
    """A row as a judge sees it; a text without tokens has loss NaN."""
    loss = float("nan") if row["loss"] is None else row["loss"]
    return Judged(text=row["text"], prompt=row["prompt"], loss=loss, ids=tuple(row["ids"]))


def unsteered(results: Results) -> dict[tuple[str, SteeringDirection], list[Judged]]:
    """The unsteered texts of each theme and direction of a folder, for a judge to compare with.

    Raises:
        BadFile: when a shard is damaged.
    """
    found: dict[tuple[str, SteeringDirection], list[Judged]] = {}
    for row in results.rows():
        if row["method"] == NONE:
            found.setdefault((row["theme"], SteeringDirection(row["direction"])), []).append(judged(row))
    return found


def judge_rows(
    results: Results, judge: Judge, themes: Sequence[Theme], progress: Progress | None = None
) -> JudgeScores:
    """Score every row with a judge, and store the scores next to those of other judges.

    The texts of a theme and direction go to the judge together. Earlier scores of the same judge are replaced, and the
    new ones come last: by default, tables show the judge that scored last.

    Raises:
        InvalidArgument: when a theme of the rows is not among `themes`, or the folder has no rows.
        BadFile: when a file of the folder is damaged.
    """
    rows = list(results.rows())
    if not rows:
        raise InvalidArgument(f"{results.folder} has no rows to judge. Run the sweep again to finish it.")
    known = {theme.name: theme for theme in themes}
    groups: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((row["theme"], row["direction"]), []).append(number)
    if missing := sorted({theme for theme, _ in groups} - set(known)):
        raise InvalidArgument(f"{results.folder} has texts of {', '.join(missing)}. Give these themes too.")
    scores: dict[int, Score] = {}
    for (theme, direction), numbers in groups.items():
        texts, before = [judged(rows[number]) for number in numbers], len(scores)

        def of_all(done: int, _all: int, _what: str, before: int = before, name: str = f"{theme} {direction}") -> None:
            if progress:
                progress(before + done, len(rows), name)

        said = judge.score(known[theme], SteeringDirection(direction), texts, progress=of_all if progress else None)
        scores |= dict(zip(numbers, said, strict=True))
    if progress:
        progress(len(rows), len(rows), "done")
    path = results.folder / SCORES
    lines = [line for line in _lines(path) if line["judge"] != judge.name]
    for row in range(len(rows)):
        marks = {name: significant(getattr(scores[row], name)) for name in ("coherence", "behavior")}
        lines.append({"row": row, "judge": judge.name, **marks})
    text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)
    write_atomic(path, gzip.compress(text.encode(), compresslevel=6, mtime=0))
    return read_scores(results, judge.name)


def read_scores(results: Results, judge: str = "") -> JudgeScores:
    """A judge's marks for every row; by default those of the judge that scored last.

    Raises:
        InvalidArgument: when that judge, or any judge, has not scored the rows.
        BadFile: when the scores are damaged, or do not cover exactly the rows of the folder.
    """
    path = results.folder / SCORES
    lines = _lines(path)
    names = list(dict.fromkeys(line["judge"] for line in lines))
    if not names or (judge and judge not in names):
        raise InvalidArgument(
            f"{results.folder} has no scores of {f'the judge {judge!r}' if judge else 'any judge'}; there are scores "
            f"of {', '.join(names) or 'none'}. Run `saeflow sweep` with --judge on it."
        )
    name = judge or names[-1]
    own = [line for line in lines if line["judge"] == name]
    n = sum(1 for _ in results.rows())
    if [line["row"] for line in own] != list(range(n)):
        raise BadFile(
            f"{path} has {len(own)} scores of {name} for {n} rows. Run `saeflow sweep` with --judge on it again."
        )
    coherence, behavior = (np.array([line[what] for line in own], float) for what in ("coherence", "behavior"))
    return JudgeScores(name, coherence, behavior)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Every line of the file; none if it does not exist."""
    try:
        lines = [parse_json(line) for line in gzip_lines(path)]
        found = [{name: line[name] for name in ("row", "judge", "coherence", "behavior")} for line in lines]
        if strange := next((x for x in found if not (0 <= x["coherence"] <= HIGHEST >= x["behavior"] >= 0)), None):
            raise ValueError(f"{strange} has a mark outside 0 to {HIGHEST}")
        return found
    except FileNotFoundError:
        return []
    except (*PACKED_WRONG, KeyError, TypeError) as error:
        raise BadFile(f"{path} cannot be read ({error!r}). Remove it, and ask the judge again.") from None
