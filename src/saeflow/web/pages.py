"""Pages of results folders. No torch.

A folder may come from somebody else, so that nothing in it is sent as it is: its manifest and its summary are copied
to a place of their own, the page is drawn there from them (`report.results` escapes every word), and that page and
its tables are sent, by numbers from a list. A path is never built from a request.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Final

from saeflow.errors import BadFile, SaeflowError
from saeflow.experiments.results import MANIFEST, SUMMARY, Results, SummaryTable
from saeflow.web.answers import ResultInfo
from saeflow.web.answers_bench import FileInfo, ResultFiles

_TITLES: Final = {
    "origins": "Where active features come from",
    "deactivation": "Removing predecessors",
    "steering": "Steering along the flow",
}
_POLICY: Final = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')


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


class ResultsFolder:
    """A results folder under an id."""

    def __init__(self, number: int, folder: Path, scratch: Path) -> None:
        """Read the manifest; the page is drawn at the first need, in a folder of `scratch`.

        Raises:
            BadFile: when the folder has no manifest that can be read.
        """
        self.id = str(number)
        self.folder = folder
        self._scratch = scratch / self.id
        self._lock = threading.Lock()
        self._stamp = 0
        self._files: tuple[Offered, ...] = ()
        self._drawn: Drawn | None = None
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
        files = [FileInfo(n=n, name=file.name, bytes=len(file.data)) for n, file in enumerate(offered)]
        return ResultFiles(**self.info().model_dump(), files=files, problem=problem)

    def files(self) -> tuple[Offered, ...]:
        """The tables as CSV, in the order of the summary.

        Raises:
            BadFile: when there is no summary, or it cannot be read.
        """
        with self._lock:
            self._look()
            return self._files

    def page(self) -> Drawn:
        """The page; drawn again when the summary changed.

        Raises:
            BadFile: when there is no summary, or it cannot be read.
        """
        with self._lock:
            self._look()
            if self._drawn is None:
                self._drawn = self._draw()
            return self._drawn

    def _look(self) -> None:
        """Read the summary where it is new."""
        path = self.folder / SUMMARY
        try:
            stamp = path.stat().st_mtime_ns
        except OSError as error:
            raise BadFile(
                f"{path} cannot be read ({error.strerror}): the run has no tables yet. Let its command finish, or run "
                "it again."
            ) from None
        if stamp == self._stamp:
            return
        results = Results.open(self.folder)
        self._files = tuple(_csv(table) for table in results.tables().values())
        self._record, self._stamp, self._drawn = results.record, stamp, None

    def _draw(self) -> Drawn:
        from saeflow.report.results import write_page

        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        for name in (MANIFEST, SUMMARY):
            shutil.copyfile(self.folder / name, self._scratch / name)
        html = write_page(self._scratch).read_text(encoding="utf-8")
        for number, file in enumerate(self._files):
            html = html.replace(f'href="tables/{file.name}"', f'href="/results/{self.id}/files/{number}"')
        policy = _POLICY.search(html)
        told = unescape(policy[1]) if policy else "default-src 'none'"
        return Drawn(html, f"{told}; frame-ancestors 'self'")


def open_results(folders: Sequence[Path], scratch: Path) -> tuple[ResultsFolder, ...]:
    """The results folders under the ids "1", "2", ...

    Raises:
        BadFile: when one has no manifest that can be read.
    """
    return tuple(ResultsFolder(number, folder, scratch) for number, folder in enumerate(folders, 1))


def _csv(table: SummaryTable) -> Offered:
    name = "".join(
        char if char.isascii() and (char.isalnum() or char in "_-") else "-" for char in table.name
    )
    data = table.to_csv().encode("utf-8", "replace")
    return Offered(f"{name[:100] or 'table'}.csv", "text/csv; charset=utf-8", data)
