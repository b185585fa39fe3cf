"""The contents of a site: the explorer's page, and everything it would request from a server. Imports no torch.

site/index.html            the explorer's page, with a policy that restricts its requests to this host
site/site.json             a description of the site: the response of /api/info, tables, thresholds, block sizes
site/static/               the explorer's static files
site/data/flows/           blocks of residual features that flow into each other (`flows`)
site/data/{layer}.{part}/  blocks of matches, words and cards (`blocks`)
site/data/search/          the word index (`finding`)
site/data/nulls.bin        the best-match scores by chance, if the atlas is calibrated
site/results/{id}/         pages and tables of results and comparisons
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Final

from saeflow.comparison.results import Comparison, open_comparison
from saeflow.errors import SaeflowWarning
from saeflow.flow.graph import FlowGraph
from saeflow.flow.scores import Thresholds
from saeflow.ids import FeatureId, Site
from saeflow.matching.atlas import Atlas
from saeflow.plain_types import Progress
from saeflow.publishing.blocks import CARD_ROWS, K, MatchBlocks, SiteBlocks
from saeflow.publishing.counterparts import counterparts
from saeflow.publishing.finding import WordIndex
from saeflow.publishing.flows import ROWS
from saeflow.publishing.packing import packed_json
from saeflow.reading import read_json
from saeflow.version import __version__
from saeflow.web import limits
from saeflow.web.app import assets
from saeflow.web.explorer import Explorer
from saeflow.web.requests import QueryParameters
from saeflow.web.responses import FileInfo, ResultFiles
from saeflow.web.results import WAITING
from saeflow.web.routes_graph import info

FORMAT: Final = "saeflow-site"
VERSION: Final = 2
SITE: Final = "site.json"
"""The file that describes a published site, and by which one is recognised."""
FDRS: Final = (0.001, 0.01, 0.05, 0.1)
"""False-discovery rates for which a site has thresholds."""
_ENTRIES: Final = ("app.js", "site/source.js")
_FIRST: Final = "site/blocks.js"
"""The module that requests the data of the first graph."""
_FIGURE: Final = "report/figure.css"
"""The style sheet embedded in exported pictures."""
_STYLE: Final = re.compile(r'^<link rel="stylesheet" href="static/([^"]+)">\n', re.MULTILINE)
_IMPORT: Final = re.compile(r'^import .*?from "(\.[^"]+)";$', re.MULTILINE)
_POLICY: Final = "default-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none'"


def is_site(folder: Path) -> bool:
    """Whether a folder is a published site."""
    try:
        return read_json(folder / SITE)["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Part:
    """A site while it is being written: its folder, and a digest of every file put into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digest = hashlib.sha256()

    def put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.digest.update(hashlib.sha256(data).digest())


def write_site(folder: Path, explorer: Explorer, comparisons: Sequence[Path], progress: Progress | None) -> int:
    """Write the whole site, and return its number of features."""
    atlas, sizes, part = explorer.atlas, explorer.sizes, _Part(folder)
    steps = len(sizes) + 3

    def tell(done: int, what: str) -> None:
        if progress:
            progress(done, steps, what)

    # 1. the page with the modules that it imports, which do not include the views that need a model
    files = assets()
    html, modules = files["index.html"].read_text(encoding="utf-8"), _imported(files)
    part.put("static/site.css", b"".join(files[name].read_bytes() for name in _STYLE.findall(html)))
    for name, path in files.items():
        if path.suffix == ".svg" or name in {*modules, _FIGURE}:
            part.put(f"static/{name}", path.read_bytes())
    part.put("index.html", _page(html, modules))

    # 2. results, counterparts, and the origin groups that words and cards show
    compared, others = [open_comparison(path) for path in comparisons], len(explorer.results)
    shown = [*_results(folder, explorer), *_comparisons(folder, compared, others)]
    corresponding = counterparts(atlas, compared, others)
    if explorer.origins is not None:
        explorer.origins.read()

    # 3. the blocks of every site; this also indexes their words
    k = min(K, atlas.k)
    matches, index, before = MatchBlocks(atlas, sizes, k), WordIndex(), 0
    words, silent = dict[Site, list[bytes]](), dict[str, bool]()
    for done, (site, n) in enumerate(sizes.items()):
        tell(done, str(site))
        found = SiteBlocks(explorer, site, corresponding)
        for name, data in chain(matches.of_site(site, n), found.blocks(index, before)):
            part.put(f"data/{site.layer}.{site.part}/{name}.bin", data)
        words[site] = found.words
        if found.silent is not None:
            silent[str(site)] = found.silent
        before += n
    tell(steps - 3, "flows")
    for number, data in enumerate(matches.of_flows(words)):
        part.put(f"data/flows/{number}.bin", data)

    # 4. the word index, the nulls, and the description of the site
    tell(steps - 2, "the index of words")
    for name, data in index.shards():
        part.put(f"data/search/{name}.bin", data)
    if atlas.nulls:
        part.put("data/nulls.bin", packed_json(_nulls(atlas)))
    tell(steps - 1, "features worth a look")
    explorer.picks.look()
    told = _about(explorer, matches.targets, shown, k) | {"silent": silent, "stamp": part.digest.hexdigest()[:16]}
    part.put(SITE, (json.dumps(told, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace"))
    tell(steps, "done")
    return before


def _imported(files: Mapping[str, Path]) -> list[str]:
    """The JavaScript modules of the page, found by following the imports of each."""
    found: list[str] = list(_ENTRIES)
    for name in found:  # the list grows during the loop
        folder = PurePosixPath(name).parent
        for path in _IMPORT.findall(files[name].read_text(encoding="utf-8")):
            other = posixpath.normpath(folder / path)
            if other not in found:
                found.append(other)
    return found


def _page(html: str, modules: Sequence[str]) -> bytes:
    """The explorer's page adapted for a site: data is requested before the page has loaded, and modules all at once."""
    head = [f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">']
    head.append(f'<script type="module" async src="static/{_FIRST}"></script>')
    head += [f'<link rel="modulepreload" href="static/{name}">' for name in modules]
    html = html.replace('<html lang="en">', '<html lang="en" data-published>')
    html = _STYLE.sub("", html).replace("</title>", '</title>\n<link rel="stylesheet" href="static/site.css">')
    return html.replace('<meta charset="utf-8">', "\n".join(['<meta charset="utf-8">', *head])).encode()


def _about(explorer: Explorer, targets: dict[Site, list[Site]], shown: Sequence[ResultFiles], k: int) -> dict[str, Any]:
    """The content of `site.json`, less `silent` and `stamp`."""
    atlas = explorer.atlas
    plain = {"plain": _thresholds(Thresholds())}
    with warnings.catch_warnings():  # the page itself shows where no match of a pair is significant
        warnings.simplefilter("ignore", SaeflowWarning)
        calibrated = {f"{fdr:g}": _thresholds(explorer.calibrated(fdr)) for fdr in FDRS if atlas.nulls}
    listed = [result.model_dump(mode="json", exclude={"files", "problem"}) for result in shown]
    changes: dict[str, Any] = {"model_state": "none", "model_error": None, "themes": [], "k": k, "results": listed}
    changes |= {"formats": ["json", "svg"], "picks_ready": True}
    return {
        "format": FORMAT,
        "version": VERSION,
        "made_by": f"saeflow {__version__}",
        "info": info(explorer, QueryParameters()).model_dump(mode="json") | changes,
        "k": k,
        "one_to_one": atlas.method.startswith("permutation"),
        "rows": ROWS,
        "card_rows": CARD_ROWS,
        "most_nodes": limits.MOST_NODES,
        "most_lookups": limits.MOST_LOOKUPS,
        "sizes": {str(site): n for site, n in explorer.sizes.items()},
        "tables": {
            str(site): [{"to": str(target), "back": atlas.has(target, site)} for target in found]
            for site, found in targets.items()
        },
        "thresholds": plain | calibrated,
        "results": [result.model_dump(mode="json") for result in shown],
    }


def _thresholds(thresholds: Thresholds) -> dict[str, Any]:
    """Thresholds in the form of a graph's JSON."""
    return FlowGraph(FeatureId("0/res/0"), (), (), (), thresholds, None).to_dict()["thresholds"]


def _nulls(atlas: Atlas) -> list[dict[str, Any]]:
    return [
        {"source": str(source), "target": str(target), "n": null.n, "scores": list(null.scores)}
        for (source, target), null in sorted(atlas.nulls.items())
    ]


def _results(folder: Path, explorer: Explorer) -> Iterator[ResultFiles]:
    """Write the pages and tables of results folders, and yield their entries."""
    for result in explorer.results:
        place = folder / "results" / result.id
        (place / "tables").mkdir(parents=True, exist_ok=True)
        while (found := result.page()) is WAITING:
            time.sleep(0.1)
        html = found[0]
        for number, (name, data) in enumerate(result.files()):
            html = html.replace(f'href="/results/{result.id}/files/{number}"', f'href="tables/{name}"')
            (place / "tables" / name).write_bytes(data)
        (place / "index.html").write_bytes(html.encode("utf-8", "replace"))
        yield result.listed()


def _comparisons(folder: Path, comparisons: Sequence[Comparison], before: int) -> Iterator[ResultFiles]:
    """Draw comparisons anew from their numbers, and yield their entries; no file of a folder is copied as is."""
    for number, found in enumerate(comparisons, before + 1):
        place = folder / "results" / str(number)
        found.save(place)
        files = [
            FileInfo(n=n, name=file.name, bytes=file.stat().st_size)
            for n, file in enumerate(sorted((place / "tables").iterdir()))
        ]
        title = " against ".join(str(name) for name in found.settings["names"])
        yield ResultFiles(id=str(number), title=title, kind="comparison", finished=True, files=files, problem=None)
