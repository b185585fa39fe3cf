"""Match tables: `saeflow match`, `methods`, `agreement`, `atlas`, and `correlate`, which matches by activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from saeflow.cli.options import (
    WHERE,
    AtlasName,
    Device,
    Json,
    ModelOptions,
    NTexts,
    OneSite,
    Out,
    OutFolder,
    Projector,
    Release,
    SitesAtOnce,
    TextSources,
    Where,
    ends_in,
    projector,
)
from saeflow.cli.output import progress, show
from saeflow.errors import InvalidArgument, nearest
from saeflow.ids import Part

Method = Annotated[str, Parameter(help="Matching method: `saeflow methods` lists them.")]
Kept = Annotated[
    int | None,
    Parameter(alias="-k", help="Matches per feature: how many are kept; 5 by default, 1 for one-to-one methods."),
]
Picture = Annotated[
    Path | None, Out, ends_in(".svg", ".png", ".pdf"), Parameter(help="Where to write: the figure (.svg, .png, .pdf).")
]
AtlasFolder = Annotated[
    Path | None, OutFolder, Parameter(help="Where to write: the folder of the atlas, in the cache by default.")
]


def match(
    release: Release,
    source: OneSite,
    target: OneSite,
    /,
    *,
    k: Kept = None,
    method: Method = "cosine",
    other: str = "",
    limit: int = 20,
    model: Projector = "",
    out: Annotated[Path | None, Out, ends_in(".safetensors")] = None,
    as_json: Json = False,
) -> None:
    """Match any two sites of one release or two; `saeflow methods` lists the methods.

    Args:
        source: Site whose features are matched, such as 4/res.
        target: Site they are matched to, such as 3/res.
        other: Release of the target, if it is another one for the same model.
        limit: Rows to print: the best matched first.
        out: Where to write: the whole table (.safetensors).
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
    atlas: tuple[Path, ...] = (),
    k: Kept = 5,
    model: Projector = "",
    out: Picture = None,
    as_json: Json = False,
) -> None:
    """Show how often the matching methods name the same predecessor, by layer and part.

    `same` is the share of features whose best match is the same under both methods, `in top k` the share whose best
    match is among the k best of the method compared against.

    Args:
        methods: Matching methods: all by default.
        against: What to compare with: a method; only the agreement of the others with it is shown.
        atlas: Atlas to use: folders of atlases that are compared too, such as one of `saeflow correlate`.
    """
    from saeflow.matching.agreement import agreement as compare
    from saeflow.matching.atlas import open_atlas
    from saeflow.matching.build import compare_methods, refuse_other_weights
    from saeflow.matching.methods import METHODS, find_method
    from saeflow.sources.library import load_dictionaries

    dictionaries, opened = load_dictionaries(release), [open_atlas(folder) for folder in atlas]
    asked = [*(find_method(name).name for name in methods or METHODS), *(made.method for made in opened)]
    if against not in asked:
        raise InvalidArgument(
            f"--against {against!r} is none of those compared.{nearest(against, asked)} These are {', '.join(asked)}."
        )
    with progress("matching") as report:
        compared = compare_methods(
            dictionaries, methods or list(METHODS), k=k or 5, projector=projector(model), partial=True, progress=report
        )
    for made in opened:
        refuse_other_weights(made, dictionaries)
    found = compare({**compared, **{made.method: made for made in opened}})
    kept = [row for row in found.rows if row.method_b == against]
    if out:
        from saeflow.paper import agreement_by_layer, save

        save(agreement_by_layer([asdict(row) | {"part": row.part.value} for row in kept]), out)
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
    n_texts: NTexts = 500,
    tokens: int = 100_000,
    k: Kept = 5,
    max_length: int = 256,
    sites_at_once: SitesAtOnce = 0,
    seed: int = 0,
    keep: bool = False,
    method: Literal["pearson", "transport"] = "pearson",
    reference: OneSite | None = None,
) -> None:
    """Match every pair of sites of a flow by what features fire on (Pearson or transport). A killed run resumes.

    Only the quarter of the texts that experiments never sample is used: no match is tested on texts it was made from.

    Args:
        tokens: Total number of tokens: where to stop, not counting special tokens.
        max_length: Maximum length of a text, in tokens.
        seed: Random seed: of the order of the texts.
        keep: Keep intermediate files: the activations, for a run with another k.
        method: Matching method: pearson, by firing together; transport, by the hidden states that features fire on.
        reference: Residual site whose hidden states are transported: by default the one in the middle of the model.
    """
    from saeflow.experiments.sampling import expand, held_out, open_dataset
    from saeflow.matching.atlas import atlas_folder
    from saeflow.matching.correlation import MASSIVE, RUN
    from saeflow.matching.correlation import correlate as run
    from saeflow.reading import read_json
    from saeflow.sources.library import load_dictionaries

    dictionaries = load_dictionaries(release, device=language_model.device)
    found = held_out([open_dataset(source) for source in expand(texts)], n_texts, seed)
    folder = out or atlas_folder(release, method)
    with progress("correlating") as report:
        built = run(
            language_model.load(release, dictionaries),
            dictionaries,
            found,
            out=folder,
            k=k or 5,
            max_length=max_length,
            max_tokens=tokens,
            sites_at_once=sites_at_once or None,
            release=dictionaries.name,
            keep_activations=keep,
            method=method,
            reference=reference,
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
        parts: Parts of the model: those to match.
        shard_rows: Match by shards of about this many features, for dictionaries that do not fit on one machine; 0 for
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
    atlas: AtlasName = "",
    null: Literal["moments", "families", "rotation", "far"] = "moments",
    rows: int = 2048,
    rotations: int = 8,
    fdr: float = 0.01,
    seed: int = 0,
    device: Device = "cpu",
    model: Projector = "",
    out: Picture = None,
    as_json: Json = False,
) -> None:
    """Sample the scores that best matches reach by chance, save them with the atlas, and show thresholds by layer.

    The atlas of a pack, such as demo, is not changed: a copy in the cache is calibrated.

    Args:
        null: Null distribution.
        rows: Null rows drawn at a time: for each pair of sites.
        rotations: Number of draws of null rows.
        fdr: False-discovery rate: that of the thresholds shown. With families of similar features the actual rate is
            higher, except under the null "families".
        seed: Random seed: of the null rows.
    """
    from saeflow.matching.atlas import open_atlas, own_copy
    from saeflow.matching.calibration import calibrate
    from saeflow.report.tables import calibration_rows
    from saeflow.sources.library import load_dictionaries

    opened = own_copy(open_atlas(atlas or release))
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
    if out:
        from saeflow.paper import calibrated_thresholds, save

        save(calibrated_thresholds(figure_rows(found)), out)
    summary: dict[str, Any] = {"release": made.release, "null": null, "fdr": fdr, "folder": str(made.folder)}
    if missing := [f"{source} to {target}" for source, target in made if made.null(source, target) is None]:
        summary["not calibrated"] = f"{', '.join(missing)}: no row of one side has a direction to match by"
    if none := [row for row in found if row["threshold"] >= 1]:
        named = ", ".join(f"{row['part']} of layer {row['layer']} {row['direction']}" for row in none[:4])
        summary["without a cut"] = (
            f"{len(none)} of {len(found)} pairs of sites ({named}{', …' if len(none) > 4 else ''}): at fdr {fdr:g} no "
            "best match of theirs stands out from the null rows, and threshold 1 keeps none"
        )
    show(as_json, summary | {"pairs": found}, summary, found)


def figure_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `calibration_rows` for the figure: predecessors only, with gaps where nothing is significant."""
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
