"""`saeflow graph`, `demo` and `serve`: flow graphs that are printed, written to files, and explored in the browser."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from saeflow.cli.options import AtlasName, Cuts, Device, Feature, Flag, Json, Number, Release, ends_in
from saeflow.cli.output import print_json, print_table
from saeflow.errors import BadFile, InvalidArgument
from saeflow.flow.scores import HIGH

if TYPE_CHECKING:
    from saeflow.flow import FlowGraph
    from saeflow.flow.published import Comparison
    from saeflow.labels import Words

FORMATS = ("html", "json", "graphml")


def graph(
    release: Release,
    feature: Feature,
    /,
    *,
    cuts: Cuts = Cuts(),
    high: Number = HIGH,
    calibrated: Flag = False,
    direction: Literal["both", "backward", "forward"] = "both",
    out: Path = Path(),
    formats: tuple[str, ...] = FORMATS,
    files: bool = True,
    figure: Annotated[Path | None, ends_in(".svg", ".png")] = None,
    compare_paper: Flag = False,
    as_json: Json = False,
) -> None:
    """Print the flow graph of a feature, and write it as HTML, JSON and GraphML, or in other --formats.

    Args:
        feature: Feature to start from: layer/part/index, such as 4/res/123.
        high: The line between high and low scores, for the cases A to D.
        calibrated: The same as --fdr 0.01: thresholds by layer, from the nulls of the atlas.
        direction: Follow predecessors (backward), successors (forward) or both.
        out: Folder for the files.
        formats: Files to write: html, json, graphml, svg, png, dot, mermaid, circuit-tracer.
        files: Write the files.
        figure: Write the picture alone here (.svg, .png).
        compare_paper: Grow the graph with the thresholds of the published one, and compare the two.
    """
    from saeflow.files import write_atomic
    from saeflow.flow import trace
    from saeflow.flow.published import compare, published_graph
    from saeflow.labels import words_for
    from saeflow.matching.atlas import open_atlas
    from saeflow.report import render
    from saeflow.report.exports import export, format_named

    for name in formats:
        format_named(name)  # refuses an unknown one before anything is grown
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
    if published is not None:
        _show_comparison(compare(grown, published), as_json=as_json)
    else:
        print(render(grown, to="json" if as_json else "text", words=words))
    if figure:
        write_atomic(figure, export(grown, figure.suffix.lower()[1:], words))
    if files:
        written = write_graph(grown, words, out, Path(release).name, formats)
        if not as_json:
            print("\nwritten: " + "  ".join(map(str, written)))


def _show_comparison(comparison: Comparison, *, as_json: bool) -> None:
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
    grown: FlowGraph, words: Words, folder: Path, release: str, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """The graph as {release}-{seed} with the ending of each format; returns the files.

    Raises:
        InvalidArgument: when the folder cannot be written, or a format is unknown.
    """
    from saeflow.files import write_atomic
    from saeflow.report.exports import export, format_named

    stem = f"{release}-{str(grown.seed).replace('/', '-')}"
    paths = [folder / f"{stem}{format_named(name).suffix}" for name in formats]
    try:
        for name, path in zip(formats, paths, strict=True):
            write_atomic(path, export(grown, name, words))
    except OSError as error:
        raise InvalidArgument(
            f"cannot write into {folder} ({error.strerror}). Give a folder you may write to with --out, or --no-files."
        ) from None
    return paths


def demo(*, out: Path = Path(), as_json: Json = False) -> None:
    """Pick a feature of the embedded pack, grow its graph and draw it: the main job of saeflow.

    Args:
        out: Folder for the files of the graph.
    """
    from saeflow.demo.pick import worth_a_look
    from saeflow.labels import words_for
    from saeflow.matching.atlas import open_atlas
    from saeflow.report import render
    from saeflow.report.tables import pick_rows

    atlas = open_atlas("demo")
    words = words_for(atlas.release, beside=atlas.folder)
    picks = worth_a_look(atlas, words, 8)
    if not picks:
        raise BadFile(
            f"{atlas.folder} has no words to pick features by. Install saeflow again: its pack is incomplete."
        )
    first = picks[0].graph
    written = write_graph(first, words, out, "demo")
    if as_json:
        print_json({"picks": pick_rows(picks), "written": [str(path) for path in written]})
        return
    print_table(pick_rows(picks), "Features worth a look")
    print(render(first, to="text", words=words))
    print(f"\nwritten: {written[0]}  (open it in a browser)\n         {written[1]}\n         {written[2]}")
    other = str(picks[min(1, len(picks) - 1)].graph.seed)
    called = "saeflow" if shutil.which("saeflow") else os.path.relpath(sys.argv[0])
    following = {
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
    results: list[Path] | None = None,
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 0,
    browser: bool = True,
    device: Device = "cpu",
    as_json: Annotated[Json, Parameter(help="Print the address as a line of JSON.")] = False,
) -> None:
    """Explore an atlas in the browser: search features, see their flow, steer. Stop it with Ctrl-C.

    Args:
        model: Model to steer; none by default, except for demo.
        results: A results folder to show; may be given several times.
        port: Port of 127.0.0.1; 0 takes a free one.
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
    run(opened, release=named, model=model, device=device, results=results or (), port=port, ready=ready)
