"""The command line: parse, one call, show. Every command that prints a table takes --json.

Errors that saeflow raises on purpose are printed as one message, with exit code 2 and no traceback; Ctrl-C is one line
and exit code 130 at any moment. This file imports nothing large, so that it can see to that while the rest is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = "saeflow: interrupted"


def main() -> None:
    """Run the command line; exit code 2 for an error that has a message, 130 for Ctrl-C."""
    interrupt = _Interrupt()
    guarded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if guarded:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from saeflow.cli.app import run

        run()
    except BaseException as error:
        # libraries turn a KeyboardInterrupt into errors of their own, such as that of an import
        stopped = interrupt.came or isinstance(error, KeyboardInterrupt)
        if not stopped or (isinstance(error, SystemExit) and not error.code):
            raise
        print(_INTERRUPTED, file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        if guarded:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Interrupt:
    """What Ctrl-C does: raises, as Python does by itself, but ends at once while a module is imported."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, _signal: int, frame: FrameType | None) -> None:
        self.came = True
        while frame is not None:
            # an import can swallow an exception, or make another of it, and it leaves no file half written
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                os.write(2, f"{_INTERRUPTED}\n".encode())
                os._exit(130)
            frame = frame.f_back
        raise KeyboardInterrupt
