"""The command line: each command parses its options, makes one call and shows the result.

Errors that saeflow raises on purpose are printed as one message, without a traceback, and the exit code is 2. Ctrl-C
prints one line, and the exit code is 130. This file imports nothing large, so that Ctrl-C is handled during imports.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = "saeflow: interrupted"


def main() -> None:
    """Run the command line; exit with code 2 on an error that saeflow raises on purpose, with 130 on Ctrl-C."""
    interrupt = _Interrupt()
    guarded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if guarded:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from saeflow.cli.app import run

        run()
    except BaseException as error:
        # libraries turn a KeyboardInterrupt into other errors, such as an ImportError
        stopped = interrupt.came or isinstance(error, KeyboardInterrupt)
        if not stopped or (isinstance(error, SystemExit) and not error.code):
            raise
        print(_INTERRUPTED, file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        if guarded:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Interrupt:
    """The handler of Ctrl-C: raises KeyboardInterrupt as Python does, but exits at once during an import."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, _signal: int, frame: FrameType | None) -> None:
        self.came = True
        while frame is not None:
            # an import may swallow or replace an exception; exiting during one leaves no file half written
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                os.write(2, f"{_INTERRUPTED}\n".encode())
                os._exit(130)
            frame = frame.f_back
        raise KeyboardInterrupt
