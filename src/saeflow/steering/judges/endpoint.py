"""One endpoint that speaks the chat API of OpenAI: asks, waits, tries again, and never tells the key. No torch.

    busy (429, 503), broken (5xx), cut or slow, no JSON      waits and tries again, up to `Pacing.retries` times
    refused (401, 403), unknown model, bad request           ends at once, with what to do
    longer than 1 MB, not whole within `Pacing.timeout`      is cut off, and counts as no answer

A parameter that an endpoint does not know (`seed`, `response_format`) is left out from then on. Errors are made outside
of the handlers that caught the client's: those hold the request, and with it the key.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, cast
from urllib.parse import urlsplit

from saeflow.errors import InvalidArgument, MissingExtra, SaeflowError, Unreachable
from saeflow.patience import LATER, Meter, TooLong, masked, retry_after, within
from saeflow.steering.judges.pacing import Gate, Pacing

_AGAIN: Final = LATER | {409}
MOST: Final = 1 << 20
"""Bytes that an answer may have."""
Messages = Sequence[Mapping[str, str]]


class Secret:
    """A key that is sent, and nothing else: it shows in no repr, message or file."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Keep a key.

        Raises:
            InvalidArgument: for one that cannot be sent in a header; the message does not show it.
        """
        self._value = value.strip()
        if not (self._value.isascii() and self._value.isprintable()) or " " in self._value:
            raise InvalidArgument(
                "the key holds spaces or characters that cannot be sent. Copy it again, alone and on one line."
            )

    def __repr__(self) -> str:
        """What stands where a key would."""
        return "[key]"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Refuse to be written anywhere."""
        raise InvalidArgument("a key is not written to files. Give it again where it is needed.")

    def reveal(self) -> str:
        """The key, for the request's header."""
        return self._value

    def hide(self, text: str) -> str:
        """The text with the key, should an endpoint repeat it in whatever form, replaced."""
        return masked(text, self._value)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer.

    Attributes:
        told: what happened.
        final: the error to raise at once; None where another try makes sense.
        wait: seconds the endpoint asks to wait; None where it does not say.
        busy: it was refused because the endpoint has too much to do.
        drop: a parameter that the endpoint does not know; without it the request is worth another try.
    """

    told: str
    final: type[SaeflowError] | None = None
    wait: float | None = None
    busy: bool = False
    drop: str = ""


class Stopped(Exception):
    """The run ended while this request waited."""


class Endpoint:
    """An open connection, shared by threads; a context manager.

    Args:
        model: its name at the endpoint.
        base_url: where the chat API is, "http://localhost:8000/v1"; None for that of OpenAI.
        secret: the key.
        temperature: of sampling; None leaves it to the endpoint.
        pacing: when requests go out.
        json_mode: ask for a JSON object, where the endpoint can.

    Raises:
        MissingExtra: when the package openai is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        secret: Secret,
        temperature: float | None,
        pacing: Pacing,
        json_mode: bool,
    ) -> None:
        """Open it; nothing is sent yet."""
        try:
            import openai  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingExtra(
                "a language model is asked with the package openai, which is not installed. Install it with "
                "`pip install 'saeflow[judge]'`, or judge offline."
            ) from None
        self._model, self._secret, self._pacing = model, secret, pacing
        self.place = place_of(base_url)
        self.gate = Gate(pacing.per_minute)
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._options: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
        self._extras: dict[str, Any] = {"response_format": {"type": "json_object"}} if json_mode else {}
        self._refused: set[str] = set()
        self._client = openai.OpenAI(
            api_key=secret.reveal(),
            base_url=base_url,
            timeout=pacing.timeout,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [self._read]}),
        )

    def __enter__(self) -> Endpoint:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, messages: Messages, *, seed: int) -> str:
        """The answer's text; empty where the model said nothing.

        Refusals for being busy count only while nobody is answered: the endpoint is up, and the queue long.

        Raises:
            Unreachable: when no try brought an answer, or the endpoint refuses the key.
            InvalidArgument: when the endpoint does not know the model or the request.
            Stopped: when `gate.stop` was called meanwhile.
        """
        failed, what, seen = 0, messages[-1]["content"], self.counts["answered"]
        while True:
            if not self.gate.enter():
                raise Stopped
            got = self._once(messages, seed)
            if isinstance(got, str):
                self.count("answered")
                return got
            if got.drop:
                self._refused.add(got.drop)
                continue
            answered = self.counts["answered"]
            failed = 0 if got.busy and answered > seen else failed + 1
            seen = answered
            if got.final or failed > self._pacing.retries or (got.wait or 0) > self._pacing.longest:
                raise self._failed(got, failed)
            self.count("retried")
            if got.wait is not None:
                self.gate.close(got.wait)
            elif not self.gate.sleep(self._pacing.delay(max(0, failed - 1), what)):
                raise Stopped

    def _failed(self, got: Failure, tries: int) -> SaeflowError:
        """The error that ends a request."""
        if got.final:
            return got.final(f"{self.place}: {got.told}")
        told = f"{self.place} gave no answer in {tries} tries; at the last {got.told}"
        if got.wait is not None and got.wait > self._pacing.longest:
            return Unreachable(
                f"{self.place}: {got.told}; it asks to wait {got.wait:.0f} s, more than Pacing.longest of "
                f"{self._pacing.longest:.0f} s. Go on later: what was answered is kept."
            )
        return Unreachable(
            f"{told}. Check the address and the service, or ask more slowly (Pacing: concurrency, per_minute); "
            "what was answered is kept."
        )

    def _once(self, messages: Messages, seed: int) -> str | Failure:
        import openai  # pyright: ignore[reportMissingImports]

        extras = {k: v for k, v in {**self._extras, "seed": seed}.items() if k not in self._refused}
        create = cast("Callable[..., Any]", self._client.chat.completions.with_raw_response.create)
        self.count("asked")
        try:
            raw = within(
                self._pacing.timeout,
                lambda: create(model=self._model, messages=list(messages), **self._options, **extras),
            )
            return self._content(str(raw.http_response.text))
        except openai.APIStatusError as error:
            status, headers, text = error.status_code, dict(error.response.headers), error.response.text
        except (openai.APITimeoutError, TimeoutError):
            return Failure(f"nothing came whole within {self._pacing.timeout:g} s")
        except (openai.APIConnectionError, TooLong) as error:  # versions differ in what they pass on as it is
            cause = error.__cause__ or error
            if isinstance(cause, TooLong):
                return Failure(f"it answered without an end: {cause}")
            return Failure(f"the connection failed ({type(cause).__name__}: {self._shown(str(cause))})")
        refused = self._refusal(status, {k.lower(): v for k, v in headers.items()}, text)
        unknown = next((name for name in extras if name in text), "")
        return replace(refused, drop=unknown) if status in {400, 422} else refused

    def _read(self, response: Any) -> None:
        """Read an answer before the client does, who would read all there is."""
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
        """What a status other than success means."""
        said = self._shown(_message(body))
        told = f"it answered {status}: {said.removesuffix('.')}"
        if status == 429 and "insufficient_quota" in body:
            return Failure(f"{told}. The account has no quota left: what was answered is kept.", Unreachable)
        if status in _AGAIN or status >= 500:
            return Failure(told, wait=retry_after(headers), busy=status == 429)
        if status in {401, 403}:
            return Failure(f"{told}. Give a key that it accepts, in OPENAI_API_KEY or as key.", Unreachable)
        if status == 404:
            return Failure(f"{told}. Check the model {self._model!r} and the base URL.", InvalidArgument)
        advice = "Set temperature to None." if "temperature" in body else "Check the model and its limits."
        return Failure(f"{told}. {advice}", InvalidArgument)

    def count(self, what: str) -> None:
        """One more of something."""
        with self._lock:
            self.counts[what] += 1

    def _shown(self, text: str) -> str:
        """Text of others, on one line, cut, without the key."""
        line = " ".join(self._secret.hide(text).split())
        return line if len(line) <= 200 else f"{line[:199]}…"


def place_of(base_url: str | None) -> str:
    """An endpoint as messages name it: without a user, a password or a query."""
    if base_url is None:
        return "the OpenAI API"
    parts = urlsplit(base_url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _message(body: str) -> str:
    """The message of an error's body, or the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return body or "nothing"


def is_address(url: str) -> bool:
    """Whether a base URL can be asked: http or https, with a host and no impossible port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
