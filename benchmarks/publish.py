"""Publishing a site: time to publish, size of the folder, bytes loaded and time to the first graph.

    python benchmarks/publish.py [--json] [--quick] [--width 16384] [--release RELEASE] [--sites FOLDER...]

Runs on a synthetic atlas of 30 layers with res, mlp and att (90 sites) of 2,304 features each (or `--width`), k = 5, a
label for every feature and flows through all layers; or on a release on this machine. The folder is served by `python
-m http.server`, without range requests or compression, and a link to a feature's graph is opened in Chromium with an
empty cache. The time runs from the start of the navigation to the first drawn node, as seen by the page; bytes are
those of all files received by then. Steps are the longest chain of files, each requested only after the one before had
arrived: on a distant host, each step costs a round trip. All values are medians. Processor time is that of the server
and all browser processes, from the new page to the drawn graph, and hardly depends on other load on the machine.

Existing sites, such as those of two versions, are opened in turn with `--sites`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
        seconds: performance.now() / 1000, nodes: document.querySelectorAll("#frame .node").length,
        files: files.map(file => [file.responseEnd, file.startTime, file.transferSize]),
    };
}).observe(document, { childList: true, subtree: true });
"""


def opened(sites: Sequence[Path], repeats: int) -> dict[Path, list[dict[str, float]]]:
    """What the page of each site measured when its first graph was drawn, each time with an empty cache."""
    found: dict[Path, list[dict[str, float]]] = {site: [] for site in sites}
    with ExitStack() as stack:
        links = [(site, f"{stack.enter_context(served(site))}/#flow?feature={seed(site)}") for site in sites]
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for _ in range(repeats):
            for site, link in links:
                page = browser.new_page()
                page.add_init_script(WATCH)
                before = worked()
                page.goto(link)
                page.wait_for_selector("#frame .node", timeout=60_000)
                seen = page.evaluate("window.first")
                files = sorted(seen.pop("files"))
                loaded = {"files": len(files), "bytes": sum(file[2] for file in files), "steps": steps(files)}
                found[site].append(seen | loaded | {"worked": worked() - before})
                page.close()
    return found


@contextmanager
def served(folder: Path) -> Generator[str]:
    """Serve a folder with `http.server`; yields the address."""
    with bound(0) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "http.server", "-d", str(folder), "-b", "127.0.0.1", port]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        time.sleep(2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def seed(site: Path) -> str:
    """The feature whose graph a site shows by default."""
    return json.loads((site / "site.json").read_text(encoding="utf-8"))["info"]["picks"][0]["feature"]


def steps(files: Sequence[tuple[float, float, int]]) -> int:
    """The longest chain of files that each started after the one before ended; files are sorted (end, start, bytes)."""
    longest: list[int] = []
    for _, began, _ in files:
        longest.append(1 + max((n for (came, *_), n in zip(files, longest, strict=False) if came <= began), default=0))
    return max(longest)


def worked() -> float:
    """Seconds of processor time used by all descendants of this process."""
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


def published(name: str, release: str, repeats: int) -> list[Row]:
    """Publish a release and open the site."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        site = sf.publish(release, Path(folder) / "site")
        seconds = time.perf_counter() - start
        size = f"{site.n_features:,} features, {site.n_files:,} files, {site.n_bytes / 1e6:.1f} MB"
        return [Row("publish", name, seconds, note=size), told(name, opened([site.folder], repeats)[site.folder])]


def told(name: str, seen: Sequence[dict[str, float]]) -> Row:
    """A row with the medians measured on a site."""
    median = {key: statistics.median(one[key] for one in seen) for key in seen[0]}
    note = f"{median['bytes'] / 1e6:.2f} MB in {median['files']:.0f} files and {median['steps']:.0f} steps, "
    note += f"{median['nodes']:.0f} features, {median['worked']:.2f} s of processor"
    return Row("to the first graph", name, median["seconds"], note=note)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--release", default="")
    parser.add_argument("--sites", type=Path, nargs="+", default=())
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    layers, width = (4, 256) if asked.quick else (LAYERS, asked.width)
    if asked.sites:
        rows = [told(str(site), seen) for site, seen in opened(asked.sites, asked.repeats).items()]
    elif asked.release:
        rows = published(asked.release, asked.release, asked.repeats)
    else:
        folder = Path(tempfile.gettempdir()) / f"saeflow-explorer-{layers}x{width}"
        synthetic(folder, layers, width)
        rows = published(f"{3 * layers} sites of {width:,}", str(folder), 1 if asked.quick else asked.repeats)
    show(rows, as_json=asked.json)


if __name__ == "__main__":
    main()
