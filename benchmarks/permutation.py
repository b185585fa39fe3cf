"""One-to-one assignment of two dictionaries, against dense solvers on the full matrix of products.

    python benchmarks/permutation.py [--json] [--quick] [--size 4096] [--width 768]

The planted data are a permutation of unit rows plus noise of the same norm, with 30 % of the rows unrelated. "gap"
is the relative distance of the sum of dot products below scipy's dense optimum; "proved" is the gap that saeflow's
own bound guarantees without knowing the optimum. lapx is measured if it is installed. The dense solvers take 20
bytes per product (5.4 GB at 16,384 squared).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from _timing import Row, arguments, peak_memory, show, wall_and_cpu
from saeflow.matching.permutation import assign

Inputs = tuple[Tensor, Tensor]
Solver = Callable[[Inputs], np.ndarray]
UNRELATED = 0.3
SCIPY = "scipy linear_sum_assignment, dense"
SAEFLOW = "saeflow, core and prices"


def inputs(n: int, d: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def unit(rows: Tensor) -> Tensor:
        return rows / rows.norm(dim=1, keepdim=True)

    a = unit(torch.randn(n, d, generator=generator))
    b = a + torch.randn(n, d, generator=generator) / d**0.5
    unrelated = torch.rand(n, generator=generator) < UNRELATED
    b[unrelated] = torch.randn(int(unrelated.sum()), d, generator=generator)
    return a, unit(b)[torch.randperm(n, generator=generator)]


def by_core(made: Inputs) -> np.ndarray:
    return assign(*made, dense_entries=0, memory=0).index


def by_scipy(made: Inputs) -> np.ndarray:
    a, b = made
    return linear_sum_assignment((a @ b.T).numpy(), maximize=True)[1]


def by_lapx(made: Inputs) -> np.ndarray:
    import lap

    a, b = made
    return np.asarray(lap.lapjvs((-(a @ b.T)).numpy())[2])


def total(made: Inputs, index: np.ndarray) -> float:
    a, b = made
    return float((a.double() * b.double()[torch.from_numpy(index.astype(np.int64))]).sum())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=4096, help="rows of either side")
    parser.add_argument("--width", type=int, default=768, help="d_model")
    parser.add_argument("--repeats", type=int, default=3)
    told = parser.parse_args()
    n, d = (1024, 256) if told.quick else (told.size, told.width)
    made = inputs(n, d)
    solvers: dict[str, Solver] = {SAEFLOW: by_core, SCIPY: by_scipy}
    if importlib.util.find_spec("lap"):
        solvers["lapx lapjvs, dense"] = by_lapx
    values: dict[str, float] = {}

    def solve(name: str) -> None:
        values[name] = total(made, solvers[name](made))

    repeats = 1 if told.quick else told.repeats
    taken = wall_and_cpu({name: functools.partial(solve, name) for name in solvers}, repeats)
    best, certificate = values[SCIPY], assign(*made, dense_entries=0, memory=0)
    proved = f", proved {certificate.gap:.1e}, {certificate.how}"
    rows = [
        Row(
            name,
            f"{n:,}² x {d:,}",
            taken[name][0],
            taken[name][0] / taken[SCIPY][0],
            "scipy, dense",
            peak_memory(functools.partial(inputs, n, d), solver),
            f"gap {(best - values[name]) / abs(best):.1e}" + (proved if name == SAEFLOW else ""),
            taken[name][1] / taken[SCIPY][1],
        )
        for name, solver in solvers.items()
    ]
    show(rows, as_json=told.json, optimum=best)


if __name__ == "__main__":
    main()
