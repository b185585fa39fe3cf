"""One endpoint that speaks the chat API of OpenAI: asks, waits, retries, and never shows the key. No torch.

    busy (429, 503), broken (5xx), cut or slow, not JSON     waits and retries, up to `Pacing.retries` times
    refused (401, 403), unknown model, bad request           fails at once, with what to do
    longer than 1 MB, not whole within `Pacing.timeout`      is cut off, and counts as no answer

A parameter that an endpoint does not know (`seed`, `response_format`) is left out from then on. Errors are raised
outside the handlers that caught the client's errors, which hold the request, and with it the key.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

from saeflow.errors import InvalidArgument, MissingExtra, SaeflowError, Unreachable
from saeflow.patience import LATER, Meter, TooLong, doubled, masked, retry_after, within

_AGAIN: Final = LATER | {409}
MOST: Final = 1 << 20
"""Maximum bytes of an answer."""

DEFAULT_MODEL: Final = "gpt-4o-mini"
"""The model asked by default: the judge of the paper (B.1)."""

Messages: TypeAlias = Sequence[Mapping[str, str]]
"""A conversation: messages with `role` and `content`, as chat APIs take them."""

X = TypeVar("X")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pacing:
    """How an endpoint is asked.

    Attributes:
        concurrency: requests under way at once.
        per_minute: maximum requests per minute, including retries; None for no limit but the endpoint's own.
        timeout: seconds after which a request without a whole answer counts as failed.
        retries: tries after the first, if the endpoint is busy, broken or out of reach.
        backoff: seconds before the first retry; doubled before each further one.
        longest: the longest wait in seconds. If the endpoint asks for more, the run ends with an error.

    Raises:
        InvalidArgument: for a value outside its range.
    """

    concurrency: int = 8
    per_minute: float | None = None
    timeout: float = 60.0
    retries: int = 6
    backoff: float = 1.0
    longest: float = 120.0

    def __post_init__(self) -> None:
        """Refuse values with which nothing would be asked, or a wait would never end."""
        if self.concurrency < 1 or self.retries < 0:
            raise InvalidArgument(
                f"concurrency = {self.concurrency}, retries = {self.retries}: give 1 or more, and 0 or more."
            )
        rate = math.inf if self.per_minute is None else self.per_minute
        for name, value in (("per_minute", rate), ("timeout", self.timeout), ("longest", self.longest)):
            if not value > 0:
                raise InvalidArgument(f"{name} = {value} lets nothing through. Give a number above 0.")
        if not 0 <= self.backoff < math.inf:
            raise InvalidArgument(f"backoff = {self.backoff} is no time. Give seconds, 0 or more.")

    def delay(self, attempt: int, what: str) -> float:
        """Seconds before try `attempt` + 1 (from 0): between half and all of the doubled backoff.

        The fraction is a function of `what` is asked, so that requests refused together do not come back together, and
        a run can be repeated.
        """
        digest = hashlib.sha256(f"{attempt}\n{what}".encode("utf-8", "surrogatepass")).digest()
        part = 0.5 + digest[0] / 510
        return doubled(attempt + 1, self.backoff * part, self.longest)


class Gate:
    """Where every request waits for its turn; all threads of a run share one."""

    def __init__(self, per_minute: float | None) -> None:
        """Let at most `per_minute` requests through in a minute, evenly spaced; None for no limit."""
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._lock = threading.Lock()
        self._next = self._closed_until = 0.0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let no more requests through, and wake all that wait."""
        self._stopped.set()

    def close(self, seconds: float) -> None:
        """Let no request through for this many seconds, as the endpoint asks."""
        with self._lock:
            self._closed_until = max(self._closed_until, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> bool:
        """Wait; False if the run was stopped."""
        return not self._stopped.wait(max(0.0, seconds))

    def enter(self) -> bool:
        """Wait for a turn; False if the run was stopped."""
        with self._lock:
            turn = max(time.monotonic(), self._next, self._closed_until)
            self._next = turn + self._interval
        while (rest := max(turn, self._closed_until) - time.monotonic()) > 0:
            if not self.sleep(rest):
                return False
        return not self._stopped.is_set()


class Secret:
    """A key that is only ever sent: it appears in no repr, message or file."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Keep a key.

        Raises:
            InvalidArgument: for a key that cannot be sent in a header; the message does not show it.
        """
        self._value = value.strip()
        if not (self._value.isascii() and self._value.isprintable()) or " " in self._value:
            raise InvalidArgument(
                "the key holds spaces or characters that cannot be sent. Copy it again, alone and on one line."
            )

    def __repr__(self) -> str:
        """Text in place of the key."""
        return "[key]"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Refuse to be pickled."""
        raise InvalidArgument("a key is not written to files. Give it again where it is needed.")

    def reveal(self) -> str:
        """The key, for the request's header."""
        return self._value

    def hide(self, text: str) -> str:
        """The text with the key masked, in whatever form an endpoint repeats it."""
        return masked(text, self._value)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer.

    Attributes:
        told: what happened.
        final: the error to raise at once; None if another try makes sense.
        wait: seconds the endpoint asks to wait; None if it does not say.
        busy: whether it was refused because the endpoint is overloaded.
        drop: a parameter that the endpoint does not know; without it, the request is worth another try.
    """

    told: str
    final: type[SaeflowError] | None = None
    wait: float | None = None
    busy: bool = False
    drop: str = ""


class Stopped(Exception):
    """The run ended while this request waited."""


class Endpoint:
    """An open connection, shared by threads; a context manager. Implements `saeflow.labels.explain.Chat`.

    Args:
        name: name of the model at the endpoint.
        base_url: address of the chat API, such as "http://localhost:8000/v1"; None for OpenAI's.
        secret: the key.
        temperature: sampling temperature; None leaves it to the endpoint.
        seed: sent if the endpoint knows it.
        pacing: when requests go out.

    Raises:
        MissingExtra: when the package openai is not installed.
    """

    def __init__(
        self, name: str, *, base_url: str | None, secret: Secret, temperature: float | None, seed: int, pacing: Pacing
    ) -> None:
        """Open it; nothing is sent yet."""
        try:
            import openai  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingExtra(
                "a language model is asked with the package openai, which is not installed.",
                "judge",
                ", or judge offline",
            ) from None
        self.name, self._secret, self._seed, self._pacing = name, secret, seed, pacing
        self.place = place_of(base_url)
        self.gate = Gate(pacing.per_minute)
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._options: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
        self._refused: set[str] = set()
        self._client = openai.OpenAI(
            api_key=secret.reveal(),
            base_url=base_url,
            timeout=pacing.timeout,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [self._read]}),
        )

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._client.close()

    def complete(
        self, conversations: Sequence[Messages], take: Callable[[int, str], object] = lambda _number, _answer: None
    ) -> Sequence[str]:
        """The answer to each conversation, in order; `take` is called with the number and text of each as it comes.

        Raises:
            Unreachable: when an answer does not come, or the endpoint refuses the key.
            InvalidArgument: when the endpoint does not know the model or the request.
        """
        found: dict[int, str] = {}

        def heard(number: int, answer: Future[str]) -> None:
            found[number] = answer.result()
            take(number, found[number])

        self.ask_all(lambda number: self.ask(conversations[number]), range(len(conversations)), heard)
        return [found[number] for number in range(len(conversations))]

    def ask_all(self, ask: Callable[[X], T], items: Sequence[X], take: Callable[[X, Future[T]], object]) -> None:
        """Call `ask` for every item, `Pacing.concurrency` at once, and `take` with each result as soon as it arrives.

        An error in `take` ends the run: nothing more is sent, and requests under way are completed first.
        """
        with ThreadPoolExecutor(min(self._pacing.concurrency, max(1, len(items)))) as pool:
            asked = {pool.submit(ask, item): item for item in items}
            try:
                for future in as_completed(asked):
                    take(asked[future], future)
            except BaseException:
                self.gate.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def ask(self, messages: Messages, *, attempt: int = 0) -> str:
        """The answer's text; empty if the model said nothing. `attempt` is added to the seed.

        Refusals because the endpoint is busy count only while no request is answered; otherwise it is up, and just has
        a long queue.

        Raises:
            Unreachable: when no try brought an answer, or the endpoint refuses the key.
            InvalidArgument: when the endpoint does not know the model or the request.
            Stopped: when `gate.stop` was called meanwhile.
        """
        failed, what, seen = 0, messages[-1]["content"], self.counts["answered"]
        while True:
            if not self.gate.enter():
                raise Stopped
            got = self._once(messages, self._seed + attempt)
            if isinstance(got, str):
                self.count("answered")
                return got
            if got.drop:
                self._refused.add(got.drop)
                continue
            answered = self.counts["answered"]
            failed = 0 if got.busy and answered > seen else failed + 1
            seen = answered
            if got.final:
                raise got.final(f"{self.place}: {got.told}")
            if (got.wait or 0) > self._pacing.longest:
                raise Unreachable(
                    f"{self.place}: {got.told}; it asks to wait {got.wait:.0f} s, more than Pacing.longest of "
                    f"{self._pacing.longest:.0f} s. Go on later: what was answered is kept."
                )
            if failed > self._pacing.retries:
                raise Unreachable(
                    f"{self.place} gave no answer in {failed} tries; at the last {got.told}. Check the address and the "
                    "service, or ask more slowly (Pacing: concurrency, per_minute); what was answered is kept."
                )
            self.count("retried")
            if got.wait is not None:
                self.gate.close(got.wait)
            elif not self.gate.sleep(self._pacing.delay(max(0, failed - 1), what)):
                raise Stopped

    def _once(self, messages: Messages, seed: int) -> str | Failure:
        import openai  # pyright: ignore[reportMissingImports]

        extras: dict[str, Any] = {"response_format": {"type": "json_object"}, "seed": seed}
        extras = {name: value for name, value in extras.items() if name not in self._refused}
        create = cast("Callable[..., Any]", self._client.chat.completions.with_raw_response.create)
        self.count("asked")
        try:
            raw = within(
                self._pacing.timeout,
                lambda: create(model=self.name, messages=list(messages), **self._options, **extras),
            )
            return self._content(str(raw.http_response.text))
        except openai.APIStatusError as error:
            status, headers, text = error.status_code, dict(error.response.headers), error.response.text
        except (openai.APITimeoutError, TimeoutError):
            return Failure(f"nothing came whole within {self._pacing.timeout:g} s")
        except (openai.APIConnectionError, TooLong) as error:  # versions differ in which errors they wrap
            cause = error.__cause__ or error
            if isinstance(cause, TooLong):
                return Failure(f"it answered without an end: {cause}")
            return Failure(f"the connection failed ({type(cause).__name__}: {self._shown(str(cause))})")
        refused = self._refusal(status, {k.lower(): v for k, v in headers.items()}, text)
        unknown = next((name for name in extras if name in text), "")
        return replace(refused, drop=unknown) if status in {400, 422} else refused

    def _read(self, response: Any) -> None:
        """Read an answer, within its limits, before the client does, which would read any amount."""
        meter = Meter(MOST, seconds=self._pacing.timeout)
        response._content = meter.whole(response.iter_bytes())

    def _content(self, body: str) -> str | Failure:
        """What the model said, from the body of a good response."""
        try:
            told = json.loads(body)
            if isinstance(told, dict) and told.get("error"):
                return Failure(f"it answered with an error: {self._shown(str(told['error']))}")
            said = told["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return Failure(f"it answered with something that is no chat completion: {self._shown(body)}")
        return self._secret.hide(said) if isinstance(said, str) else ""

    def _refusal(self, status: int, headers: Mapping[str, str], body: str) -> Failure:
        """The failure that a status other than success means."""
        try:
            message = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            message = body or "nothing"
        told = f"it answered {status}: {self._shown(message).removesuffix('.')}"
        if status == 429 and "insufficient_quota" in body:
            return Failure(f"{told}. The account has no quota left: what was answered is kept.", Unreachable)
        if status in _AGAIN or status >= 500:
            return Failure(told, wait=retry_after(headers), busy=status == 429)
        if status in {401, 403}:
            return Failure(f"{told}. Give a key that it accepts, in OPENAI_API_KEY or as key.", Unreachable)
        if status == 404:
            return Failure(f"{told}. Check the model {self.name!r} and the base URL.", InvalidArgument)
        advice = "Set temperature to None." if "temperature" in body else "Check the model and its limits."
        return Failure(f"{told}. {advice}", InvalidArgument)

    def count(self, what: str) -> None:
        """Count an event."""
        with self._lock:
            self.counts[what] += 1

    def _shown(self, text: str) -> str:
        """Text from others, on one line, shortened, without the key."""
        line = " ".join(self._secret.hide(text).split())
        return line if len(line) <= 200 else f"{line[:199]}…"


def place_of(base_url: str | None) -> str:
    """An endpoint's name in messages: its address without user, password or query."""
    if base_url is None:
        return "the OpenAI API"
    parts = urlsplit(base_url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def is_address(url: str) -> bool:
    """Whether a base URL can be asked: http or https, with a host and a valid port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
