"""`saeflow plan`: from a theme or some features to a steering plan, in a file to read, edit and steer with."""

from __future__ import annotations

import enum
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from saeflow.cli.app import Device, Json, PrependBos, Release, print_table, progress
from saeflow.cli.lists import EXCEEDS, T_MODULE, T_RES, check_ending, names_of, parts_of, thresholds_of
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.ids import FeatureId
    from saeflow.matching.atlas import Atlas
    from saeflow.sources.library import DictionarySet
    from saeflow.sources.model import LanguageModel
    from saeflow.steering.build import PlanRequest
    from saeflow.steering.growth import Reach
    from saeflow.steering.plan import SteeringDirection, SteeringPlan
    from saeflow.steering.schedule import Schedule

_Member = TypeVar("_Member", bound=enum.StrEnum)

DEMO_TEXTS = 8
"""Texts of each domain of the demo pack that hidden norms are measured on where none are named."""

Theme = Annotated[str, typer.Option(help="A theme of the release, or the path of a theme's .toml file.")]
Start = Annotated[str, typer.Option(help="Features to grow graphs from, with commas between: 2/res/114,3/res/541.")]
Way = Annotated[str, typer.Option("--direction", help="activate or suppress.")]
Spread = Annotated[str, typer.Option("--schedule", help="constant, linear or exponential.")]
Strength = Annotated[float, typer.Option("-s", "--strength", help="s, to activate.")]
Reached = Annotated[
    str, typer.Option("--reach", help="single (layer --upto alone), cumulative (0 to --upto) or span (all).")
]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(plan)


def plan(
    release: Release,
    theme: Theme = "",
    start: Start = "",
    direction: Way = "activate",
    schedule: Spread = "exponential",
    strength: Strength = 1.5,
    s_end: Annotated[float, typer.Option(help="Strength at the last layer of a linear schedule.")] = 1.0,
    alpha: Annotated[float, typer.Option(help="Decay a layer of an exponential schedule.")] = -0.05,
    r: Annotated[float, typer.Option("--r", help="Factor, to suppress: 0 removes, below 0 turns round.")] = 0.0,
    reach: Reached = "span",
    upto: Annotated[int | None, typer.Option(help="The layer of --reach single and cumulative.")] = None,
    t_res: Annotated[float, typer.Option(help="t(R): graphs end where the flow falls below it.")] = T_RES,
    t_mlp: Annotated[float, typer.Option(help="t(M): MLP features below it are left out.")] = T_MODULE,
    t_att: Annotated[float, typer.Option(help="t(A): attention features below it are left out.")] = T_MODULE,
    fdr: Annotated[
        float | None, typer.Option(help=f"Calibrated thresholds at this false-discovery rate instead; {EXCEEDS}")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Matches followed at each site.")] = 1,
    parts: Annotated[str, typer.Option(help="Parts whose features are changed.")] = "res,mlp,att",
    drop: Annotated[str, typer.Option(help="Features to leave out, with commas between.")] = "",
    min_score: Annotated[
        float | None, typer.Option(help="Leave out features whose path to a start has an edge below it.")
    ] = None,
    min_output_score: Annotated[
        float | None, typer.Option(help="Leave out features of a lower output score (Arad et al. 2025).")
    ] = None,
    fold: Annotated[bool, typer.Option(help="Count s in units of each feature's threshold (B.2).")] = True,
    budget_layer: Annotated[
        float | None, typer.Option(help="Most that a layer may change: a share of the hidden norm, as 0.1.")
    ] = None,
    budget_total: Annotated[float | None, typer.Option(help="The same for all layers together.")] = None,
    shares: Annotated[bool, typer.Option(help="Run the model to tell shares of the hidden norm.")] = True,
    texts: Annotated[
        str, typer.Option(help='What they are measured on: "demo:stories", a file; the theme\'s examples.')
    ] = "",
    atlas: Annotated[str, typer.Option(help="Atlas to grow graphs from; that of the release when not given.")] = "",
    model: Annotated[str, typer.Option(help="Model; the one the release names when not given.")] = "",
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here (.json).")] = None,
    as_json: Json = False,
) -> None:
    """Plan what to steer: features of flow graphs, each with a strength or a factor, as a file to edit."""
    from saeflow.matching.atlas import open_atlas
    from saeflow.steering.build import PlanRequest

    check_ending("--out", out, ".json")
    opened = open_atlas(atlas or release)
    request = PlanRequest(
        release=release,
        direction=_direction(direction),
        theme=theme,
        starts=features_of("--start", start),
        schedule=schedule_of(schedule, strength, s_end, alpha),
        r=r,
        reach=reach_of(reach),
        upto=upto,
        thresholds=thresholds_of(opened, t_res, t_mlp, t_att, fdr),
        k=k,
        parts=parts_of(parts),
        drop=dict.fromkeys(features_of("--drop", drop), "dropped by hand"),
        min_score=min_score,
        min_output_score=min_output_score,
        fold=fold,
        budget_layer=budget_layer,
        budget_total=budget_total,
        shares=shares,
    )
    made, _, _ = build_from_names(request, opened, model, device, texts, prepend_bos)
    if out:
        made.save(out)
    if as_json:
        typer.echo(made.to_json(), nl=False)
        return
    show_plan(made)
    if out:
        typer.echo(f"\nwritten: {out}  (edit it; `saeflow steer` takes it with --plan)")


def features_of(option: str, text: str) -> tuple[FeatureId, ...]:
    """The features an option names, with commas between.

    Raises:
        InvalidArgument: when one is no feature.
    """
    from saeflow.errors import InvalidId
    from saeflow.ids import FeatureId

    try:
        return tuple(FeatureId.parse(name) for name in names_of(text))
    except InvalidId as error:
        raise InvalidArgument(f"{option}: {error}") from None


def show_plan(made: SteeringPlan) -> None:
    """Print a plan: its steps, what was left out and why, and its shares of the hidden norm where they are known."""
    from saeflow.interventions import EVERYWHERE
    from saeflow.steering.plan import SteeringDirection

    name = "strength" if made.direction is SteeringDirection.ACTIVATE else "r"
    told = (("release", made.release), ("model", made.model), ("theme", made.theme))
    typer.echo("  ".join(f"{key}: {value}" for key, value in told if value))
    shares: dict[str, Any] = made.made_by.get("shares", {})
    print_table(
        f"{len(made.steps)} features to {made.direction.value}, at layers {', '.join(map(str, made.layers))}",
        [{"feature": str(step.feature), name: step.value, "label": step.label, "why": step.why} for step in made.steps],
    )
    if made.dropped:
        rows = [{"feature": str(gone.feature), "why": gone.why} for gone in made.dropped]
        print_table(f"\n{len(made.dropped)} left out", rows)
    typer.echo(f"\n{_shares_told(shares)}")
    if made.tokens != EVERYWHERE:
        typer.echo(f"Only {made.tokens} are changed: the shares are those of a token that is.")
    if budget := made.made_by.get("budget"):
        typer.echo(_budget_told(budget))


def _shares_told(shares: dict[str, Any]) -> str:
    if not shares:
        return "Shares of the hidden norm were not measured."
    layers = "  ".join(f"{layer}: {share:.1%}" for layer, share in shares["per_layer"].items())
    return (
        f"changed at each layer, as a share of the hidden norm: {layers}\n"
        f"all together, at the last of them: {shares['total']:.1%}   (measured on {shares['texts']} texts)"
    )


def _budget_told(budget: dict[str, Any]) -> str:
    limits = {"a layer": budget["per_layer"], "all": budget["total"]}
    asked = ", ".join(f"{share:.1%} for {what}" for what, share in limits.items() if share is not None)
    if budget["scale"] == 1:
        return f"The budget ({asked}) holds without weakening the plan."
    before = budget["before"]
    return (
        f"Weakened to {budget['scale']:.1%} to hold the budget ({asked}); it was {before['per_layer']:.1%} at the "
        f"strongest layer and {before['total']:.1%} for all."
    )


def build_from_names(
    request: PlanRequest, atlas: Atlas, model: str, device: str, texts: str, prepend_bos: bool | None
) -> tuple[SteeringPlan, DictionarySet | None, LanguageModel | None]:
    """The plan of a request; with the weights and the model that it was made with, where it needed them.

    Raises:
        InvalidArgument: as `build_plan`; where a model is needed and not known, or the texts are unknown.
        UnknownRelease, BadFile, Unreachable: where something cannot be opened.
    """
    from saeflow.labels import words_for
    from saeflow.steering.build import build_plan

    # grown once without weights, which takes no time: a slip is told before anything large is loaded
    build_plan(request.from_graphs_alone(), atlas=atlas)
    weights, loaded, measured = _weights_model_and_texts(request, request.release, model, device, texts, prepend_bos)
    with progress("output scores") if request.min_output_score is not None else nullcontext() as bar:
        made = build_plan(
            request,
            atlas=atlas,
            dictionaries=weights,
            model=loaded,
            words=words_for(atlas.release, beside=atlas.folder),
            texts=measured,
            progress=bar,
        )
    return made, weights, loaded


def _weights_model_and_texts(
    request: PlanRequest, release: str, model: str, device: str, texts: str, prepend_bos: bool | None
) -> tuple[DictionarySet | None, LanguageModel | None, list[str]]:
    """The weights, the model and the texts, each where the request needs it."""
    wants_model = request.needs_model or request.shares or bool(model)
    if not request.needs_dictionaries and not wants_model:
        return None, None, []
    from saeflow.sources.library import load_dictionaries

    weights = load_dictionaries(release, device=device)
    named = model or ("demo" if release == "demo" else weights.model)
    if not wants_model or (not named and not request.needs_model):
        return weights, None, []
    if not named:
        raise InvalidArgument(f"{release} does not say which model it is of. Give it with --model.")
    from saeflow.sources.model import load_model

    measured = _texts(texts) if texts or not _examples(request) else []  # refuses unknown ones before loading
    loaded = load_model(named, device=device, prepend_bos=prepend_bos).as_trained(weights)
    return weights, loaded, measured


def _examples(request: PlanRequest) -> tuple[str, ...]:
    """The texts of the theme, which a plan is measured on where no others are named."""
    from saeflow.steering.theme import load_theme

    return load_theme(request.theme, request.release).examples if request.theme else ()


def _texts(named: str, limit: int = 64) -> list[str]:
    """The first texts of the datasets named, in the order of seed 0; a few of the demo pack where none is."""
    import itertools

    from saeflow.experiments.sampling import expand, open_dataset

    names = expand(names_of(named or "demo"))
    each = limit if named else DEMO_TEXTS
    return [text for name in names for text in itertools.islice(open_dataset(name).read(0), each)]


def _direction(text: str) -> SteeringDirection:
    from saeflow.steering.plan import SteeringDirection

    return _one_of("--direction", text, SteeringDirection)


def reach_of(text: str) -> Reach:
    """The reach an option names.

    Raises:
        InvalidArgument: when there is none of that name.
    """
    from saeflow.steering.growth import Reach

    return _one_of("--reach", text, Reach)


def schedule_of(kind: str, s: float, s_end: float, alpha: float) -> Schedule:
    """The schedule of a kind, with those of the numbers that it takes.

    Raises:
        InvalidArgument: for an unknown kind, or a number that is not finite.
    """
    from saeflow.steering.schedule import ScheduleKind, schedule_from

    more = {ScheduleKind.LINEAR: {"s_end": s_end}, ScheduleKind.EXPONENTIAL: {"alpha": alpha}}
    chosen = _one_of("--schedule", kind, ScheduleKind)
    return schedule_from({"kind": chosen.value, "s": s, **more.get(chosen, {})})


def _one_of(option: str, text: str, members: type[_Member]) -> _Member:
    known = [member.value for member in members]
    if text not in known:
        raise InvalidArgument(f"{option} {text!r} is none of {', '.join(known)}.")
    return members(text)
