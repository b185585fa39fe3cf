"""Cosine top-k of two dictionaries, against the bare matrix product and against common implementations.

    python benchmarks/topk.py [--json] [--quick] [--size 16384] [--width 2304] [--k 5]

Methods search both directions unless stated otherwise. A bare product writes into a reused tile and ranks nothing: no
exact method that multiplies only in float32 can be faster than the float32 one. saeflow finds candidates with whichever
kind of product is fastest on the machine (`saeflow.matching.screening`). faiss is measured if it is installed (extra
`bench`). The loop over rows is timed on a few rows and scaled. On a busy machine, ratios of CPU time with one thread
(OMP_NUM_THREADS=1) are steadier than ratios of wall time.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from _timing import Row, arguments, peak_memory, show, wall_and_cpu
from saeflow.matching.screening import Product, Rounded, product_seconds
from saeflow.matching.topk import top_k, top_k_both

LOOPED = 24
BARE = "bare float32 product"
Inputs = tuple[Tensor, Tensor, int]


def inputs(n: int, d: int, k: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, d, generator=generator) for _ in range(2))
    return a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True), k


def bare(made: Inputs) -> None:
    a, b, _ = made
    tile = torch.empty(min(1024, len(a)), len(b))
    for top in range(0, len(a), 1024):
        block = a[top : top + 1024]
        torch.mm(block, b.T, out=tile[: len(block)])


def bare_rounded(made: tuple[Rounded, Rounded]) -> None:
    a, b = made
    tile = torch.empty(min(1024, len(a.rows)), len(b.rows), dtype=a.written)
    for top in range(0, len(a.rows), 1024):
        block = slice(top, min(top + 1024, len(a.rows)))
        a.multiply(b, block, slice(None), tile[: block.stop - top])


def both(made: Inputs, product: Product | None = None) -> None:
    top_k_both(*made, product=product)


def one(made: Inputs, product: Product | None = None) -> None:
    top_k(*made, product=product)


def whole_matrix(made: Inputs) -> None:
    a, b, k = made
    product = a @ b.T
    product.topk(k, dim=1)
    product.T.topk(k, dim=1)


def faiss_twice(made: Inputs) -> None:
    import faiss

    a, b, k = made
    for source, target in ((a, b), (b, a)):
        index = faiss.IndexFlatIP(target.shape[1])
        index.add(target.numpy())
        index.search(source.numpy(), k)


def row_by_row(made: Inputs) -> None:
    a, b, k = made
    for source, target in ((a, b), (b, a)):
        for row in source[:LOOPED]:
            torch.nn.functional.cosine_similarity(row[None], target).topk(k)


def methods(n: int, *, others: bool) -> dict[str, tuple[Callable[[Inputs], None], float, str]]:
    """Name -> (function, factor by which its time is scaled, note)."""
    found: dict[str, tuple[Callable[[Inputs], None], float, str]] = {
        BARE: (bare, 1, "ranks nothing"),
        "saeflow, both directions": (both, 1, "in what is fastest here"),
        "saeflow, one direction": (one, 1, "in what is fastest here"),
        "saeflow, both directions, float32 set": (functools.partial(both, product="float32"), 1, ""),
        "saeflow, one direction, float32 set": (functools.partial(one, product="float32"), 1, ""),
    }
    if others:
        found["whole matrix, torch.topk along both axes"] = (whole_matrix, 1, "")
        found["a row at a time, cosine_similarity + topk"] = (row_by_row, n / LOOPED, f"scaled from {LOOPED} rows")
        if importlib.util.find_spec("faiss"):
            found["faiss IndexFlatIP twice"] = (faiss_twice, 1, "")
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=16384, help="rows of either side")
    parser.add_argument("--width", type=int, default=2304, help="d_model")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-ours", action="store_true", help="leave out what people write, and faiss")
    asked = parser.parse_args()
    n, d = (2048, 512) if asked.quick else (asked.size, asked.width)
    made = inputs(n, d, asked.k)
    known = methods(n, others=not asked.only_ours)
    acts = {name: functools.partial(f, made) for name, (f, _, _) in known.items()}
    for product in ("bfloat16", "int8"):
        if product in product_seconds(made[0].device, d):
            sides = Rounded.of(made[0], product), Rounded.of(made[1], product)
            acts[f"bare {product} product"] = functools.partial(bare_rounded, sides)
    taken = wall_and_cpu(acts, 2 if asked.quick else asked.repeats)
    prepare = functools.partial(inputs, n, d, asked.k)
    rows: list[Row] = []
    for name, (wall, cpu) in taken.items():
        act, scale, note = known.get(name, (None, 1, "ranks nothing, not exact"))
        rows.append(
            Row(
                name,
                f"{n:,}² x {d:,}, k={asked.k}",
                wall * scale,
                wall * scale / taken[BARE][0],
                BARE,
                None if act is None else peak_memory(prepare, act),
                note,
                cpu * scale / taken[BARE][1],
            )
        )
    chosen, exact = top_k_both(*made), top_k_both(*made, product="float32")
    differ = sum(int((found.index != true.index).sum()) for found, true in zip(chosen, exact, strict=True))
    speeds = {name: round(1e-9 / seconds, 1) for name, seconds in product_seconds(made[0].device, d).items()}
    show(rows, as_json=asked.json, indices_unlike_float32=differ, measured_giga_multiply_adds_a_second=speeds)


if __name__ == "__main__":
    main()
