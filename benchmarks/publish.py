"""A published site: time to publish, size of the folder, bytes loaded and time to the first graph.

    python benchmarks/publish.py [--json] [--quick] [--width 16384] [--release RELEASE]

On synthetic atlases of 30 layers with res, mlp and att (90 sites) of 2,304 features each, or of `--width`, k = 5, a
label for every feature, and flows through all layers; or on a release that is here. The folder is served by `python -m
http.server`, which knows no ranges and packs nothing, and opened in Chromium with an empty cache. The time is that from
the beginning of the navigation to the first drawn node, as the page itself sees it; bytes are those of all files that
had come by then. Medians. Processor time is that of the browser, all of its processes, and of the server, from the new
page to the drawn graph: what the page costs, whatever else the machine does.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import sync_playwright

import saeflow as sf
from _timing import Row, arguments, show
from explorer import synthetic
from saeflow.web.server import bound

LAYERS, WIDTH = 30, 2_304
WATCH = """
performance.setResourceTimingBufferSize(5000);
new MutationObserver(() => {
    if (window.first || !document.querySelector("#frame .node")) return;
    const files = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
    window.first = {
        seconds: performance.now() / 1000, files: files.length,
        bytes: files.reduce((sum, file) => sum + file.transferSize, 0),
        nodes: document.querySelectorAll("#frame .node").length,
    };
}).observe(document, { childList: true, subtree: true });
"""


def opened(folder: Path, repeats: int) -> list[dict[str, float]]:
    """What the page saw when its first graph was drawn, each time in a browser that knew nothing."""
    with bound(0) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "http.server", "-d", str(folder), "-b", "127.0.0.1", port]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    found: list[dict[str, float]] = []
    try:
        time.sleep(2)
        with sync_playwright() as starter:
            browser = starter.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for _ in range(repeats):
                page = browser.new_page()
                page.add_init_script(WATCH)
                before = worked()
                page.goto(f"http://127.0.0.1:{port}/")
                page.wait_for_selector("#frame .node", timeout=60_000)
                found.append(page.evaluate("window.first") | {"worked": worked() - before})
                page.close()
    finally:
        server.terminate()
        server.wait()
    return found


def worked() -> float:
    """Seconds of processor time that the children of this process, and theirs, have had."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            ticks[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    total = 0
    for process, spent in ticks.items():
        above = process
        while above in parents and above != os.getpid():
            above = parents[above]
        total += spent if above == os.getpid() != process else 0
    return total / os.sysconf("SC_CLK_TCK")


def measured(name: str, release: str, repeats: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        site = sf.publish(release, Path(folder) / "site")
        seconds = time.perf_counter() - start
        size = f"{site.n_features:,} features, {site.n_files:,} files, {site.n_bytes / 1e6:.1f} MB"
        seen = opened(site.folder, repeats)
    median = {key: statistics.median(one[key] for one in seen) for key in seen[0]}
    note = f"{median['bytes'] / 1e6:.2f} MB in {median['files']:.0f} files, {median['nodes']:.0f} features, "
    note += f"{median['worked']:.2f} s of processor"
    return [Row("publish", name, seconds, note=size), Row("to the first graph", name, median["seconds"], note=note)]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--release", default="")
    parser.add_argument("--repeats", type=int, default=7)
    told = parser.parse_args()
    layers, width = (4, 256) if told.quick else (LAYERS, told.width)
    if told.release:
        rows = measured(told.release, told.release, told.repeats)
    else:
        folder = Path(tempfile.gettempdir()) / f"saeflow-explorer-{layers}x{width}"
        synthetic(folder, layers, width)
        rows = measured(f"{3 * layers} sites of {width:,}", str(folder), 1 if told.quick else told.repeats)
    show(rows, as_json=told.json)


if __name__ == "__main__":
    main()
