"""Run the long blocks of the documentation and record the runs: `python scripts/docs_blocks.py --long`."""

from __future__ import annotations

import datetime
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from docs_blocks import RECORD, ROOT, Block, blocks, environment, pages, read_record, said_of


def run_long(block: Block) -> dict[str, Any]:
    """Run a long block in a separate process in a folder with only links to the repository; returns its record.

    Raises:
        Untrue: when it fails.
    """
    from saeflow.version import __version__

    program = [sys.executable, "-c", block.code] if block.language == "python" else ["bash", "-euc", block.code]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("scripts", "tests", "benchmarks", "docs", "examples", "src"):
            (Path(folder) / name).symlink_to(ROOT / name)
        before, used = time.monotonic(), children()
        surroundings = {**os.environ, **environment(Path(folder) / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(program, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
        seconds, processor = time.monotonic() - before, children() - used
    if done.returncode:
        raise block.wrong(f"ended with {done.returncode}: {done.stderr[-2000:]}")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    took = {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1)}
    return {"page": block.page, "date": date, **took, "version": __version__}


def children() -> float:
    """Seconds of processor time used by child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def record_long(only: list[Path], matching: str = "") -> None:
    """Run the long blocks whose text contains the pattern `matching`, on the pages in `only` or on all pages.

    The record is written after each block. Blocks that were never run are recorded as such; removed blocks are dropped.
    """
    from saeflow.files import write_atomic

    every = [block for page in pages() for block in blocks(page) if block.fate == "long"]
    wanted = {page.resolve().relative_to(ROOT).as_posix() for page in only}
    record = {hash_: entry for hash_, entry in read_record().items() if hash_ in {b.hash for b in every}}
    for block in every:
        record.setdefault(block.hash, {"page": block.page, "not_run": "it takes long, and was left out"})
        if (not wanted or block.page in wanted) and re.search(matching, block.code):
            record[block.hash] = run_long(block)
            print(f"{block.page}:{block.line}: {said_of(block, record)}", flush=True)
        ordered = dict(sorted(record.items(), key=lambda item: (item[1]["page"], item[0])))
        write_atomic(RECORD, (json.dumps(ordered, indent=1) + "\n").encode())
