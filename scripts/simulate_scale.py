"""Simulate how atlas builds would scale, from unit costs measured on one machine (docs/scale.md).

    python scripts/simulate_scale.py --measure     # unit costs of this machine into benchmarks/results/scale.json
    python scripts/simulate_scale.py               # simulate, and write the tables and the figure of docs/scale.md

This is a discrete-event simulation, not a measurement of a cluster. It has four resources:

    driver     one process that sends units and receives and writes results, one at a time (measured costs)
    slots      16 per node, one thread each; a unit costs its matrix product, plus preparing the rows of each side that
               the worker does not hold yet (measured costs)
    storage    a shared bandwidth in GB/s for all nodes, and a link in GB/s to each node (assumed)
    memory     of each node: files that were read stay in the page cache, least recently used evicted first (assumed)

Units are sent in order, with two in flight per slot, and start on the first free slot regardless of where their
weights are, as `saeflow.engines` does on Ray.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster import COSTS, ENGINES, GB, SLOTS, Costs, Machine, Outcome, Piece, Unit, simulate

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scale.md"
FIGURE = ROOT / "docs" / "images" / "scale.svg"

NODES = (1, 3, 10, 30, 100, 300, 1000)
SHARD = 16_384
K = 5
STYLES = (("#0072b2", "--"), ("#0072b2", "-"), ("#d55e00", "--"), ("#d55e00", "-"), ("#d55e00", ":"))
OWN_DISK = 3.0
"""GB/s of a node's own disk, for the case where it holds the weights."""


Sides = dict[Any, tuple[int, int, float]]
"""Site -> (features, width, bytes per value) of its file."""


def sides_of(releases: list[str]) -> dict[str, tuple[Sides, int]]:
    """The sides of each release and its residual width, from the recipes that come with saeflow."""
    from saeflow.sources.releases import read_release

    found: dict[str, tuple[Sides, int]] = {}
    for name in releases:
        recipe = read_release(name)
        sizes = {site: entry.size for site, entry in recipe.sites.items() if entry.size is not None}
        width = max(size.d_in for site, size in sizes.items() if site.part.value == "res")
        sides = {site: (size.n_features, size.d_in, float(size.value_bytes)) for site, size in sizes.items()}
        found[name] = sides, width
    return found


def pieces_of(name: str, site: Any, side: tuple[int, int, float], width: int, shard: int | None) -> list[Piece]:
    n, d_in, value = side
    step = shard or n
    return [
        Piece(f"{name} {site} {start}", min(step, n - start) * d_in * value, min(step, n - start) * width * 4)
        for start in range(0, n, step)
    ]


def phases(releases: list[str], costs: Costs, shard: int | None) -> list[list[Unit]]:
    """The units of building an atlas of each release, by phase, in the order they are sent."""
    from saeflow.matching.atlas import flow_pairs

    prints: list[Unit] = []
    matches: list[Unit] = []
    for name, (sides, width) in sides_of(releases).items():
        cut = {site: pieces_of(name, site, side, width, shard) for site, side in sides.items()}
        if shard:
            for pieces in cut.values():
                rows = sum(piece.rows for piece in pieces)
                whole = Piece(f"{pieces[0].name} whole", sum(p.stored for p in pieces), 0.0)
                prints.append(Unit((whole,), rows * (costs.row_byte + 2 * costs.hash_byte), 2000.0))
        for a, b in flow_pairs(list(sides)):
            matches += list(_grid(cut[a], cut[b], width, costs, hashed=not shard))
    return [phase for phase in (prints, matches) if phase]


def _grid(one: list[Piece], other: list[Piece], width: int, costs: Costs, *, hashed: bool) -> Iterator[Unit]:
    for number, a in enumerate(one):
        for b in other if number % 2 == 0 else other[::-1]:
            n, m = a.rows / 4 / width, b.rows / 4 / width
            seconds = 2 * n * m * width * costs.flop + (hashed * (a.rows + b.rows)) * costs.hash_byte
            yield Unit((a, b), seconds, (n + m) * K * (8 if hashed else 12))


# ---------------------------------------------------------------------------------------------- costs


def measured() -> dict[str, float]:
    """Unit costs of this machine with one thread, as medians of five."""
    import torch

    from saeflow.files import write_atomic
    from saeflow.matching.topk import top_k_both

    torch.set_num_threads(1)
    n, d = 4096, 2304
    make = torch.Generator().manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, n, d, generator=make), dim=2)

    def rows() -> None:
        peak = a.abs().amax(dim=1)
        scaled = a / peak[:, None]
        _ = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
        _ = bool(torch.isfinite(scaled).all())

    data = a.numpy().data
    with tempfile.TemporaryDirectory() as folder:
        small, large = b"1" * 1000, b"1" * 20_000_000
        wrote = _median(lambda: write_atomic(Path(folder) / "small", small))
        wrote_large = _median(lambda: write_atomic(Path(folder) / "large", large))
    return {
        "flop": _median(lambda: top_k_both(a, b, K)) / (2 * n * n * d),
        "row_byte": _median(rows) / a.nbytes,
        "hash_byte": _median(lambda: hashlib.sha256(data).digest()) / a.nbytes,
        "write": wrote,
        "write_byte": max(0.0, wrote_large - wrote) / len(large),
    }


def _median(act: Callable[[], object], repeats: int = 5) -> float:
    taken: list[float] = []
    for _ in range(repeats):
        begun = time.perf_counter()
        act()
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[repeats // 2]


# ---------------------------------------------------------------------------------------------- the page


def jobs(shared: Machine) -> dict[str, tuple[list[str], int | None, Machine]]:
    """The simulated jobs: name -> (releases, rows per shard or None, cluster)."""
    from saeflow.errors import InvalidArgument
    from saeflow.sources.releases import read_release

    widths: list[str] = []
    for width in ("16k", "32k", "65k", "131k", "262k", "524k", "1m"):
        try:
            read_release(f"gemma-scope-2b@width={width}")
        except InvalidArgument:
            continue
        widths.append(f"gemma-scope-2b@width={width}")
    large = ["gemma-scope-2-27b-it@width=262k"]
    # a copy of the weights on every node's own disk: shared storage is no limit, and the link is the disk
    own = Machine(1e6 * GB, OWN_DISK * GB, shared.memory)
    return {
        "Gemma Scope 2B, all widths, whole pairs": (widths, None, shared),
        "Gemma Scope 2B, all widths, shards": (widths, SHARD, shared),
        "Gemma Scope 2 27B, 262k, whole pairs": (large, None, shared),
        "Gemma Scope 2 27B, 262k, shards": (large, SHARD, shared),
        "Gemma Scope 2 27B, 262k, shards, weights on each node": (large, SHARD, own),
    }


def table(outcomes: list[Outcome], one: float) -> list[str]:
    lines = []
    for found in outcomes:
        speed = one / found.seconds
        lines.append(
            f"| {found.nodes:,} | {_time(found.seconds)} | {speed:,.0f} | {found.busy:.0%} | {found.driver:.0%} | "
            f"{found.storage:.0%} |"
        )
    return lines


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def draw(found: dict[str, list[Outcome]], ones: dict[str, float]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "scale", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    axes.plot(NODES, [n * SLOTS for n in NODES], color="0.6", linewidth=1, linestyle=":", label="every slot busy")
    for (name, outcomes), (color, style) in zip(found.items(), STYLES, strict=True):
        speeds = [ones[name] / outcome.seconds for outcome in outcomes]
        axes.plot(NODES, speeds, color=color, linestyle=style, marker="o", markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="nodes of 16 slots", ylabel="times as fast as one slot")
    axes.set_title("Simulated, from unit costs of one machine", loc="left", fontsize=10)
    axes.grid(visible=True, which="major", linewidth=0.4, color="0.85")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def write_page(found: dict[str, list[Outcome]], ones: dict[str, float], units: dict[str, list[int]]) -> None:
    """Replace the text between the markers in docs/scale.md."""
    parts: list[str] = []
    for name, outcomes in found.items():
        sent = " and ".join(f"{n:,}" for n in units[name])
        parts += [
            f"**{name}** ({sent} units; one slot alone: {_time(ones[name])})",
            "",
            "| nodes | time | times one slot | slots busy | driver busy | storage busy |",
            "|---:|---:|---:|---:|---:|---:|",
            *table(outcomes, ones[name]),
            "",
        ]
    text = _between(PAGE.read_text(encoding="utf-8"), "simulated", parts)
    PAGE.write_text(_between(text, "measured", unit_costs()), encoding="utf-8")


def _between(text: str, mark: str, lines: list[str]) -> str:
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n" + "\n".join(lines) + f"{end}{tail}"


def unit_costs() -> list[str]:
    """The measured costs and the machine, as tables."""
    told, kept = json.loads(ENGINES.read_text()), json.loads(COSTS.read_text())
    costs = kept["costs"]
    lines = [
        f"On {told['machine']}; {kept['load']}.",
        "",
        "| engine | unit | a unit takes, ms | against one process |",
        "|---|---|---:|---:|",
    ]
    for row in told["rows"]:
        empty = row["size"].startswith("empty")
        against = "" if empty else f"{row['ratio']:.2f}"
        lines.append(f"| {row['method']} | {row['size'].partition(',')[0]} | {1000 * row['seconds']:.3g} | {against} |")
    pair = 2 * 16_384**2 * 2304 * costs["flop"]
    lines += [
        "",
        "| part of a unit, one thread | |",
        "|---|---:|",
        f"| cosine top-5 both ways, 16,384 x 16,384 x 2,304 | {pair:.0f} s ({1e-9 / costs['flop']:.0f} GFLOP/s) |",
        f"| rows of a dictionary: unit norm, checks | {1e-9 / costs['row_byte']:.2g} GB/s |",
        f"| fingerprint | {1e-9 / costs['hash_byte']:.2g} GB/s |",
        f"| a file, whole or not at all | {1000 * costs['write']:.1f} ms, {1e-9 / costs['write_byte']:.2g} GB/s |",
        "",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure unit costs, and simulate nothing")
    parser.add_argument("--storage", type=float, default=10.0, help="GB/s of shared storage")
    parser.add_argument("--link", type=float, default=1.25, help="GB/s of a node's link")
    parser.add_argument("--memory", type=float, default=64.0, help="GB of a node's page cache")
    parser.add_argument("--print", action="store_true", help="print the tables, and write nothing")
    told = parser.parse_args()
    if told.measure:
        load = f"load of the machine when measuring began: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        COSTS.write_text(json.dumps({"load": load, "costs": measured()}, indent=1) + "\n", encoding="utf-8")
        print(COSTS.read_text())
        return
    costs, machine = Costs.read(), Machine(told.storage * GB, told.link * GB, told.memory * GB)
    found: dict[str, list[Outcome]] = {}
    ones: dict[str, float] = {}
    units: dict[str, list[int]] = {}
    for name, (releases, shard, cluster) in jobs(machine).items():
        work = phases(releases, costs, shard)
        units[name] = [len(phase) for phase in work]
        rows = {piece.name: piece.rows for phase in work for unit in phase for piece in unit.pieces}
        ones[name] = sum(u.seconds for phase in work for u in phase) + sum(rows.values()) * costs.row_byte
        found[name] = [simulate(work, costs, cluster, nodes) for nodes in NODES]
        print(name, units[name], _time(ones[name]))
        print("\n".join(table(found[name], ones[name])))
    if not told.print:
        draw(found, ones)
        write_page(found, ones, units)


if __name__ == "__main__":
    main()
