"""`saeflow graph` and `saeflow demo`: grow a flow graph, print it and write its files."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saeflow.cli.app import Json, Release, print_table
from saeflow.cli.lists import EXCEEDS, HIGH, T_MODULE, T_RES, check_ending, names_of, thresholds_of
from saeflow.errors import BadFile, InvalidArgument

if TYPE_CHECKING:
    from saeflow.flow import FlowGraph
    from saeflow.flow.published import Comparison
    from saeflow.labels import Words


FORMATS = "html,json,graphml"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(graph)
    app.command()(demo)


def graph(
    release: Release,
    feature: Annotated[str, typer.Argument(help="layer/part/index, such as 4/res/123.")],
    t_res: Annotated[float, typer.Option(help="t(R): the flow stops below it. 0 follows the whole depth.")] = T_RES,
    t_mlp: Annotated[float, typer.Option(help="t(M): MLP features below it are dropped.")] = T_MODULE,
    t_att: Annotated[float, typer.Option(help="t(A): attention features below it are dropped.")] = T_MODULE,
    high: Annotated[float, typer.Option(help="The line between high and low scores, for the cases A to D.")] = HIGH,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Thresholds by layer from the atlas's nulls, at --fdr.")
    ] = False,
    fdr: Annotated[
        float | None,
        typer.Option(help=f"False-discovery rate of calibrated thresholds, 0.01 with --calibrated alone; {EXCEEDS}"),
    ] = None,
    k: Annotated[int, typer.Option(help="Matches considered at each site.")] = 1,
    direction: Annotated[str, typer.Option(help="both, backward or forward.")] = "both",
    out: Annotated[Path, typer.Option(help="Folder for the .html, .json and .graphml files.")] = Path(),
    formats: Annotated[
        str,
        typer.Option(
            help="Files to write, with commas between: html, json, graphml, svg, png, dot, mermaid, circuit-tracer."
        ),
    ] = FORMATS,
    files: Annotated[bool, typer.Option(help="Write the files.")] = True,
    figure: Annotated[Path | None, typer.Option(help="Write the picture alone here (.svg, .png).")] = None,
    compare_paper: Annotated[
        bool,
        typer.Option(
            "--compare-paper", help="Grow it with the thresholds of the published graph, and compare the two."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the flow graph of a feature, and write it as HTML, JSON and GraphML, or in other --formats."""
    from saeflow.files import write_atomic
    from saeflow.flow import trace
    from saeflow.flow.published import compare, published_graph
    from saeflow.ids import FeatureId
    from saeflow.labels import words_for
    from saeflow.matching.atlas import open_atlas
    from saeflow.report import render
    from saeflow.report.exports import export, format_named

    check_ending("--figure", figure, ".svg", ".png")
    if direction not in ("both", "backward", "forward"):
        raise InvalidArgument(f"--direction {direction!r} is none of both, backward, forward.")
    chosen = names_of(formats)
    for name in chosen:
        format_named(name)  # refuses an unknown one before anything is grown
    seed = FeatureId.parse(feature)
    atlas = open_atlas(release)
    if calibrated and fdr is None:
        fdr = 0.01
    published = published_graph(atlas.release or release, seed) if compare_paper else None
    if published is not None:
        plain = (t_res, t_mlp, t_att, high) == (T_RES, T_MODULE, T_MODULE, HIGH)
        if fdr is not None or k != 1 or direction != "both" or not plain:
            raise InvalidArgument(
                "--compare-paper grows the graph as the publication did. Leave thresholds, --k and --direction out."
            )
        thresholds = published.thresholds
    else:
        thresholds = thresholds_of(atlas, t_res, t_mlp, t_att, fdr, high)
    words = words_for(atlas.release, beside=atlas.folder)
    grown = trace(
        seed, atlas, thresholds=thresholds, k=k, backward=direction != "forward", forward=direction != "backward"
    )
    if published is not None:
        _show_comparison(compare(grown, published), as_json)
    else:
        typer.echo(render(grown, to="json" if as_json else "text", words=words))
    if figure:
        write_atomic(figure, export(grown, figure.suffix.lower()[1:], words))
    if files:
        written = write_graph(grown, words, out, Path(release).name, chosen)
        if not as_json:
            typer.echo("\nwritten: " + "  ".join(str(path) for path in written))


def _show_comparison(comparison: Comparison, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(comparison.to_dict(), indent=1))
        return
    typer.echo(comparison.sentence)
    sites = [
        {
            "site": str(site.site),
            "published": " ".join(str(f.index) for f in site.published) or "-",
            "found": " ".join(str(f.index) for f in site.found) or "-",
            "": "" if site.agrees else "differs",
        }
        for site in comparison.sites
    ]
    print_table("", sites)
    scores = [
        {
            "feature": str(s.published.child),
            "predecessor": str(s.published.parent),
            "published": f"{s.published.score:.2f}",
            "found": "-" if s.found is None else f"{s.found:.3f}",
            "": "" if s.agrees else "differs",
        }
        for s in comparison.scores
    ]
    if scores:
        print_table("", scores)


def write_graph(grown: FlowGraph, words: Words, folder: Path, release: str, formats: Sequence[str] = ()) -> list[Path]:
    """The graph as {release}-{seed} with the ending of each format, by default those of `saeflow graph`."""
    from saeflow.files import write_atomic
    from saeflow.report.exports import export, format_named

    stem = f"{release}-{str(grown.seed).replace('/', '-')}"
    named = formats or names_of(FORMATS)
    paths = [folder / f"{stem}{format_named(name).suffix}" for name in named]
    try:
        for name, path in zip(named, paths, strict=True):
            write_atomic(path, export(grown, name, words))
    except OSError as error:
        raise InvalidArgument(
            f"cannot write into {folder} ({error.strerror}). Give a folder you may write to with --out, or --no-files."
        ) from None
    return paths


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the files of the graph.")] = Path(), as_json: Json = False
) -> None:
    """The main job on the embedded pack: pick a feature, grow its graph, draw it."""
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
        typer.echo(json.dumps({"picks": pick_rows(picks), "written": [str(p) for p in written]}, indent=1))
        return
    print_table("Features worth a look", pick_rows(picks))
    typer.echo(render(first, to="text", words=words))
    typer.echo(f"\nwritten: {written[0]}  (open it in a browser)\n         {written[1]}\n         {written[2]}")
    other = str(picks[min(1, len(picks) - 1)].graph.seed)
    called = "saeflow" if shutil.which("saeflow") else os.path.relpath(sys.argv[0])
    following = {
        f"{called} graph demo {other}": "another feature of the list",
        f"{called} graph demo {first.seed} --t-res 0 --k 3": "the whole depth, three matches a site",
        f"{called} info demo": "how good the model and its SAEs are",
    }
    width = max(map(len, following))
    typer.echo("\nTry next:\n" + "\n".join(f"  {c.ljust(width)}   {what}" for c, what in following.items()))
