"""`saeflow releases`, `info` and `doctor`: list releases, show what one holds, and check it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from saeflow.cli.options import Device, Json, PrependBos, Release, SiteNames, TextSources, sites_named
from saeflow.cli.output import Row, print_json, print_table, progress, show
from saeflow.errors import BadFile, CorruptAtlas, InvalidArgument, UnknownRelease
from saeflow.files import folder_and_pattern, pack_folder, pack_names
from saeflow.ids import Part, Site

if TYPE_CHECKING:
    from saeflow.sources.releases import Release as KnownRelease


def releases(release: str = "", /, *, as_json: Json = False) -> None:
    """List releases: model, sites, size, and how much is in the hub's cache. Uses no network.

    This machine may have all files of a site ("yes"), at least what matching reads ("W_dec only"), only the sizes
    ("headers"), or nothing ("no").

    Args:
        release: Release of dictionaries: a name, a pack or a .toml file, with parameters after an @; all by default.
    """
    from saeflow.sources.hub import cache_state
    from saeflow.sources.releases import known_releases, read_release

    if not release:
        rows = [_pack_row(name) for name in pack_names()]
        rows += [_release_row(read_release(known)) for known in known_releases()]
        # the table leaves out the owner of a model, since its lines are long
        short = [
            row | {"model": row["model"].split("/")[-1], "GB": "-" if row["GB"] is None else f"{row['GB']:.1f}"}
            for row in rows
        ]
        show(as_json, {"releases": rows}, {}, short)
        return
    if pack_folder(release):
        summary = _pack_row(release)
        show(as_json, summary, summary, [])
        return
    found = read_release(release)
    sites: list[Row] = [
        {
            "site": str(site),
            "features": None if entry.size is None else entry.size.n_features,
            "width": None if entry.size is None else entry.size.d_in,
            "MB": None if entry.size is None else round(entry.size.n_bytes / 1e6),
            "in cache": cache_state(entry).value,
            "file": f"{entry.repo}/{entry.files[0]}",
            "labels": entry.labels or None,
        }
        for site, entry in found.sites.items()
    ]
    options = [
        f"{key} ({', '.join(f'[{value}]' if value == found.chosen[key] else value for value in values)})"
        for key, values in found.options.items()
    ]
    summary = _release_row(found) | {"about": found.about, "parameters": "; ".join(options) or "none"}
    show(as_json, summary | {"sites": sites}, summary, sites)


def _pack_row(name: str) -> Row:
    """The same as `_release_row` for a pack, all of which is on this machine."""
    from saeflow.sources.library import load_dictionaries

    found, saes = load_dictionaries(name), (pack_folder(name) or Path(name)) / "saes"
    return {
        "release": name,
        "model": found.model,
        **_parts_and_layers(found.sites),
        "features": max(dictionary.n_features for dictionary in found.values()),
        "GB": round(sum(path.stat().st_size for path in saes.iterdir()) / 1e9, 1),
        "in cache": f"{len(found)} of {len(found)}",
        "W_dec only": 0,
    }


def _parts_and_layers(sites: Sequence[Site]) -> Row:
    """The columns with the parts and layers that have dictionaries."""
    layers = sorted({site.layer for site in sites})
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return {
        "parts": " ".join(part.value for part in Part if any(site.part is part for site in sites)),
        "layers": f"{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else " ".join(map(str, layers)),
    }


def _release_row(found: KnownRelease) -> Row:
    from saeflow.sources.hub import CacheState, cache_state

    sites = list(found.sites)
    sizes = [entry.size for entry in found.sites.values() if entry.size is not None]
    held = [cache_state(entry) for entry in found.sites.values()]
    # sizes that are known for some sites only would be read as those of all
    known = len(sizes) == len(sites)
    return {
        "release": found.name,
        "model": found.model,
        **_parts_and_layers(sites),
        "features": max((size.n_features for size in sizes), default=None) if known else None,
        "GB": round(sum(size.n_bytes for size in sizes) / 1e9, 1) if known else None,
        "in cache": f"{held.count(CacheState.YES)} of {len(sites)}",
        "W_dec only": held.count(CacheState.DECODER),
    }


def info(release: Release, /, *, as_json: Json = False) -> None:
    """Show what a release holds and what was left out; for a pack its quality, for a folder of `saeflow train` both.

    If the dictionary of a site cannot be opened, its row says why.
    """
    from saeflow.demo import quality
    from saeflow.report.tables import quality_rows, release_rows

    if pack_folder(release):
        measured = quality(release)
        if as_json:
            print_json(measured)
            return
        for title, rows in quality_rows(measured):
            print_table(rows, title)
        return
    from saeflow.sources.library import load_dictionaries
    from saeflow.training.record import last_measured

    trained, quality_of = last_measured(Path(folder_and_pattern(release)[0]))
    summary, rows, left_out = release_rows(load_dictionaries(release), quality_of)
    summary |= trained
    show(as_json, summary | {"sites": rows, "left_out": left_out}, summary, rows)
    if left_out and not as_json:
        print_table(left_out)


def doctor(
    release: Release,
    /,
    *,
    model: str = "",
    sites: SiteNames = (),
    texts: TextSources = (),
    tokens: int = 2_000,
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    seed: int = 0,
    everything: Annotated[bool, Parameter("--all", negative=())] = False,
    as_json: Json = False,
) -> int:
    """Check a release: its weights, and with a model whether each dictionary reads the tensor that it states.

    Finds a wrong tap, a transposed matrix, a missing factor, thresholds in other units, NaN, duplicates and dead
    features. The exit code is 1 if something is wrong.

    Args:
        model: Language model: by default none is run, and only the weights are examined.
        tokens: Total number of tokens: those to examine, not counting special tokens.
        seed: Random seed: of the choice of texts.
        everything: Show every check that passed, not only how well sites reconstruct.
    """
    from saeflow.demo import quality
    from saeflow.doctor import Severity
    from saeflow.doctor.examine import examine
    from saeflow.doctor.findings import CheckKind
    from saeflow.matching.atlas import open_atlas
    from saeflow.sources.library import load_dictionaries

    # 1. The dictionaries, their atlas if it opens, and the L0 that a pack states; `examine` reads Gemma Scope's.
    dictionaries = load_dictionaries(release, device=device)
    try:
        atlas = open_atlas(release)
    except (UnknownRelease, BadFile, CorruptAtlas):
        atlas = None
    measured = quality(release)["saes"] if pack_folder(release) else {}
    stated = {Site.parse(name): float(row["l0"]) for name, row in measured.items()}

    # 2. The model, if one is named, and its texts.
    run: dict[str, Any] = {}
    if texts and not model:
        raise InvalidArgument("--texts are for a model to read, and none is named. Add --model.")
    if model and not texts and model != "demo":
        raise InvalidArgument("--model needs --texts: a file, or a dataset on the hub, that it reads.")
    if model:
        from saeflow.experiments.sampling import expand, held_out, open_dataset
        from saeflow.sources.model import load_model

        # texts of unknown length: enough of them even if each is short
        found = held_out([open_dataset(source) for source in expand(texts or ["demo"])], max(20, tokens // 50), seed)
        run = {"model": load_model(model, device=device, prepend_bos=prepend_bos), "texts": found}

    # 3. The findings.
    with progress("examining") as report:
        findings = examine(
            dictionaries,
            release=dictionaries.name,
            sites=sites_named(sites, dictionaries.sites) if sites else None,
            tokens=tokens,
            stated_l0=stated,
            atlas=atlas,
            progress=report,
            **run,
        )
    rows = [
        {"site": f.site or "release", "": f.severity.value, "check": f.check.value, "found": _said(f.said, f.advice)}
        for f in findings.findings
        if everything or f.severity is not Severity.OK or f.check is CheckKind.RECONSTRUCTION
    ]
    counts = [f"{len(findings.of(severity))} {severity.value}" for severity in reversed(Severity)]
    read = f"{findings.n_tokens:,} tokens of {findings.model or 'the model'}" if findings.n_tokens else "weights alone"
    summary = {"release": findings.release, "looked at": read, "findings": ", ".join(counts)}
    passed = Counter(finding.check.value for finding in findings.of(Severity.OK))
    if rows:
        summary["passed"] = ", ".join(f"{check} ({n})" for check, n in passed.items()) or "nothing"
    show(as_json, findings.to_json(), summary, rows or [{"passed": check, "times": n} for check, n in passed.items()])
    return 1 if findings.worst is Severity.WRONG else 0


def _said(said: str, advice: str) -> str:
    said = said[0].upper() + said[1:] if said[0] not in "'\"" else said
    return f"{said}{'' if said.endswith('.') else '.'} {advice}".strip()
