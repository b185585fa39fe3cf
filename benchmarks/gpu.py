"""Run top-k, an atlas and causal trials on a GPU, and check that the results match those of the CPU.

    python benchmarks/gpu.py [--device cuda] [--json] [--quick]

Takes under five minutes, and also runs on a CPU (`--device cpu --quick`). It has never been run on a GPU, for lack of
one. What to look for: "indices unlike float32" and "scores unlike float32" are 0, "indices unlike the CPU" is near 0
(only scores that differ in the last bit), and top-k and trials have ratios below 1.

1. Top-k in both directions, with the product chosen by measured speed, against the bare float32 product on the device.
   The results are compared with float32 on the device, and a part of them with the CPU.
2. An atlas of random dictionaries on the device, against the sum of its matches.
3. The causal trials of `causal.py` in the shape of GPT-2 small: the engine on the device against the engine on the CPU.

Training is not covered: `saeflow train --device cuda` reports its own speed.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import causal
from _timing import Row, arguments, interleaved, show
from chain import Synthetic
from saeflow import LanguageModel
from saeflow.matching.atlas import flow_pairs
from saeflow.matching.build import build_atlas
from saeflow.matching.methods import match_rows, sides
from saeflow.matching.screening import product_seconds
from saeflow.matching.topk import top_k_both
from saeflow.sources.tokens import Tokens

K = 5


def waited(act: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Wrap `act` so that it waits until the device has finished."""

    def whole() -> None:
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return whole


def topk(n: int, width: int, device: torch.device, repeats: int) -> tuple[list[Row], dict[str, object]]:
    """Speed of top-k, and the number of results that differ."""
    generator = torch.Generator().manual_seed(0)
    on_cpu = [torch.nn.functional.normalize(torch.randn(n, width, generator=generator)) for _ in range(2)]
    a, b = (rows.to(device) for rows in on_cpu)
    acts = {
        "bare float32 product": lambda: a @ b.T,
        "top-k, both directions": lambda: top_k_both(a, b, K),
        "top-k, both directions, float32 set": lambda: top_k_both(a, b, K, product="float32"),
    }
    top_k_both(a, b, K)  # first call: measures which product is fastest
    taken = interleaved({name: waited(act, device) for name, act in acts.items()}, repeats)
    limit, size = taken["bare float32 product"], f"{n:,}² x {width:,}, k={K}"
    rows = [Row(name, size, seconds, seconds / limit, "bare product") for name, seconds in taken.items()]
    pairs = list(zip(top_k_both(a, b, K), top_k_both(a, b, K, product="float32"), strict=True))
    some = min(n, 1024)
    cpu = top_k_both(on_cpu[0][:some], on_cpu[1][:some], K, product="float32")
    again = top_k_both(a[:some], b[:some], K)
    return rows, {
        "indices unlike float32": sum(int((x.index != y.index).sum()) for x, y in pairs),
        "scores unlike float32": sum(int((x.score != y.score).sum()) for x, y in pairs),
        "indices unlike the CPU": sum(int((x.index.cpu() != y.index).sum()) for x, y in zip(again, cpu, strict=True)),
        "giga multiply-adds a second": {
            name: round(1e-9 / seconds, 1) for name, seconds in product_seconds(device, width).items()
        },
    }


def atlas(n: int, width: int, device: torch.device) -> list[Row]:
    """Time an atlas of three layers, and the matches it consists of."""
    made = {site: dictionary.to(device) for site, dictionary in Synthetic(3, n, width).items()}
    pairs = flow_pairs(list(made))

    def matches() -> float:
        total = 0.0
        for pair in pairs:
            rows = sides(made[pair[0]], made[pair[1]])
            start = time.perf_counter()
            match_rows(*rows, k=K)
            total += time.perf_counter() - start
        return total

    alone = matches()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build_atlas(made, out=Path(folder), k=K, release="gpu")
        seconds = time.perf_counter() - start
    size = f"{len(pairs)} pairs, {n:,} x {width:,}"
    return [
        Row("its matches alone", size, alone),
        Row("atlas, with reading and hashing", size, seconds, seconds / alone, "its matches"),
    ]


def trials(device: torch.device, *, quick: bool) -> tuple[list[Row], float]:
    """Time causal trials on the device and on the CPU; also returns the largest relative difference of results."""
    world = causal.gpt2_shape(quick=quick)
    asked = causal.protocol(world, causal.prepare(world))
    expected = causal.by_engine(world, asked, loss=False)
    before = interleaved({"cpu": functools.partial(causal.by_engine, world, asked, loss=False)}, 1)["cpu"]
    there = dataclasses.replace(
        world,
        model=LanguageModel(world.model.hf_model.to(device), world.model.tokenizer),
        dictionaries={site: dictionary.to(device) for site, dictionary in world.dictionaries.items()},
        tokens=Tokens(world.tokens.input_ids.to(device), world.tokens.attention_mask.to(device)),
    )
    found = causal.by_engine(there, asked, loss=False)
    after = interleaved({"device": waited(lambda: causal.by_engine(there, asked, loss=False), device)}, 3)["device"]
    size = f"{len(asked):,} trials, {world.tokens.input_ids.shape[1]} tokens"
    rows = [
        Row("causal trials, CPU", size, before),
        Row(f"causal trials, {device}", size, after, after / before, "CPU"),
    ]
    return rows, causal.furthest(found, expected, loss=False)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    n, width = (2048, 256) if asked.quick else (16384, 2304)
    rows, agreement = topk(n, width, device, 2 if asked.quick else 5)
    rows += atlas(n, width, device)
    causal_rows, furthest = trials(device, quick=asked.quick)
    show(rows + causal_rows, as_json=asked.json, **agreement, largest_relative_difference_of_trials=furthest)


if __name__ == "__main__":
    main()
