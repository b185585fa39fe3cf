"""Pages of results folders. No torch.

A folder may come from somebody else, so that nothing in it is sent as it is: its manifest and its summary are copied
to a place of their own, the page is drawn there from them (`paper.results` escapes every word), and that page and
its tables are sent, by numbers from a list. A path is never built from a request.

Drawing takes the processor for many seconds. So it is done outside of requests, by a process of its own, one page at a
time, and what was drawn is kept in saeflow's cache under the content of the two files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Final

from saeflow.errors import BadFile, SaeflowError
from saeflow.experiments.results import MANIFEST, SUMMARY, Results, SummaryTable
from saeflow.files import add_sha256, cache_folder, check_sha256, write_atomic
from saeflow.version import __version__
from saeflow.web.answers import ResultInfo
from saeflow.web.answers_bench import FileInfo, ResultFiles

_log = logging.getLogger("saeflow.web")
_TITLES: Final = {
    "origins": "Where active features come from",
    "deactivation": "Removing predecessors",
    "steering": "Steering along the flow",
}
_POLICY: Final = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
_DRAW: Final = """
import os, sys
from pathlib import Path
if hasattr(os, "nice"):
    os.nice(10)  # graphs and searches come first
from saeflow.paper.results import write_page
write_page(Path(sys.argv[1]))
"""
SECONDS: Final = 600.0
"""How long a page may take to be drawn."""

MOST_KEPT: Final = 32
"""Pages in saeflow's cache; the oldest go."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A file that can be downloaded."""

    name: str
    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Drawn:
    """A page with its own policy: it holds blocks whose hashes that names."""

    html: str
    policy: str


WAITING: Final = Drawn(
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>The figures are being drawn</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="refresh" content="2">'
    '<link rel="stylesheet" href="/static/report/palette.css"><link rel="stylesheet" href="/static/base.css">'
    '<link rel="stylesheet" href="/static/bench.css"></head>\n<body class="sheet"><p class="none" role="status">'
    "The figures of these results are being drawn, which takes a while the first time. They appear here by themselves."
    "</p></body></html>\n",
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
)
"""What is sent meanwhile."""


class Painter:
    """Draws pages, one at a time, each in a process of its own; keeps them in saeflow's cache."""

    def __init__(self) -> None:
        """Draw nothing yet."""
        self._jobs = ThreadPoolExecutor(1, thread_name_prefix="saeflow-draw")
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def drawing(self, source: Mapping[str, bytes]) -> Future[str]:
        """The page of a manifest and a summary as HTML: at once where it is kept, else when its turn comes.

        The future raises `BadFile` when it cannot be drawn.
        """
        told = [__version__, _painters(), *(hashlib.sha256(source[name]).hexdigest() for name in sorted(source))]
        kept = cache_folder() / "results" / f"{hashlib.sha256(repr(told).encode()).hexdigest()[:32]}.html"
        with suppress(OSError, ValueError):  # it is not there, or no longer what was written
            found: Future[str] = Future()
            found.set_result(check_sha256(kept.read_bytes()).decode())
            return found
        return self._jobs.submit(self._draw, dict(source), kept)

    def close(self) -> None:
        """Draw nothing more, and end what is drawn now."""
        self._closed = True
        self._jobs.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.kill()
        self._jobs.shutdown()

    def _draw(self, source: Mapping[str, bytes], kept: Path) -> str:
        with tempfile.TemporaryDirectory(prefix="saeflow-draw-") as folder:
            for name, data in source.items():
                (Path(folder) / name).write_bytes(data)
            self._process = subprocess.Popen(  # noqa: S603 - this Python, and a folder of its own
                [sys.executable, "-c", _DRAW, folder],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the server, which ends this
            )
            if self._closed:
                self._process.kill()
            try:
                _, said = self._process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                said = f"it took longer than {SECONDS:g} s"
            if self._process.wait():
                if not self._closed:
                    _log.error("a page of results was not drawn: %s", said)
                why = said.strip().rpartition("\n")[2][:300] or f"exit code {self._process.returncode}"
                raise BadFile(
                    f"the figures of these results cannot be drawn ({why}). Draw them with the run's command."
                )
            html = (Path(folder) / "index.html").read_text(encoding="utf-8")
        with suppress(OSError):  # then it is kept in memory alone
            write_atomic(kept, add_sha256(html.encode()))
            pages = sorted(kept.parent.glob("*.html"), key=lambda path: path.stat().st_mtime)
            for old in pages[:-MOST_KEPT]:
                old.unlink(missing_ok=True)
        return html


@cache
def _painters() -> str:
    """Changes when what draws pages does."""
    root = Path(str(files("saeflow.report")))
    told = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(root.rglob("*.*"))]
    return hashlib.sha256(repr(told).encode()).hexdigest()


class ResultsFolder:
    """A results folder under an id."""

    def __init__(self, number: int, folder: Path, painter: Painter) -> None:
        """Read the manifest; the page is drawn by `painter` when it is first asked for.

        Raises:
            BadFile: when the folder has no manifest that can be read.
        """
        self.id = str(number)
        self.folder = folder
        self._painter = painter
        self._lock = threading.Lock()
        self._stamps: list[tuple[int, int]] = []
        self._source: dict[str, bytes] = {}
        self._files: tuple[Offered, ...] = ()
        self._drawing: Future[str] | None = None
        self._record = Results.open(folder).record

    @property
    def kind(self) -> str:
        """The experiment."""
        return self._record.request.experiment

    def info(self) -> ResultInfo:
        """What a list says of it."""
        asked = self._record.request
        title = f"{_TITLES.get(asked.experiment, f'Results of {asked.experiment}')}: {asked.release}"
        finished = self._record.finished is not None
        return ResultInfo(id=self.id, title=title, kind=asked.experiment, finished=finished)

    def listed(self) -> ResultFiles:
        """The same with the files it offers, or why there are none."""
        problem = None
        offered: tuple[Offered, ...] = ()
        try:
            offered = self.files()
        except SaeflowError as error:
            problem = str(error)
        listed = [FileInfo(n=n, name=file.name, bytes=len(file.data)) for n, file in enumerate(offered)]
        return ResultFiles(**self.info().model_dump(), files=listed, problem=problem)

    def files(self) -> tuple[Offered, ...]:
        """The tables as CSV, in the order of the summary.

        Raises:
            BadFile: when there is no summary, or it cannot be read.
        """
        with self._lock:
            self._look()
            return self._files

    def page(self) -> Drawn:
        """The page, `WAITING` while it is being drawn; drawn again when the manifest or the summary changed.

        Raises:
            BadFile: when there is no summary, or it cannot be read or drawn.
        """
        with self._lock:
            self._look()
            if self._drawing is None:
                self._drawing = self._painter.drawing(self._source)
                self._source = {}
            if not self._drawing.done():
                return WAITING
            html = self._drawing.result()
        for number, file in enumerate(self._files):
            html = html.replace(f'href="tables/{file.name}"', f'href="/results/{self.id}/files/{number}"')
        policy = _POLICY.search(html)
        told = unescape(policy[1]) if policy else "default-src 'none'"
        return Drawn(html, f"{told}; frame-ancestors 'self'")

    def _look(self) -> None:
        """Read the manifest and the summary where one is new."""
        paths = [self.folder / name for name in (MANIFEST, SUMMARY)]
        try:
            stamps = [(told.st_size, told.st_mtime_ns) for told in (path.stat() for path in paths)]
        except OSError as error:
            raise BadFile(
                f"{paths[1]} cannot be read ({error.strerror}): the run has no tables yet. Let its command finish, or "
                "run it again."
            ) from None
        if stamps == self._stamps:
            return
        results = Results.open(self.folder)
        self._files = tuple(_csv(table) for table in results.tables().values())
        self._source = {path.name: path.read_bytes() for path in paths}
        self._record, self._stamps, self._drawing = results.record, stamps, None


def open_results(folders: Sequence[Path], painter: Painter) -> tuple[ResultsFolder, ...]:
    """The results folders under the ids "1", "2", ...

    Raises:
        BadFile: when one has no manifest that can be read.
    """
    return tuple(ResultsFolder(number, folder, painter) for number, folder in enumerate(folders, 1))


def _csv(table: SummaryTable) -> Offered:
    name = "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "-" for char in table.name)
    data = table.to_csv().encode("utf-8", "replace")
    return Offered(f"{name[:100] or 'table'}.csv", "text/csv; charset=utf-8", data)
