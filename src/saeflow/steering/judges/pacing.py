"""When requests go out: how many at once, how many a minute, how long to wait after a refusal. No torch."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from dataclasses import dataclass

from saeflow.errors import InvalidArgument
from saeflow.patience import doubled


@dataclass(frozen=True, slots=True)
class Pacing:
    """How an endpoint is asked.

    Attributes:
        concurrency: requests under way at once.
        per_minute: requests a minute, retries among them; None for no limit but the endpoint's own.
        timeout: seconds until a request without a whole answer counts as failed.
        retries: tries after the first, where the endpoint is busy, broken or out of reach.
        backoff: seconds before the first retry; twice as many before each further one.
        longest: the longest wait in seconds. Where the endpoint asks for more, the run ends with an error.

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
        """Refuse values that would never ask, or never end."""
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
        """Seconds before try `attempt` + 1 (from 0), between half and all of the doubled backoff.

        The fraction is a function of `what` is asked, so that requests refused together do not come back
        together, and a run can be repeated.
        """
        digest = hashlib.sha256(f"{attempt}\n{what}".encode("utf-8", "surrogatepass")).digest()
        part = 0.5 + digest[0] / 510
        return doubled(attempt + 1, self.backoff * part, self.longest)


class Gate:
    """Where every request waits for its turn; one for all threads of a run."""

    def __init__(self, per_minute: float | None) -> None:
        """At most `per_minute` requests pass in a minute, evenly spaced; None: as many as come."""
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._lock = threading.Lock()
        self._next = 0.0
        self._closed_until = 0.0
        self._stopped = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is let through."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Let nothing more through, and wake all who wait."""
        self._stopped.set()

    def close(self, seconds: float) -> None:
        """Let nobody through for so long: the endpoint asked for it."""
        with self._lock:
            self._closed_until = max(self._closed_until, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> bool:
        """Wait; False when the run was stopped."""
        return not self._stopped.wait(max(0.0, seconds))

    def enter(self) -> bool:
        """Wait for a turn; False when the run was stopped."""
        with self._lock:
            turn = max(time.monotonic(), self._next, self._closed_until)
            self._next = turn + self._interval
        while (rest := max(turn, self._closed_until) - time.monotonic()) > 0:
            if not self.sleep(rest):
                return False
        return not self.stopped
