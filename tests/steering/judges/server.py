"""A real HTTP server on this machine that speaks the chat API, and misbehaves as a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-0123456789"


@dataclass
class Asked:
    """A request as it came in."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    at: float

    @property
    def messages(self) -> list[dict[str, str]]:
        return self.body["messages"]

    @property
    def text(self) -> str:
        """The text to judge, out of the first question."""
        return self.messages[1]["content"].split('"""\n')[1].removesuffix("\n")


@dataclass
class Reply:
    """What goes back after `delay` seconds: a body, nothing (`cut`), the first bytes of one (`torn`), more and more
    (`endless`), or all byte by byte, headers too, `drip` seconds between them."""

    body: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    torn: bool = False
    endless: bool = False
    drip: float = 0.0


def says(content: str | None) -> Reply:
    """A good response in which the model says something."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return Reply(json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}))


def marks(coherence: int, behavioral: int | list[int]) -> Reply:
    return says(json.dumps({"coherence": coherence, "behavioral": behavioral}))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.under_way = self.most = self.poured = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            asked = Asked(
                len(self.server.asked), body, {k.lower(): v for k, v in self.headers.items()}, time.monotonic()
            )
            self.server.asked.append(asked)
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        try:
            self.reply(self.server.answer(asked))
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def reply(self, reply: Reply) -> None:
        time.sleep(reply.delay)
        self.close_connection = True
        if reply.cut:
            return
        data = reply.body.encode()
        if reply.drip:
            with contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + data:
                    self.wfile.write(bytes([byte]))
                    time.sleep(reply.drip)
            return
        if reply.endless:
            self.send_response(reply.status)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(2000):
                    self.wfile.write(b" " * (1 << 16))
                    self.server.poured += 1 << 16
            return
        self.send_response(reply.status)
        for name, value in ({"content-type": "application/json"} | reply.headers).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data) + 100 * reply.torn))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *told: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serving(answer: Callable[[Asked], Reply]):
    """A server for the time of the block."""
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def after(*first: Reply, then: Callable[[Asked], Reply]) -> Callable[[Asked], Reply]:
    """These replies in turn, and then what `then` says."""
    waiting = list(first)
    lock = threading.Lock()

    def answer(asked: Asked) -> Reply:
        with lock:
            reply = waiting.pop(0) if waiting else None
        return reply or then(asked)

    return answer
