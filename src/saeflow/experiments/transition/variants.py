"""Ways to make and apply T, by the names that rows of results have, and what a fit says of itself. No torch."""

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
"""The model left alone, among the losses of a row."""

KEY: Final = "fit"
"""The one entry of a fit's header."""


class MapSource(enum.StrEnum):
    """What T is read from."""

    PERMUTATION = "permutation"
    PERMUTATION_ENCODER = "permutation-encoder"
    PERMUTATION_BIAS = "permutation-encoder-bias"
    DECODERS = "decoders"
    """W_dec(A) W_dec(B)^T."""
    READS = "reads"
    """W_dec(A) W_enc(B)^T: what A writes times what B reads (equation 1)."""

    @property
    def one_to_one(self) -> bool:
        """Whether it is a permutation."""
        return self.value.startswith("permutation")

    @property
    def label(self) -> str:
        """As tables have it."""
        return {
            "permutation-encoder": "permutation + encoder",
            "permutation-encoder-bias": "permutation + encoder + b_enc",
            "decoders": "W_dec W_dec",
            "reads": "W_dec W_enc",
        }.get(self.value, self.value)


class Scaling(enum.StrEnum):
    """In what units activations and rows are taken."""

    RAW = "raw"
    FOLDED = "folded"
    MEAN = "mean activation"


@dataclass(frozen=True, slots=True)
class MapVariant:
    """One way to make and apply T.

    Attributes:
        source: what T is read from.
        k: entries kept in a row, None for all; 1 for a permutation.
        binary: entries above 0 become 1, the others 0.
        matched: the rows T was found on, `RAW` or `FOLDED`.
        applied: the units T is applied in.
    """

    source: MapSource
    k: int | None = 1
    binary: bool = True
    matched: Scaling = Scaling.RAW
    applied: Scaling = Scaling.RAW

    @property
    def name(self) -> str:
        """The variant in one word, as rows of results have it: `decoders/1/binary/RAW/FOLDED`."""
        return "/".join((self.source, str(self.k or "all"), self.entries, self.matched.name, self.applied.name))

    @staticmethod
    def of(name: str) -> MapVariant | None:
        """The inverse of `name`; None for a baseline, which is no transition matrix of the weights.

        Raises:
            InvalidArgument: for a name that is neither.
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
        """What an entry of T is: binary, or values."""
        return "binary" if self.binary else "values"

    @property
    def is_cosine(self) -> bool:
        """Whether it is the best cosine, as 1."""
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
    """Where the fit of a pair is in a results folder."""
    a, b = (f"{site.layer}.{site.part.value}" for site in pair)
    return folder / "fits" / f"{a}-{b}.safetensors"


def read_facts(folder: Path, pair: str) -> dict[str, Any]:
    """`facts` and `scales` of the fit of a pair, named as in rows: `0/res > 1/res`.

    Raises:
        BadFile: when it is missing or cannot be read.
    """
    a, b = pair.split(" > ")
    path = fit_path(folder, (Site.parse(a), Site.parse(b)))
    try:
        with safe_open(safetensors(path), framework="numpy") as file:
            header: dict[str, Any] = parse_json((file.metadata() or {})[KEY])
            return {"facts": header["facts"], "scales": header["scales"]}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise BadFile(f"{path} cannot be read ({error!r}). Remove it and run the command again.") from None
