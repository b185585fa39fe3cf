"""Run every benchmark in turn and write the results as one page.

    python benchmarks/all.py [--json] [--quick] [--only topk,chain] [--out docs/benchmarks.md]

Runs the other files of this folder in separate processes, saves the output of each as results/NAME.json, and makes the
page from all saved results: rerunning a part replaces only its own. At full size this takes about half an hour and
15 GB of disk; `--quick` shows in a minute that everything runs, and saves nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _timing import Row, arguments, as_markdown

HERE = Path(__file__).parent
KEPT = HERE / "results"
PARTS = {
    "topk": ("Cosine top-k, k = 5, and what people write", "topk.py --repeats 3"),
    "products": ("Cosine top-k in the product that is fastest", "topk.py --size 8192 --repeats 3 --only-ours"),
    "permutation": ("One-to-one assignment", "permutation.py --size 8192 --width 2304 --repeats 1"),
    "pearson": ("Pearson correlation over 100,000 tokens, 100 features active on each", "pearson.py"),
    "atlas": ("An atlas and its searches", "chain.py --layers 3"),
    "chain": ("A release in the shape of Gemma Scope 2B", "chain.py"),
    "causal": ("Causal trials", "causal.py"),
    "prompt_graph": ("The graph of a prompt", "prompt_graph.py"),
    "steering": ("Steered generation", "steering.py --settings 16"),
    "engines": ("Engines: a unit of work here, in a pool, on Ray", "engines.py"),
}
"""Name of the results file -> (heading, script of this folder with its options)."""


def run(script: str) -> dict[str, Any]:
    """Run one benchmark and parse its JSON output; its progress is shown as it runs."""
    name, *options = script.split()
    command = [sys.executable, str(HERE / name), "--json", *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def kept() -> dict[str, dict[str, Any]]:
    """The latest saved results of each part that has any."""
    files = {name: KEPT / f"{name}.json" for name in PARTS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def page(found: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    first = (
        "Written by `make bench` (`python benchmarks/all.py`). Medians of interleaved runs in one process; ratios are "
        "what lasts, seconds are one machine's. On a busy machine ratios of CPU time are the steadier ones. Memory is "
        "next to the inputs unless a note says otherwise. Every part names the machine it was last run on; parts that "
        "were not run again since show an earlier version.\n"
    )
    parts = ["# Benchmarks\n", first]
    for name, told in found.items():
        parts += [f"## {PARTS[name][0]}\n", f"`python benchmarks/{PARTS[name][1]}` on {told['machine']}.\n"]
        parts.append(as_markdown([Row(**row) for row in told["rows"]]))
        more = {key: value for key, value in told.items() if key not in ("machine", "rows")}
        if more:
            told_more = (f"{key.replace('_', ' ')}: {_digits(value)}" for key, value in more.items())
            parts.append("; ".join(told_more) + "\n")
    return "\n".join(parts)


def _digits(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--out", type=Path, default=None, help="write the page here")
    told = parser.parse_args()
    names = told.only.split(",")
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        parser.error(f"--only names {', '.join(unknown)}. Parts are {', '.join(PARTS)}.")
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found[name] = run(PARTS[name][1] + (" --quick" if told.quick else ""))
        if not told.quick:
            KEPT.mkdir(exist_ok=True)
            (KEPT / f"{name}.json").write_text(json.dumps(found[name], indent=1) + "\n", encoding="utf-8")
    shown = found if told.quick else kept()
    text = json.dumps(shown, indent=1) if told.json else page(shown)
    if told.out:
        told.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
