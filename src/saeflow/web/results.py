"""Results folders: their pages and tables, and the origin groups of features from a run of `saeflow origins`. No torch.

A folder may come from somebody else, so none of its files is sent as is. Its manifest and summary are copied to a
temporary folder, the page is drawn there from them (`paper.results` escapes every word), and the server sends that page
and its tables, which requests address by number. No path is ever built from a request.

Drawing a page keeps a processor core busy for many seconds. So it is done outside of requests, in a separate process,
one page at a time, and the drawn page is cached under a hash of the two files and the drawing code.

The rows of an origins run are read in the background after the start; a feature card requested earlier waits for them.
A feature's shares are over all its observations; their intervals are over texts (saeflow.experiments.statistics), and
are missing where all observations come from one text.
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
from functools import cache
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from saeflow.errors import BadFile, SaeflowError
from saeflow.experiments.groups import GROUPS
from saeflow.experiments.results import MANIFEST, SUMMARY, Results
from saeflow.files import add_sha256, cache_folder, check_sha256, write_atomic
from saeflow.ids import FeatureId, Part
from saeflow.version import __version__
from saeflow.web.responses import FileInfo, OriginGroups, OriginShares, ResultFiles, ResultInfo, ShareInterval

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger("saeflow.web")
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
"""How long drawing one page may take."""

MOST_PAGES: Final = 32
"""Pages kept in saeflow's cache; the oldest are deleted first."""


_WAITING_HTML: Final = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>The figures are being drawn</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="refresh" content="2">'
    '<link rel="stylesheet" href="/static/report/palette.css"><link rel="stylesheet" href="/static/base.css">'
    '<link rel="stylesheet" href="/static/steer.css"></head>\n<body class="sheet"><p class="none" role="status">'
    "The figures of these results are being drawn, which takes a while the first time. They appear here by themselves."
    "</p></body></html>\n"
)
WAITING: Final = (
    _WAITING_HTML,
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
)
"""The page sent while the figures are being drawn, and its content security policy."""


class Painter:
    """Draws pages one at a time, each in a separate process, and keeps them in saeflow's cache."""

    def __init__(self) -> None:
        """Start with no page drawn."""
        self._jobs = ThreadPoolExecutor(1, thread_name_prefix="saeflow-draw")
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def drawing(self, source: Mapping[str, bytes]) -> Future[str]:
        """The HTML page of a manifest and a summary: at once if it is cached, else when its turn comes.

        The future raises `BadFile` when the page cannot be drawn.
        """
        facts = [__version__, _painters(), *(hashlib.sha256(source[name]).hexdigest() for name in sorted(source))]
        kept = cache_folder() / "results" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.html"
        with suppress(OSError, ValueError):  # not cached, or the cached file is damaged
            found: Future[str] = Future()
            found.set_result(check_sha256(kept.read_bytes()).decode())
            return found
        return self._jobs.submit(self._draw, dict(source), kept)

    def close(self) -> None:
        """Cancel the waiting pages, and kill the process that is drawing."""
        self._closed = True
        self._jobs.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.kill()
        self._jobs.shutdown()

    def _draw(self, source: Mapping[str, bytes], kept: Path) -> str:
        with tempfile.TemporaryDirectory(prefix="saeflow-draw-") as folder:
            for name, data in source.items():
                (Path(folder) / name).write_bytes(data)
            self._process = subprocess.Popen(  # noqa: S603 - this Python interpreter, in a temporary folder
                [sys.executable, "-c", _DRAW, folder],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches the server only, which kills this process
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
        with suppress(OSError):  # if it cannot be cached, the page stays in memory only
            write_atomic(kept, add_sha256(html.encode()))
            pages = sorted(kept.parent.glob("*.html"), key=lambda path: path.stat().st_mtime)
            for old in pages[:-MOST_PAGES]:
                old.unlink(missing_ok=True)
        return html


@cache
def _painters() -> str:
    """A hash that changes whenever the code that draws pages changes."""
    paths = [path for name in ("saeflow.paper", "saeflow.report") for path in Path(str(files(name))).rglob("*.*")]
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class ResultsFolder:
    """A results folder, served under an id."""

    def __init__(self, number: int, folder: Path, painter: Painter) -> None:
        """Read the manifest; `painter` draws the page at its first request.

        Raises:
            BadFile: when the folder has no readable manifest.
        """
        self.id = str(number)
        self.folder = folder
        self._painter = painter
        self._lock = threading.Lock()
        self._stamps: list[tuple[int, int]] = []
        self._source: dict[str, bytes] = {}
        self._files: tuple[tuple[str, bytes], ...] = ()
        self._drawing: Future[str] | None = None
        self._record = Results.open(folder).record

    @property
    def experiment(self) -> str:
        """The name of the experiment: "origins", "deactivation", "steering"."""
        return self._record.request.experiment

    def info(self) -> ResultInfo:
        """Its entry in the list of results."""
        title, finished = self._record.request.title, self._record.finished is not None
        return ResultInfo(id=self.id, title=title, kind=self.experiment, finished=finished)

    def listed(self) -> ResultFiles:
        """Its entry with the files it offers, or the reason why there are none."""
        problem = None
        files: tuple[tuple[str, bytes], ...] = ()
        try:
            files = self.files()
        except SaeflowError as error:
            problem = str(error)
        listed = [FileInfo(n=n, name=name, bytes=len(data)) for n, (name, data) in enumerate(files)]
        return ResultFiles(**self.info().model_dump(), files=listed, problem=problem)

    def files(self) -> tuple[tuple[str, bytes], ...]:
        """The name and CSV content of each table, in the order of the summary.

        Raises:
            BadFile: when the summary is missing or cannot be read.
        """
        with self._lock:
            self._refresh()
            return self._files

    def page(self) -> tuple[str, str]:
        """The page and its content security policy, which lists the hashes of its blocks; `WAITING` while it is drawn.

        The page is drawn again after the manifest or the summary has changed.

        Raises:
            BadFile: when the summary is missing, or cannot be read or drawn.
        """
        with self._lock:
            self._refresh()
            if self._drawing is None:
                self._drawing = self._painter.drawing(self._source)
                self._source = {}
            if not self._drawing.done():
                return WAITING
            try:
                html = self._drawing.result()
            except SaeflowError:
                self._stamps = []  # the next request reads and draws again
                raise
        for number, (name, _) in enumerate(self._files):
            html = html.replace(f'href="tables/{name}"', f'href="/results/{self.id}/files/{number}"')
        return html, framed_policy(html)

    def _refresh(self) -> None:
        """Read the manifest and the summary again if either has changed."""
        paths = [self.folder / name for name in (MANIFEST, SUMMARY)]
        try:
            stamps = [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in paths)]
        except OSError as error:
            raise BadFile(
                f"{paths[1]} cannot be read ({error.strerror}): the run has no tables yet. Let its command finish, or "
                "run it again."
            ) from None
        if stamps == self._stamps:
            return
        results = Results.open(self.folder)
        self._files = tuple(
            (_file_name(table.name), table.to_csv().encode("utf-8", "replace")) for table in results.tables().values()
        )
        self._source = {path.name: path.read_bytes() for path in paths}
        self._record, self._stamps, self._drawing = results.record, stamps, None


def framed_policy(html: str) -> str:
    """The page's content security policy, with the hashes of its blocks, extended to allow this site to frame it."""
    policy = _POLICY.search(html)
    return (unescape(policy[1]) if policy else "default-src 'none'") + "; frame-ancestors 'self'"


def open_results(folders: Sequence[Path], painter: Painter) -> tuple[ResultsFolder, ...]:
    """The results folders under the ids "1", "2", ...

    Raises:
        BadFile: when a folder has no readable manifest.
    """
    return tuple(ResultsFolder(number, folder, painter) for number, folder in enumerate(folders, 1))


def _file_name(table: str) -> str:
    name = "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "-" for char in table)
    return f"{name[:100] or 'table'}.csv"


class Origins:
    """How often each feature fell into each group of appendix A.1, from one results folder.

    Attributes:
        problem: why the rows cannot be used; empty when they can, or have not been read yet.
    """

    def __init__(self, folder: Path, result: str) -> None:
        """`result` is the id of the results folder in the explorer."""
        self._folder, self._result = folder, result
        self._seen: pd.DataFrame | None = None
        self._method = ""
        self._counts: Mapping[tuple[int, int], tuple[int, ...]] = {}
        self._ready = threading.Event()
        self.problem = ""

    def shares(self, feature: FeatureId) -> OriginShares | None:
        """The shares of a feature; None when it was never observed or the rows have not been read yet."""
        counts = self._counts.get((feature.layer, feature.index)) if feature.part is Part.RES else None
        if counts is None:
            return None
        n = sum(counts)
        return OriginShares(n=n, shares={group: c / n for group, c in zip(GROUPS, counts, strict=True) if c})

    def groups(self, feature: FeatureId, timeout: float = 60.0) -> OriginGroups | None:
        """The shares of a feature with their intervals; waits for the rows, and is None when it was never observed."""
        self._ready.wait(timeout)
        seen = self._seen
        if seen is None or (feature.layer, feature.index) not in self._counts or feature.part is not Part.RES:
            return None
        from saeflow.experiments.statistics import TEXT, shares

        rows = seen[(seen["layer"] == feature.layer) & (seen["feature"] == feature.index)]
        found = shares(rows, [], self._method).astype(object)
        return OriginGroups(
            n=len(rows),
            texts=len(rows.drop_duplicates(TEXT)),
            method=self._method,
            result=self._result,
            shares={
                line[self._method]: ShareInterval(share=line["share"], low=line["low"], high=line["high"])
                for line in found.where(found.notna(), None).to_dict("records")
                if line["share"]
            },
        )

    def read(self) -> None:
        """Read the rows; on failure, store the reason in `problem`."""
        # pandas is imported here, in a background thread, so that it does not delay the start
        from saeflow.experiments.origins_tables import counts_by_feature, methods_of, observations

        try:
            seen = observations(Results.open(self._folder).rows())
            self._method = methods_of(seen)[0]
            counts = counts_by_feature(seen, self._method)
            self._counts = dict(zip(counts.index.tolist(), map(tuple, counts.to_numpy().tolist()), strict=True))
            self._seen = seen
        except (SaeflowError, OSError, KeyError, ValueError) as error:
            self.problem = str(error)
        finally:
            self._ready.set()
