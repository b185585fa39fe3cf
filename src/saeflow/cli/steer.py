"""`saeflow steer`: one prompt with and without a plan, side by side, on the same noise.

Every sample is generated in a batch of exactly two rows, the steered and the unsteered text: logits depend in their
last bits on what shares a batch, and a plan and a seed are to give the same text each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from saeflow.cli.app import Device, Json, PrependBos, Release
from saeflow.cli.lists import T_MODULE, T_RES, check_ending, parts_of
from saeflow.cli.plan import (
    Reached,
    Spread,
    Start,
    Theme,
    build_from_names,
    features_of,
    reach_of,
    schedule_of,
    show_plan,
)
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from saeflow.sources.library import DictionarySet
    from saeflow.sources.model import LanguageModel
    from saeflow.steering.build import PlanRequest
    from saeflow.steering.generate import Generation
    from saeflow.steering.plan import SteeringPlan
    from saeflow.steering.sampling import Sampling

Show: TypeAlias = Callable[[Sequence[str]], None]

TOTAL: Final = 0.4
"""The share of the hidden norm a plan may change where no strength is given: clear, and still language."""

LENGTHS: Final = {"activate": 36, "suppress": 96}
"""Tokens where none are given (B.2, B.1)."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(steer)


def steer(
    release: Release,
    prompt: Annotated[str, typer.Argument(help="What the texts go on from.")],
    theme: Theme = "",
    start: Start = "",
    plan: Annotated[Path | None, typer.Option(help="A plan's file, as --save or `saeflow plan` wrote it.")] = None,
    suppress: Annotated[bool, typer.Option("--suppress", help="Steer away from it, not towards it.")] = False,
    strength: Annotated[
        float | None, typer.Option("-s", "--strength", help="s, to activate; 3 within --budget-total when not given.")
    ] = None,
    r: Annotated[float, typer.Option("--r", help="Factor, to suppress: 0 removes, below 0 turns round.")] = 0.0,
    schedule: Spread = "exponential",
    s_end: Annotated[float, typer.Option(help="Strength at the last layer of a linear schedule.")] = 1.0,
    alpha: Annotated[float, typer.Option(help="Decay a layer of an exponential schedule.")] = -0.05,
    reach: Reached = "span",
    upto: Annotated[int | None, typer.Option(help="The layer of --reach single and cumulative.")] = None,
    parts: Annotated[str, typer.Option(help="Parts whose features are changed.")] = "res,mlp,att",
    t_res: Annotated[float, typer.Option(help="t(R): graphs end where the flow falls below it.")] = T_RES,
    t_mlp: Annotated[float, typer.Option(help="t(M): MLP features below it are left out.")] = T_MODULE,
    t_att: Annotated[float, typer.Option(help="t(A): attention features below it are left out.")] = T_MODULE,
    fold: Annotated[bool, typer.Option(help="Count s in units of each feature's threshold (B.2).")] = True,
    budget_total: Annotated[
        float | None,
        typer.Option(help=f"Most that is changed, a share of the hidden norm; {TOTAL:g} without --strength."),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Samples, of seeds that follow each other.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first sample.")] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Length; 36 to activate and 96 to suppress when not given.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy; the paper takes 1.27.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Probability of the nucleus; the paper takes 0.7.")] = 0.9,
    model: Annotated[str, typer.Option(help="Model; the one the release names when not given.")] = "",
    atlas: Annotated[str, typer.Option(help="Atlas graphs grow in; that of the release when not given.")] = "",
    device: Device = "cpu",
    prepend_bos: PrependBos = None,
    save: Annotated[Path | None, typer.Option(help="Write the plan here (.json), to edit and repeat.")] = None,
    as_json: Json = False,
) -> None:
    """Write steered beside unsteered text, as it comes. The same plan and seed give the same text."""
    from saeflow.steering.plan import SteeringDirection
    from saeflow.steering.sampling import Sampling

    check_ending("--save", save, ".json")
    if n < 1:
        raise InvalidArgument(f"--n {n} asks for no sample. Give 1 or more.")
    sampling = Sampling(LENGTHS["activate"] if max_new_tokens is None else max_new_tokens, temperature, top_p)
    if plan:
        _refuse_beside_a_plan(theme, start, suppress=suppress)
        inputs = _Inputs.of_file(release, plan, model, device, prepend_bos)
    else:
        from saeflow.flow import Thresholds
        from saeflow.steering.build import STRENGTH, PlanRequest

        unlimited = suppress or strength is not None or budget_total is not None
        request = PlanRequest(
            release=release,
            direction=SteeringDirection.SUPPRESS if suppress else SteeringDirection.ACTIVATE,
            theme=theme,
            starts=features_of("--start", start),
            schedule=schedule_of(schedule, STRENGTH if strength is None else strength, s_end, alpha),
            r=r,
            reach=reach_of(reach),
            upto=upto,
            thresholds=Thresholds(res=t_res, mlp=t_mlp, att=t_att),
            parts=parts_of(parts),
            fold=fold,
            budget_total=budget_total if unlimited else TOTAL,
        )
        inputs = _Inputs.of_request(request, atlas or release, model, device, prepend_bos)
    if save:
        inputs.plan.save(save)
    if max_new_tokens is None:
        sampling = replace(sampling, max_new_tokens=LENGTHS[inputs.plan.direction.value])
    _write(inputs, prompt, range(seed, seed + n), sampling, as_json=as_json)
    if save and not as_json:
        typer.echo(f"\nwritten: {save}  (edit it; --plan takes it)")


def _refuse_beside_a_plan(theme: str, start: str, *, suppress: bool) -> None:
    beside = {"--theme": theme, "--start": start, "--suppress": suppress}
    given = [name for name, value in beside.items() if value]
    if given:
        raise InvalidArgument(
            f"--plan has its features and its direction in the file, and {' and '.join(given)} would be ignored. Give "
            "either."
        )


@dataclass(frozen=True)
class _Inputs:
    """What is steered, and by what."""

    release: str
    plan: SteeringPlan
    model: LanguageModel
    dictionaries: DictionarySet

    @staticmethod
    def of_file(release: str, path: Path, model: str, device: str, prepend_bos: bool | None) -> _Inputs:
        from saeflow.sources.library import load_dictionaries
        from saeflow.sources.model import load_model
        from saeflow.steering.plan import load_plan

        plan = load_plan(path)
        if plan.release and plan.release != release:
            raise InvalidArgument(
                f"{path} is a plan for the features of {plan.release}, and {release} was named. Features of one "
                f"release mean nothing in another: steer {plan.release}, or correct the file."
            )
        weights = load_dictionaries(release, device=device)
        named = model or ("demo" if release == "demo" else weights.model) or plan.model
        if not named:
            raise _no_model(release)
        loaded = load_model(named, device=device, prepend_bos=prepend_bos).as_trained(weights)
        return _Inputs(release, plan, loaded, weights)

    @staticmethod
    def of_request(request: PlanRequest, atlas: str, model: str, device: str, prepend_bos: bool | None) -> _Inputs:
        from saeflow.matching.atlas import open_atlas

        plan, weights, loaded = build_from_names(request, open_atlas(atlas), model, device, "", prepend_bos)
        if weights is None or loaded is None:
            raise _no_model(request.release)
        return _Inputs(request.release, plan, loaded, weights)

    def pair(self, prompt: str, seed: int, sampling: Sampling, on_token: Show | None) -> list[Generation]:
        """The steered and the unsteered text of a seed."""
        from saeflow.steering.generate import Request, generate

        requests = [Request(prompt, seed, plan) for plan in (self.plan, None)]
        return generate(self.model, self.dictionaries, requests, sampling, on_token=on_token)


def _no_model(release: str) -> InvalidArgument:
    return InvalidArgument(f"{release} does not say which model it is of. Give it with --model.")


def _write(inputs: _Inputs, prompt: str, seeds: Sequence[int], sampling: Sampling, *, as_json: bool) -> None:
    """The texts of all seeds: as JSON, live in a terminal, or as lines."""
    from rich.console import Console

    console = Console()
    if as_json:
        made = [inputs.pair(prompt, seed, sampling, None) for seed in seeds]
        typer.echo(json.dumps(_told(inputs, prompt, sampling, made), indent=1))
        return
    show_plan(inputs.plan)
    for seed in seeds:
        typer.echo(f"\nseed {seed}")
        if console.is_terminal:
            with _live(console, prompt) as show:
                steered, _ = inputs.pair(prompt, seed, sampling, show)
        else:
            steered, unsteered = inputs.pair(prompt, seed, sampling, None)
            for name, one in (("steered", steered), ("unsteered", unsteered)):
                typer.echo(f"{name}: {_line(prompt + one.text)}")
        typer.echo(_changed(steered))


def _changed(steered: Generation) -> str:
    """How far the plan moved the stream, or that it never did."""
    if steered.share_layer == 0:
        return (
            "changed while writing: nothing. None of the plan's features was changed at any token after the "
            "begin-of-text token: look at the token positions, strengths and factors of the plan."
        )
    return (
        f"changed while writing: {steered.share_total:.1%} of the hidden norm in all, {steered.share_layer:.1%} at the "
        "strongest layer"
    )


def _line(text: str) -> str:
    """A text on one line."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


@contextmanager
def _live(console: Console, prompt: str) -> Generator[Show]:
    """Two columns that grow; the last state stays."""
    from rich.live import Live

    with Live(_columns(prompt, ("", "")), console=console, refresh_per_second=12, vertical_overflow="visible") as live:

        def show(texts: Sequence[str]) -> None:
            live.update(_columns(prompt, texts))

        yield show


def _columns(prompt: str, texts: Sequence[str]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, show_lines=False)
    for name in ("steered", "unsteered"):
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text.assemble((prompt, "bold"), text) for text in texts))
    return table


def _told(inputs: _Inputs, prompt: str, sampling: Sampling, made: Sequence[Sequence[Generation]]) -> dict[str, Any]:
    return {
        "release": inputs.release,
        "model": inputs.model.name,
        "prompt": prompt,
        "sampling": asdict(sampling),
        "plan": json.loads(inputs.plan.to_json()),
        "samples": [
            {
                "seed": steered.request.seed,
                "steered": {
                    "text": steered.text,
                    "tokens": len(steered.ids),
                    "share_layer": steered.share_layer,
                    "share_total": steered.share_total,
                },
                "unsteered": {"text": unsteered.text, "tokens": len(unsteered.ids)},
            }
            for steered, unsteered in made
        ],
    }
