"""Units of work that workers import: fast, failing, fatal, and slow ones that a test ends."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from saeflow.engines import open_engine
from saeflow.errors import BadFile
from saeflow.experiments.results import Results, RunRequest

UNITS = [{"dataset": "a", "text": n, "n": n} for n in range(12)]


def square(unit):
    return unit["n"] ** 2


def rows(unit):
    return [{"n": unit["n"], "square": unit["n"] ** 2}] * (1 + unit["n"] % 3)


def refuse(unit):
    raise BadFile(f"unit {unit['n']} is bad. Fetch it again.")


class Odd(Exception):
    """An error that pickle cannot make again."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def odd(unit):
    raise Odd("this", "that")


@dataclass
class Fatal:
    """Notes every unit it begins; the process dies at unit 5, as often as said."""

    folder: Path
    deaths: int

    def __call__(self, unit):
        begun = len(list(self.folder.glob(f"{unit['n']}.*")))
        (self.folder / f"{unit['n']}.{begun}.{os.getpid()}").touch()
        if unit["n"] == 5 and begun < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return unit["n"]


@dataclass
class Waits:
    """Notes its process, and waits at unit 4 until the test ends it."""

    folder: Path

    def __call__(self, unit):
        (self.folder / f"worker.{os.getpid()}").touch()
        if unit["n"] == 4:
            (self.folder / "waiting").touch()
            time.sleep(120)
        return rows(unit)


def start(folder):
    """A results folder of the units."""
    request = RunRequest("squares", "none", "none", 0, ("a",), {}, {})
    return Results.start(folder, request, lambda: UNITS, {})


def main():
    """`work.py FOLDER`: run into it in a pool, up to the unit that waits."""
    folder = Path(sys.argv[1])
    with open_engine("pool", workers=2) as engine:
        start(folder / "results").run(Waits(folder), engine=engine)


if __name__ == "__main__":
    main()
