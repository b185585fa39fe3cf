"""`saeflow origins`, `deactivate`, `transition` and `sweep`: the experiments of the paper, written to results folders.

A killed run resumes when it is called again with the same arguments. A finished sweep called with another --judge is
only judged again: no text is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from saeflow.cli.options import (
    TEXTS,
    AtlasName,
    Cuts,
    Device,
    Feature,
    Flag,
    Json,
    LlmModel,
    LlmUrl,
    LogTo,
    ModelOptions,
    NTexts,
    Numbers,
    OutFolder,
    Release,
    TextSources,
    Together,
    Where,
    number_or_all,
)
from saeflow.cli.output import Row, bars, note, print_json, print_table, show_results
from saeflow.errors import InvalidArgument
from saeflow.experiments.settings import DeactivationSize, InputNames, OriginsSize, TransitionSize
from saeflow.ids import FeatureId, Part, Site
from saeflow.steering.plan import SteeringDirection

if TYPE_CHECKING:
    from saeflow.experiments.results import SummaryTable

_VARIANT = "Variants, each recorded with the results"


@Parameter(name="*")
@dataclass(frozen=True)
class _Names(InputNames):
    """`InputNames` as options, except the release, which is an argument.

    Attributes:
        layers: Layers, such as 2,3 or 6-9: by default all from the first that the experiment can use.
        pearson_datasets: Where texts for --pearson come from: by default the domains of the demo among --texts, except
            Python, or else the first of --texts.
    """

    release: Annotated[str, Parameter(parse=False)] = ""
    atlas: AtlasName = ""
    device: Device = "cpu"
    model: Annotated[str, Parameter(help="Language model: the one that the release names by default.")] = ""
    datasets: Annotated[tuple[str, ...], Parameter("--texts", help=TEXTS)] = ("demo",)
    pearson_datasets: Annotated[tuple[str, ...], Parameter("--pearson-texts")] = ()


@dataclass(frozen=True)
class _OriginsSize(OriginsSize):
    """`OriginsSize` as options."""

    texts: Annotated[NTexts, Parameter("--n-texts")] = 250
    tokens: Annotated[int, Parameter("--tokens-per-text")] = 5


@dataclass(frozen=True)
class _DeactivationSize(DeactivationSize):
    """`DeactivationSize` as options.

    Attributes:
        features: Number of targets: at each token and layer, at most.
        loss: Targets per text for which the loss is measured: a number, or "all".
    """

    texts: Annotated[NTexts, Parameter("--n-texts")] = 35
    tokens: Annotated[int, Parameter("--tokens-per-text")] = 5
    features: Annotated[int, Parameter("--n-targets")] = 25
    loss: Annotated[int | None, Parameter("--n-loss-targets", converter=number_or_all)] = 4


@dataclass(frozen=True)
class _TransitionSize(TransitionSize):
    """`TransitionSize` as options.

    Attributes:
        pairs: Pairs of sites in place of --layers and --part: 0/res>2/res,1/mlp>2/mlp.
        loss_texts: Texts on which the loss is measured: of each source, where a layer is skipped; 0 for none.
    """

    pairs: Annotated[tuple[tuple[Site, Site], ...], Parameter(n_tokens=1)] = ()
    loss_texts: Annotated[int, Parameter("--n-loss-texts")] = 20


def origins(
    release: Release,
    /,
    *,
    names: _Names = _Names(),
    size: Annotated[_OriginsSize, Together] = _OriginsSize(),
    where: Where = Where(),
    out: Annotated[Path | None, OutFolder] = None,
    as_json: Json = False,
) -> None:
    """Show which matched predecessors are active with each active feature (section 5.1).

    Args:
        out: Where to write: a results folder, origins-RELEASE by default.
    """
    from saeflow.experiments.inputs import Inputs
    from saeflow.experiments.inputs import origins as run
    from saeflow.experiments.origins_tables import summarize_origins

    engine = where.open()
    inputs = Inputs.open(replace(names, release=release), first=0)
    with bars() as bar, engine:
        results = run(inputs, size, out=out or _folder("origins", release), bars=bar, note=note, engine=engine)
    shown = ("shares_by_dataset", "activity_differences", "agreement")
    show_results(results, summarize_origins(results), shown, _overall, as_json=as_json)


def deactivate(
    release: Release,
    feature: Feature | None = None,
    /,
    *,
    text: str = "",
    names: _Names = _Names(),
    size: Annotated[_DeactivationSize, Parameter(name="*", allow_leading_hyphen=True)] = _DeactivationSize(),
    where: Where = Where(),
    out: Annotated[Path | None, OutFolder] = None,
    as_json: Json = False,
) -> None:
    """Remove the predecessors of active features, and measure what is left of the features (section 5.2).

    With a feature and --text, this is done for that feature on that text; otherwise for many features on many texts.

    Args:
        feature: Feature, such as 4/res/72: the one whose predecessors are removed on --text.
        text: The text: on which the feature's predecessors are removed.
        out: Where to write: a results folder, deactivation-RELEASE by default.
    """
    if feature is not None or text:
        if feature is None or not text:
            missing = "the feature, such as 4/res/72," if feature is None else "--text"
            raise InvalidArgument(
                f"{missing} is missing. One text is asked about one feature: RELEASE 4/res/72 --text ..."
            )
        if out is not None or size != _DeactivationSize() or where != Where():
            raise InvalidArgument(
                "--text asks about one text, and writes no results folder: options of experiments would be ignored. "
                "Leave them out."
            )
        _deactivate_on_text(release, feature, text, names, as_json=as_json)
        return
    from saeflow.experiments.deactivation_tables import summarize_deactivation
    from saeflow.experiments.inputs import Inputs, deactivation

    engine = where.open()
    inputs = Inputs.open(replace(names, release=release), first=1)
    folder = out or _folder("deactivation", release)
    with bars() as bar, engine:
        results = deactivation(inputs, size, out=folder, bars=bar, note=note, engine=engine)
    shown = ("by_strategy_layer", "table_1", "paired", "remaining")
    show_results(results, summarize_deactivation(results), shown, _overall, as_json=as_json)


def _deactivate_on_text(release: str, feature: FeatureId, text: str, names: _Names, *, as_json: bool) -> None:
    """Print what is left of a feature on a text after each removal, and after the removal's control."""
    from saeflow.experiments.one_text import deactivate as run
    from saeflow.sources.library import load_dictionaries

    dictionaries = load_dictionaries(release, device=names.device)
    model = ModelOptions(names.model, names.device, names.prepend_bos).load(release, dictionaries)
    found = run(model, dictionaries, text, feature, atlas=names.atlas, seed=names.seed)
    if as_json:
        print_json({"feature": str(feature), "text": text, "removals": found.to_dict("records")})
        return
    columns = ("token", "removed", "features", "before", "after", "control", "after control")
    rows: list[Row] = [
        {str(name): f"{cell:.2f}" if isinstance(cell, float) else cell for name, cell in row.items()}
        for row in found[list(columns)].to_dict("records")
    ]
    print_table(rows, found.attrs["title"])


def transition(
    release: Release,
    /,
    *,
    language_model: ModelOptions = ModelOptions(),
    layers: tuple[int, ...] = (),
    size: Annotated[_TransitionSize, Together] = _TransitionSize(),
    texts: TextSources = ("demo",),
    seed: int = 0,
    where: Where = Where(),
    out: Annotated[Path | None, OutFolder] = None,
    as_json: Json = False,
) -> None:
    """Predict each layer from the features of the layer before, through matches, and skip layers this way (appendix F).

    Args:
        layers: Layers, such as 2,3 or 6-9: t of each pair t to t + 1, all by default.
        seed: Random seed.
        out: Where to write: a results folder, transition-RELEASE by default.
    """
    from saeflow.experiments.transition.run import transition as run
    from saeflow.experiments.transition.tables import summarize_transition

    engine = where.open()
    names = InputNames(release, **asdict(language_model), layers=layers, datasets=texts, seed=seed)
    with bars() as bar, engine:
        results = run(names, size, out=out or _folder("transition", release), bars=bar, engine=engine)
    tables = summarize_transition(results)
    shown = ("transition_permutations", "transition_top_k", "transition_loss", "transition_paired")
    save_plates([tables[name] for name in shown if name in tables], results.folder / "figures")
    show_results(results, tables, shown, _of_all_pairs, as_json=as_json)


def sweep(
    release: Release,
    /,
    *,
    themes: tuple[str, ...] = (),
    activate: Flag = False,
    suppress: Flag = False,
    samples: int = 64,
    confirm: int = 96,
    strengths: Annotated[Numbers, Parameter(alias="-s")] = (),
    r: Numbers = (),
    layers: tuple[int, ...] = (),
    steering_methods: tuple[str, ...] = (),
    judge: Literal["offline", "llm"] = "offline",
    llm_model: LlmModel = "",
    llm_url: LlmUrl = "",
    background: tuple[str, ...] = (),
    language_model: ModelOptions = ModelOptions(),
    atlas: AtlasName = "",
    cuts: Annotated[Cuts, Parameter(name="*", group=_VARIANT)] = Cuts(),
    parts: Annotated[tuple[Part, ...], Parameter(group=_VARIANT)] = (Part.ATT, Part.MLP, Part.RES),
    fold: Annotated[bool, Parameter(group=_VARIANT)] = True,
    min_output_score: Annotated[float | None, Parameter(group=_VARIANT)] = None,
    budget_layer: Annotated[float | None, Parameter(group=_VARIANT, allow_leading_hyphen=True)] = None,
    budget_total: Annotated[float | None, Parameter(group=_VARIANT, allow_leading_hyphen=True)] = None,
    in_shares: Annotated[bool, Parameter(group=_VARIANT)] = False,
    generated_only: Annotated[bool, Parameter(group=_VARIANT)] = False,
    only_active: Annotated[bool, Parameter(group=_VARIANT)] = False,
    keep_norm: Annotated[bool, Parameter(group=_VARIANT)] = False,
    orthogonal: Annotated[bool, Parameter(group=_VARIANT)] = False,
    strength_end: Annotated[float, Parameter(group=_VARIANT)] = 1.0,
    alpha: Annotated[float, Parameter(group=_VARIANT, allow_leading_hyphen=True)] = -0.05,
    texts_at_once: int = 256,
    seed: int = 0,
    log: LogTo = "",
    where: Where = Where(),
    out: Annotated[Path | None, OutFolder] = None,
    as_json: Json = False,
) -> None:
    """Steer by flow graphs with every method, layer and strength; measure the best settings again (section 5.3).

    Args:
        themes: Theme to steer by: names or .toml files, all of the release by default.
        activate: Steer towards the features: measure only this direction.
        suppress: Steer away from the features: measure only this direction. By default both are measured.
        samples: Number of samples: of each setting of the grid.
        confirm: Fresh samples of each setting that is chosen.
        strengths: Strength of activation: those to try, weak to strong.
        r: Factor of suppression: those to try, weak to strong.
        layers: Layers, such as 2,3 or 6-9: l of the methods, by default all with a feature.
        steering_methods: Steering methods: prompt, start, random, single, constant, linear, exponential, cumulative;
            these by default. difference and probe use no features, and need --in-shares.
        judge: Judge of the texts: offline, or llm, a model with the chat API of OpenAI.
        background: Other texts to compare with: a file or a dataset; by default those of the release, if it is a pack.
        parts: Parts of the model: those whose features are changed.
        fold: Count strengths in units of each feature's threshold (B.2).
        min_output_score: Leave out features with a lower output score: Arad et al. 2025.
        budget_layer: The most that a layer may change, as a share of the centred norm: 0.1 is 10 %.
        budget_total: The most that all layers together may change, as a share of the centred norm.
        in_shares: Count strengths as shares of the centred norm: of all that a plan adds, at its last layer.
        generated_only: Leave the tokens of the prompt as they are.
        only_active: Add a feature only at tokens where it is active.
        keep_norm: Keep the norm of changed hidden states.
        orthogonal: Add at each layer only what is orthogonal to everything added at earlier layers.
        strength_end: Strength at the last layer of a linear schedule (B.2).
        alpha: Decay per layer of an exponential schedule (B.2).
        texts_at_once: Texts generated at a time.
        seed: Random seed.
        out: Where to write: a results folder, sweep-RELEASE by default.
    """
    from saeflow.loggers import logger
    from saeflow.matching.atlas import open_atlas
    from saeflow.steering.schedule import Constant, Exponential, Linear
    from saeflow.steering.sizes import Budget
    from saeflow.steering.sweep.inputs import background_texts, find_themes, judge_maker, open_inputs
    from saeflow.steering.sweep.run import Design, run_sweep
    from saeflow.steering.sweep.settings import ACTIVATE, SUPPRESS, Grid, Variant
    from saeflow.steering.sweep.summary import summarize_sweep

    engine = where.open()
    to = logger(log, out or _folder("sweep", release))
    chosen = find_themes(themes, release)
    texts = background_texts(background, release, seed)
    make = judge_maker(judge, llm_model, llm_url, texts, (samples, confirm))
    matches = open_atlas(atlas or release)
    schedules = (Constant(1.0), Linear(1.0, strength_end), Exponential(1.0, alpha))
    budget = None if budget_layer is None and budget_total is None else Budget(budget_layer, budget_total)
    variant = Variant(
        cuts.thresholds(matches),
        cuts.k,
        parts,
        min_output_score,
        fold,
        schedules,
        budget,
        in_shares=in_shares,
        generated_only=generated_only,
        only_active=only_active,
        keep_norm=keep_norm,
        orthogonal=orthogonal,
    )
    grid = Grid(strengths or ACTIVATE, r or SUPPRESS, layers or None, steering_methods, samples, confirm)
    asked = {SteeringDirection.ACTIVATE: activate, SteeringDirection.SUPPRESS: suppress}
    directions = tuple(one for one, alone in asked.items() if alone or activate == suppress)
    design = Design(tuple(chosen), directions, grid, variant, seed)
    inputs = open_inputs(release, matches, texts, batch=texts_at_once, **asdict(language_model))
    with bars() as bar, engine:
        results, _ = run_sweep(inputs, design, make, out=out or _folder("sweep", release), progress=bar, engine=engine)
    tables = summarize_sweep(results.folder)
    if to:
        to(tables["steering_best"].dicts())
    shown = ("steering_best", "steering_paired")
    show_results(results, tables, shown, _steered, as_json=as_json, units="units of work")


def _folder(command: str, release: str) -> Path:
    return Path(f"{command}-{Path(release).name}")


# Rows for a terminal; the CSV files have all numbers


def _overall(table: SummaryTable) -> list[Row]:
    """The rows over all layers and all datasets, if there are such rows."""
    rows = table.dicts()
    for column in ("dataset", "layer"):
        if any(row.get(column) == "all" for row in rows):
            rows = [{k: v for k, v in row.items() if k != column} for row in rows if row[column] == "all"]
    return [_readable(row, ("control_change", "control_n", "in_distribution")) for row in rows]


def _of_all_pairs(table: SummaryTable) -> list[Row]:
    """The rows over all pairs, or of the only pair, without negative explained variance; baselines last."""
    rows = table.dicts()
    kept = [row for row in rows if row["pair"] == rows[0]["pair"] and (row.get("ev") or 0.0) >= 0]
    kept.sort(key=lambda row: row.get("kind") == "baseline")
    return [_readable(row, ("pair", "kind", "n", "scale", "clean")) for row in kept]


def _readable(row: Row, hidden: Sequence[str]) -> Row:
    """A row as text: bounds that follow their value are joined to it, other bounds and hidden cells left out."""
    names = list(row)
    titles = {"ev": "explained variance", "scaled": "with a factor"}
    cells: Row = {}
    for place, (name, value) in enumerate(row.items()):
        if name.endswith(("low", "high")) or name in hidden:
            continue
        text = f"{value:.3f}" if isinstance(value, float) else "" if value is None else value
        low, high = (*names[place + 1 : place + 3], "", "")[:2]
        if (low, high) in (("low", "high"), (f"{name}_low", f"{name}_high")) and row[low] is not None:
            text = f"{text} ({row[low]:.3f} to {row[high]:.3f})"
        cells[titles.get(name, name.replace("control_deactivated", "control").replace("_", " "))] = text
    return cells


def save_plates(tables: Sequence[SummaryTable], folder: Path) -> list[Path]:
    """Save the first figure of each table as SVG and PNG, wide and narrow: over all pairs, or of the only pair."""
    from saeflow.paper import PAGE, PHONE, draw, save

    written: list[Path] = []
    for table in tables:
        for ending, medium in (("", PAGE), ("-narrow", PHONE)):
            plate = draw(table, medium=medium)[0]
            written += [save(plate.figure, folder / f"{plate.name}{ending}{kind}") for kind in (".svg", ".png")]
    return written


def _steered(table: SummaryTable) -> list[Row]:
    """The best setting of each method, or the differences between methods; "p" and "q" may be missing."""
    rows: list[Row] = []
    for row in table.dicts():
        shown: Row = {"theme": row["theme"], "direction": row["direction"]}
        if table.name == "steering_best":
            steered = row["method"] not in ("none", "prompt")
            method = f"random for {row['mirrors']}" if row["mirrors"] else row["method"]
            shown["method"] = f"{method} (start layer)" if row["choice"] == "start layer" else method
            shown["layer"] = row["layer"] if row["layer"] >= 0 else ""
            shown["value"] = f"{row['value']:g}" if steered else ""
            shown |= {name: f"{row[name]:.2f}" for name in ("behavior", "coherence")}
            shown |= {"score": _interval(row, "score"), "share": f"{row['share_total']:.2f}" if steered else ""}
        else:
            shown |= {"method a": row["method_a"], "method b": row["method_b"]}
            shown |= {"difference": _interval(row, "difference")}
            shown |= {name: "" if row[name] is None else f"{row[name]:.2g}" for name in ("p", "q")}
        rows.append(shown)
    return rows


def _interval(row: Row, name: str) -> str:
    value, low, high = row[name], row["low"], row["high"]
    if value is None:
        return ""
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"
