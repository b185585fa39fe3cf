"""Which devices torch can use on this machine."""

from __future__ import annotations

from typing import Any, Final

import torch

from saeflow.errors import InvalidArgument

_KINDS: Final = ("cuda", "mps", "xpu")


def known_device(name: torch.device | str) -> torch.device:
    """The device of that name, checked to exist before anything is loaded onto it.

    Devices are counted but not initialised, so that the process can still be forked.

    Raises:
        InvalidArgument: for an invalid name, or a device this machine lacks; the message lists those it has.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and (device.index or 0) < _count(device.type):
        return device
    here = ["cpu", *(f"{kind}:{index}" for kind in _KINDS for index in range(_count(kind)))]
    what = f"no device is called {str(name)!r}" if device is None else f"torch finds no device {device} here"
    hint = " It is built without CUDA." if device and device.type == "cuda" and torch.version.cuda is None else ""
    raise InvalidArgument(f"{what} (torch {torch.__version__}).{hint} Give one of: {', '.join(here)}.")


def _count(kind: str) -> int:
    """How many devices of a kind there are; 0 for kinds that cannot compute, such as meta."""
    count: Any = getattr(getattr(torch, kind, None), "device_count", None)
    return int(count()) if count else 0
