"""Match tables: `saeflow match`, `methods` and `agreement`, `saeflow atlas`, and `correlate` for activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from saeflow.cli.options import (
    WHERE,
    Device,
    Json,
    ModelOptions,
    OneSite,
    Positive,
    Projector,
    Release,
    SitesAtOnce,
    TextSources,
    Where,
    ends_in,
    projector,
)
from saeflow.cli.output import progress, show
from saeflow.errors import InvalidArgument
from saeflow.ids import Part

Method = Annotated[str, Parameter(help="How rows are compared; `saeflow methods` lists the ways.")]
Kept = Annotated[int | None, Parameter(help="Matches kept for each feature; 5 by default, 1 for one-to-one methods.")]
Picture = Annotated[Path | None, ends_in(".svg", ".png", ".pdf")]
AtlasFolder = Annotated[Path | None, Parameter(help="Folder of the atlas; in the cache by default.")]


def match(
    release: Release,
    source: OneSite,
    target: OneSite,
    /,
    *,
    k: Kept = None,
    method: Method = "cosine",
    other: str = "",
    limit: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 20,
    model: Projector = "",
    out: Annotated[Path | None, ends_in(".safetensors")] = None,
    as_json: Json = False,
) -> None:
    """Match any two sites, of one release or of two; `saeflow methods` lists the methods.

    Args:
        source: Site whose features are matched, such as 4/res.
        target: Site they are matched to, such as 3/res.
        other: Release of the target, where that is another one for the same model.
        limit: Features to print, best matched first.
        out: Write the whole table here (.safetensors).
    """
    from saeflow.matching.methods import find_method, match_pair
    from saeflow.report.tables import match_rows
    from saeflow.sources.library import load_dictionaries

    dictionaries = load_dictionaries(release)
    there = load_dictionaries(other) if other else dictionaries
    kept = find_method(method).default_k if k is None else k
    table, back = match_pair(dictionaries[source], there[target], k=kept, method=method, projector=projector(model))
    if out:
        table.save(out)
    summary, rows = match_rows(table, limit, back)
    show(as_json, summary | {"matches": rows}, summary, rows)


def methods(*, as_json: Json = False) -> None:
    """List the ways to match two dictionaries by their weights."""
    from saeflow.matching.methods import METHODS

    rows = [{"method": m.name, "what it does": m.sentence, "from": m.source} for m in METHODS.values()]
    show(as_json, {"methods": rows}, {}, rows)


def agreement(
    release: Release,
    /,
    *,
    methods: tuple[str, ...] = (),
    against: str = "cosine",
    atlas: list[Path] | None = None,
    k: int = 5,
    model: Projector = "",
    figure: Picture = None,
    as_json: Json = False,
) -> None:
    """Show how often the ways to match name the same predecessor, by layer and part.

    `same` is the share of features whose best match is the same under both methods, `in top k` the share whose
    best match under the other method is among the k best of the one compared against.

    Args:
        methods: Methods to compare; all by default.
        against: Show only how far the others agree with this one.
        atlas: Folder of an atlas made before, such as one of `saeflow correlate`; may be given several times.
        k: Matches kept for each feature.
        figure: Draw the agreement here (.svg, .png, .pdf).
    """
    from saeflow.matching.agreement import agreement as compare
    from saeflow.matching.atlas import open_atlas
    from saeflow.matching.build import compare_methods, refuse_other_weights
    from saeflow.matching.methods import METHODS
    from saeflow.sources.library import load_dictionaries

    dictionaries, opened = load_dictionaries(release), [open_atlas(folder) for folder in atlas or ()]
    with progress("matching") as report:
        compared = compare_methods(
            dictionaries, methods or list(METHODS), k=k, projector=projector(model), partial=True, progress=report
        )
    for made in opened:
        refuse_other_weights(made, dictionaries)
    found = compare({**compared, **{made.method: made for made in opened}})
    if against not in found.methods:
        raise InvalidArgument(f"--against {against!r} is none of those compared: {', '.join(found.methods)}.")
    kept = [row for row in found.rows if row.method_b == against]
    if figure:
        from saeflow.paper import agreement_by_layer, save

        save(agreement_by_layer([asdict(row) | {"part": row.part.value} for row in kept]), figure)
    rows = [
        {
            "method": row.method_a,
            "part": row.part.value,
            "layer": row.layer,
            "same": round(row.same, 4),
            f"in top {k}": round(row.in_top_k, 4),
            "features": row.n,
        }
        for row in kept
    ]
    summary = {"release": release, "against": against}
    show(as_json, summary | {"rows": rows}, summary, rows)


def correlate(
    release: Release,
    /,
    *,
    texts: TextSources,
    out: AtlasFolder = None,
    language_model: ModelOptions = ModelOptions(),
    n: Positive = 500,
    tokens: Positive = 100_000,
    k: Positive = 5,
    max_length: Positive = 256,
    sites_at_once: SitesAtOnce = 0,
    seed: int = 0,
    keep: bool = False,
) -> None:
    """Match every pair of sites of a flow by how features fire together. A killed run resumes.

    Texts come from the quarter that experiments never sample: no match is fitted on what it is tested with.

    Args:
        n: Texts taken from each source.
        tokens: Stop after this many tokens that are not special.
        k: Matches kept for each feature.
        max_length: Tokens of each text at most.
        seed: Sets the order in which texts are taken.
        keep: Keep the activations, for another k.
    """
    from saeflow.experiments.sampling import expand, held_out, open_dataset
    from saeflow.matching.atlas import atlas_folder
    from saeflow.matching.correlation import MASSIVE, METHOD, RUN
    from saeflow.matching.correlation import correlate as run
    from saeflow.reading import read_json
    from saeflow.sources.library import load_dictionaries

    dictionaries = load_dictionaries(release, device=language_model.device)
    found = held_out([open_dataset(source) for source in expand(texts)], n, seed)
    folder = out or atlas_folder(release, METHOD)
    with progress("correlating") as report:
        built = run(
            language_model.load(release, dictionaries),
            dictionaries,
            found,
            out=folder,
            k=k,
            max_length=max_length,
            max_tokens=tokens,
            sites_at_once=sites_at_once or None,
            release=dictionaries.name,
            keep_activations=keep,
            progress=report,
        )
    print(f"{len(built)} tables of {len(built.sites)} sites, k = {built.k}, in {folder}")
    if massive := read_json(built.folder / RUN).get(MASSIVE):
        each = ", ".join(f"{site} {n}" for site, n in massive.items())
        print(f"left out as massive (squared norm above 100 medians of the site): {each}")


def atlas_build(
    release: Release,
    /,
    *,
    out: AtlasFolder = None,
    k: Kept = None,
    method: Method = "cosine",
    device: Device = "cpu",
    parts: tuple[Part, ...] = (Part.ATT, Part.MLP, Part.RES),
    model: Projector = "",
    shard_rows: Annotated[int, Parameter(group=WHERE)] = 0,
    where: Where = Where(),
) -> None:
    """Match every pair of sites that a flow graph needs. A killed build resumes.

    Args:
        parts: Parts to match.
        shard_rows: Match by shards of about this many features, for dictionaries that do not fit one machine; 0 for
            none.
    """
    from saeflow.matching.atlas import atlas_folder
    from saeflow.matching.build import build_atlas
    from saeflow.sources.library import load_dictionaries

    engine = where.open()
    dictionaries = load_dictionaries(release, device=device).only(parts)
    folder = out or atlas_folder(release, method)
    with progress("matching") as report, engine:
        built = build_atlas(
            dictionaries,
            out=folder,
            k=k,
            method=method,
            release=dictionaries.name,
            model=dictionaries.model,
            projector=projector(model),
            progress=report,
            engine=engine,
            shard_rows=shard_rows or None,
        )
    print(f"{len(built)} tables of {len(built.sites)} sites, k = {built.k}, in {folder}")


def atlas_info(release: Release, /, *, as_json: Json = False) -> None:
    """Show what an atlas holds, and how well neighbouring sites match."""
    from saeflow.matching.atlas import open_atlas
    from saeflow.report.tables import atlas_rows

    summary, rows = atlas_rows(open_atlas(release))
    show(as_json, summary | {"tables": rows}, summary, rows)


def atlas_calibrate(
    release: Release,
    /,
    *,
    atlas: Path | None = None,
    null: Literal["moments", "families", "rotation", "far"] = "moments",
    rows: Positive = 2048,
    rotations: Positive = 8,
    fdr: Annotated[float, Parameter(validator=validators.Number(gt=0, lt=1))] = 0.01,
    seed: int = 0,
    device: Device = "cpu",
    model: Projector = "",
    figure: Picture = None,
    as_json: Json = False,
) -> None:
    """Draw what best matches score by chance, keep it with the atlas, and show thresholds by layer.

    Args:
        atlas: Folder of the atlas; the atlas of the release by default.
        null: Which rows stand for chance.
        rows: Null rows drawn at a time, for each pair of sites.
        rotations: How many times null rows are drawn.
        fdr: False-discovery rate of the thresholds shown; families of alike features exceed it, except under the null
            "families".
        seed: Seed of the null rows.
        figure: Draw thresholds by layer here (.svg, .png, .pdf).
    """
    from saeflow.matching.atlas import open_atlas
    from saeflow.matching.calibration import calibrate
    from saeflow.report.tables import calibration_rows
    from saeflow.sources.library import load_dictionaries

    opened = open_atlas(atlas or release)
    with progress("calibrating") as report:
        made = calibrate(
            load_dictionaries(release, device=device),
            opened,
            rows=rows,
            rotations=rotations,
            seed=seed,
            null=null,
            projector=projector(model),
            progress=report,
        )
    found = calibration_rows(made, fdr)
    if figure:
        from saeflow.paper import calibrated_thresholds, save

        save(calibrated_thresholds(figure_rows(found)), figure)
    summary = {"release": made.release, "null": null, "fdr": fdr, "folder": str(made.folder)}
    show(as_json, summary | {"pairs": found}, summary, found)


def figure_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `calibration_rows` as the figure takes them: predecessors only, a gap where nothing is significant."""
    return [
        {
            "layer": row["layer"],
            "part": row["part"],
            "threshold": None if row["threshold"] >= 1 else row["threshold"],
            "null_q50": row["null q50"],
            "null_q99": row["null q99"],
            "kept": row["kept"],
            "kept_fixed": row["kept plain"],
        }
        for row in rows
        if row["direction"] == "backward"
    ]
