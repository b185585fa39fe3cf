"""Access control and request limits: an ASGI middleware in front of everything else. No torch, no framework.

The server listens on the loopback interface only, but other users of the machine and any page in a browser can reach
that too. So every request needs the token from the printed address (as a cookie or a bearer token), this server's Host
(against DNS rebinding), no foreign Origin, and a body of bounded size, which is read here before a route sees it. A
bounded number of requests runs at a time; further ones wait in a first-come, first-served queue, for a bounded time at
most and only while their client stays connected.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Default headers; a response that sets one of them keeps its own value."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one server accepts.

    Attributes:
        body: maximum size of a request body, in bytes.
        query: maximum length of the query string, in bytes.
        at_work: requests handled at a time.
        waiting: requests that may wait for their turn; further ones are refused with 503.
        seconds: how long a request body may take to arrive.
        turn: how many seconds a request waits for its turn before it is refused with 503.
    """

    body: int = 256_000
    query: int = 8_000
    at_work: int = 32
    waiting: int = 500
    seconds: float = 10.0
    turn: float = 120.0


class Refused(Exception):
    """A request that the middleware refuses, with a status, what is wrong and what to do."""

    def __init__(self, status: int, error: str, what_to_do: str, **headers: str) -> None:
        """`headers` are additional response headers, with `_` in place of `-`."""
        super().__init__(error)
        self.status, self.error, self.what_to_do = status, error, what_to_do
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Access:
    """The middleware; see the module docstring."""

    def __init__(self, app: App, *, token: str, port: int, limits: Limits | None = None) -> None:
        """Guard `app`, which is served on `port` of 127.0.0.1."""
        self._app = app
        self._token = token.encode()
        self._hosts = frozenset(f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost"))
        self._origins = frozenset(b"http://" + host for host in self._hosts)
        self._cookie = cookie_name(port)
        self._limits = limits or Limits()
        self._turns = asyncio.Semaphore(self._limits.at_work)
        self._waiting = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on to the application."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        guarded = _with_headers(send)
        try:
            if self._is_entrance(scope):
                await self._enter(scope, guarded)
                return
            self._check(scope)
            body = await self._whole_body(scope, receive)
            if not await self._take_turn(receive):
                return
        except Refused as refused:
            await answer(guarded, refused)
            return
        try:
            await self._app(scope, _replayed(body, receive), guarded)
        finally:
            self._turns.release()

    def _check(self, scope: Message) -> None:
        headers = _headers(scope)
        self._check_place(headers)
        if not self._knows_token(headers):
            raise Refused(
                401,
                "this request has no token of this server, or another one's.",
                "Open the address that `saeflow serve` printed, or send the header `Authorization: Bearer TOKEN`.",
                www_authenticate="Bearer",
            )
        if len(scope["query_string"]) > self._limits.query:
            raise Refused(
                414,
                f"the query of {len(scope['query_string'])} bytes is longer than {self._limits.query}.",
                "Ask for less at once.",
            )
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
            if kind != b"application/json":
                raise Refused(
                    415,
                    f"the content type is {kind.decode('latin-1')[:60]!r}.",
                    "Send JSON, with the header `Content-Type: application/json`.",
                )

    def _check_place(self, headers: dict[bytes, bytes]) -> None:
        """Refuse requests for another host name, and those from pages of another origin."""
        host = headers.get(b"host", b"").lower()
        if host not in self._hosts:
            raise Refused(
                421,
                f"the host {host.decode('latin-1')[:60]!r} is not this server.",
                "Open the address that `saeflow serve` printed.",
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in self._origins:
            raise Refused(
                403,
                f"a page of {origin.decode('latin-1')[:60]!r} may not ask this server.",
                "Open the address that `saeflow serve` printed, and ask from there.",
            )
        # Another port on this machine counts as the same site, so requests from a page there carry the cookie.
        foreign = headers.get(b"sec-fetch-site", b"none").lower() not in (b"none", b"same-origin")
        if foreign and headers.get(b"sec-fetch-mode", b"").lower() != b"navigate":
            raise Refused(
                403,
                "a page of another place may not ask this server.",
                "Open the address that `saeflow serve` printed, and ask from there.",
            )

    def _knows_token(self, headers: dict[bytes, bytes]) -> bool:
        tokens = [_cookie(headers.get(b"cookie", b""), self._cookie.encode())]
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        tokens.append(bearer.strip() if scheme.lower() == b"bearer" else b"")
        return any(hmac.compare_digest(one, self._token) for one in tokens)

    def _is_entrance(self, scope: Message) -> bool:
        return scope["path"] == "/" and scope["method"] == "GET" and b"token=" in scope["query_string"]

    async def _enter(self, scope: Message, send: Send) -> None:
        """Exchange the token in the address for a cookie, so that the address bar no longer shows it."""
        self._check_place(_headers(scope))
        token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        if not hmac.compare_digest(token.encode(), self._token):
            raise Refused(
                401,
                "the token of this address is not that of this server: each start makes a new one.",
                "Open the address that `saeflow serve` printed last.",
            )
        cookie = f"{self._cookie}={self._token.decode()}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _whole_body(self, scope: Message, receive: Receive) -> bytes:
        """Read the body within the size and time limits."""
        length = _headers(scope).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.body:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._read(receive)
        except TimeoutError:
            raise Refused(
                408, f"the body did not come within {self._limits.seconds:g} s.", "Send it at once."
            ) from None

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)  # the client has disconnected: nobody reads the response
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> Refused:
        return Refused(
            413, f"the body is larger than {self._limits.body} bytes.", "Send a smaller one: no plan is that long."
        )

    async def _take_turn(self, receive: Receive) -> bool:
        """Wait until fewer than `at_work` requests are running; False if the client disconnects first."""
        if not self._turns.locked():
            return await self._turns.acquire()
        busy = Refused(
            503,
            f"{self._limits.at_work} requests are at work and {self._waiting} wait.",
            "Ask again in a second.",
            retry_after="1",
        )
        if self._waiting >= self._limits.waiting:
            raise busy
        self._waiting += 1
        turn = asyncio.ensure_future(self._turns.acquire())
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((turn, left), timeout=self._limits.turn, return_when=asyncio.FIRST_COMPLETED)
            if not (turn.done() or left.done()):
                raise busy
            return turn.done()
        finally:
            self._waiting -= 1
            for task in (turn, left):
                task.cancel()


async def _left(receive: Receive) -> None:
    """Wait until the client disconnects; its body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body already read, then continues with `receive`."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def cookie_name(port: int) -> str:
    """The name of the cookie; it includes the port because browsers store cookies by host, ignoring the port."""
    return f"saeflow-{port}"


async def answer(send: Send, refused: Refused) -> None:
    """Send a refusal as JSON."""
    body = json.dumps({"error": refused.error, "what_to_do": refused.what_to_do}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    start = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def _headers(scope: Message) -> dict[bytes, bytes]:
    """The headers by name; the values of a repeated header are joined with commas."""
    found: dict[bytes, bytes] = {}
    pairs: Iterable[tuple[bytes, bytes]] = scope["headers"]
    for name, value in pairs:
        found[name] = found[name] + b", " + value if name in found else value
    return found


def _cookie(header: bytes, name: bytes) -> bytes:
    for pair in header.replace(b",", b";").split(b";"):
        key, _, value = pair.strip().partition(b"=")
        if key == name:
            return value
    return b""


def _with_headers(send: Send) -> Send:
    """A `send` that adds the default `HEADERS` to every response."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
            there = {name.lower() for name, _ in headers}
            more = ((name.encode(), value.encode()) for name, value in HEADERS.items())
            message["headers"] = [*headers, *((name, value) for name, value in more if name not in there)]
        await send(message)

    return guarded
