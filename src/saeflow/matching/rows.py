"""Read a match table row by row from a mapped file. Needs nothing but the standard library.

A flow graph asks a table for one row at each step. Reading it from the mapped file, instead of the table through
numpy, avoids importing numpy, which takes longer than everything else in growing a graph. For the same reason a block
of rows is compared with its checksum when one of its rows is first read, and the whole file only by `Atlas.verify`:
in a release of the shape of Gemma Scope 2B a graph asks for 154 rows, which lie in 100 MB of tables.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from saeflow.errors import BadFile, CorruptAtlas, InvalidArgument, UnknownFeature
from saeflow.ids import FeatureId, Site
from saeflow.plain_types import Match
from saeflow.reading import HEADER, JSON, parse_json, regular, safetensors

AGAIN = "Fetch the atlas again, or build it with `saeflow atlas build`."
BLOCK: Final = 1024
"""Rows that the checksum of a block covers."""


class TableRows:
    """Rows of the table from `source` to `target` that `MatchTable.save` wrote."""

    def __init__(
        self, path: Path, source: Site, target: Site, sha256: str | None = None, blocks: Sequence[int] | None = None
    ) -> None:
        """Map the file.

        Args:
            path: the file.
            source: the site whose features the rows belong to.
            target: the site of their matches.
            sha256: checksum of the whole file, compared now.
            blocks: checksums from `block_sums`; each is compared when a row of its block is first read.

        Raises:
            CorruptAtlas: when the file is missing or its checksum differs.
            BadFile: when it is not a match table.
        """
        self._path, self._source, self._target = path, source, target
        self._data = checked(path, sha256)
        self._blocks, self._seen = blocks, set[int]()
        try:
            length = struct.unpack_from("<Q", self._data)[0]
            header = cast("dict[str, Any]", parse_json(self._data[8 : 8 + min(length, HEADER)]))
            self.n_source, self.k = (int(n) for n in header["index"]["shape"])
            index, score = (header[name]["data_offsets"] for name in ("index", "score"))
            kinds = header["index"]["dtype"], header["score"]["dtype"]
            sizes = {end - start for start, end in (index, score)} | {self.n_source * self.k * 4}
            if kinds != ("I32", "F32") or len(sizes) > 1 or 8 + length + max(index[1], score[1]) > len(self._data):
                raise ValueError(f"{kinds} of {sizes} bytes")
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise BadFile(f"{path}: not a readable match table ({error}). {AGAIN}") from None
        self._index, self._score = 8 + length + int(index[0]), 8 + length + int(score[0])
        self._header_sum = zlib.crc32(self._data[: 8 + length])

    def best(self, feature: FeatureId, k: int | None = None) -> tuple[Match, ...]:
        """The best `k` matches of `feature`, best first (all that are kept when `k` is None).

        Empty if the feature has no match, such as one that a one-to-one method leaves without a partner.

        Raises:
            UnknownFeature: when the index lies outside the source dictionary.
            InvalidArgument: when `k` is below 1.
            CorruptAtlas: when the block of rows no longer has its checksum.
        """
        if feature.index >= self.n_source:
            raise UnknownFeature(
                f"{feature} does not exist: the dictionary at {self._source} has {self.n_source} features, "
                f"0 to {self.n_source - 1}."
            )
        if k is not None:
            check_k(k)
        if self._blocks is not None:
            self._compare(feature.index // BLOCK)
        wanted = self.k if k is None else min(k, self.k)
        start = 4 * self.k * feature.index
        indices = struct.unpack_from(f"<{wanted}i", self._data, self._index + start)
        scores = struct.unpack_from(f"<{wanted}f", self._data, self._score + start)
        return tuple(
            Match(FeatureId(self._target, index), score)
            for index, score in zip(indices, scores, strict=True)
            if score > -math.inf
        )

    def block_sums(self) -> tuple[int, ...]:
        """One CRC-32 for every `BLOCK` rows, over the header, their indices and their scores."""
        return tuple(self._sum(block) for block in range(math.ceil(self.n_source / BLOCK)))

    def _sum(self, block: int) -> int:
        row = 4 * self.k
        first, last = block * BLOCK * row, min((block + 1) * BLOCK, self.n_source) * row
        indices = zlib.crc32(self._data[self._index + first : self._index + last], self._header_sum)
        return zlib.crc32(self._data[self._score + first : self._score + last], indices)

    def _compare(self, block: int) -> None:
        """Refuse a block of rows that differs from what was written; each block is compared once."""
        if block in self._seen:
            return
        known = self._blocks or ()
        expected = known[block] if block < len(known) else None
        if self._sum(block) != expected:
            raise CorruptAtlas(
                f"{self._path}: rows {block * BLOCK} to {min((block + 1) * BLOCK, self.n_source) - 1} do not have the "
                f"checksum the atlas states. {AGAIN}"
            )
        self._seen.add(block)


def check_k(k: int, most: int | None = None, what: str = "rows") -> None:
    """Refuse to give `k` matches of a feature if that is below 1, or above `most`, the number of `what` there are.

    Raises:
        InvalidArgument: with the number.
    """
    if most is None and k < 1:
        raise InvalidArgument(f"k={k} matches were asked for. Give k of at least 1.")
    if most is not None and not 1 <= k <= most:
        raise InvalidArgument(f"k={k} matches were asked of {most} {what}. Give k between 1 and {most}.")


def checked(path: Path, sha256: str | None) -> mmap.mmap:
    """Map a file of an atlas, and compare its checksum if one is given.

    Raises:
        CorruptAtlas: when it cannot be read, is empty, or differs.
    """
    try:
        if path.suffix == ".safetensors":
            _check_length(path)
        elif regular(path) > JSON:
            raise ValueError(f"it has more than {JSON:,} bytes")
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise CorruptAtlas(f"{path} cannot be read ({error}). {AGAIN}") from None
    found = hashlib.sha256(data).hexdigest() if sha256 else None
    if found != sha256:
        raise CorruptAtlas(f"{path} has checksum {str(found)[:12]}…, the atlas states {str(sha256)[:12]}…. {AGAIN}")
    return data


def _check_length(path: Path) -> None:
    """Refuse a .safetensors file that does not end where its header says, before all of it is hashed.

    The safetensors package would check this too, but imports numpy for it.
    """
    with safetensors(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = cast("dict[str, Any]", parse_json(file.read(min(length, HEADER))))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    stated, size = 8 + length + max(ends, default=0), path.stat().st_size
    if size != stated:
        raise ValueError(f"it has {size:,} bytes, and its header says {stated:,}")
