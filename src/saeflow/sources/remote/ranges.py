"""Byte ranges of a remote file on disk: one file per range, named by where it starts and stops.

    ranges/{etag}/{start}-{stop}            the bytes
    ranges/{etag}/{start}-{stop}.sha256     their hash on arrival, checked once per process before use
    ranges/{etag}/{start}-{stop}.part       the first bytes of a range, resumed by Range and If-Range
    ranges/{etag}/{start}-{stop}.part.tag   the entity tag of the file they come from

A range gets its final name when it is complete and passes its format's own check. Until then the bytes received are
kept, even if the process is killed. The folder is named by content, so that a new commit with the same file uses the
same ranges.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final, TypeAlias

from huggingface_hub.utils import WeakFileLock, tqdm

from saeflow.errors import BadFile, NoSpace, Unreachable
from saeflow.files import write_atomic
from saeflow.patience import STEP
from saeflow.sources.remote.hub_file import HubFile, resolve
from saeflow.sources.remote.transport import Cut, Patience, RangesIgnored, opened

Report: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of what is being fetched, the bytes received so far, and the total."""
Check: TypeAlias = Callable[[Path], bool]
"""Whether the bytes in a file pass the check of their format."""

_RESERVE: Final = 1 << 20
_REPORT: ContextVar[Report | None] = ContextVar("saeflow_remote_report", default=None)
_CHECKED: Final[set[tuple[str, int, int]]] = set()
"""Path, size and modification time of ranges whose sha256 this process has verified."""


@contextmanager
def reporting(report: Report) -> Generator[None]:
    """Inside the context, call `report(what, bytes received, total)` instead of showing progress bars."""
    before = _REPORT.set(report)
    try:
        yield
    finally:
        _REPORT.reset(before)


class Ranges:
    """The ranges of one remote file: those on this machine, and the means to fetch the others."""

    def __init__(self, root: Path, file: HubFile, *, patience: Patience | None = None) -> None:
        """`root` is saeflow's folder in the repository's cache."""
        self.file = file
        # use the tag as a folder name only if it is plain: a server must not choose a path
        plain = re.fullmatch("[0-9A-Za-z_-]{1,128}", file.etag)
        self.folder = root / "ranges" / (file.etag if plain else hashlib.sha256(file.etag.encode()).hexdigest())
        self._patience = patience or Patience()
        self._tag = ""

    def has(self, start: int, stop: int) -> bool:
        """Whether a whole range is on this machine; uses no network and reads no bytes."""
        path = self._path(start, stop)
        return path.is_file() and path.stat().st_size == stop - start

    def bytes_at(self, start: int, stop: int) -> bytes:
        """Fetch a small range, such as a header, to memory only. Raises RangesIgnored, Unreachable as `path` does."""
        failed = 0
        while True:
            try:
                with opened(self.file, start, stop) as answer:
                    data = b"".join(answer.pieces)
                    self._same(answer.tag)
                if len(data) == stop - start:
                    return data
                raise Cut(f"{len(data)} of {stop - start} bytes came")
            except Cut as cut:
                failed += 1
                self._patience.wait(self.file, failed, cut)

    def path(self, start: int, stop: int, what: str, *, check: Check | None = None) -> Path:
        """The file on disk that holds a range; missing bytes are fetched.

        Args:
            start: its first byte.
            stop: the byte after its last.
            what: what it holds, for messages and progress bars.
            check: called on the complete bytes after each download.

        Raises:
            RangesIgnored: when the server does not send ranges.
            Unreachable: when the server does not answer or refuses, or the file has changed in the meantime.
            NoSpace: when the disk cannot hold the range.
            BadFile: when the bytes fail `check` twice.
        """
        path = self._path(start, stop)
        if self.has(start, stop) and self._is_sound(path):
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_name(f"{path.name}.lock")):
            for _ in range(2):
                if self.has(start, stop) and self._is_sound(path):  # another process fetched it meanwhile
                    return path
                part = self._fill(start, stop, what)
                if check is None or check(part):
                    self._keep(part, path)
                    return path
                _forget(part)
        raise BadFile(
            f"{self.file}: {what} does not have the checksum that its own file gives, twice. The file on the hub is "
            "damaged, or what lies between changes it: fetch it another way and pass its folder."
        )

    def _path(self, start: int, stop: int) -> Path:
        return self.folder / f"{start}-{stop}"

    def _is_sound(self, path: Path) -> bool:
        """Whether the bytes on disk still have their recorded sha256; the file is removed if not."""
        at = path.stat()
        key = (str(path), at.st_size, at.st_mtime_ns)
        if key in _CHECKED:
            return True
        try:
            expected = path.with_name(f"{path.name}.sha256").read_text().strip()
        except OSError:
            expected = ""
        if sha256(path) != expected:
            path.unlink(missing_ok=True)
            return False
        _CHECKED.add(key)
        return True

    def _keep(self, part: Path, path: Path) -> None:
        with part.open("rb") as file:
            os.fsync(file.fileno())
        write_atomic(path.with_name(f"{path.name}.sha256"), sha256(part).encode())
        part.replace(path)
        _forget(part)
        at = path.stat()
        _CHECKED.add((str(path), at.st_size, at.st_mtime_ns))

    def _fill(self, start: int, stop: int, what: str) -> Path:
        """Append to the .part file until it is complete, and return it.

        Attempts are counted anew after each STEP of new bytes.
        """
        part, failed, size = self.folder / f"{start}-{stop}.part", 0, stop - start
        here = _here(part, size)
        self._check_space(size - here)
        got_on, again = here, 0
        with _progress(f"{what} of {Path(self.file.file).name}", here, size) as report:
            while here < size:
                try:
                    got = self._append(part, start, stop, here, report)
                    if got <= here:
                        raise Cut("the answer was empty")
                    if got < size:
                        raise Cut("the answer was short")
                    here = got
                except Cut as cut:
                    here = _here(part, size)
                    failed = 1 if here >= got_on + STEP else failed + 1
                    got_on = here if failed == 1 else got_on
                    self._patience.wait(self.file, failed, cut)
                except RangesIgnored:
                    again += 1
                    if here == 0 or again > 3:
                        raise
                    got_on = 0
                    _forget(part)  # the tag no longer matches: the bytes on disk may be of another file
                    here = 0
                    report(0, size)
        return part

    def _append(self, part: Path, start: int, stop: int, here: int, report: Callable[[int, int], None]) -> int:
        tag_file = part.with_name(f"{part.name}.tag")
        tag = tag_file.read_text() if here and tag_file.is_file() else ""
        with opened(self.file, start + here, stop, tag=tag) as answer:
            self._same(answer.tag)
            if not here:
                write_atomic(tag_file, answer.tag.encode())
            with part.open("r+b" if here else "wb") as file:
                file.seek(here)
                file.truncate()
                for piece in answer.pieces:
                    file.write(piece[: stop - start - here])
                    file.flush()  # the operating system has the bytes now, so they survive a kill
                    here = min(here + len(piece), stop - start)
                    report(here, stop - start)
        return here

    def _same(self, tag: str) -> None:
        """If a response has another tag than those before it, ask the hub whether the file is still the same.

        Raises:
            Unreachable: when the file has changed.
        """
        if tag and self._tag and tag != self._tag:
            now = resolve(self.file.repo, self.file.file, self.file.commit)
            if now is None or now.etag != self.file.etag:
                raise Unreachable(
                    f"{self.file} changed while it was fetched: it was {self.file.etag}, and is "
                    f"{'unknown' if now is None else now.etag}. Load the release again."
                )
        self._tag = tag or self._tag

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed + _RESERVE:
            raise NoSpace(
                f"{self.file}: {needed / 1e6:,.1f} MB are to be fetched, and {free / 1e6:,.1f} MB are free on the disk "
                f"of {self.folder}. Free some, or set HF_HUB_CACHE to a folder on a larger disk."
            )


def _here(part: Path, size: int) -> int:
    """How many bytes of a range are on disk; 0 for a .part longer than the range, which is of something else."""
    here = part.stat().st_size if part.is_file() else 0
    return here if here <= size else 0


def _forget(part: Path) -> None:
    for path in (part, part.with_name(f"{part.name}.tag")):
        path.unlink(missing_ok=True)


def sha256(*paths: Path) -> str:
    """The sha256 of the concatenated files. Raises OSError when one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _progress(what: str, here: int, size: int) -> Generator[Callable[[int, int], None]]:
    """Report to `reporting`, else show a bar like huggingface_hub's own (off with HF_HUB_DISABLE_PROGRESS_BARS)."""
    report = _REPORT.get()
    if report is not None:
        report(what, here, size)
        yield lambda done, total: report(what, done, total)
        return
    with tqdm(desc=what, total=size, initial=here, unit="B", unit_scale=True, name="huggingface_hub.http_get") as bar:

        def moved(done: int, total: int) -> None:  # noqa: ARG001
            bar.update(done - int(bar.n))

        yield moved
