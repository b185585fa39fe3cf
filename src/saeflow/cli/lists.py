"""What options hold several of, with commas between: names, numbers, layers, parts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

    from saeflow.flow.scores import Calibrated, Thresholds
    from saeflow.ids import Part

T_RES: Final = 0.5
T_MODULE: Final = 0.15
HIGH: Final = 0.5
"""Those of `flow.scores`, so that --help is told without importing it."""

EXCEEDS = "families of alike features exceed it, but under the null families."
"""What a false-discovery rate does not promise, wherever one is offered; docs/calibration.md has the numbers."""


def names_of(text: str) -> list[str]:
    """The names, without spaces around them; none of an empty text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_ending(option: str, path: Path | None, *endings: str) -> None:
    """Refuse a file whose name ends otherwise than what would be written into it; before the work, not after it.

    Raises:
        InvalidArgument: for another ending.
    """
    if path is not None and path.suffix.lower() not in endings:
        raise InvalidArgument(f"{option} {path} cannot be written: end its name in {' or '.join(endings)}.")


def numbers_of(option: str, text: str) -> tuple[float, ...]:
    """The numbers.

    Raises:
        InvalidArgument: when one is none, or is not finite.
    """
    try:
        found = tuple(float(piece) for piece in names_of(text))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise InvalidArgument(f"{option} {text!r} is no list of numbers. Write them as 0.5,1,2.")
    return found


def number_of(option: str, text: str) -> float:
    """The one number.

    Raises:
        InvalidArgument: when it is none, or is not finite.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InvalidArgument(f"{option} {text!r} is no number. Give one, such as 0.5.")
    return found


def layers_of(text: str) -> tuple[int, ...]:
    """Layers, ascending, from "6,12,18" or "6-9".

    Raises:
        InvalidArgument: when a piece is neither.
    """
    found: set[int] = set()
    for piece in names_of(text):
        low, _, high = piece.partition("-")
        if not (low.isdigit() and (high.isdigit() or not high)):
            raise InvalidArgument(f"--layers {text!r} holds {piece!r}. Write layers as 6,12,18 or 6-9.")
        found |= set(range(int(low), int(high or low) + 1))
    return tuple(sorted(found))


def parts_of(text: str) -> tuple[Part, ...]:
    """The parts, in the order of computation.

    Raises:
        InvalidArgument: when one is no part, or there is none.
    """
    from saeflow.ids import Part

    names = names_of(text)
    unknown = sorted(set(names) - {part.value for part in Part})
    if unknown or not names:
        raise InvalidArgument(f"--parts {text!r} names {', '.join(unknown) or 'none'}. Parts are res, mlp, att.")
    return tuple(part for part in Part if part.value in names)


def thresholds_of(
    atlas: Calibrated, t_res: float, t_mlp: float, t_att: float, fdr: float | None, high: float | None = None
) -> Thresholds:
    """Where graphs are cut: at plain thresholds, or at those calibrated for a false-discovery rate.

    Args:
        atlas: has the nulls of calibrated thresholds.
        t_res: --t-res.
        t_mlp: --t-mlp.
        t_att: --t-att.
        fdr: --fdr; None for plain thresholds.
        high: --high, of a command that has it.

    Raises:
        InvalidArgument: for both kinds at once, a cut that is no cosine, or an atlas without nulls.
    """
    from saeflow.flow.scores import Thresholds

    plain = Thresholds(res=t_res, mlp=t_mlp, att=t_att, high=HIGH if high is None else high)
    if fdr is None:
        return plain
    if plain != Thresholds(mlp=T_MODULE, att=T_MODULE):
        named = "--t-res, --t-mlp and --t-att" if high is None else "--t-res, --t-mlp, --t-att and --high"
        raise InvalidArgument(f"calibrated thresholds replace {named}. Give either those, or --fdr.")
    return Thresholds.calibrated(atlas, fdr)
