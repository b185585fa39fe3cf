"""The public exports of Neuronpedia: what files there are, and fetching them. No torch.

    v1/{model}/{source}/{explanations|features|activations}/batch-{n}.jsonl.gz

Listed with S3's XML interface (version 2), which Google's storage speaks too. A folder on this machine with the same
tree, such as `aws s3 sync --no-sign-request` leaves, can stand in for the bucket.
"""

from __future__ import annotations

import enum
import json
import re
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from saeflow.errors import BadFile, Unreachable
from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.labels.http import Fetcher, Received
from saeflow.labels.sources import Source
from saeflow.patience import LARGEST
from saeflow.reading import parse_json, read_bytes

BUCKET: Final = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
"""Where Neuronpedia keeps its exports."""

_MOST_PAGES: Final = 10_000


class Kind(enum.StrEnum):
    """What a file of the exports holds."""

    EXPLANATIONS = "explanations"
    """Descriptions: small."""
    FEATURES = "features"
    """How often a feature fires, and what it promotes, with histograms that are not kept."""
    ACTIVATIONS = "activations"
    """Passages it fires on: far larger than the others."""


# One source may keep the explanations of each model in a folder of its own, such as explanations-gpt-4o-mini.
_FILE: Final = re.compile(
    r"(?P<kind>explanations|features|activations)(-[\w.-]+)?/batch-(?P<number>[0-9]{1,9})\.jsonl\.gz"
)


@dataclass(frozen=True, slots=True)
class Export:
    """A file of a source: its kind, its key in the bucket and its size in bytes."""

    kind: Kind
    key: str
    size: int


@dataclass(frozen=True)
class Bucket:
    """Where exports are, and where fetched ones are kept.

    Attributes:
        place: an address, or a folder with the same tree.
        folder: where lists and files go.
        fetcher: makes the requests.
        offline: use only what is in `folder`.
    """

    place: str
    folder: Path
    fetcher: Fetcher
    offline: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether the exports are on this machine."""
        return not self.place.startswith(("http://", "https://"))

    def exports(self, source: Source) -> tuple[Export, ...]:
        """The files of a source, by kind and number; empty when it has none.

        Raises:
            Unreachable: when the bucket does not answer, is no folder, or may not be asked (offline).
            BadFile: when its list cannot be read.
        """
        prefix = f"v1/{source}/"
        if self.is_folder:
            listed = self._in_folder(prefix)
        elif self.offline:
            listed = self._kept_list(source)
        else:
            listed = list(self._listed(prefix))
            kept = json.dumps([[key, size] for key, size in listed]).encode()
            write_atomic(self._list_path(source), add_sha256(kept))
        found: list[tuple[Kind, str, int, Export]] = []
        for key, size in listed:
            told = _FILE.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
            if told is not None:
                kind = Kind(told["kind"])
                found.append((kind, key.rsplit("/", 1)[0], int(told["number"]), Export(kind, key, size)))
        return tuple(export for *_, export in sorted(found, key=lambda row: row[:3]))

    def is_here(self, export: Export) -> bool:
        """Whether a file is on this machine already."""
        path = self.path(export)
        return path.is_file() and path.stat().st_size == export.size

    def path(self, export: Export) -> Path:
        """Where a file is, or will be."""
        return (Path(self.place) if self.is_folder else self.folder) / export.key

    def fetch(self, export: Export, received: Received | None = None) -> Path:
        """The file on this machine, fetched where it is not.

        Raises:
            Unreachable: when it must be fetched and cannot be.
            BadFile: when it does not have the size that was announced.
        """
        path = self.path(export)
        if self.is_here(export) or self.is_folder:
            return path
        if self.offline:
            raise Unreachable(
                f"{export.key} is not on this machine, and saeflow is offline. Fetch it where there is a network."
            )
        url = f"{self.place.rstrip('/')}/{urllib.parse.quote(export.key)}"
        self.fetcher.download(url, path, size=export.size, received=received)
        return path

    def forget(self, export: Export) -> None:
        """Delete a fetched file; a folder that stands in for the bucket is left as it is."""
        if not self.is_folder:
            self.path(export).unlink(missing_ok=True)

    def _in_folder(self, prefix: str) -> list[tuple[str, int]]:
        root = Path(self.place)
        if not root.is_dir():
            raise Unreachable(f"{self.place} is neither a web address nor a folder. Give one that holds v1/.")
        files = sorted(path for path in (root / prefix).rglob("*.jsonl.gz") if path.is_file())
        return [(path.relative_to(root).as_posix(), path.stat().st_size) for path in files]

    def _list_path(self, source: Source) -> Path:
        return self.folder / "lists" / source.model / f"{source.id}.json"

    def _kept_list(self, source: Source) -> list[tuple[str, int]]:
        path = self._list_path(source)
        try:
            return [(str(key), int(size)) for key, size in parse_json(check_sha256(read_bytes(path)))]
        except FileNotFoundError:
            raise Unreachable(
                f"what files {source} has was never asked from this machine, and saeflow is offline. Fetch it "
                "where there is a network."
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise BadFile(f"{path} is no list of files ({error!r}). Delete it, and fetch again.") from None

    def _listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Keys and sizes under a prefix, page by page."""
        token = ""
        for _ in range(_MOST_PAGES):
            query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
            url = f"{self.place.rstrip('/')}/?{urllib.parse.urlencode(query)}"
            data = self.fetcher.get(url)
            if data is None:
                raise Unreachable(f"{url} does not exist (404). Check the address of the bucket.")
            page, token = _page(data, url)
            yield from page
            if not token:
                return
        raise BadFile(f"the list of {self.place}/{prefix} does not end. Check the address of the bucket.")


def _page(data: bytes, url: str) -> tuple[list[tuple[str, int]], str]:
    """Keys and sizes of one page of a list, and the token of the next; no token on the last."""
    try:
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # a list has neither, and entities can grow without bound
            raise ValueError("it defines entities")
        root = ET.fromstring(data)  # noqa: S314 - without entities, see above
        if _name(root) != "ListBucketResult":
            raise ValueError(f"it is a {_name(root)}")
        found: list[tuple[str, int]] = []
        for entry in root:
            if _name(entry) == "Contents":
                told = {_name(field): field.text or "" for field in entry}
                if not (told["Size"].isdecimal() and int(told["Size"][:19]) <= LARGEST):
                    raise ValueError(f"a file of {told['Size'][:30]} bytes")
                found.append((told["Key"], int(told["Size"])))
        ends = {_name(field): field.text or "" for field in root}
        more = ends.get("IsTruncated", "false").strip().lower() == "true"
        return found, ends["NextContinuationToken"] if more else ""
    except (ET.ParseError, ValueError, KeyError) as error:
        raise BadFile(f"{url} is no list of files ({error}). Check the address of the bucket.") from None


def _name(element: ET.Element) -> str:
    """A tag without its namespace."""
    return element.tag.rsplit("}", 1)[-1]
