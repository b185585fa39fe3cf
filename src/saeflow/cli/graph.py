"""`saeflow graph`, `demo`, `serve`, `publish`: print flow graphs, write them to files, explore and publish them."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from saeflow.cli.options import AtlasName, Cuts, Device, Feature, Flag, Json, Number, Out, Release, in_a_folder
from saeflow.cli.output import print_json, print_table, progress
from saeflow.errors import BadFile, InvalidArgument
from saeflow.flow.scores import HIGH

if TYPE_CHECKING:
    from saeflow.flow.published import GraphComparison

FORMATS = ("html", "json", "graphml")
"""The formats that are written into a folder."""


def _writable(_type: Any, paths: Sequence[Path]) -> None:
    """Refuse a file whose ending is no format, before anything is grown."""
    from saeflow.report.exports import ENDINGS, format_of

    for path in paths:
        if path.suffix and not path.is_dir() and format_of(path) is None:
            raise InvalidArgument(
                f"{path} cannot be written: end its name in {', '.join(reversed(tuple(ENDINGS)))}, or give a folder."
            )


GraphFiles = Annotated[
    tuple[Path, ...],
    Out,
    Parameter(
        validator=(_writable, in_a_folder),
        help="Where to write: files by their endings, .html, .svg, .png, .json, .graphml, .dot, .mmd or "
        ".circuit-tracer.json; or a folder, for a page, JSON and GraphML.",
    ),
]


def graph(
    release: Release,
    feature: Feature,
    /,
    *,
    cuts: Cuts = Cuts(),
    high: Number = HIGH,
    calibrated: Flag = False,
    direction: Literal["both", "backward", "forward"] = "both",
    out: GraphFiles = (),
    formats: Annotated[tuple[str, ...], Parameter(show=False)] = (),
    compare_paper: Flag = False,
    as_json: Json = False,
) -> None:
    """Print the flow graph of a feature; with -o FILE also write it, as a page, a figure or data.

    Args:
        feature: Feature, such as 4/res/72: the one to start from.
        high: The line between high and low scores, for the cases A to D.
        calibrated: The same as --fdr 0.01: thresholds by layer, from the nulls of the atlas.
        direction: Follow predecessors (backward), successors (forward) or both.
        compare_paper: Grow the graph with the thresholds of the published one, and compare the two.
    """
    from saeflow.flow import trace
    from saeflow.flow.published import compare, published_graph
    from saeflow.labels import words_for
    from saeflow.matching.atlas import open_atlas
    from saeflow.report import render
    from saeflow.report.exports import export, format_named

    for name in formats:
        format_named(name)  # refuses an unknown format before anything is grown
    atlas = open_atlas(release)
    published = published_graph(atlas.release or release, feature) if compare_paper else None
    if published is not None and (cuts != Cuts() or high != HIGH or calibrated or direction != "both"):
        raise InvalidArgument(
            "--compare-paper grows the graph as the publication did. Leave thresholds, --k and --direction out."
        )
    thresholds = published.thresholds if published else cuts.thresholds(atlas, 0.01 if calibrated else None, high)
    words = words_for(atlas.release, beside=atlas.folder)
    backward, forward = direction != "forward", direction != "backward"
    grown = trace(feature, atlas, thresholds=thresholds, k=cuts.k, backward=backward, forward=forward)
    stem = f"{Path(release).name}-{str(feature).replace('/', '-')}"
    places = out or ((Path(),) if formats else ())
    written = write_graph(lambda name: export(grown, name, words), places, stem, formats or FORMATS)
    if published is not None:
        _show_comparison(compare(grown, published), as_json=as_json)
    else:
        print(render(grown, to="json" if as_json else "text", words=words))
    if written and not as_json:
        print("\nwritten: " + "  ".join(map(str, written)))


def _show_comparison(comparison: GraphComparison, *, as_json: bool) -> None:
    if as_json:
        print_json(comparison.to_dict())
        return
    print(comparison.sentence)
    print_table(
        [
            {
                "site": str(site.site),
                "published": " ".join(str(f.index) for f in site.published) or "-",
                "found": " ".join(str(f.index) for f in site.found) or "-",
                "": "" if site.agrees else "differs",
            }
            for site in comparison.sites
        ]
    )
    scores = [
        {
            "feature": str(score.published.child),
            "predecessor": str(score.published.parent),
            "published": f"{score.published.score:.2f}",
            "found": "-" if score.found is None else f"{score.found:.3f}",
            "": "" if score.agrees else "differs",
        }
        for score in comparison.scores
    ]
    if scores:
        print_table(scores)


def write_graph(
    made: Callable[[str], bytes], places: Sequence[Path], stem: str, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write a graph to files, in the format of each ending, and into folders, in all formats; return the files.

    Args:
        made: returns the graph in a format, given its name.
        places: files and folders.
        stem: the names of the files in a folder, without their endings.
        formats: the formats that are written into a folder.

    Raises:
        InvalidArgument: when a format is unknown.
    """
    from saeflow.files import write_atomic
    from saeflow.report.exports import format_named, format_of

    written: dict[Path, str] = {}
    for place in places:
        if (named := format_of(place)) and not place.is_dir():
            written[place] = named
        else:
            written |= {place / f"{stem}{format_named(name).suffix}": name for name in formats}
    for path, name in written.items():
        write_atomic(path, made(name))
    return list(written)


def demo(*, out: GraphFiles = (), as_json: Json = False) -> None:
    """Pick features of the embedded pack, and print the flow graph of the first: the main job of saeflow."""
    from saeflow.demo.pick import worth_a_look
    from saeflow.labels import words_for
    from saeflow.matching.atlas import open_atlas
    from saeflow.report import render
    from saeflow.report.exports import export
    from saeflow.report.tables import pick_rows

    atlas = open_atlas("demo")
    words = words_for(atlas.release, beside=atlas.folder)
    picks = worth_a_look(atlas, words, 8)
    if not picks:
        raise BadFile(
            f"{atlas.folder} has no words to pick features by. Install saeflow again: its pack is incomplete."
        )
    first = picks[0].graph
    stem = f"demo-{str(first.seed).replace('/', '-')}"
    written = write_graph(lambda name: export(first, name, words), out, stem)
    if as_json:
        print_json({"picks": pick_rows(picks), "written": [str(path) for path in written]})
        return
    print_table(pick_rows(picks), "Features worth a look")
    print(render(first, to="text", words=words))
    if written:
        print("\nwritten: " + "  ".join(map(str, written)))
    other = str(picks[min(1, len(picks) - 1)].graph.seed)
    called = "saeflow" if shutil.which("saeflow") else os.path.relpath(sys.argv[0])
    following = {
        f"{called} demo -o graph.html": "this graph as a page for the browser",
        f"{called} graph demo {other}": "another feature of the list",
        f"{called} graph demo {first.seed} --t-res 0 --k 3": "the whole depth, three matches at each site",
        f"{called} info demo": "how good the model and its SAEs are",
    }
    width = max(map(len, following))
    print("\nTry next:\n" + "\n".join(f"  {command.ljust(width)}   {what}" for command, what in following.items()))


def serve(
    release: Release = "demo",
    /,
    *,
    atlas: AtlasName = "",
    model: str = "",
    results: tuple[Path, ...] = (),
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 0,
    browser: bool = True,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Explore an atlas in the browser: search features, see their flow, steer. Stop it with Ctrl-C.

    Args:
        model: Language model: the one to steer; by default that of a pack, such as demo, if it is on this machine.
        results: Results folders to show.
        port: Port of 127.0.0.1; 0 for a free one.
        browser: Open the page in the browser.
    """
    from saeflow.web import require_packages

    require_packages()

    from saeflow.matching.atlas import open_atlas
    from saeflow.web.server import serve as run

    def ready(address: str) -> None:
        base, _, token = address.partition("/?token=")
        if as_json:
            print_json({"url": address, "port": int(base.rpartition(":")[2]), "token": token}, indent=None)
        else:
            print(f"{address}\n(for this machine alone; Ctrl-C stops)")
        sys.stdout.flush()
        if browser:
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    opened = open_atlas(atlas or release)
    named = release if atlas else opened.release or release
    run(opened, release=named, model=model, device=device, results=results, port=port, ready=ready)


def publish(
    release: Release,
    /,
    *,
    out: Annotated[Path, Out],
    atlas: AtlasName = "",
    results: tuple[Path, ...] = (),
    compare: tuple[Path, ...] = (),
    as_json: Json = False,
) -> None:
    """Write the explorer as files for any web host: search, graphs and cards, without a server or a model.

    Args:
        out: Where to write: a new folder, or that of a published site, which is replaced.
        results: Results folders to show.
        compare: Comparisons to show: folders that `saeflow compare` wrote.
    """
    from saeflow.publishing.run import publish as run

    with progress("publishing") as report:
        made = run(release, out, atlas=atlas, results=results, comparisons=compare, progress=report)
    told = asdict(made) | {"folder": str(out)}
    if as_json:
        print_json(told)
        return
    size = f"{made.n_features:,} features in {made.n_files:,} files, {made.n_bytes / 1e6:,.1f} MB"
    print(f"{out}: {size}. Look at it with: python -m http.server -d {out}")
