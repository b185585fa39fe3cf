"""A hub and its CDN on this machine: two hosts that speak what huggingface.co speaks, and count every byte.

The hub answers HEAD and GET of /{repo}/resolve/{revision}/{file}: small files itself, large ones by a redirect
to the CDN, with X-Repo-Commit, X-Linked-Etag and X-Linked-Size. The CDN serves ranges, or does what `faults`
says: ignores ranges, cuts answers off, says to come later. Everything asked is in `log`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    import pytest

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_sesame"  # noqa: S105


@dataclass
class Request:
    method: str
    where: str  # "hub" or "cdn"
    path: str
    range: str
    if_range: str
    token: str
    host: str


@dataclass
class Hub:
    """What is served, how, and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)  # "repo/file" -> bytes
    gated: set[str] = field(default_factory=set)  # repos that need TOKEN
    refused: set[str] = field(default_factory=set)  # repos that refuse TOKEN too
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes after which the next answers end
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # statuses of the next answers
    etags: bool = True
    revision_etag: str = ""  # appended to the CDN's entity tags
    commits: bool = True
    pause_after: list[int] = field(default_factory=list)  # bytes after which the next answers wait for `go_on`
    go_on: threading.Event = field(default_factory=threading.Event)
    says: dict[str, str] = field(default_factory=dict)  # headers of the hub's answers, in place of the true ones
    endless: set[str] = field(
        default_factory=set
    )  # "hub", "cdn", "error", "redirect": whose bodies never end, within reason
    drips: set[str] = field(default_factory=set)  # "hub", "cdn": whose headers come a byte at a time
    small: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # next answers to GET of the hub
    log: list[Request] = field(default_factory=list)
    served: int = 0  # bytes of large files
    hub_url: str = ""
    cdn_url: str = ""

    def asked(self, method: str = "GET", where: str = "cdn") -> list[Request]:
        return [one for one in self.log if (one.method, one.where) == (method, where)]

    def put(self, repo: str, folder: Path) -> None:
        """Serve every file of a folder as a repository."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.files[f"{repo}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    def forget(self) -> None:
        self.log.clear()
        self.served = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    where: str

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, method: str) -> None:
        told = self.headers
        request = Request(
            method,
            self.where,
            self.path,
            told.get("Range", ""),
            told.get("If-Range", ""),
            told.get("Authorization", ""),
            told.get("Host", ""),
        )
        if self.where == "cdn" or "/resolve/" in self.path:  # not what huggingface_hub asks for its own ends
            self.hub.log.append(request)
        (self._hub if self.where == "hub" else self._cdn)(method)

    def end_headers(self) -> None:
        if self.where in self.hub.drips:
            with contextlib.suppress(OSError):
                for byte in b"".join(self._headers_buffer)[:100]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
        super().end_headers()

    def _pour(self) -> None:
        """More than anybody asked for, and more than any test waits for."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            for _ in range(2000):
                self.wfile.write(bytes(1 << 16))
                self.hub.served += 1 << 16

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        if self.where == "hub":
            headers = headers | self.hub.says
        endless = (
            self.command == "GET" and {2: self.where, 3: "redirect"}.get(status // 100, "error") in self.hub.endless
        )
        if endless:
            headers = {name: value for name, value in headers.items() if name != "Content-Length"}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self._pour()
            return
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _hub(self, method: str) -> None:
        repo, _, rest = unquote(self.path).lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        token = self.headers.get("Authorization", "")
        if repo in self.hub.refused or (repo in self.hub.gated and token != f"Bearer {TOKEN}"):
            code = 403 if token else 401
            self._send(code, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {repo} is restricted"})
            return
        data = self.hub.files.get(f"{repo}/{file}")
        if data is None or revision not in ("main", COMMIT):
            missing = any(name.startswith(f"{repo}/") for name in self.hub.files)
            self._send(404 if missing else 401, {"X-Error-Code": "EntryNotFound" if missing else "RepoNotFound"})
            return
        if method == "GET" and self.hub.small and not file.endswith((".npz", ".safetensors", ".pt")):
            self._send(*self.hub.small.pop(0))
            return
        digest = hashlib.sha256(data).hexdigest()
        commit = {"X-Repo-Commit": COMMIT} if self.hub.commits else {}
        if file.endswith((".npz", ".safetensors", ".pt")):
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            self._send(302, {**commit, **linked, "Location": f"{self.hub.cdn_url}/{repo}/{file}?signed=1"})
            return
        self._send(
            200,
            {**commit, "ETag": f'"{digest[:40]}"'} | ({} if method == "GET" else {"Content-Length": str(len(data))}),
            data,
        )

    def _cdn(self, method: str) -> None:
        if self.hub.answers:
            status, headers = self.hub.answers.pop(0)
            self._send(status, headers)
            return
        data = self.hub.files[unquote(self.path).lstrip("/").partition("?")[0]]
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}{self.hub.revision_etag}"'
        headers = {"ETag": tag} if self.hub.etags else {}
        asked = self.headers.get("Range", "")
        same = self.headers.get("If-Range", tag) == tag
        start, stop, status = 0, len(data), 200
        if asked and self.hub.ranges and same:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last or len(data)) + 1, len(data)), 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        body = data[start:stop]
        if "cdn" in self.hub.endless and method == "GET":
            self._send(status, headers)
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if method != "GET":
            return
        cut = self.hub.cut_after.pop(0) if self.hub.cut_after and len(body) > 1 << 14 else len(body)
        pause = self.hub.pause_after.pop(0) if self.hub.pause_after and len(body) > 1 << 14 else len(body)
        try:
            for at in range(0, min(cut, len(body)), 1 << 12):
                if at >= pause:
                    self.wfile.flush()
                    self.hub.go_on.wait(20)
                    pause = len(body)
                piece = body[at : min(at + (1 << 12), cut)]
                self.wfile.write(piece)
                self.hub.served += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if cut < len(body):
            self.close_connection = True


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:  # a client that was killed is no error of the server
        pass


@contextmanager
def serving() -> Generator[Hub]:
    """A hub at 127.0.0.1 and its CDN at localhost, which is another host."""
    hub = Hub()
    servers = []
    for where, host in (("hub", "127.0.0.1"), ("cdn", "localhost")):
        handler = type("Handler", (_Handler,), {"hub": hub, "where": where})
        server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        setattr(hub, f"{where}_url", f"http://{host}:{server.server_address[1]}")
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def point_at(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub use this hub and a cache of its own, without a token."""
    # not at the head: HF_ENDPOINT is read at import, and benchmarks set it first
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", hub.hub_url)
    template = hub.hub_url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # before 1.0 the second holds a copy
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SAEFLOW_WHOLE_FILES"):
        monkeypatch.delenv(name, raising=False)
    forget_session()


def forget_session() -> None:
    """Have huggingface_hub make its HTTP session anew: `close_session` since 1.0, `reset_sessions` before."""
    import huggingface_hub

    if "close_session" in dir(huggingface_hub):
        huggingface_hub.close_session()
    else:
        huggingface_hub.utils.reset_sessions()


def recipe(path: Path, lines: str, *, layers: int = 3, model: str = "me/model") -> str:
    """Write a recipe; returns its path as `load_dictionaries` takes it."""
    path.write_text(f'model = "{model}"\nlayers = {layers}\n{lines}')
    return str(path)
