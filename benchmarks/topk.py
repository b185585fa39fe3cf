"""Cosine top-k of two dictionaries: against the bare matrix product, and against what people write.

    python benchmarks/topk.py [--json] [--quick] [--size 16384] [--width 2304] [--k 5]

Both directions unless said. The bare product computes the same numbers into a reused tile and ranks nothing:
no exact method in float32 can be faster. faiss is measured where it is installed (extra `bench`). The
loop over rows is timed on a few rows and scaled.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from _timing import Row, arguments, has_bf16_units, interleaved, peak_memory, show
from saeflow.matching.topk import top_k, top_k_both

LOOPED = 24
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


def both(made: Inputs) -> None:
    top_k_both(*made, screened=False)


def one(made: Inputs) -> None:
    top_k(*made, screened=False)


def both_screened(made: Inputs) -> None:
    top_k_both(*made, screened=True)


def one_screened(made: Inputs) -> None:
    top_k(*made, screened=True)


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


def methods(n: int) -> dict[str, tuple[Callable[[Inputs], None], float, str]]:
    """Name -> (function, what its time is multiplied by, note)."""
    found: dict[str, tuple[Callable[[Inputs], None], float, str]] = {
        "bare float32 product": (bare, 1, "ranks nothing: the limit of exact float32"),
        "saeflow, both directions": (both, 1, "float32 tiles"),
        "saeflow, one direction": (one, 1, "float32 tiles"),
        "whole matrix, torch.topk along both axes": (whole_matrix, 1, ""),
        "a row at a time, cosine_similarity + topk": (row_by_row, n / LOOPED, f"scaled from {LOOPED} rows"),
    }
    if has_bf16_units():
        found["saeflow, both directions, screened"] = (both_screened, 1, "bf16 candidates, float32 ranks")
        found["saeflow, one direction, screened"] = (one_screened, 1, "bf16 candidates, float32 ranks")
    if importlib.util.find_spec("faiss"):
        found["faiss IndexFlatIP twice"] = (faiss_twice, 1, "")
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=16384, help="rows of either side")
    parser.add_argument("--width", type=int, default=2304, help="d_model")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    told = parser.parse_args()
    n, d = (2048, 512) if told.quick else (told.size, told.width)
    made = inputs(n, d, told.k)
    known = methods(n)
    seconds = interleaved(
        {name: functools.partial(f, made) for name, (f, _, _) in known.items()}, 2 if told.quick else told.repeats
    )
    limit = seconds["bare float32 product"]
    prepare = functools.partial(inputs, n, d, told.k)
    rows = [
        Row(
            name,
            f"{n:,}² x {d:,}, k={told.k}",
            seconds[name] * scale,
            seconds[name] * scale / limit,
            "bare product",
            peak_memory(prepare, f),
            note,
        )
        for name, (f, scale, note) in known.items()
    ]
    show(rows, as_json=told.json, bf16_matrix_units=has_bf16_units())


if __name__ == "__main__":
    main()
