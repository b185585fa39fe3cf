"""MatchTable: the result of every matching method, its file, and mutual and significant matches. Without torch.

A table has one row per feature of the source dictionary: the rows of the target it matches, best first, and their
scores. It is saved as safetensors with the sites, the method and the fingerprints of both dictionaries in the
header, so that a table describes itself.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from saeflow.errors import BadFile, InvalidArgument, UnknownFeature, UnknownSite
from saeflow.files import write_atomic
from saeflow.ids import FeatureId, Site
from saeflow.matching.null import NullDistribution
from saeflow.matching.rows import AGAIN, check_k
from saeflow.plain_types import Match, as_html
from saeflow.reading import parse_json, safetensors

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
HEADER = "saeflow_table"


class Provenance(NamedTuple):
    """How a table was made: two tables of the same provenance are equal.

    Attributes:
        method: A name in `METHODS`, "pearson" or "transport".
        k: Matches kept per feature.
        source: Fingerprint of the rows of the source.
        target: Fingerprint of the rows of the target.
    """

    method: str
    k: int
    source: str
    target: str


@dataclass(frozen=True, eq=False)
class MatchTable:
    """Best matches in `target` for every feature of `source`.

    Attributes:
        source: Site the rows belong to.
        target: Site that `index` points into.
        method: How it was matched, such as "cosine".
        n_target: Number of features of the target dictionary.
        index: Rows of the target dictionary, best first.
        score: Their scores; for "cosine" the cosine of the two decoder rows, in [-1, 1]. -inf if there is no
            match, because the feature has no direction or a one-to-one method left it without a partner; `index`
            is 0 there and has no meaning.
        made_from: Fingerprints of the source and the target dictionary, "" when unknown.
    """

    source: Site
    target: Site
    method: str
    n_target: int
    index: Int32[np.ndarray, "n_source k"]
    score: Float32[np.ndarray, "n_source k"]
    made_from: tuple[str, str] = ("", "")

    _repr_html_ = as_html

    def __repr__(self) -> str:
        """The two sites, the method and the size."""
        return f"MatchTable({self.source} to {self.target}, {self.method}, {self.n_source:,} features, k = {self.k})"

    @property
    def n_source(self) -> int:
        """Number of features of the source dictionary."""
        return self.index.shape[0]

    @property
    def k(self) -> int:
        """How many matches are kept for each feature."""
        return self.index.shape[1]

    @property
    def provenance(self) -> Provenance:
        """How the table was made."""
        return Provenance(self.method, self.k, *self.made_from)

    def has(self, source: Site, target: Site) -> bool:
        """Whether this is the table from `source` to `target`."""
        return (source, target) == (self.source, self.target)

    def best(self, feature: FeatureId, target: Site | None = None, k: int | None = None) -> tuple[Match, ...]:
        """The best `k` matches of `feature`, best first (all that are kept when `k` is None).

        Empty if the feature has no direction, or a one-to-one method left it without a partner.

        Raises:
            UnknownSite: when the feature or `target` belongs to another table.
            UnknownFeature: when the index lies outside the source dictionary.
            InvalidArgument: when `k` is below 1.
        """
        if not self.has(feature.site, target or self.target):
            raise UnknownSite(
                f"this table matches {self.source} to {self.target}; it was asked for {feature} to "
                f"{target or self.target}. Open the atlas and ask it instead."
            )
        if feature.index >= self.n_source:
            raise UnknownFeature(
                f"{feature} does not exist: the dictionary at {self.source} has {self.n_source} features, "
                f"0 to {self.n_source - 1}."
            )
        if k is not None:
            check_k(k)
        pairs = zip(self.index[feature.index, :k].tolist(), self.score[feature.index, :k].tolist(), strict=True)
        return tuple(Match(FeatureId(self.target, index), score) for index, score in pairs if score != -np.inf)

    def to_pandas(self) -> pd.DataFrame:
        """One row per match: `source` and `target` (rows of the dictionaries), `rank` (0 is the best) and `score`.

        Places without a match are left out.
        """
        import pandas as pd

        columns = {
            "source": np.repeat(np.arange(self.n_source), self.k),
            "rank": np.tile(np.arange(self.k), self.n_source),
            "target": self.index.reshape(-1),
            "score": self.score.reshape(-1),
        }
        return pd.DataFrame(columns)[columns["score"] != -np.inf].reset_index(drop=True)

    def to_bytes(self) -> bytes:
        """The table as the bytes of its file."""
        header: dict[str, Any] = {
            "version": VERSION,
            "source": str(self.source),
            "target": str(self.target),
            "method": self.method,
            "n_target": self.n_target,
            "made_from": self.made_from,
        }
        arrays = {"index": np.ascontiguousarray(self.index), "score": np.ascontiguousarray(self.score)}
        header["check"] = _check(header, arrays["index"], arrays["score"])
        # a single entry of metadata, so that the same table always has the same bytes
        return save(arrays, metadata={HEADER: json.dumps(header)})

    def save(self, path: Path) -> None:
        """Write the table; the file appears whole or not at all."""
        write_atomic(path, self.to_bytes())

    @staticmethod
    def load(path: Path) -> MatchTable:
        """Read a table that `save` wrote.

        Raises:
            BadFile: when the file is missing, cut off, changed, of another kind or points outside its target.
        """
        try:
            with safe_open(safetensors(path), framework="numpy") as file:
                header = _header(path, (file.metadata() or {}).get(HEADER, "{}"))
                index, score = file.get_tensor("index"), file.get_tensor("score")
        except (OSError, ValueError, SafetensorError) as error:
            if isinstance(error, BadFile):
                raise
            raise BadFile(f"{path}: not a readable match table ({error}). {AGAIN}") from None
        # tables of earlier versions have no checksum of their own
        check = header.pop("check", None)
        if check is not None and check != _check(header, index, score):
            raise BadFile(f"{path} has changed since it was written: its checksum differs. {AGAIN}")
        source, target = Site.parse(header["source"]), Site.parse(header["target"])
        n_target, made_from = int(header["n_target"]), header["made_from"]
        inside = index.shape == score.shape and index.ndim == 2
        if not inside or (index.size and not 0 <= index.min() <= index.max() < n_target):
            raise BadFile(
                f"{path}: index {index.shape} and score {score.shape} do not form a table into {n_target} features. "
                f"{AGAIN}"
            )
        return MatchTable(source, target, header["method"], n_target, index, score, (made_from[0], made_from[1]))


def provenance_on_disk(path: Path) -> Provenance | None:
    """How the table at a path was made; None if there is no readable table."""
    if not path.exists():
        return None
    try:
        return MatchTable.load(path).provenance
    except BadFile:
        return None


def ranks_back(table: MatchTable, back: MatchTable) -> Int32[np.ndarray, "n_source k"]:
    """The rank at which each match lists the feature in return: 0 as its best match, -1 if it does not list it.

    `back` is the table of the opposite direction; matches that it does not keep count as not listed.

    Raises:
        InvalidArgument: when `back` is not the table of the opposite direction.
    """
    if (back.source, back.target) != (table.target, table.source) or (
        (back.n_source, back.n_target) != (table.n_target, table.n_source)
    ):
        raise InvalidArgument(
            f"a table {back.source} ({back.n_source}) to {back.target} ({back.n_target}) does not lead back from "
            f"{table.source} ({table.n_source}) to {table.target} ({table.n_target}). Give the two of one pair."
        )
    named = np.where(np.isneginf(back.score), -1, back.index)[table.index]
    own = named == np.arange(table.n_source)[:, None, None]
    own[np.isneginf(table.score)] = False
    return np.where(own.any(axis=2), own.argmax(axis=2), -1).astype(np.int32)


def mutual(table: MatchTable, back: MatchTable, k: int = 1) -> Bool[np.ndarray, "n_source k"]:
    """Which of the best `k` matches have the feature among their own best `k`.

    With k = 1, `mutual(...)[:, 0]` marks mutual best matches.

    Raises:
        InvalidArgument: when `back` is not the table of the opposite direction, a table keeps fewer than `k` matches,
            or `k` is below 1.
    """
    check_k(k)
    if k > min(table.k, back.k):
        raise InvalidArgument(
            f"mutual top-{k} was asked of tables that keep {table.k} and {back.k}. Match again with k of {k}."
        )
    rank = ranks_back(table, back)[:, :k]
    return (rank >= 0) & (rank < k)


def _check(header: dict[str, Any], index: np.ndarray, score: np.ndarray) -> str:
    """A checksum of a table's contents, stored in its own file: a build that resumes has no other yet."""
    total = zlib.crc32(json.dumps({**header, "made_from": list(header["made_from"])}).encode())
    return f"{zlib.crc32(score.tobytes(), zlib.crc32(index.tobytes(), total)):08x}"


def _header(path: Path, text: str) -> dict[str, Any]:
    header = cast("dict[str, Any]", parse_json(text))
    if header.get("version") != VERSION:
        raise BadFile(f"{path} is no match table of version {VERSION} (it says {header.get('version')!r}). {AGAIN}")
    return header


# Best matches are significant at a false-discovery rate if their p-value passes the step-up rule of Benjamini and
# Hochberg (1995). Of the edges kept, a share of at most `fdr` is expected to be false. p falls as the score rises, so
# the rule amounts to one cut for each pair of sites.


def p_values(null: NullDistribution, scores: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """`null.p_value` of every score."""
    first = np.searchsorted(-np.array(null.scores), -scores.astype(np.float64), side="right")
    return np.array([*null.ranks, null.n + 1])[first] / (null.n + 1)


def cut(null: NullDistribution, best: Float[np.ndarray, " n"], fdr: float) -> float:
    """The lowest of the scores `best`, those of a pair's best matches, that is significant at the rate `fdr`.

    1.0, which only equal rows reach, if none is.

    Raises:
        InvalidArgument: when `fdr` is not between 0 and 1.
    """
    if not 0.0 < fdr < 1.0:
        raise InvalidArgument(f"fdr={fdr} is no false-discovery rate. Give a share between 0 and 1, such as 0.01.")
    # a feature without a direction has no match, and is not tested
    ordered = np.sort(best[~np.isneginf(best)])[::-1]
    passed = p_values(null, ordered) <= fdr * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    kept = np.flatnonzero(passed)
    return min(float(ordered[kept[-1]]), 1.0) if len(kept) else 1.0


def rows_needed(null: NullDistribution, best: Float[np.ndarray, " n"], fdr: float) -> int | None:
    """How many null scores are needed, if `cut` keeps nothing because there are too few; None if there are enough.

    p is never below 1 / (n + 1). Matches that beat every null score are kept only if n is at least

        N / (fdr u) - 1        N best matches, u of them above the whole null

    so a null of n scores may keep nothing if fewer than N / (fdr (n + 1)) features have a counterpart. If so few
    matches beat the null that they may be chance (a Poisson count with mean N / (n + 1)), n counts as enough.

    Raises:
        InvalidArgument: when `fdr` is not between 0 and 1.
    """
    best = best[~np.isneginf(best)]
    beyond = int((best > null.scores[0]).sum())
    by_chance = len(best) / (null.n + 1)
    if beyond <= by_chance + 3 * by_chance**0.5 + 1 or cut(null, best, fdr) < 1.0:
        return None
    needed = int(np.ceil(len(best) / (fdr * beyond))) - 1
    return needed if needed > null.n else None
