"""Products in fewer bits that find candidates, an error bound that keeps this exact, and the choice of the fastest.

Let x be the dot product of two rows as computed in float32, S the one computed from rounded rows, a~ a rounded row:

    |a.b - a~.b~|      <= |a - a~| |b| + |a~| |b - b~|             Cauchy-Schwarz, norms of the residuals measured
    rounding of sums   <= gamma |a| |b| on either side             gamma = n u / (1 - n u), u = 2^-24
    S = S' (1 + e)        |e| <= unit                              how S' is rounded when it is written

The second line holds for any order of summation (Higham 2002, section 3.1): a product of two bfloat16 numbers is exact
in float32, so only the n - 1 additions round; int8 products add up exactly in int32; and in float32 the n products
round too. So every column whose x reaches t has S >= (t - eps) (1 - unit), where eps is the sum of the first two
lines. Columns below that are dropped, the others are ranked by x. The bound also holds for float32 tiles, which differ
only in the order of summation: there eps is near 0.0003 for unit rows of width 2,304, and `unit` is negligible.

For unit rows of that width, bfloat16 keeps eps near 0.004. int8 has one scale per row (its largest entry / 127) and
eps near 0.016, so it is useful where good matches stand out and leaves too many candidates where they do not.

The fastest product cannot be read from processor flags, so it is measured: once for each processor, version of torch,
number of threads and width, in about a tenth of a second, and kept in the cache folder.
SAEFLOW_PRODUCT=float32, bfloat16 or int8 overrides the choice. Where int8 cannot be used, on a GPU and for rows so wide
that sums would overflow, bfloat16 takes its place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, TypeVar, cast, get_args

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from saeflow.errors import InvalidArgument, SaeflowError
from saeflow.files import cache_folder, write_atomic
from saeflow.reading import read_json

Product = Literal["float32", "bfloat16", "int8"]
PRODUCTS: Final = get_args(Product)
Name = TypeVar("Name", bound=str)
VARIABLE: Final = "SAEFLOW_PRODUCT"
SMALLEST: Final = 2048
"""Rows per side from which screening is considered; below, rounding the rows costs what the product gains."""
U32: Final = 2.0**-24
UNIT: Final[dict[Product, float]] = {"float32": 2.0**-20, "bfloat16": 2.0**-8, "int8": 2.0**-20}
"""Relative error allowed for writing a product and computing a cut from it: at least twice the actual error."""
TINY: Final = 1e-30
"""Error allowed for hardware that flushes subnormal numbers to zero; far below any bound it is added to."""
GATHERED: Final = 1 << 22
"""Products examined, and candidates that wait, at a time: bounds the memory of ranking."""
_BLOCK: Final = 256
"""Rows rounded at a time, so that they stay in the processor's cache."""
_SAMPLE: Final = 32
"""Rows per side for which candidates are counted before a kind of product is chosen."""
_WIDEST: Final = (1 << 31) // 127**2
"""Width up to which sums of int8 products fit into int32."""
_log = logging.getLogger("saeflow.matching")


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """The rows of one side in the format they are multiplied in.

    Attributes:
        product: The kind of product.
        rows: The rows in its format; for float32, the rows as given.
        scale: The factor of every int8 row; None for other kinds.
        norm: The norm of every row, rounded up.
        error: The norm of every row's rounding error, rounded up.
    """

    product: Product
    rows: Tensor
    scale: Float[Tensor, " n"] | None
    norm: Float64[Tensor, " n"]
    error: Float64[Tensor, " n"]

    @staticmethod
    def of(rows: Float[Tensor, "n d_model"], product: Product) -> Rounded:
        """Round rows, and measure the error."""
        n, own = len(rows), product == "float32"
        norm, error = (rows.new_zeros(n, dtype=torch.float64) for _ in range(2))
        low = rows if own else torch.empty_like(rows, dtype=getattr(torch, product))
        scale = rows.new_ones(n) if product == "int8" else None
        for top in range(0, n, _BLOCK):
            some = slice(top, top + _BLOCK)
            exact = rows[some]
            norm[some] = _norms(exact)
            if own:
                continue
            if scale is None:
                low[some] = exact
                rest = exact - low[some]
            else:
                peak = exact.abs().amax(dim=1)
                scale[some] = torch.where(peak > TINY, peak / 127, 1.0)
                steps = (exact / scale[some, None]).round_()
                low[some] = steps
                rest = exact - steps.mul_(scale[some, None])
            error[some] = _norms(rest)
        # the residual of int8 has a rounding error itself
        return Rounded(product, low, scale, norm, error + (2 * U32 * norm if scale is not None else 0))

    def multiply(self, other: Rounded, own: slice | Tensor, others: slice, out: Float[Tensor, "n m"]) -> None:
        """Multiply some rows by some rows of the other side, into `out`."""
        left, right = self.rows[own], other.rows[others].T
        if self.scale is None or other.scale is None:
            torch.mm(left, right, out=out)
            return
        # converted block by block, while a block is in the cache
        step = max(1, (1 << 18) // max(1, out.shape[1]))
        sums, by_row = torch._int_mm(left, right), self.scale[own, None]  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        for top in range(0, len(out), step):
            some = slice(top, top + step)
            out[some].copy_(sums[some]).mul_(other.scale[others]).mul_(by_row[some])

    @property
    def written(self) -> torch.dtype:
        """The type that products are written in."""
        return torch.float32 if self.scale is not None else self.rows.dtype

    def eps(self, other: Rounded) -> Float[Tensor, " n"]:
        """For every row, how far S' may be from x with any row of the other side, rounded up."""
        gamma = (self.rows.shape[1] + 2) * U32
        gamma /= 1 - gamma
        norm, error = other.norm.max(), other.error.max()
        # |a~| <= |a| + |a - a~|
        rounded = self.norm + self.error
        eps = self.error * norm + rounded * error + 2 * gamma * rounded * (norm + error)
        return (eps * (1 + 1e-6) + TINY).float()


def _norms(rows: Float[Tensor, "n d_model"]) -> Float64[Tensor, " n"]:
    """The norms of rows, rounded up: in float32, which is faster, wherever no square under- or overflows there."""
    fast = torch.linalg.vector_norm(rows, dim=1)
    norms = fast.double() * (1 + 2 * (rows.shape[1] + 2) * U32)
    outside = ~((fast > 1e-15) & (fast < 1e18))
    if bool(outside.any()):
        norms[outside] = torch.linalg.vector_norm(rows[outside], dim=1, dtype=torch.float64) * (1 + U32)
    return norms


def widened(
    reached: Float[Tensor, " n"], eps: Float[Tensor, " n"], unit: float, *, rounded: bool
) -> Float[Tensor, " n"]:
    """The cut that the S of a column must exceed to be among the k best, if the k-th best is `reached`.

    `rounded` means that `reached` is an S too, which may exceed the x of its column.
    """
    if rounded:
        reached = reached - unit * reached.abs() - eps
    cut = reached - eps
    return torch.nextafter(cut - unit * cut.abs() - TINY, cut.new_tensor(-math.inf))


def dots(
    one: Float[Tensor, "n d_model"],
    i: Int[Tensor, " found"],
    other: Float[Tensor, "m d_model"],
    j: Int[Tensor, " found"],
) -> Float[Tensor, " found"]:
    """one[i] . other[j] in float32, for `i` in ascending order."""
    if one.device.type == "cpu":  # a sampled product, which gathers no rows
        starts = torch.searchsorted(i, torch.arange(len(one) + 1))
        with warnings.catch_warnings():  # torch warns that sparse tensors are new
            warnings.simplefilter("ignore", UserWarning)
            pairs = torch.sparse_csr_tensor(
                starts, j, one.new_zeros(len(j)), size=(len(one), len(other)), check_invariants=False
            )
            return torch.sparse.sampled_addmm(pairs, one, other.T, beta=0.0).values()
    out = one.new_empty(len(i))
    size = max(1, GATHERED // one.shape[1])
    for top in range(0, len(i), size):
        some = slice(top, top + size)
        out[some] = torch.linalg.vecdot(one[i[some]], other[j[some]])
    return out


def rounded_for(
    a: Float[Tensor, "n_source d_model"],
    b: Float[Tensor, "n_target d_model"],
    k: int,
    product: Product | None = None,
    *,
    both: bool = True,
) -> tuple[Rounded, Rounded]:
    """Both sides, rounded for the kind of product that is expected to find their `k` best fastest.

    The cost of a kind is its product, plus a dot product for every candidate it leaves; candidates are counted for a
    sample of rows of either side, against all rows of the other, before a whole side is rounded. A log line says what
    was chosen and why.

    Raises:
        InvalidArgument: when `product`, or SAEFLOW_PRODUCT, is not a kind of product.
    """
    wanted = product or os.environ.get(VARIABLE) or None
    if wanted is not None:
        if wanted not in PRODUCTS:
            raise InvalidArgument(f"there is no product in {wanted!r}. Known: {', '.join(PRODUCTS)}.")
        set_ = cast("Product", wanted)
        if set_ == "int8" and (a.device.type != "cpu" or a.shape[1] > _WIDEST):
            # CUDA's integer product refuses tiles of up to 16 rows, and numbers of columns that are no multiple of 8
            set_ = "bfloat16"
            _log.info("int8 is not used on %s at width %s: bfloat16 takes its place", a.device.type, a.shape[1])
        return Rounded.of(a, set_), Rounded.of(b, set_)
    best: Product = "float32"
    seconds = dict[str, float]()
    if min(len(a), len(b)) >= SMALLEST and a.device.type in ("cpu", "cuda"):
        seconds = product_seconds(a.device, a.shape[1])
    faster = [kind for kind in PRODUCTS if seconds.get(kind, math.inf) < seconds.get("float32", 0.0)]
    if not faster:
        return Rounded.of(a, best), Rounded.of(b, best)
    (n, width), m = a.shape, len(b)
    least, said = seconds["float32"] * n * m * width, list[str]()
    sampled_a, sampled_b = _sampled(a), _sampled(b)
    tile_a, tile_b = sampled_a @ b.T, sampled_b @ a.T if both else None
    for kind in sorted(faster, key=lambda kind: seconds[kind]):
        bare = seconds[kind] * n * m * width
        if bare >= least or (kind == "int8" and width > _WIDEST):
            continue
        one, other = Rounded.of(sampled_a, kind), Rounded.of(sampled_b, kind)
        left = _candidates(tile_a, one, other, k) * n
        left += _candidates(tile_b, other, one, k) * m if tile_b is not None else 0.0
        whole = bare + seconds["dot"] * width * left
        said.append(f"{kind} {bare:.2g} s and {left / n:.0f} candidates for each feature, {whole:.2g} s in all")
        if whole < least:
            least, best = whole, kind
    if said:
        _log.info(
            "top %d of %s x %s x %s: %s; float32 %.2g s; chosen: %s",
            *(k, f"{n:,}", f"{m:,}", f"{width:,}", "; ".join(said)),
            *(seconds["float32"] * n * m * width, best),
        )
    return Rounded.of(a, best), Rounded.of(b, best)


def _sampled(rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "some d_model"]:
    return rows[torch.linspace(0, len(rows) - 1, _SAMPLE, device=rows.device).long()]


def _candidates(tile: Float[Tensor, "some m"], own: Rounded, other: Rounded, k: int) -> float:
    """How many products of a sampled row would be ranked in float32, on average, if `other` is like all of its side."""
    reached = tile.topk(min(k, tile.shape[1]), dim=1).values[:, -1]
    cut = widened(reached, own.eps(other), UNIT[own.product], rounded=False)
    return float((tile > cut[:, None]).sum()) / len(tile)


# Timing of products on this machine


def product_seconds(device: torch.device, width: int) -> dict[str, float]:
    """Seconds per multiply-add for each kind of product worth trying, and for the dot products of candidates ("dot").

    Measured if not found in the cache folder, at the power of two nearest to `width`.
    """
    return _product_seconds(str(device), 2 ** round(math.log2(min(max(width, 64), 4096))), torch.get_num_threads())


@lru_cache
def _product_seconds(device: str, width: int, threads: int) -> dict[str, float]:
    chip = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    key = f"{chip}, torch {torch.__version__}, {threads} threads, width {width}"
    path = cache_folder() / "products.json"

    def known() -> dict[str, dict[str, float]]:
        with suppress(OSError, ValueError, SaeflowError):
            data = read_json(path)
            if isinstance(data, dict):
                return cast("dict[str, dict[str, float]]", data)
        return {}

    found = known().get(key)
    if isinstance(found, dict) and {"float32", "dot"} <= found.keys() and all(v > 0 for v in found.values()):
        return found
    found = _measured(torch.device(device), width)
    _log.info("measured on %s: %s", key, {name: f"{1e-9 / s:.0f} G/s" for name, s in found.items()})
    with suppress(OSError, SaeflowError):  # the cache folder may not be writable
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps({**known(), key: found}, indent=1) + "\n").encode())
    return found


def _measured(device: torch.device, width: int) -> dict[str, float]:
    """Seconds per multiply-add of each kind: the best of five runs, the kinds in turn."""
    cuda = device.type == "cuda"
    sizes = ((8192, 8192),) if cuda else ((64, 256), (256, 2048))
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(size, width, generator=generator).to(device) for size in sizes[-1]]
    found: dict[Product, float] = {}
    kinds: list[Product] = list(PRODUCTS)[: 2 if cuda else 3]
    for n, m in sizes:  # small ones first: what hardware does not support takes hundreds of times as long
        acts: dict[Product, Callable[[], object]] = {}
        for kind in kinds:
            a, b = Rounded.of(rows[0][:n], kind), Rounded.of(rows[1][:m], kind)
            out = torch.empty(n, m, device=device, dtype=a.written)
            acts[kind] = lambda a=a, b=b, out=out: a.multiply(b, slice(None), slice(None), out)
            try:
                acts[kind]()
            except (RuntimeError, AttributeError):  # this build of torch does not multiply this kind
                del acts[kind]
        found |= {kind: s / (n * m * width) for kind, s in _least_seconds(acts, device).items()}
        kinds = [kind for kind in acts if found[kind] < 2 * found["float32"]]
    kept: dict[str, float] = {kind: found[kind] for kind in kinds}
    i, j = torch.arange(len(rows[0]), device=device).repeat_interleave(8), torch.arange(8 * len(rows[0]), device=device)
    dot = _least_seconds({"dot": lambda: dots(rows[0], i, rows[1], j % len(rows[1]))}, device)["dot"]
    # doubled: candidates' rows are seldom in the cache, and finding, sorting and merging one takes as long again
    return kept | {"dot": 2 * dot / (len(i) * width)}


def _least_seconds(acts: Mapping[Name, Callable[[], object]], device: torch.device) -> dict[Name, float]:
    """The shortest of five calls of each function, called in turn, after one call that is not counted."""
    # the clock of a single thread leaves out the time that other processes take
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    least = dict.fromkeys(acts, math.inf)
    for turn in range(6):
        for name, act in acts.items():
            start = clock()
            act()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            least[name] = min(least[name], clock() - start if turn else math.inf)
    return least


def _processor() -> str:
    """An identity of the processor, from its first block in /proc/cpuinfo if there is one, since names are shared."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        block = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        lines = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
        said = {key.strip(): value.strip() for key, value in lines.items()}
        kept = [said.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU part")]
        name = f"{said.get('model name', name)} {hashlib.sha256(' '.join(kept).encode()).hexdigest()[:8]}"
    return name
