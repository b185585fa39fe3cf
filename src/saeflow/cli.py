"""The command line: parse, one call, show. Every command that prints a table takes --json.

Errors that saeflow raises on purpose are printed as one message, with exit code 2 and no traceback.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.errors import BadFile, InvalidArgument, SaeflowError
from saeflow.version import __version__

if TYPE_CHECKING:
    from saeflow.flow import FlowGraph
    from saeflow.labels import Words

app = typer.Typer(
    help="Trace features of sparse autoencoders through the layers of a language model, from the weights alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
atlas_app = typer.Typer(
    help="Build and inspect atlases: all match tables of a release.", no_args_is_help=True
)
app.add_typer(atlas_app, name="atlas")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Release = Annotated[str, typer.Argument(help='"demo", a folder, or the name of a release.')]


def main() -> None:
    """Run the command line; exit code 2 for an error that has a message."""
    try:
        app()
    except SaeflowError as error:
        print(f"saeflow: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"saeflow: cannot read or write{where} ({error.strerror}).", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"saeflow {__version__}")
        raise typer.Exit


@app.command()
def graph(
    release: Release,
    feature: Annotated[str, typer.Argument(help="layer/part/index, such as 4/res/123.")],
    t_res: Annotated[
        float, typer.Option(help="t(R): the flow stops below it. 0 follows the whole depth.")
    ] = 0.5,
    t_mlp: Annotated[float, typer.Option(help="t(M): MLP features below it are dropped.")] = 0.15,
    t_att: Annotated[float, typer.Option(help="t(A): attention features below it are dropped.")] = 0.15,
    high: Annotated[
        float, typer.Option(help="The line between high and low scores, for the cases A to D.")
    ] = 0.5,
    k: Annotated[int, typer.Option(help="Matches considered at each site.")] = 1,
    direction: Annotated[str, typer.Option(help="both, backward or forward.")] = "both",
    out: Annotated[Path, typer.Option(help="Folder for the .html, .json and .graphml files.")] = Path(),
    files: Annotated[bool, typer.Option(help="Write the files.")] = True,
    figure: Annotated[Path | None, typer.Option(help="Write the picture alone here (.svg).")] = None,
    as_json: Json = False,
) -> None:
    """Print the flow graph of a feature, and write it as HTML, JSON and GraphML."""
    from saeflow.flow import Thresholds, trace
    from saeflow.ids import FeatureId
    from saeflow.labels import open_words
    from saeflow.matching.atlas import open_atlas
    from saeflow.paths import write_atomic
    from saeflow.report import render

    if direction not in ("both", "backward", "forward"):
        raise InvalidArgument(f"--direction {direction!r} is none of both, backward, forward.")
    seed = FeatureId.parse(feature)
    thresholds = Thresholds(res=t_res, mlp=t_mlp, att=t_att, high=high)
    atlas = open_atlas(release)
    words = open_words(atlas.folder)
    grown = trace(
        seed,
        atlas,
        thresholds=thresholds,
        k=k,
        backward=direction != "forward",
        forward=direction != "backward",
    )
    typer.echo(render(grown, to="json" if as_json else "text", words=words))
    if figure:
        write_atomic(figure, render(grown, to="svg", words=words).encode())
    if files:
        written = _write_graph(grown, words, out, Path(release).name)
        if not as_json:
            typer.echo("\nwritten: " + "  ".join(str(path) for path in written))


def _write_graph(grown: FlowGraph, words: Words, folder: Path, release: str) -> list[Path]:
    """The graph as {release}-{seed}.graph.html, .json and .graphml."""
    from saeflow.paths import write_atomic
    from saeflow.report import render

    stem = f"{release}-{str(grown.seed).replace('/', '-')}.graph"
    paths = [folder / f"{stem}.{suffix}" for suffix in ("html", "json", "graphml")]
    try:
        write_atomic(paths[0], render(grown, to="html", words=words).encode())
        write_atomic(paths[1], render(grown, to="json", words=words).encode())
        write_atomic(paths[2], grown.to_graphml().encode())
    except OSError as error:
        raise InvalidArgument(
            f"cannot write into {folder} ({error.strerror}). Give a folder you may write to with --out, or --no-files."
        ) from None
    return paths


@app.command()
def match(
    release: Release,
    source: Annotated[str, typer.Argument(help="Site whose features are matched, such as 4/res.")],
    target: Annotated[str, typer.Argument(help="Site they are matched to, such as 3/res.")],
    k: Annotated[int, typer.Option(help="Matches kept for each feature.")] = 5,
    limit: Annotated[int, typer.Option(help="Features printed, best matched first.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write the whole table here (.safetensors).")] = None,
    as_json: Json = False,
) -> None:
    """Match any two sites of a release by the cosine of their decoder rows."""
    from saeflow.ids import Site
    from saeflow.matching.build import match as match_sites
    from saeflow.report.tables import match_rows
    from saeflow.sources.library import load_dictionaries

    sites = Site.parse(source), Site.parse(target)
    dictionaries = load_dictionaries(release)
    table = match_sites(dictionaries[sites[0]], dictionaries[sites[1]], k=k)
    if out:
        table.save(out)
    summary, rows = match_rows(table, limit)
    _show(as_json, summary | {"matches": rows}, summary, rows)


@atlas_app.command("build")
def atlas_build(
    release: Release,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the atlas; in the cache when not given.")
    ] = None,
    k: Annotated[int, typer.Option(help="Matches kept for each feature.")] = 5,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")] = "cpu",
    parts: Annotated[str, typer.Option(help="Parts to match, with commas between.")] = "res,mlp,att",
    model: Annotated[
        str, typer.Option(help="Model to project attention features with, where they live in z.")
    ] = "",
) -> None:
    """Match every pair of sites that a flow graph needs. A killed build goes on where it stopped."""
    from saeflow.ids import Part
    from saeflow.matching.atlas import atlas_cache
    from saeflow.matching.build import build_atlas
    from saeflow.sources.library import load_dictionaries

    asked = [part.strip() for part in parts.split(",")]
    unknown = sorted(set(asked) - {part.value for part in Part})
    if unknown:
        raise InvalidArgument(f"--parts {parts!r} names {', '.join(unknown)}. Parts are res, mlp, att.")
    dictionaries = load_dictionaries(release, device=device).only([Part(part) for part in asked])
    folder = out or atlas_cache() / release.replace("/", "--")
    loaded = None
    if model:
        from saeflow.sources.model import load_model

        loaded = load_model(model)
    with _progress("matching") as progress:
        built = build_atlas(
            dictionaries, out=folder, k=k, release=dictionaries.name, model=dictionaries.model, projector=loaded,
            progress=progress,
        )  # fmt: skip
    typer.echo(f"{len(built)} tables of {len(built.sites)} sites, k = {built.k}, in {folder}")


@atlas_app.command("info")
def atlas_info(release: Release, as_json: Json = False) -> None:
    """What an atlas holds, and how well neighbouring sites match."""
    from saeflow.matching.atlas import open_atlas
    from saeflow.report.tables import atlas_rows

    summary, rows = atlas_rows(open_atlas(release))
    _show(as_json, summary | {"tables": rows}, summary, rows)


@app.command()
def info(release: Release, as_json: Json = False) -> None:
    """What a release holds; for the demo pack, its measured quality too."""
    from saeflow.demo import quality
    from saeflow.report.tables import quality_rows, release_rows

    if release == "demo":
        measured = quality()
        blocks = quality_rows(measured)
        if as_json:
            typer.echo(json.dumps(measured, indent=1))
            return
        for title, rows in blocks:
            _print_table(title, rows)
        return
    from saeflow.sources.library import load_dictionaries

    summary, rows = release_rows(load_dictionaries(release))
    _show(as_json, summary | {"sites": rows}, summary, rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the files of the graph.")] = Path(),
    as_json: Json = False,
) -> None:
    """The main job on the embedded pack: pick a feature, grow its graph, draw it."""
    from saeflow.demo.pick import worth_a_look
    from saeflow.labels import open_words
    from saeflow.matching.atlas import open_atlas
    from saeflow.report import render
    from saeflow.report.tables import pick_rows

    atlas = open_atlas("demo")
    words = open_words(atlas.folder)
    picks = worth_a_look(atlas, words, 8)
    if not picks:
        raise BadFile(
            f"{atlas.folder} has no words to pick features by. Install saeflow again: its pack is incomplete."
        )
    first = picks[0].graph
    written = _write_graph(first, words, out, "demo")
    if as_json:
        typer.echo(json.dumps({"picks": pick_rows(picks), "written": [str(p) for p in written]}, indent=1))
        return
    _print_table("Features worth a look", pick_rows(picks))
    typer.echo(render(first, to="text", words=words))
    typer.echo(
        f"\nwritten: {written[0]}  (open it in a browser)\n         {written[1]}\n         {written[2]}"
    )
    other = str(picks[min(1, len(picks) - 1)].graph.seed)
    called = "saeflow" if shutil.which("saeflow") else os.path.relpath(sys.argv[0])
    following = {
        f"{called} graph demo {other}": "another feature of the list",
        f"{called} graph demo {first.seed} --t-res 0 --k 3": "the whole depth, three matches a site",
        f"{called} info demo": "how good the model and its SAEs are",
    }
    width = max(map(len, following))
    typer.echo("\nTry next:\n" + "\n".join(f"  {c.ljust(width)}   {what}" for c, what in following.items()))


def _show(as_json: bool, data: dict[str, Any], summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """JSON, or the summary as lines and the rows as a table."""
    if as_json:
        typer.echo(json.dumps(data, indent=1))
        return
    for key, value in summary.items():
        typer.echo(f"{key}: {value}")
    _print_table("", rows)


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    from saeflow.report.tables import as_text

    typer.echo(as_text(title, rows))


@contextmanager
def _progress(what: str) -> Generator[Callable[[int, int, str], None]]:
    """A bar on stderr that takes (done, total, what is being done)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what)

        def show(done: int, total: int, now: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{what} {now}")

        yield show
