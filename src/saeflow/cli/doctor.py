"""`saeflow doctor`: is a release what it says it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Device, Json, PrependBos, Release, progress, show

if TYPE_CHECKING:
    from saeflow.doctor import Examination
    from saeflow.ids import Site
    from saeflow.matching.atlas import Atlas


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(doctor)


def doctor(
    release: Release,
    model: Annotated[str, typer.Option(help="Model to run; weights alone are looked at when not given.")] = "",
    site: Annotated[
        list[str] | None, typer.Option(help="A site such as 24/res, once or more; all when not given.")
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(help='Where texts come from: a .txt, .jsonl or .parquet file, "demo", or a dataset on the hub.'),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens looked at, special ones not counted.")] = 2_000,
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    seed: Annotated[int, typer.Option(help="Sets which texts are taken.")] = 0,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Show everything that is as it should be, not only how well sites reconstruct."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a release: its weights, and with a model whether each dictionary reads the tensor it says.

    Finds a wrong tap, a transposed matrix, a missing factor, thresholds in other units, NaN, duplicates, dead features.
    Exits with 1 when something is wrong.
    """
    from saeflow.doctor import Severity
    from saeflow.doctor.examine import examine
    from saeflow.doctor.findings import Check
    from saeflow.ids import Site
    from saeflow.sources.library import load_dictionaries

    dictionaries = load_dictionaries(release, device=device)
    chosen = [Site.parse(name) for name in site] if site else None
    with progress("examining") as report:
        found = examine(
            dictionaries,
            release=dictionaries.name,
            sites=chosen,
            tokens=tokens,
            stated_l0=_stated(release),
            atlas=_atlas_of(release),
            progress=report,
            **_run(model, texts, tokens, device, seed, prepend_bos),
        )
    rows = [
        {"site": f.site or "release", "": f.severity.value, "check": f.check.value, "found": _told(f.said, f.advice)}
        for f in found.findings
        if everything or f.severity is not Severity.OK or f.check is Check.RECONSTRUCTION
    ]
    show(as_json, found.to_json(), _summary(found), rows)
    if found.worst is Severity.WRONG:
        raise typer.Exit(1)


def _told(said: str, advice: str) -> str:
    said = said[0].upper() + said[1:] if said[0] not in "'\"" else said
    return f"{said}. {advice}".strip() if not said.endswith(".") else f"{said} {advice}".strip()


def _summary(found: Examination) -> dict[str, Any]:
    from saeflow.doctor import Severity

    counts = [f"{len(found.of(severity))} {severity.value}" for severity in reversed(Severity)]
    read = f"{found.n_tokens:,} tokens of {found.model or 'the model'}" if found.n_tokens else "weights alone"
    return {"release": found.release, "looked at": read, "findings": ", ".join(counts)}


def _run(
    model: str, texts: list[str] | None, tokens: int, device: str, seed: int, prepend_bos: bool | None
) -> dict[str, Any]:
    """The model and its texts, where one is named."""
    from saeflow.errors import InvalidArgument

    if not model:
        if texts:
            raise InvalidArgument("--texts are for a model to read, and none is named. Add --model.")
        return {}
    if not texts and model != "demo":
        raise InvalidArgument("--model needs --texts: a file, or a dataset on the hub, that it reads.")
    from saeflow.experiments.sampling import expand, held_out, open_dataset
    from saeflow.sources.model import load_model

    # texts of unknown length: enough of them even where each is short
    found = held_out([open_dataset(source) for source in expand(texts or ["demo"])], max(20, tokens // 50), seed)
    return {"model": load_model(model, device=device, prepend_bos=prepend_bos), "texts": found}


def _atlas_of(release: str) -> Atlas | None:
    """The atlas of the release, where there is one that opens."""
    from saeflow.errors import BadFile, CorruptAtlas, UnknownRelease
    from saeflow.matching.atlas import open_atlas

    try:
        return open_atlas(release)
    except (UnknownRelease, BadFile, CorruptAtlas):
        return None


def _stated(release: str) -> dict[Site, float]:
    """What the demo pack states; the paths of Gemma Scope say theirs themselves."""
    from saeflow.demo import quality
    from saeflow.ids import Site

    if release != "demo":
        return {}
    return {Site.parse(name): float(row["l0"]) for name, row in quality()["saes"].items()}
