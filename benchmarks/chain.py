"""Build the atlas of a whole release in the shape of Gemma Scope 2B: time, memory, and the cost of a kill.

    python benchmarks/chain.py [--json] [--quick] [--layers 26] [--features 16384] [--width 2304] [--folder DIR]

1. Write a synthetic release with every layer and part in float16 (12 GB at full size; the folder is removed).
2. Build its atlas in a separate process: wall time, compared with the top-k searches on their own, and total peak
   memory of the process.
3. Build it again, kill the process with SIGKILL half way, and restart it. Count the tables that were written
   twice, and compare every file with the first build.
4. Trace a graph from the weights, without an atlas, and one from the atlas.

Rows of neighbouring layers share a base, so that the tables resemble those of real releases: about 12 % of the
module rows have a match.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from _timing import Row, arguments, memory, show
from saeflow.flow import Thresholds, trace
from saeflow.ids import FeatureId, Part, Site
from saeflow.matching.atlas import flow_pairs, open_atlas
from saeflow.matching.build import build_atlas
from saeflow.matching.direct import DirectMatches
from saeflow.matching.methods import sides
from saeflow.matching.topk import top_k_both
from saeflow.sources.activations import JumpReLU
from saeflow.sources.dictionary import Dictionary, Tap
from saeflow.sources.formats import save_release
from saeflow.sources.library import load_dictionaries

SEARCHES = "its searches"


class Synthetic(Mapping[Site, Dictionary]):
    """Dictionaries that are generated on access, each from its own seed."""

    def __init__(self, layers: int, features: int, width: int) -> None:
        self.sites = [Site(layer, part) for layer in range(layers) for part in Part]
        generator = torch.Generator().manual_seed(0)
        self.base = torch.nn.functional.normalize(torch.randn(features, width, generator=generator), dim=1)

    def __getitem__(self, site: Site) -> Dictionary:
        n, d = self.base.shape
        generator = torch.Generator().manual_seed(1 + 10 * site.layer + site.part.rank)
        rows = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)
        shared = torch.randperm(n, generator=generator)[: n if site.part is Part.RES else n // 8]
        rows[shared] = torch.nn.functional.normalize(1.5 * self.base[shared] + rows[shared], dim=1)
        return Dictionary(
            site,
            tap=Tap(site.part.value),
            W_enc=rows,
            b_enc=torch.zeros(n),
            W_dec=rows,
            b_dec=torch.zeros(d),
            activation=JumpReLU(torch.ones(n)),
        )

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


def build(release: str, out: str, send: Any) -> None:
    """Build an atlas, as the main function of a process: sends progress, then wall time, CPU time and peak MB."""
    start, cpu = time.perf_counter(), time.process_time()
    build_atlas(load_dictionaries(release), out=out, release="chain", progress=lambda done, *_: send.send(done))
    send.send((time.perf_counter() - start, time.process_time() - cpu, memory()))


def matches_alone(release: Path) -> tuple[float, float]:
    """Wall and processor time of matching all pairs, with their rows already in memory."""
    dictionaries, wall, cpu = load_dictionaries(release), 0.0, 0.0
    for source, target in flow_pairs(list(dictionaries)):
        one, other = sides(dictionaries[source], dictionaries[target])
        start, used = time.perf_counter(), time.process_time()
        top_k_both(one.rows, other.rows, 5)
        wall, cpu = wall + time.perf_counter() - start, cpu + time.process_time() - used
        dictionaries[source].unload()
        dictionaries[target].unload()
    return wall, cpu


def started(release: Path, out: Path) -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=build, args=(str(release), str(out), send))
    child.start()
    send.close()
    return child, receive


def finished(child: Any, receive: Any) -> tuple[float, float, float]:
    told: Any = 0
    while not isinstance(told, tuple):
        told = receive.recv()
    child.join()
    return told


def killed_half_way(release: Path, out: Path, pairs: int) -> tuple[float, dict[str, int]]:
    """Seconds until the kill, and the tables left behind with their modification times."""
    start = time.perf_counter()
    child, receive = started(release, out)
    while receive.recv() < pairs // 2:
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return time.perf_counter() - start, written(out)


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def same_bytes(one: Path, other: Path) -> bool:
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    return names[0] == names[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in names[0])


def graphs(release: Path, atlas: Path, seed: FeatureId) -> dict[str, float]:
    """Seconds to trace a graph through all layers, from the weights and from the atlas; both graphs must agree."""
    thresholds, taken, found = Thresholds(res=0.0), {}, []
    for name, opened in {
        "graph from the weights": lambda: DirectMatches(load_dictionaries(release)),
        "graph from the atlas, opening included": lambda: open_atlas(atlas),
    }.items():
        start = time.perf_counter()
        graph = trace(seed, opened(), thresholds=thresholds)
        taken[name] = time.perf_counter() - start
        found.append([(e.parent, e.child) for e in graph.edges])
    if found[0] != found[1]:
        raise RuntimeError(f"the two graphs of {seed} differ: {found}")
    return taken


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--features", type=int, default=16384)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--folder", type=Path, default=None, help="where the release and the atlases are put")
    told = parser.parse_args()
    layers, n, d = (4, 1024, 256) if told.quick else (told.layers, told.features, told.width)
    folder = Path(tempfile.mkdtemp(prefix="chain-", dir=told.folder))
    try:
        rows, more = measured(folder, layers, n, d)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows, as_json=told.json, **more)


def measured(folder: Path, layers: int, n: int, d: int) -> tuple[list[Row], dict[str, object]]:
    release, whole, resumed = folder / "release", folder / "whole", folder / "resumed"
    made = Synthetic(layers, n, d)
    pairs = len(flow_pairs(made.sites))
    save_release(release, made, name="chain", model="")
    del made
    seconds, cpu, peak = finished(*started(release, whole))
    alone, alone_cpu = matches_alone(release)
    until, left = killed_half_way(release, resumed, pairs)
    again, _, _ = finished(*started(release, resumed))
    after = written(resumed)
    twice = sum(after[name] != stamp for name, stamp in left.items())
    size = f"{layers} layers x 3 parts, {n:,} x {d:,}"
    grown = graphs(release, whole, FeatureId(Site(layers - 1, Part.RES), 5))
    rows = [
        Row("its top-k searches alone, rows in memory", size, alone, 1.0, SEARCHES, cpu_ratio=1.0),
        Row(
            f"atlas of {pairs} pairs, both directions, k=5",
            size,
            seconds,
            seconds / alone,
            SEARCHES,
            peak,
            "MB of the process in all",
            cpu / alone_cpu,
        ),
        Row("killed half way and resumed", size, until + again, (until + again) / seconds, "one run"),
        *(Row(name, size, taken) for name, taken in grown.items()),
    ]
    return rows, {
        "tables when killed": len(left),
        "tables written twice": twice,
        "tables in all": len(after),
        "same bytes as one run": same_bytes(whole, resumed),
    }


if __name__ == "__main__":
    main()
