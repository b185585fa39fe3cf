"""What speaks like Neuronpedia and its bucket, on this machine: features, lists, files with ranges, faults."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

PAGE = 3


@dataclass
class Fault:
    """What goes wrong with one request: a status, a body, a cut after some bytes, seconds between bytes, no end."""

    status: int = 200
    body: bytes | None = None
    cut: int | None = None
    drip: float = 0.0
    endless: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Service:
    """What is served, what goes wrong next at an address that holds a text, and what was asked for."""

    features: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    served: int = 0  # bytes of faults that drip or do not end

    def fail(self, where: str, *faults: Fault) -> None:
        self.faults += [(where, fault) for fault in faults]

    def next_fault(self, path: str) -> Fault | None:
        for place, (where, fault) in enumerate(self.faults):
            if where in path:
                del self.faults[place]
                return fault
        return None

    def add(self, key: str, rows: list[Any]) -> None:
        self.files[key] = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)

    def paths(self, part: str = "") -> list[str]:
        return [path for path, _ in self.asked if part in path]


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"

    def log_message(self, *told: Any) -> None:
        pass

    def do_GET(self) -> None:
        service = self.service
        service.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        fault = service.next_fault(self.path)
        status, headers, body = self._answer()
        if fault is not None:
            status = fault.status if fault.status != 200 else status
            body = fault.body if fault.body is not None else body
            headers = headers | fault.headers
        self.send_response(status)
        endless = fault is not None and fault.endless
        length = {} if endless else {"Content-Length": str(len(body))}
        for name, value in (length | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if fault is not None and (endless or fault.drip):
            self.close_connection = True
            with contextlib.suppress(OSError):
                for n in range(2000 if endless else len(body)):
                    self.wfile.write(bytes(1 << 16) if endless else body[n : n + 1])
                    service.served += 1 << 16 if endless else 1
                    time.sleep(fault.drip)
            return
        cut = len(body) if fault is None or fault.cut is None else fault.cut
        self.wfile.write(body[:cut])
        if cut < len(body):
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        if address.path.startswith("/api/feature/"):
            told = self.service.features.get(address.path.removeprefix("/api/feature/"))
            return (404, {}, b"not found") if told is None else (200, {}, json.dumps(told).encode())
        if query.get("list-type") == "2":
            return 200, {"Content-Type": "application/xml"}, self._page(query)
        return self._file(urllib.parse.unquote(address.path[1:]))

    def _page(self, query: dict[str, str]) -> bytes:
        keys = sorted(key for key in self.service.files if key.startswith(query["prefix"]))
        start = int(query.get("continuation-token", "0"))
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.service.files[key])}</Size></Contents>"
            for key in keys[start : start + PAGE]
        )
        more = start + PAGE < len(keys)
        token = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        ).encode()

    def _file(self, key: str) -> tuple[int, dict[str, str], bytes]:
        data = self.service.files.get(key)
        if data is None:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if found and self.headers.get("If-Range") == tag:
            start = int(found[1])
            if start >= len(data):
                return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
            told = {"ETag": tag, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            return 206, told, data[start:]
        return 200, {"ETag": tag}, data


@contextmanager
def serving() -> Iterator[Service]:
    """A service on a free port of this machine."""
    service = Service()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": service}))
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
