"""The thread that runs the model: it loads the model at the first job and runs one job at a time.

Imports no torch: the caller passes the function that loads the model. While the model generates, a plan's hooks are
attached to it, so two jobs must never run concurrently; and a second text would only slow the first.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, runtime_checkable

from saeflow.errors import SaeflowError
from saeflow.flow.trace import Matches
from saeflow.ids import Site
from saeflow.labels.words import Words
from saeflow.matching.atlas import Atlas
from saeflow.steering.plan import SteeringPlan
from saeflow.steering.theme import Theme
from saeflow.web.problems import Busy
from saeflow.web.requests import DeactivateBody, SteerBody, TextBody, TraceBody
from saeflow.web.responses import DeactivateResponse, ModelInfo, ModelState, TextResponse

if TYPE_CHECKING:
    from saeflow.prompt_graph import PromptGraph

_T = TypeVar("_T")

Line: TypeAlias = Mapping[str, Any]
"""One line of a stream: a JSON object."""

MOST_WAITING: Final = 3
"""Jobs that may wait; further ones are refused."""


@runtime_checkable
class ModelWorker(Protocol):
    """A loaded model with its dictionaries; implemented by `saeflow.web.model_worker.LoadedModel`."""

    def lend(self, use: Callable[[Any, Any], _T]) -> _T:
        """The result of `use(dictionaries, model)`."""
        ...

    def text(self, request: TextBody, sites: Sequence[Site], words: Words) -> TextResponse:
        """The strongest features on each token of a text, at some sites."""
        ...

    def deactivate(self, request: DeactivateBody, matches: Atlas) -> DeactivateResponse:
        """A feature's activation at a token without its matched predecessors."""
        ...

    def trace(self, request: TraceBody, matches: Matches) -> PromptGraph:
        """The pruned prompt graph of a token of a text, with its fidelity."""
        ...

    def steer(
        self,
        request: SteerBody,
        plan: SteeringPlan,
        theme: Theme | None,
        others: Sequence[Theme],
        put: Callable[[Line], None],
    ) -> None:
        """Generate text with and without a plan; every line goes to `put`, which may raise to stop the generation."""
        ...


class ModelThread:
    """A thread that owns a model."""

    def __init__(self, load: Callable[[], ModelWorker]) -> None:
        """The thread calls `load` at its first job."""
        self._load = load
        self._worker: ModelWorker | None = None
        self._state: ModelState = "idle"
        self._error: str | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        self._thread: threading.Thread | None = None
        self.closed = threading.Event()
        """Set when the server stops: waiting jobs are cancelled, and a generation ends at its next token."""

    def info(self) -> ModelInfo:
        """The state of the model, and why it failed to load if it did."""
        return ModelInfo(model_state=self._state, model_error=self._error)

    @property
    def state(self) -> ModelState:
        """The state of the model: idle, loading, ready or failed."""
        return self._state

    @property
    def pending(self) -> int:
        """The number of jobs that run or wait."""
        return self._pending

    def submit(self, job: Callable[[ModelWorker], _T]) -> Future[_T]:
        """Queue `job`; the future holds its result, or the error of the job or of loading the model.

        Raises:
            Busy: when `MOST_WAITING` jobs wait already, or the server stops.
        """
        found: Future[_T] = Future()

        def work() -> None:
            if self.closed.is_set():
                found.cancel()
            if found.set_running_or_notify_cancel():
                try:
                    found.set_result(job(self._loaded()))
                except BaseException as error:
                    found.set_exception(error)

        with self._lock:
            if self._pending > MOST_WAITING or self.closed.is_set():
                raise Busy(self._pending)
            self._pending += 1
            if self._worker is None:
                self._state, self._error = "loading", None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="saeflow-model", daemon=True)
                self._thread.start()
        self._jobs.put(work)
        return found

    def close(self, seconds: float = 5.0) -> None:
        """Tell the running job to stop, and wait up to `seconds` for it."""
        self.closed.set()
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while (work := self._jobs.get()) is not None:
            try:
                work()
            finally:
                with self._lock:
                    self._pending -= 1

    def _loaded(self) -> ModelWorker:
        """The model, loaded now if it is not yet; a failed load is retried."""
        if self._worker is None:
            try:
                self._worker = self._load()
            except BaseException as error:
                self._error = str(error) if isinstance(error, SaeflowError | OSError) else repr(error)
                self._state = "failed"
                raise
            self._state = "ready"
        return self._worker
