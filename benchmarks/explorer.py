"""The explorer: time to the first graph, time per graph, size of the page, and memory.

    python benchmarks/explorer.py [--json] [--quick] [--graphs 30]

Runs on the demo pack, and on a synthetic atlas of 26 layers with 16,384 features at each of res, mlp and att, k = 5,
and a label for every feature (1.3 million; made in minutes, without weights, and kept in the temporary folder).
`saeflow serve` is started as a user would, and receives the same HTTP requests as from the page. The first graph is
timed from the start of the process, including the interpreter and all imports. Further graphs are of random residual
features, requested one after the other once the index of words exists. Then 200 graphs and 200 searches are requested
one after the other, and all at once on separate connections. Memory is the private resident memory of the server,
which does not import torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from rich.progress import track

from _timing import Row, arguments, show
from saeflow.ids import Part, Site
from saeflow.labels import FeatureWords, write_words
from saeflow.matching.atlas import MANIFEST, Atlas, flow_pairs, save_manifest
from saeflow.matching.table import MatchTable
from saeflow.web.app import assets
from search import made, vocabulary

LAYERS, WIDTH, K = 26, 16_384, 5
WORDS = ["t", "th", "the", "b", "ban", "forc"]
START = "import sys; from saeflow.cli import main; sys.argv[0] = 'saeflow'; main()"
TIMEOUT = 1200


def synthetic(folder: Path, layers: int, width: int) -> Path:
    """Make an atlas, with words, whose residual features form chains through all layers; an existing one is kept."""
    if (folder / MANIFEST).is_file():
        return folder
    rng = np.random.default_rng(0)
    sites = [Site(layer, part) for layer in range(layers) for part in Part]
    order = {layer: rng.permutation(width).astype(np.int32) for layer in range(1, layers)}
    files: dict[tuple[Site, Site], tuple[str, str]] = {}
    pairs = [pair for back in flow_pairs(sites) for pair in (back, back[::-1])]
    for source, target in track(pairs, description="tables", transient=True):
        index = rng.integers(0, width, (width, K), dtype=np.int32)
        score = np.sort(rng.uniform(0.02, 0.4, (width, K)).astype(np.float32), axis=1)[:, ::-1].copy()
        if source.part is target.part:  # a chain: the same best match in both directions
            child = max(source.layer, target.layer)
            index[:, 0] = order[child] if source.layer == child else np.argsort(order[child])
            score[:, 0] = rng.uniform(0.5, 0.95, width)
        name = f"{source}-{target}.safetensors".replace("/", ".")
        folder.mkdir(parents=True, exist_ok=True)
        MatchTable(source, target, "cosine", width, index, score).save(folder / name)
        files[source, target] = name, hashlib.sha256((folder / name).read_bytes()).hexdigest()
    words = vocabulary(rng)
    chance = 1 / np.arange(1, len(words) + 1)
    for site in track(sites, description="words", transient=True):
        drawn = rng.choice(len(words), (width, 22), p=chance / chance.sum()).tolist()
        length = rng.integers(3, 13, width).tolist()
        lines = (made(words, line, n) for line, n in zip(drawn, length, strict=True))
        write_words(folder / "words", site, lines if width > 1 else [FeatureWords("one")])
    save_manifest(Atlas(folder, "synthetic", "synthetic", K, "benchmarks/explorer.py", files))
    return folder


@contextmanager
def served(atlas: str, cache: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client, float]]:
    """Start a server; yields the process, an authorised client, and the time when the process was started."""
    environment = os.environ | {"SAEFLOW_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", START, "serve", atlas, "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    base, _, token = process.stdout.readline().strip().partition("/?token=")
    try:
        with httpx.Client(base_url=base, headers={"authorization": f"Bearer {token}"}, timeout=TIMEOUT) as client:
            yield process, client, start
    finally:
        process.terminate()
        process.wait(30)


def first_graph(atlas: str, seed: str, cache: Path, repeats: int) -> tuple[float, float]:
    """Median wall and processor seconds from the start of the process to the complete first graph."""
    taken: list[float] = []
    worked: list[float] = []
    for _ in range(repeats):
        with served(atlas, cache) as (process, client, start):
            client.get("/api/graph", params={"feature": seed}).raise_for_status()
            taken.append(time.perf_counter() - start)
            worked.append(processor(process))
    return statistics.median(taken), statistics.median(worked)


def processor(process: subprocess.Popen[str]) -> float:
    """Seconds of processor time used by a process, which hardly depend on other load on the machine."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(process: subprocess.Popen[str]) -> float:
    """Resident private memory of the process in MB, without mapped files."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def timed(client: httpx.Client, path: str, asked: list[dict[str, object]]) -> tuple[float, list[httpx.Response]]:
    """Send the requests one by one; returns the median seconds and the responses."""
    taken: list[float] = []
    found: list[httpx.Response] = []
    for parameters in asked:
        start = time.perf_counter()
        found.append(client.get(path, params=parameters).raise_for_status())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), found


def together(name: str, process: subprocess.Popen[str], client: httpx.Client, seeds: list[str], n: int) -> list[Row]:
    """Request `n` graphs and `n` searches one by one, then all at once: seconds, processor time and statuses."""
    paths: list[str] = []
    for i in range(n):
        paths += [f"/api/graph?feature={seeds[i % len(seeds)]}", f"/api/search?q={WORDS[i % len(WORDS)]}"]
    rows: list[Row] = []
    for what in ("one by one", "at once"):
        worked, start = processor(process), time.perf_counter()
        answers = (
            [client.get(path).status_code for path in paths]
            if what == "one by one"
            else asyncio.run(_all_at_once(client, paths))
        )
        seconds, worked = time.perf_counter() - start, processor(process) - worked
        counts = ", ".join(f"{times} x {status}" for status, times in sorted(Counter(answers).items()))
        note = f"{counts}, {worked:.2f} s of processor"
        rows.append(Row(f"{n} graphs and {n} searches {what}", name, seconds, note=note))
    return rows


async def _all_at_once(client: httpx.Client, paths: list[str]) -> list[int]:
    """Send all requests concurrently, each on its own raw connection; returns the HTTP statuses."""
    place, token = client.base_url, client.headers["authorization"]

    async def one(path: str) -> int:
        reader, writer = await asyncio.open_connection(place.host, place.port)
        lines = (
            f"GET {path} HTTP/1.1",
            f"Host: {place.host}:{place.port}",
            f"Authorization: {token}",
            "Connection: close",
        )
        writer.write("\r\n".join([*lines, "", ""]).encode())
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1])

    return await asyncio.gather(*map(one, paths))


def measured(name: str, atlas: str, seed: str, width: int, layers: int, n: int, cache: Path, repeats: int) -> list[Row]:
    seconds, worked = first_graph(atlas, seed, cache, repeats)
    rows = [Row("process start to first graph", name, seconds, note=f"{worked:.2f} s of processor time")]
    draw = random.Random(0)  # noqa: S311 - a sample
    layer = range(layers * 2 // 3, layers)
    seeds = [f"{draw.choice(layer)}/res/{draw.randrange(width)}" for _ in range(n)]
    with served(atlas, cache) as (process, client, _):
        client.get("/api/graph", params={"feature": seed})
        before = resident(process)
        while client.get("/api/search", params={"q": "x"}).json()["indexing"] is not None:
            time.sleep(0.2)
        while not client.get("/api/info").json()["picks_ready"]:
            time.sleep(0.2)
        for what, more in (("a graph", {}), ("a graph, t(R) = 0", {"t_res": 0})):
            worked = processor(process)
            seconds, answers = timed(client, "/api/graph", [{"feature": f, **more} for f in seeds])
            each = 1000 * (processor(process) - worked) / n
            nodes = statistics.median(len(answer.json()["data"]["nodes"]) for answer in answers)
            size = statistics.median(len(answer.content) for answer in answers)
            rows.append(
                Row(what, name, seconds, note=f"{nodes:.0f} features, {size / 1000:.0f} kB, {each:.0f} ms of processor")
            )
        worked = processor(process)
        seconds, _ = timed(client, "/api/feature", [{"id": f} for f in seeds])
        each = 1000 * (processor(process) - worked) / n
        rows.append(Row("a card", name, seconds, note=f"{each:.0f} ms of processor"))
        words = WORDS * 5
        worked = processor(process)
        seconds, _ = timed(client, "/api/search", [{"q": word} for word in words])
        each = 1000 * (processor(process) - worked) / len(words)
        rows.append(Row("a search", name, seconds, note=f"{each:.0f} ms of processor"))
        after = resident(process)
        rows += together(name, process, client, seeds, 10 if n < 10 else 200)
    rows.append(Row("memory after the first graph", name, 0.0, extra_mb=before, note="seconds do not apply"))
    rows.append(Row(f"memory after {3 * n + 30} requests", name, 0.0, extra_mb=after, note="seconds do not apply"))
    return rows


def page_bytes(cache: Path) -> dict[str, float]:
    """kB of everything that the page loads before any click."""
    with served("demo", cache) as (_, client, _):
        info, graph = client.get("/api/info"), client.get("/api/graph", params={"feature": "4/res/360"})
    static = sum(path.stat().st_size for path in assets().values())
    return {
        "static_kb": static / 1000,
        "info_kb": len(info.content) / 1000,
        "graph_kb": len(graph.content) / 1000,
        "page_kb": (static + len(info.content) + len(graph.content)) / 1000,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--graphs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    told = parser.parse_args()
    layers, width = (4, 256) if told.quick else (LAYERS, WIDTH)
    n, repeats = (4, 1) if told.quick else (told.graphs, told.repeats)
    folder = Path(tempfile.gettempdir()) / f"saeflow-explorer-{layers}x{width}"
    synthetic(folder, layers, width)
    with tempfile.TemporaryDirectory() as cache:
        rows = measured("demo pack", "demo", "4/res/360", 768, 6, n, Path(cache), repeats)
        size = f"{layers} layers of 3 x {width:,}"
        rows += measured(size, str(folder), f"{layers - 2}/res/7", width, layers, n, Path(cache), repeats)
        show(rows, as_json=told.json, **page_bytes(Path(cache)))


if __name__ == "__main__":
    main()
