"""The atlas: every match table a flow graph of a release needs. Works without torch.

An atlas is a folder with `atlas.json` (what was matched and how, the sha256 of every table, and a checksum of every
block of its rows) and one safetensors file per ordered pair of sites. It takes tens of MB for a release of tens of
GB, and graphs made from it need no weights.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from saeflow.errors import BadFile, CorruptAtlas, InvalidArgument, SaeflowWarning, UnknownRelease, UnknownSite, nearest
from saeflow.files import (
    add_check,
    agrees_with_check,
    cache_folder,
    folder_and_pattern,
    pack_folder,
    pack_names,
    write_atomic,
)
from saeflow.ids import FeatureId, Part, Site, SiteLike
from saeflow.matching.null import NullDistribution, Nulls, read_nulls
from saeflow.matching.rows import AGAIN, TableRows, checked
from saeflow.plain_types import Match, as_html
from saeflow.reading import read_json
from saeflow.sources.releases import known_releases

if TYPE_CHECKING:
    import pandas as pd

    from saeflow.matching.table import MatchTable

FORMAT = "saeflow-atlas"
VERSION = 1
MANIFEST = "atlas.json"
_TENSORS: Final = frozenset({".safetensors", ".npz", ".pt", ".pth", ".bin"})
_SAMPLE: Final = 1 << 16
"""Bytes read at either end of a tensor file to recognise it: retraining changes both ends."""
Pair = tuple[Site, Site]


def flow_pairs(sites: list[Site]) -> list[Pair]:
    """The pairs (residual site, predecessor) among `sites` that a flow graph needs, in order.

    Predecessors are the modules of the same layer and the nearest residual site below, which is the paper's R_{L-1}
    (section 3.3) if every layer has a dictionary.
    """
    present, pairs = set(sites), list[Pair]()
    residual = sorted(site for site in present if site.part is Part.RES)
    for below, site in zip([None, *residual], residual, strict=False):
        pairs += [(site, near) for near in (below, *site.modules) if near in present]
    return pairs


def both_ways(pair: Pair) -> tuple[Pair, Pair]:
    """A pair in both directions."""
    return pair, (pair[1], pair[0])


if TYPE_CHECKING:
    _Tables = Mapping[Pair, MatchTable]
else:  # naming the type would import numpy
    _Tables = Mapping


@dataclass(frozen=True, eq=False)
class Atlas(_Tables):
    """The match tables of a release, each read from disk and compared with its checksum at first use.

    `atlas[source, target]` is the table of best matches in `target` for the features of `source`; `best` reads
    single rows, which needs no numpy. `weights` holds a digest of the decoder of each matched site; it is empty in
    atlases of earlier versions.
    """

    folder: Path
    release: str
    model: str
    k: int
    made_by: str
    files: Mapping[Pair, tuple[str, str]] = field(repr=False)
    method: str = "cosine"
    trusted: bool = False
    calibration: tuple[str, str] | None = None
    blocks: Mapping[Pair, tuple[int, ...]] = field(default_factory=dict[Pair, tuple[int, ...]], repr=False)
    weights: Mapping[Site, str] = field(default_factory=dict[Site, str], repr=False)

    _repr_html_ = as_html

    def __repr__(self) -> str:
        """The release, the method and the size."""
        many = f"{len(self.files)} tables of {len(self.sites)} sites"
        return f"Atlas({self.release!r}, model {self.model!r}, {self.method}, {many}, k = {self.k})"

    def to_pandas(self) -> pd.DataFrame:
        """One row per table: source and target site, and the size of its file in bytes; reads no table."""
        import pandas as pd

        rows = [
            (str(source), str(target), (self.folder / name).stat().st_size)
            for (source, target), (name, _) in sorted(self.files.items())
        ]
        return pd.DataFrame(rows, columns=["source", "target", "bytes"])

    @cached_property
    def _tables(self) -> dict[Pair, MatchTable]:
        return {}

    @cached_property
    def _rows(self) -> dict[Pair, TableRows]:
        return {}

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site with a table, in order of computation."""
        return tuple(sorted({site for pair in self.files for site in pair}))

    def __getitem__(self, pair: tuple[SiteLike, SiteLike]) -> MatchTable:
        """The table from `pair[0]` to `pair[1]`, such as `atlas["4/res", "3/res"]`.

        Raises:
            InvalidId: when a name does not denote a site.
            UnknownSite: when the atlas has no such table.
            CorruptAtlas: when the file no longer has the checksum the atlas states.
        """
        pair = (Site.of(pair[0]), Site.of(pair[1]))
        if pair not in self._tables:
            from saeflow.matching.table import MatchTable

            path, expected = self._file(pair)
            checked(path, expected)
            self._tables[pair] = MatchTable.load(path)
        return self._tables[pair]

    def _file(self, pair: Pair) -> tuple[Path, str | None]:
        """The path of a pair's table, and the checksum to compare it with, if any."""
        if pair not in self.files:
            raise UnknownSite(self._no_table(*pair))
        name, digest = self.files[pair]
        return self.folder / name, None if self.trusted else digest

    def __iter__(self) -> Iterator[Pair]:
        """Ordered pairs of sites."""
        return iter(sorted(self.files))

    def __len__(self) -> int:
        """Number of tables."""
        return len(self.files)

    def has(self, source: Site, target: Site) -> bool:
        """Whether there is a table from `source` to `target`."""
        return (source, target) in self.files

    def best(self, feature: FeatureId, target: Site, k: int | None = None) -> tuple[Match, ...]:
        """The best `k` matches of `feature` at `target`, best first.

        Raises:
            UnknownSite: when the atlas has no such table.
            UnknownFeature: when the index lies outside the dictionary.
            InvalidArgument: when `k` is below 1 or larger than what the atlas keeps.
            CorruptAtlas: when the file no longer has the checksum the atlas states.
        """
        if k is not None and not 1 <= k <= self.k:
            raise InvalidArgument(
                f"k={k} matches were asked of an atlas that keeps {self.k}. Give k between 1 and {self.k}, or build "
                f"it again with `saeflow atlas build --k {max(k, 1)}`."
            )
        pair = (feature.site, target)
        if pair not in self._rows:
            path, expected = self._file(pair)
            blocks = None if self.trusted else self.blocks.get(pair)
            self._rows[pair] = TableRows(path, *pair, None if blocks else expected, blocks)
        return self._rows[pair].best(feature, k)

    @cached_property
    def nulls(self) -> Nulls:
        """The null distribution of best scores of each ordered pair; empty before `calibrate`.

        Raises:
            CorruptAtlas: when the file no longer has the checksum the atlas states.
            BadFile: when it cannot be read.
        """
        if self.calibration is None:
            return {}
        name, digest = self.calibration
        checked(self.folder / name, None if self.trusted else digest)
        return read_nulls(self.folder / name)

    def null(self, source: Site, target: Site) -> NullDistribution | None:
        """The null distribution of best scores at `target` for features of `source`; None if it was not drawn."""
        return self.nulls.get((source, target))

    def cuts(self, fdr: float) -> dict[Pair, float]:
        """The lowest best score of each ordered pair that is significant at a false-discovery rate.

        1.0 where no score is significant. If that is because a null has too few scores, a warning says how many it
        needs.

        Raises:
            InvalidArgument: when the atlas has no nulls, or `fdr` is not between 0 and 1.
        """
        from saeflow.matching.table import cut, rows_needed

        if not self.nulls:
            raise InvalidArgument(
                f"the atlas of {self.release or self.folder} has no nulls to set thresholds by. Draw them with "
                "`saeflow atlas calibrate`."
            )
        best = {pair: self[pair].score[:, 0] for pair in self.nulls}
        needed = {pair: rows_needed(null, best[pair], fdr) for pair, null in self.nulls.items()}
        if short := {pair: n for pair, n in needed.items() if n is not None}:
            pair, most = max(short.items(), key=lambda item: item[1])
            warnings.warn(
                f"{len(short)} of {len(best)} pairs of sites keep no match at fdr={fdr:g} for want of null rows: some "
                f"matches of {pair[0]} to {pair[1]} are above all {self.nulls[pair].n:,}, and {most:,} would tell. "
                "Draw more, or another null where that is far, with "
                f"`saeflow atlas calibrate --rotations {max(8, -(-most // 2048))}`.",
                SaeflowWarning,
                stacklevel=2,
            )
        return {pair: cut(null, best[pair], fdr) for pair, null in self.nulls.items()}

    def verify(self) -> None:
        """Read every file of the atlas and compare its checksum.

        Raises:
            CorruptAtlas: naming the first file that is missing or differs.
        """
        for name, expected in (*self.files.values(), *((self.calibration,) if self.calibration else ())):
            checked(self.folder / name, expected)

    def _no_site(self, site: Site) -> str:
        layers = sorted({s.layer for s in self.sites})
        parts = ", ".join(sorted({s.part.value for s in self.sites}))
        return f"{self.release} has no dictionary at {site}. It covers layers {layers[0]} to {layers[-1]} of {parts}."

    def _no_table(self, source: Site, target: Site) -> str:
        for site in (source, target):
            if site not in self.sites:
                return self._no_site(site)
        return (
            f"the atlas of {self.release} has no table from {source} to {target}: it holds neighbours in the flow "
            f"only. Match these two with `saeflow match {self.release} {source} {target}`."
        )


def table_file(source: Site, target: Site) -> str:
    """The file name of the table from `source` to `target`."""
    return f"{source.layer}.{source.part.value}-{target.layer}.{target.part.value}.safetensors"


def table_entry(folder: Path, source: Site, target: Site) -> tuple[str, str]:
    """The entry of a written table in `Atlas.files`: its file name and its sha256."""
    name = table_file(source, target)
    return name, hashlib.sha256((folder / name).read_bytes()).hexdigest()


def save_manifest(atlas: Atlas) -> None:
    """Write `atlas.json`, which makes the folder an atlas. To be called once every table is written."""
    tables = [
        {
            "source": str(source),
            "target": str(target),
            "file": name,
            "sha256": digest,
            "blocks": _hex(TableRows(atlas.folder / name, source, target).block_sums()),
        }
        for (source, target), (name, digest) in sorted(atlas.files.items())
    ]
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "release": atlas.release,
        "model": atlas.model,
        "method": atlas.method,
        "k": atlas.k,
        "made_by": atlas.made_by,
        "tables": tables,
    }
    if atlas.weights:
        data["weights"] = {str(site): digest for site, digest in sorted(atlas.weights.items())}
    if atlas.calibration is not None:
        data["calibration"] = {"file": atlas.calibration[0], "sha256": atlas.calibration[1]}
    write_atomic(atlas.folder / MANIFEST, (json.dumps(add_check(data), indent=1) + "\n").encode())


def open_atlas(name: str | Path, *, verify: bool = True) -> Atlas:
    """Open an atlas: "demo" or another pack, a folder, or the name of one built into the cache folder.

    Each part of a table is compared with its checksum when it is first read; `Atlas.verify` compares all files.
    `verify=False` trusts the files.

    Raises:
        UnknownRelease: when there is no such atlas; the message says how to build it.
        BadFile: when `atlas.json` cannot be read.
        CorruptAtlas: when its version or a checksum differs (`verify=False` skips checksums).
    """
    folder = _locate(str(name))
    path = folder / MANIFEST
    try:
        data = cast("dict[str, Any]", read_json(path))
        kind, version = data["format"], data["version"]
        if (kind, version) != (FORMAT, VERSION):
            raise CorruptAtlas(f"{path} is {kind!r} version {version}, not {FORMAT!r} version {VERSION}. {AGAIN}")
        if verify and not agrees_with_check(data):
            raise CorruptAtlas(f"{path} has changed since it was written: its checksum differs. {AGAIN}")
        files = {
            (Site.parse(t["source"]), Site.parse(t["target"])): (_inside(folder, t["file"]), str(t["sha256"]))
            for t in data["tables"]
        }
        if not files:
            raise ValueError("it lists no table")
        blocks = {pair: _from_hex(t["blocks"]) for pair, t in zip(files, data["tables"], strict=True) if "blocks" in t}
        made_by, method = data["made_by"], data.get("method", "cosine")
        nulls = data.get("calibration")
        calibration = None if nulls is None else (_inside(folder, nulls["file"]), str(nulls["sha256"]))
        return Atlas(
            folder,
            data["release"],
            data["model"],
            data["k"],
            made_by,
            files,
            method,
            trusted=not verify,
            calibration=calibration,
            blocks=blocks,
            weights={Site.parse(site): str(digest) for site, digest in data.get("weights", {}).items()},
        )
    except CorruptAtlas:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{path} cannot be read as an atlas ({error!r}). {AGAIN}") from None


def _hex(sums: tuple[int, ...]) -> str:
    """The checksums of blocks, as eight hexadecimal digits each."""
    return "".join(f"{value:08x}" for value in sums)


def _from_hex(text: str) -> tuple[int, ...]:
    return tuple(int(text[i : i + 8], 16) for i in range(0, len(text), 8))


def atlas_cache() -> Path:
    """The folder of atlases built by name."""
    return cache_folder() / "atlases"


def atlas_folder(release: str | Path, method: str = "cosine") -> Path:
    """The cache folder of a release's atlas, named after the release; for a local folder, also after its content.

    Folders that have the same path at different times, or in different places, stay apart; a folder that moves
    without being renamed keeps its atlas. Reads a little of every tensor file in the folder.
    """
    name, pattern = folder_and_pattern(str(release))
    folder = Path(name).expanduser()
    if content := _content(folder):
        digest = hashlib.sha256(f"{content}{pattern}".encode()).hexdigest()[:16]
        name = f"{folder.resolve().name}-{digest}"
    return atlas_cache() / (name.replace("/", "--") + ("" if method == "cosine" else f".{method}"))


def own_copy(atlas: Atlas) -> Atlas:
    """An atlas that may be written to: for a pack, a copy in the cache; otherwise the atlas itself."""
    pack = pack_folder(atlas.release)
    if pack is None or atlas.folder != pack / "atlas":
        return atlas
    digest = hashlib.sha256((atlas.folder / MANIFEST).read_bytes()).hexdigest()[:16]
    place = atlas_cache() / f"{atlas.release}-{digest}"
    if not (place / MANIFEST).is_file():
        files = [path for path in atlas.folder.iterdir() if path.is_file()]  # its words are read from the pack
        for path in sorted(files, key=lambda path: path.name == MANIFEST):  # the manifest comes last
            write_atomic(place / path.name, path.read_bytes())
    return open_atlas(place)


def _content(folder: Path) -> str:
    """A digest of the tensor files in a folder: their names, sizes, beginnings and ends; "" if there are none."""
    if not folder.is_dir():
        return ""
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix not in _TENSORS or not path.is_file():
            continue
        with path.open("rb") as file:
            size = path.stat().st_size
            digest = hashlib.sha256(file.read(_SAMPLE))
            file.seek(max(size - _SAMPLE, 0))
            digest.update(file.read(_SAMPLE))
        found.append(f"{path.relative_to(folder)} {size} {digest.hexdigest()}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest() if found else ""


def _inside(folder: Path, name: str) -> str:
    """A file name from a manifest; refused if it leaves the folder."""
    if Path(name).name != name:
        raise CorruptAtlas(f"{folder / MANIFEST} names the file {name!r}, which lies outside the atlas. {AGAIN}")
    return name


def _locate(name: str) -> Path:
    pack = pack_folder(name)
    places = [pack / "atlas"] if pack else [Path(name).expanduser(), atlas_folder(name)]
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    raise UnknownRelease(
        f"there is no atlas {name!r}: looked for {MANIFEST} in {' and '.join(str(p) for p in places)}."
        f"{nearest(name, (*pack_names(), *known_releases()))} "
        f'Build it with `saeflow atlas build {name}`, or give "demo" or the folder of one.'
    )
