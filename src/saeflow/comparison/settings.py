"""Settings of a comparison. Imports next to nothing, since the command line builds its help from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from saeflow.errors import InvalidArgument

NULLS: Final = ("rotation", "moments", "families")


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """How dictionaries are compared.

    Attributes:
        method: Matching method: its rows are compared at unit norm; `saeflow methods` lists all methods.
        k: Matches per feature: how many are kept.
        shared: Cosine from which a one-to-one partner counts as the same feature.
        null: Null distribution: rotation, moments or families; decides which matches are significant.
        fdr: False-discovery rate: among the matches called significant.
        rows: Null rows drawn at a time.
        rotations: Number of draws of null rows.
        whole_rotations: Random rotations of all of a dictionary, for the null of PW-MCC.
        duplicate: Cosine from which two features of one dictionary are duplicates.
        seed: Random seed.
    """

    method: str = "cosine"
    k: int = 5
    shared: float = 0.7
    null: str = "moments"
    fdr: float = 0.01
    rows: int = 2048
    rotations: int = 8
    whole_rotations: int = 3
    duplicate: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            InvalidArgument: for a value out of range.
        """
        for name, least in {"k": 1, "rows": 1, "rotations": 1, "whole_rotations": 0}.items():
            if getattr(self, name) < least:
                raise InvalidArgument(f"{name}={getattr(self, name)} is too few. Give {least} or more.")
        for name in ("shared", "duplicate", "fdr"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InvalidArgument(f"{name}={getattr(self, name)} is out of range. Give a number between 0 and 1.")
        if self.null not in NULLS:
            raise InvalidArgument(f"there is no null {self.null!r} of two dictionaries. Known: {', '.join(NULLS)}.")
