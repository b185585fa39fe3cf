"""Variants of the transition matrix T, by the names used in rows of results, and the facts of a saved fit. No torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from saeflow.errors import BadFile, InvalidArgument
from saeflow.ids import Site
from saeflow.reading import parse_json, safetensors

CLEAN: Final = "clean"
"""The key of the unmodified model among the losses of a row."""

KEY: Final = "fit"
"""The only metadata entry in the file of a fit."""


class MapSource(enum.StrEnum):
    """The weights or matching that T is made from."""

    PERMUTATION = "permutation"
    PERMUTATION_ENCODER = "permutation-encoder"
    PERMUTATION_BIAS = "permutation-encoder-bias"
    DECODERS = "decoders"
    """W_dec(A) W_dec(B)^T."""
    READS = "reads"
    """W_dec(A) W_enc(B)^T: what A writes times what B reads (equation 1)."""

    @property
    def one_to_one(self) -> bool:
        """Whether T is a permutation."""
        return self.value.startswith("permutation")

    @property
    def label(self) -> str:
        """The name in tables."""
        return {
            "permutation-encoder": "permutation + encoder",
            "permutation-encoder-bias": "permutation + encoder + b_enc",
            "decoders": "W_dec W_dec",
            "reads": "W_dec W_enc",
        }.get(self.value, self.value)


class Scaling(enum.StrEnum):
    """The units of activations and rows."""

    RAW = "raw"
    FOLDED = "folded"
    MEAN = "mean activation"


@dataclass(frozen=True, slots=True)
class MapVariant:
    """One way to make and apply T.

    Attributes:
        source: what T is made from.
        k: how many entries of each row are kept, None for all; 1 for a permutation.
        binary: whether entries above 0 become 1 and the others 0.
        matched: the rows that T was found on, `RAW` or `FOLDED`.
        applied: the units that T is applied in.
    """

    source: MapSource
    k: int | None = 1
    binary: bool = True
    matched: Scaling = Scaling.RAW
    applied: Scaling = Scaling.RAW

    @property
    def name(self) -> str:
        """The variant as a key in rows of results: `decoders/1/binary/RAW/FOLDED`."""
        return "/".join((self.source, str(self.k or "all"), self.entries, self.matched.name, self.applied.name))

    @staticmethod
    def of(name: str) -> MapVariant | None:
        """The inverse of `name`; None for a baseline, which is not a transition matrix from weights.

        Raises:
            InvalidArgument: for a name with "/" that is not a variant.
        """
        if "/" not in name:
            return None
        try:
            source, k, entries, matched, applied = name.split("/")
            binary = {"binary": True, "values": False}[entries]
            number = None if k == "all" else int(k)
            return MapVariant(MapSource(source), number, binary, Scaling[matched], Scaling[applied])
        except (ValueError, KeyError):
            raise InvalidArgument(f"{name!r} names no variant of a transition matrix.") from None

    @property
    def entries(self) -> str:
        """The kind of entries that T has: "binary" or "values"."""
        return "binary" if self.binary else "values"

    @property
    def is_cosine(self) -> bool:
        """Whether T has a 1 at each feature's best cosine match."""
        return (self.source, self.k, self.binary, self.matched) == (MapSource.DECODERS, 1, True, Scaling.RAW)

    @property
    def words(self) -> str:
        """The variant in words."""
        how = {Scaling.RAW: "", Scaling.FOLDED: ", applied folded", Scaling.MEAN: ", applied by mean"}[self.applied]
        on = "" if self.matched is Scaling.RAW else ", matched folded"
        if self.source.one_to_one:
            return f"{self.source.label}{on}{how}"
        if self.is_cosine:
            return f"cosine top-1{how}"
        top = "all" if self.k is None else f"top-{self.k}"
        return f"{top} {self.source.label}, {self.entries}{on}{how}"


def fit_path(folder: Path, pair: tuple[Site, Site]) -> Path:
    """The path of the fit of a pair in a results folder."""
    a, b = (f"{site.layer}.{site.part.value}" for site in pair)
    return folder / "fits" / f"{a}-{b}.safetensors"


def read_facts(folder: Path, pair: str) -> dict[str, Any]:
    """`facts` and `scales` from the fit of a pair, which is named as in rows: `0/res > 1/res`.

    Raises:
        BadFile: when the file is missing or cannot be read.
    """
    a, b = pair.split(" > ")
    path = fit_path(folder, (Site.parse(a), Site.parse(b)))
    try:
        with safe_open(safetensors(path), framework="numpy") as file:
            header: dict[str, Any] = parse_json((file.metadata() or {})[KEY])
            return {"facts": header["facts"], "scales": header["scales"]}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise BadFile(f"{path} cannot be read ({error!r}). Remove it and run the command again.") from None
