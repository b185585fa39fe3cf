"""Null distributions: how high a feature's best match scores if it has no counterpart.

    p(s) = (1 + #{null scores >= s}) / (1 + n)

`calibration` draws the null of a pair of sites; this module reads it, without torch or numpy, so that a graph
carries p-values at no cost. `table.cut` turns the p-values of whole tables into cuts.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, cast

from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import check_sha256
from saeflow.ids import Site
from saeflow.reading import parse_json, read_bytes

FILE: Final = "calibration.json"
_FORMAT: Final = "saeflow-nulls"
_VERSION: Final = 1
_STEP: Final = 32
_AGAIN: Final = "Make them with `saeflow atlas calibrate`."


@dataclass(frozen=True)
class NullDistribution:
    """Best scores at `target` of rows that resemble those of `source` and have no counterpart there.

    Of the `n` null scores the top 64 are kept, and below them each rank that is about 1/32 above the last one kept.
    So the number of null scores at or above a given score is exact in the top 64, and at most 1/32 too high below.

    Attributes:
        source: Site of the features that are matched.
        target: Site of their best matches.
        kind: How the rows were made: "rotation", "moments", "families" or "far"; see `calibration`.
        n: Number of null scores drawn.
        scores: The scores kept, highest first, rounded up to six digits.
        seed: Seed the rows were drawn with.
    """

    source: Site
    target: Site
    kind: str
    n: int
    scores: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a number of scores other than the number of ranks kept."""
        if self.n < 1 or len(self.scores) != len(_kept_ranks(self.n)):
            raise InvalidArgument(
                f"a null of {self.source} to {self.target} over n={self.n} scores cannot keep {len(self.scores)} of "
                "them. Make it with NullDistribution.of."
            )

    @staticmethod
    def of(source: Site, target: Site, kind: str, scores: Iterable[float], seed: int = 0) -> NullDistribution:
        """The distribution of some null scores.

        Raises:
            InvalidArgument: when there are none.
        """
        ordered = sorted(scores, reverse=True)
        kept = tuple(math.ceil(ordered[rank - 1] * 1e6) / 1e6 for rank in _kept_ranks(len(ordered)))
        return NullDistribution(source, target, kind, len(ordered), kept, seed)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each kept score: how many null scores are at least as high."""
        return _kept_ranks(self.n)

    @property
    def floor(self) -> float:
        """The smallest possible p-value, 1 / (n + 1): no tail is extrapolated."""
        return 1.0 / (self.n + 1)

    def p_value(self, score: float) -> float:
        """The p-value of a score, in [floor, 1]: at least the true share of null scores that reach it."""
        # null scores that reach it rank above the first kept score that does not
        first = bisect_right(self._ascending, -score)
        return (self.ranks[first] if first < len(self.ranks) else self.n + 1) / (self.n + 1)

    def quantile(self, share: float) -> float:
        """The lowest kept score that at least `share` of the null does not exceed.

        Raises:
            InvalidArgument: when `share` is not between 0 and 1.
        """
        if not 0.0 <= share <= 1.0:
            raise InvalidArgument(f"a quantile at {share} does not exist. Give a share between 0 and 1.")
        # ranks are counted from the top: rank r has a share 1 - (r - 1) / n at or below it
        above = math.floor((1.0 - share) * self.n + 1e-9) + 1
        return self.scores[bisect_right(self.ranks, above) - 1]

    @cached_property
    def _ascending(self) -> tuple[float, ...]:
        return tuple(-score for score in self.scores)


Nulls = Mapping[tuple[Site, Site], NullDistribution]


def nulls_to_bytes(nulls: Nulls) -> bytes:
    """Nulls as the bytes of one file; the same nulls always give the same bytes."""
    rows = [
        {
            "source": str(source),
            "target": str(target),
            "kind": null.kind,
            "n": null.n,
            "seed": null.seed,
            "scores": list(null.scores),
        }
        for (source, target), null in sorted(nulls.items())
    ]
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{{"format": "{_FORMAT}", "version": {_VERSION}, "nulls": [\n{lines}\n]}}\n'.encode()


def read_nulls(path: Path) -> dict[tuple[Site, Site], NullDistribution]:
    """Read nulls from a file with the bytes of `nulls_to_bytes`.

    Raises:
        BadFile: when the file is missing, cut off or of another kind.
    """
    try:
        data = cast("dict[str, Any]", parse_json(check_sha256(read_bytes(path))))
        if (data["format"], data["version"]) != (_FORMAT, _VERSION):
            raise BadFile(f"{path} holds no nulls of version {_VERSION}. {_AGAIN}")
        return {
            (found.source, found.target): found
            for found in (
                NullDistribution(
                    Site.parse(row["source"]),
                    Site.parse(row["target"]),
                    row["kind"],
                    row["n"],
                    tuple(row["scores"]),
                    row["seed"],
                )
                for row in data["nulls"]
            )
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{path} cannot be read as the nulls of an atlas ({error!r}). {_AGAIN}") from None


@lru_cache(maxsize=64)  # the nulls of an atlas have the same number of scores
def _kept_ranks(n: int) -> tuple[int, ...]:
    """Ranks 1 to 64, then each about 1/32 above the last, up to n."""
    if n < 1:
        raise InvalidArgument("a null needs scores, and got none. Draw more rows.")
    ranks = [1]
    while ranks[-1] < n:
        ranks.append(min(n, ranks[-1] + max(1, ranks[-1] // _STEP)))
    return tuple(ranks)
