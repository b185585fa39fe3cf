"""The worker side of an engine: what a worker process does with a unit, and how the work gets there.

The work is pickled once per run and unpickled once in each worker, which keeps it and everything it has loaded.
Pickles only pass between processes of one run, by one user and one version; they are never stored in files.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from saeflow.errors import InvalidArgument
from saeflow.version import __version__


@dataclass(frozen=True, slots=True)
class Packed:
    """Pickled work, with a hash as its key."""

    data: bytes
    key: str
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Slot:
    """The resources of a unit: cores and GPUs."""

    cpus: int = 1
    gpus: float = 0


@dataclass(frozen=True, slots=True)
class UnitResult:
    """The outcome of a unit: a value, or the error it raised with its traceback."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""

    def result(self) -> Any:
        """Return the value.

        Raises:
            Whatever the unit raised, with the worker's traceback as a note.
        """
        if self.error is None:
            return self.value
        if self.trace:
            self.error.add_note(self.trace)
        raise self.error


class _Pickler(pickle.Pickler):
    """A pickler that rejects tensors: every worker opens weights itself, they are never sent."""

    def reducer_override(self, obj: Any) -> Any:
        torch: Any = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor):
            raise InvalidArgument(
                f"a tensor of shape {list(obj.shape)} would be sent to every worker. Weights are opened by the "
                "workers themselves: give models and dictionaries that were opened by name, with load_model and "
                "load_dictionaries, or take the engine here."
            )
        return NotImplemented


def pack(work: Callable[[Any], Any], name: str) -> Packed:
    """Pickle the work.

    Raises:
        InvalidArgument: when it holds something that cannot be sent.
    """
    out = io.BytesIO()
    try:
        _Pickler(out, protocol=5).dump(work)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InvalidArgument(
            f"{name}: the work cannot be sent to other processes ({error}). Give models and dictionaries that were "
            "opened by name, with load_model and load_dictionaries, or take the engine here."
        ) from error
    data = out.getvalue()
    return Packed(data, hashlib.sha256(data).hexdigest())


_held: Final[dict[str, Callable[[Any], Any]]] = {}
"""The work this process keeps, by key; only one at a time, since each may hold a model."""

_slot = Slot()


def device_of_worker(device: str) -> str:
    """The device to use in this process for something opened on `device`: "cuda" in a worker with a GPU."""
    return "cuda" if _slot.gpus else device


def holds(key: str) -> bool:
    """Whether this process keeps the work with this key."""
    return key in _held


def take(packed: Packed, slot: Slot) -> None:
    """Unpickle the work and keep it in place of the previous one.

    Raises:
        InvalidArgument: when another version of saeflow sent it.
        Whatever opening its models and dictionaries raises.
    """
    global _slot  # noqa: PLW0603  (one worker process is one slot)
    if packed.version != __version__:
        raise InvalidArgument(
            f"the worker on {socket.gethostname()} has saeflow {__version__}, and saeflow {packed.version} sent it "
            "work. Install one version on all machines."
        )
    _held.clear()
    _slot = slot
    work: Any = pickle.loads(packed.data)  # noqa: S301  (made by `pack` in the same run)
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != slot.cpus:
        torch.set_num_threads(slot.cpus)
    _held[packed.key] = work


def run_unit(key: str, packed: Callable[[], Packed], unit: Any, slot: Slot) -> UnitResult:
    """Run one unit; `packed` is called only if this process does not keep the work yet."""
    try:
        if not holds(key):
            take(packed(), slot)
        return UnitResult(_held[key](unit))
    except Exception as error:  # raised again in the driver
        trace = "".join(traceback.format_exception(error)).rstrip()
        return UnitResult(error=_sendable(error), trace=f"in a worker on {socket.gethostname()}:\n{trace}")


def _sendable(error: Exception) -> Exception:
    """The error without its traceback, or a RuntimeError with the same message if it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # constructors of error classes may need other arguments
        return RuntimeError(f"{type(error).__name__}: {error}")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
