"""Run the careless commands of saeflow's tests and print the answers with exit codes and seconds.

python scripts/careless_commands.py                       this checkout
python scripts/careless_commands.py --source OLD/src      another checkout, with the packages of this environment
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.cli.test_careless_commands import CARELESS, COLUMNS, LINES, fill  # noqa: E402

PATIENCE_S = 60


def main() -> None:
    """Run all commands, print each with its answer, and count the problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="folder that holds the package saeflow")
    rows = []
    for row in answers(parser.parse_args().source.resolve()):
        rows.append(row)
        print(f"$ saeflow {row['typed']}\n{row['code']}  {row['seconds']:.1f} s  {row['answer']}", flush=True)
    print(f"\n{len(rows)} commands", end="")
    for name in ("traceback", "too long", "no error", "slow", "left files"):
        print(f"; {name}: {sum(row[name] for row in rows)}", end="")
    print()


def answers(source: Path) -> Iterator[dict[str, Any]]:
    """Run each command in a separate folder; yields its exit code, its answer and what is wrong with it."""
    for typed, _ in CARELESS:
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder))
            before = sorted(Path(folder).rglob("*"))
            began = time.perf_counter()
            code, told = _run(source, typed, folder)
            seconds = time.perf_counter() - began
            lines = [
                part for line in told.splitlines() for part in textwrap.wrap(line, COLUMNS, break_on_hyphens=False)
            ]
            yield {
                "typed": typed,
                "code": code,
                "seconds": seconds,
                "answer": told.strip(),
                "traceback": "Traceback" in told,
                "too long": len(lines) > LINES,
                "no error": code == 0,
                "slow": seconds > 10,
                "left files": sorted(Path(folder).rglob("*")) != before,
            }


def _run(source: Path, typed: str, folder: str) -> tuple[int | str, str]:
    """The exit code and everything printed; the code is "late" if the command was stopped after PATIENCE_S."""
    script = f"import shlex, sys; sys.argv = ['saeflow', *shlex.split({typed!r})]; from saeflow import cli; cli.main()"
    places = {"PYTHONPATH": str(source), "COLUMNS": str(COLUMNS), "HF_ENDPOINT": "http://127.0.0.1:9"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            env=os.environ | places,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return "late", (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else ""
    return done.returncode, done.stdout


if __name__ == "__main__":
    main()
