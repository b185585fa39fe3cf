"""Texts of a steering sweep, side by side by seed: unsteered, start features only, best layer, best of many layers.

    steering_samples, steering_best  ->  templates/samples.html.j2, a block for each theme and direction

One row is one seed: the same prompt and the same random draws, so that texts differ only by what steering did. Texts
and prompts come from a model and from files: they are escaped in full, and control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from saeflow.experiments.results import SummaryTable
from saeflow.paper.frame import Frame, FrameRow, best
from saeflow.paper.steering import MULTI, SUPPRESS, look, of_methods, setting
from saeflow.paper.words import decimal, decimal_interval
from saeflow.report.document import render
from saeflow.report.tokens import visible
from saeflow.steering.judges import HIGHEST, final_score

if TYPE_CHECKING:
    from markupsafe import Markup

NEEDS: Final = ("theme", "direction", "method", "sample", "behavior", "coherence", "prompt", "text")


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a block: a method with its texts by sample."""

    role: str
    row: FrameRow
    confirmed: FrameRow | None
    texts: Mapping[str, FrameRow]

    @property
    def how(self) -> str:
        """The method, if the role does not name it, and its setting."""
        method = look(self.row.words("method")).name
        return ", ".join(word for word in (method if method not in self.role else "", setting(self.row)) if word)

    @property
    def score(self) -> str:
        """The confirmed score; empty if unknown."""
        found = self.confirmed.estimate("score") if self.confirmed else None
        return decimal_interval(found) if found else ""


def samples_html(table: SummaryTable, chosen: SummaryTable | None = None) -> Markup | str:
    """The blocks of all themes and directions; empty if the table has no rows or lacks a column.

    `chosen` is the table `steering_best`: it shows which multi-layer method is best and gives confirmed scores. Without
    it, the best method is the one whose texts here score highest.
    """
    frame = Frame.read(table)
    if not frame.rows or any(column not in frame.columns for column in NEEDS):
        return ""
    rivals = Frame.read(chosen) if chosen is not None else None
    blocks: list[dict[str, Any]] = []
    for theme, direction in dict.fromkeys((row.words("theme"), row.words("direction")) for row in frame.records):
        where = {"theme": theme, "direction": direction}
        columns = _columns(frame.where(**where), rivals.where(**where) if rivals else None)
        samples = sorted(
            {sample for column in columns for sample in column.texts},
            key=lambda s: (not s.isdecimal(), float(s) if s.isdecimal() else 0, s),
        )
        rows = [[_cell(column.texts.get(sample)) for column in columns] for sample in samples]
        of = ", ".join(word for word in (theme, direction) if word)
        blocks.append({**where, "of": of, "columns": columns, "rows": rows})
    return render("samples.html.j2", blocks=blocks)


def _columns(frame: Frame, rivals: Frame | None) -> list[_Column]:
    """Unsteered, start alone, best single layer and best of many layers, as far as there are texts for them."""
    found: list[_Column] = []
    for role, names in (
        ("unsteered", ("none",)),
        ("start alone", ("start",)),
        ("best single layer", ("single",)),
        ("best of many layers", MULTI),
    ):
        texts = [row for row in frame.records if row.words("method") in names and not row.words("mirrors")]
        confirmed = best(of_methods(rivals.records, *names)) if rivals else None
        kept = _of_setting(texts, confirmed) or _of_setting(texts, _highest(texts))
        if kept:
            found.append(_Column(role, kept[0], confirmed, {row.words("sample"): row for row in kept}))
    return found


def _of_setting(rows: Sequence[FrameRow], like: FrameRow | None) -> list[FrameRow]:
    """The rows with the setting of `like`."""
    if like is None:
        return []
    return [row for row in rows if _setting(row) == _setting(like)]


def _setting(row: FrameRow) -> tuple[str, float | None, float | None]:
    return row.words("method"), row.number("layer"), row.number("value")


def _highest(rows: Sequence[FrameRow]) -> FrameRow | None:
    """A row of the setting whose texts have the highest mean score, or else of the first setting."""
    groups: dict[tuple[str, float | None, float | None], list[FrameRow]] = {}
    for row in rows:
        groups.setdefault(_setting(row), []).append(row)
    kept = [group for group in groups.values() if any(_score(row) is not None for row in group)]
    top = max(kept, key=_mean_score, default=None) or next(iter(groups.values()), None)
    return top[0] if top else None


def _mean_score(rows: Sequence[FrameRow]) -> float:
    known = [score for row in rows if (score := _score(row)) is not None]
    return sum(known) / len(known)


def _score(row: FrameRow) -> float | None:
    """The final score of a text; None if it was not judged."""
    behavior, coherence = row.number("behavior"), row.number("coherence")
    if behavior is None or coherence is None:
        return None
    return final_score(behavior, coherence, suppress=row.words("direction") == SUPPRESS)


def _cell(row: FrameRow | None) -> dict[str, Any] | None:
    """A text with its prompt and its marks, each mark with its share of the maximum; None without a text."""
    from markupsafe import escape

    if row is None:
        return None
    prompt, text = (passage(row.cells.get(name)) for name in ("prompt", "text"))
    if prompt and text.startswith(prompt):
        text = text[len(prompt) :]
    # The tokenizer may have dropped the space between prompt and text.
    if prompt and text and prompt[-1].isalnum() and text[0].isalnum():
        text = f" {text}"
    marks = [
        (name, decimal(value, digits), min(max((value or 0.0) / top, 0.0), 1.0))
        for name, value, top, digits in (
            ("topic", row.number("behavior"), HIGHEST, 1),
            ("coherence", row.number("coherence"), HIGHEST, 1),
            ("score", _score(row), 1.0, 2),
        )
    ]
    return {"prompt": escape(prompt), "text": escape(text), "marks": marks}


def passage(text: object) -> str:
    """A text with its line breaks and spaces; every other control character becomes a visible sign."""
    words = "" if text is None else str(text).replace("\r\n", "\n")
    return "".join(char if char in " \n" else visible(char) for char in words)
