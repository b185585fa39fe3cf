"""Golden runs: what every command answers on the demo pack, kept and compared cell by cell.

    python tests/golden/golden.py             run all, compare with what is kept; exit code 1 where a cell differs
    python tests/golden/golden.py --record    run all, and keep what comes out
    python tests/golden/golden.py --only plan,sweep

A net for changes that must not change a number. A cell is one value of one run's JSON: numbers are equal to six
significant digits, everything else to the letter. Times, folders and versions are left out. Numbers may differ in
the last digits between kinds of processor, so this is no test of `make test`: record on the machine at hand before
a change, compare after it (`make golden`).
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = str(Path(__file__).parents[2])
"""Sentences that name a file of the pack are alike in every checkout."""
KEPT: Final = Path(__file__).parent / "kept"

RUNS: Final = {
    "graph": "graph demo 4/res/72 --json",
    "graph-deep": "graph demo 5/res/194 --t-res 0 --k 3 --json",
    "graph-calibrated": "graph demo 3/mlp/12 --calibrated --json",
    "match": "match demo 4/res 3/res --json",
    "match-one-to-one": "match demo 4/res 3/res --method permutation --json",
    "methods": "methods --json",
    "agreement": "agreement demo --methods cosine,permutation --json",
    "themes": "themes demo --json",
    "find-words": "find demo --words energy --json",
    "find-texts": "find demo --theme physics --sites 3/res,4/res --n-texts 40 --json",
    "plan": "plan demo --theme physics --out plan.json --json",
    "plan-suppress": "plan demo --theme economics --suppress --parts res --no-shares --json",
    "plan-linear": "plan demo --starts 3/res/10,4/res/20 --schedule linear --reach cumulative --upto 4 --fold --json",
    "steer": "steer demo 'I think' --theme physics --samples 2 --max-new-tokens 12 --json",
    "releases": "releases --json",
    "info": "info demo --json",
    "atlas-info": "atlas info demo --json",
    "labels-show": "labels show demo 4/res/72 --json",
    "labels-search": "labels search demo energy --json",
    "doctor": "doctor demo --json",
    "doctor-model": "doctor demo --model demo --sites 3/res,3/mlp --tokens 3000 --json",
    "origins": "origins demo --n-texts 2 --tokens-per-text 2 --layers 2,3 --methods cosine,cosine-top-5,permutation "
    "--out o --json",
    "deactivate": "deactivate demo --n-texts 2 --tokens-per-text 1 --n-targets 4 --layers 3 --n-loss-targets 1 "
    "--out d --json --strategies top-1,top-5,random,permutation",
    "transition": "transition demo --layers 2 --k 1,2 --tokens 1500 --fit-tokens 3000 --n-loss-texts 1 --out t --json",
    "sweep": "sweep demo --themes physics --samples 4 --confirm 4 --strengths 1.5 --r 0 --layers 2,3 "
    "--steering-methods start,random,single,constant --out s --json",
    "reproduce-plan": "reproduce demo --dry-run --json",
    "reproduce": "reproduce small.toml --only fig3,fig5,fig6,fig7,fig8 --out r --json",
}
SMALL: Final = """
title = "Small"
release = "demo"
model = "demo"
datasets = ["demo:stories", "demo:textbooks"]
seed = 0
[origins]
texts = 3
tokens = 2
[deactivation]
texts = 3
tokens = 1
features = 4
"""
FOLDERS: Final = ("o", "d", "t", "s", "r")
"""Of a run with a folder, the tables, claims and the text of the page are cells too."""
LEFT_OUT: Final = re.compile(
    r"(^|/)(seconds|measured|minutes|hours|took|started|ended|made|created|finished|when|time|date|version|saeflow|path|folder|file|"
    r"cores|threads|processor|machine|memory|peak_mb|cpu_seconds|wall_seconds|torch|platform|python|digest|sha256|bytes)($|/)"
)


def answered(command: str) -> dict[str, Any]:
    """The cells of one command, run in this process in a folder of its own."""
    from saeflow import cli

    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("small.toml").write_text(SMALL, encoding="utf-8")
        sys.argv = ["saeflow", *shlex.split(command)]
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main()
        text = printed.getvalue()
        try:
            found = {"json": json.loads(text)}
        except json.JSONDecodeError:
            found = {"text": text}
        for name in FOLDERS:
            for path in sorted(Path(name).rglob("*")) if Path(name).is_dir() else ():
                if path.suffix == ".csv":
                    found[str(path)] = path.read_text(encoding="utf-8").splitlines()
                elif path.name in {"summary.json", "claims.json"}:
                    found[str(path)] = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in cells(found) if not LEFT_OUT.search(key)}


def cells(value: Any, place: str = "") -> list[tuple[str, Any]]:
    """Every leaf with its path; lines of a table are leaves by their columns."""
    if isinstance(value, dict):
        return [cell for key, one in value.items() for cell in cells(one, f"{place}/{key}")]
    if isinstance(value, list):
        return [cell for i, one in enumerate(value) for cell in cells(one, f"{place}/{i}")]
    if isinstance(value, str) and place.rpartition("/")[0].endswith(".csv"):
        return [(f"{place}/{i}", number(word)) for i, word in enumerate(value.split(","))]
    return [(place, value.replace(ROOT, "") if isinstance(value, str) else value)]


def number(word: str) -> object:
    """A word of a table as the number it is, if it is one."""
    try:
        return float(word)
    except ValueError:
        return word


def alike(old: object, new: object) -> bool:
    """Numbers to six digits, anything else to the letter."""
    if isinstance(old, float | int) and isinstance(new, float | int) and not isinstance(old, bool):
        return f"{old:.6g}" == f"{new:.6g}" or abs(old - new) <= 1e-6 * max(abs(old), abs(new))
    return old == new


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", default=",".join(RUNS))
    asked = parser.parse_args()
    os.environ["COLUMNS"] = "160"
    KEPT.mkdir(exist_ok=True)
    compared = differing = 0
    for name in asked.only.split(","):
        began, path = time.monotonic(), KEPT / f"{name}.json.gz"
        new = answered(RUNS[name])
        if asked.record:
            path.write_bytes(gzip.compress(json.dumps(new, indent=0).encode(), mtime=0))
        old: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        new = json.loads(json.dumps(new))
        both = old.keys() & new.keys()
        wrong = [*(old.keys() ^ new.keys()), *(key for key in both if not alike(old[key], new[key]))]
        compared, differing = compared + len(old), differing + len(wrong)
        print(f"{name:20} {len(old):7,} cells, {len(wrong)} differ   {time.monotonic() - began:.1f} s", flush=True)
        for key in sorted(wrong)[:8]:
            print(f"    {key}: {old.get(key, '(not there)')!r} -> {new.get(key, '(not there)')!r}"[:220])
    print(f"{compared:,} cells compared, {differing} differ")
    raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()
