"""`saeflow plan` and `saeflow steer`: from a theme or features to a plan, and to text with and without it.

Every sample is generated in a batch of exactly two rows, the steered and the unsteered text. The last bits of logits
depend on what shares a batch, and the same plan and seed must always give the same text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from saeflow.cli.options import AtlasName, Cuts, Features, Flag, Json, ModelOptions, Number, Out, Release, ends_in
from saeflow.cli.output import Row, print_json, print_table, progress
from saeflow.errors import InvalidArgument
from saeflow.ids import Part
from saeflow.steering.growth import Reach
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.schedule import STRENGTH_END, ScheduleKind

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from saeflow.matching.atlas import Atlas
    from saeflow.sources.library import DictionarySet
    from saeflow.sources.model import LanguageModel
    from saeflow.steering.build import PlanRequest
    from saeflow.steering.generate import Generation, Sampling
    from saeflow.steering.plan import SteeringPlan

Strength = Annotated[float | None, Parameter(alias="-s", allow_leading_hyphen=True)]
PlanFile = Annotated[Path | None, Out, ends_in(".json")]


@Parameter(name="*")
@dataclass(frozen=True)
class Wanted:
    """What `plan` and `steer` make a plan from.

    Attributes:
        theme: Theme to steer by: a name of the release's, or a .toml file.
        starts: Features to grow graphs from: 2/res/114,3/res/541.
        schedule: How the strength is spread over layers.
        strength_end: Strength at the last layer of a linear schedule (B.2).
        alpha: Decay per layer of an exponential schedule (B.2).
        r: Factor of suppression: 0 removes, below 0 reverses.
        reach: Layers that are changed: single (layer --upto alone), cumulative (0 to --upto) or span (all).
        upto: The layer of --reach single and cumulative.
        parts: Parts of the model: those whose features are changed.
        fold: Count strengths in units of each feature's threshold (B.2).
    """

    theme: str = ""
    starts: Features = ()
    schedule: ScheduleKind = ScheduleKind.LINEAR
    strength_end: Number = STRENGTH_END
    alpha: Number = -0.05
    r: Number = 0.0
    reach: Reach = Reach.SPAN
    upto: int | None = None
    parts: tuple[Part, ...] = (Part.RES,)
    fold: bool = True

    def request(
        self, release: str, direction: SteeringDirection, strength: float | None, cuts: Cuts, atlas: Atlas, **more: Any
    ) -> PlanRequest:
        """The request for a plan.

        Args:
            release: the dictionaries.
            direction: activate or suppress.
            strength: s, to activate; None for 1.
            cuts: where graphs are cut.
            atlas: has the nulls that calibrated thresholds need.
            more: further fields of the request.

        Raises:
            InvalidArgument: for a value that is out of range or would be ignored, or without a theme or features to
                start from.
        """
        from saeflow.steering.ask import default_schedule
        from saeflow.steering.build import PlanRequest

        if direction is SteeringDirection.SUPPRESS and strength is not None:
            raise InvalidArgument("--strength is to activate, and would be ignored. Give --r, the factor to suppress.")
        if direction is SteeringDirection.ACTIVATE and self.r:
            raise InvalidArgument("--r is to suppress, and would be ignored. Give --strength, or steer away.")
        schedule = default_schedule(self.schedule, strength, self.strength_end, alpha=self.alpha)
        return PlanRequest(
            release=release,
            direction=direction,
            theme=self.theme,
            starts=self.starts,
            schedule=schedule,
            r=self.r,
            reach=self.reach,
            upto=self.upto,
            thresholds=cuts.thresholds(atlas),
            k=cuts.k,
            parts=self.parts,
            fold=self.fold,
            **more,
        )


def plan(
    release: Release,
    /,
    *,
    wanted: Wanted = Wanted(),
    suppress: Flag = False,
    strength: Strength = None,
    cuts: Cuts = Cuts(),
    drop: Features = (),
    min_score: Annotated[float | None, Parameter(allow_leading_hyphen=True)] = None,
    min_output_score: float | None = None,
    budget_layer: float | None = None,
    budget_total: float | None = None,
    shares: bool = True,
    texts: tuple[str, ...] = (),
    atlas: AtlasName = "",
    language_model: ModelOptions = ModelOptions(),
    out: PlanFile = None,
    as_json: Json = False,
) -> None:
    """Plan what to steer: features of flow graphs, each with a strength or a factor, as a file to edit.

    Args:
        suppress: Steer away from the features.
        strength: Strength of activation: 1 by default, within --budget-total.
        drop: Features to leave out.
        min_score: Leave out features whose best path to a start has an edge with a lower score.
        min_output_score: Leave out features with a lower output score: Arad et al. 2025.
        budget_layer: The most that a layer may change, as a share of the centred norm: 0.1 is 10 %.
        budget_total: The most that all layers together may change, as a share of the centred norm: by default 0.4 to
            activate without --strength, if the model is known and --no-shares is not given; otherwise no limit.
        shares: Run the model to measure shares of the centred norm.
        texts: Where texts come from: those that shares are measured on; by default the theme's examples, or else texts
            of the demo.
        out: Where to write: the plan (.json), to edit.
    """
    from saeflow.matching.atlas import open_atlas
    from saeflow.steering.ask import default_budget

    opened = open_atlas(atlas or release)
    request = wanted.request(
        release,
        SteeringDirection.SUPPRESS if suppress else SteeringDirection.ACTIVATE,
        strength,
        cuts,
        opened,
        drop=dict.fromkeys(drop, "dropped by hand"),
        min_score=min_score,
        min_output_score=min_output_score,
        budget_layer=budget_layer,
        budget_total=default_budget(
            budget_total, strength, suppress=suppress, model=shares and (language_model.model or opened.model)
        ),
        shares=shares,
    )
    made, _, _ = _built(request, opened, language_model, texts)
    if out:
        made.save(out)
    if as_json:
        print(made.to_json(), end="")
        return
    show_plan(made)
    if out:
        print(f"\nwritten: {out}  (edit it; `saeflow steer` takes it with --plan)")


def _built(
    request: PlanRequest, atlas: Atlas, options: ModelOptions, texts: Sequence[str]
) -> tuple[SteeringPlan, DictionarySet | None, LanguageModel | None]:
    """`plan_from_names`, with a progress bar for output scores, which take a while."""
    from saeflow.steering.ask import plan_from_names

    with progress("output scores") if request.min_output_score is not None else nullcontext() as bar:
        return plan_from_names(request, atlas, texts, **asdict(options), progress=bar)


def show_plan(made: SteeringPlan) -> None:
    """Print a plan: its steps, what was left out and why, and its shares of the centred norm if they are known."""
    from saeflow.interventions import EVERYWHERE

    name = "strength" if made.direction is SteeringDirection.ACTIVATE else "r"
    heading = {"release": made.release, "model": made.model, "theme": made.theme}
    print("  ".join(f"{key}: {value}" for key, value in heading.items() if value))
    print_table(
        [{"feature": str(step.feature), name: step.value, "label": step.label, "why": step.why} for step in made.steps],
        f"{len(made.steps)} features to {made.direction.value}, at layers {', '.join(map(str, made.layers))}",
    )
    if made.dropped:
        rows = [{"feature": str(dropped.feature), "why": dropped.why} for dropped in made.dropped]
        print_table(rows, f"\n{len(made.dropped)} left out")

    # shares of the centred norm
    if shares := made.made_by.get("shares"):
        layers = "  ".join(f"{layer}: {share:.1%}" for layer, share in shares["per_layer"].items())
        print(f"\nchanged at each layer, as a share of the centred norm: {layers}")
        print(f"all together, at the last of them: {shares['total']:.1%}   (measured on {shares['texts']} texts)")
        if shares["total"] == 0:
            print("None of these features fires on the texts, so nothing is changed there. Give others with --texts.")
    else:
        print("\nShares of the centred norm were not measured.")
    if made.tokens != EVERYWHERE:
        print(f"Only {made.tokens} are changed: the shares are those of a token that is.")

    # the budget
    if budget := made.made_by.get("budget"):
        limits = {"a layer": budget["per_layer"], "all": budget["total"]}
        asked = ", ".join(f"{share:.1%} for {what}" for what, share in limits.items() if share is not None)
        before = budget["before"]
        if budget["scale"] > 0.9995:
            print(f"The budget ({asked}) holds without weakening the plan.")
        else:
            print(
                f"Weakened to {budget['scale']:.1%} to hold the budget ({asked}); it was {before['per_layer']:.1%} at "
                f"the strongest layer and {before['total']:.1%} for all."
            )


def steer(
    release: Release,
    prompt: str,
    /,
    *,
    wanted: Wanted = Wanted(),
    plan: Path | None = None,
    suppress: Flag = False,
    strength: Strength = None,
    cuts: Cuts = Cuts(),
    budget_total: float | None = None,
    samples: Annotated[int, Parameter(alias="-n")] = 1,
    seed: int = 0,
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_p: float = 0.9,
    language_model: ModelOptions = ModelOptions(),
    atlas: AtlasName = "",
    out: PlanFile = None,
    as_json: Json = False,
) -> None:
    """Write steered text next to unsteered text, token by token. The same plan and seed give the same text.

    Args:
        prompt: What the texts continue.
        plan: File of a plan, as --out or `saeflow plan` wrote it.
        suppress: Steer away from the features.
        strength: Strength of activation: 1 by default, within --budget-total.
        budget_total: The most that all layers together may change, as a share of the centred norm: by default 0.4 to
            activate without --strength; otherwise no limit.
        samples: Number of samples: with consecutive seeds.
        seed: Random seed: of the first sample.
        max_new_tokens: Length of the texts; by default 36 tokens to activate and 96 to suppress.
        temperature: Temperature of sampling; 0 is greedy, the paper uses 1.27.
        top_p: Probability of the nucleus; the paper uses 0.7.
        out: Where to write: the plan (.json), to edit and repeat.
    """
    from saeflow.sources.library import load_dictionaries
    from saeflow.steering.ask import default_budget
    from saeflow.steering.generate import Sampling
    from saeflow.steering.plan import load_plan
    from saeflow.steering.theme import LENGTHS

    # 1. Refuse what does not fit together before anything is loaded.
    length = LENGTHS[SteeringDirection.ACTIVATE] if max_new_tokens is None else max_new_tokens
    sampling = Sampling(length, temperature, top_p)
    given = {"--theme": wanted.theme, "--starts": wanted.starts, "--suppress": suppress}
    if plan and (ignored := [name for name, value in given.items() if value]):
        raise InvalidArgument(
            f"--plan has its features and its direction in the file, and {' and '.join(ignored)} would be ignored. "
            "Give either."
        )

    # 2. The plan, with the model and the dictionaries.
    if plan:
        made = load_plan(plan)
        if made.release and made.release != release:
            raise InvalidArgument(
                f"{plan} is a plan for the features of {made.release}, and {release} was named. Features of one "
                f"release mean nothing in another: steer {made.release}, or correct the file."
            )
        weights = load_dictionaries(release, device=language_model.device)
        if not (language_model.model or weights.model):
            language_model = replace(language_model, model=made.model)
        loaded = language_model.load(release, weights)
    else:
        from saeflow.matching.atlas import open_atlas

        opened = open_atlas(atlas or release)
        direction = SteeringDirection.SUPPRESS if suppress else SteeringDirection.ACTIVATE
        request = wanted.request(
            release,
            direction,
            strength,
            cuts,
            opened,
            budget_total=default_budget(budget_total, strength, suppress=suppress, model=True),
        )
        made, weights, loaded = _built(request, opened, language_model, ())
        if weights is None or loaded is None:
            raise InvalidArgument(f"{release} does not say which model it is of. Give it with --model.")
    if out:
        made.save(out)

    # 3. The texts.
    if max_new_tokens is None:
        sampling = replace(sampling, max_new_tokens=LENGTHS[made.direction])
    pairs = _Pairs(made, loaded, weights, prompt, sampling)
    if as_json:
        print_json(pairs.to_json(release, [pairs.generate(one) for one in range(seed, seed + samples)]))
        return
    show_plan(made)
    for one in range(seed, seed + samples):
        pairs.print(one)
    if out:
        print(f"\nwritten: {out}  (edit it; --plan takes it)")


@dataclass(frozen=True)
class _Pairs:
    """Generates and shows pairs of a steered and an unsteered text with the same seed."""

    plan: SteeringPlan
    model: LanguageModel
    dictionaries: DictionarySet
    prompt: str
    sampling: Sampling

    def generate(self, seed: int, on_token: Callable[[Sequence[str]], None] | None = None) -> list[Generation]:
        """The steered and the unsteered text of a seed."""
        from saeflow.steering.generate import Request, generate

        requests = [Request(self.prompt, seed, plan) for plan in (self.plan, None)]
        return generate(self.model, self.dictionaries, requests, self.sampling, on_token=on_token)

    def print(self, seed: int) -> None:
        """Print both texts of a seed, live in a terminal or else as lines, and how much the plan changed."""
        from rich.console import Console

        print(f"\nseed {seed}", flush=True)
        console = Console()
        if console.is_terminal:
            with _live(console, self.prompt) as show:
                steered, _ = self.generate(seed, show)
        else:
            steered, unsteered = self.generate(seed)
            for name, one in (("steered", steered), ("unsteered", unsteered)):
                print(f"{name}: {_line(self.prompt + one.text)}")
        if steered.share_layer == 0:
            print(
                "changed while writing: nothing. None of the plan's features was changed at any token after the "
                "begin-of-text token: look at the token positions, strengths and factors of the plan."
            )
        else:
            print(
                f"changed while writing: {steered.share_total:.1%} of the hidden norm in all, "
                f"{steered.share_layer:.1%} at the strongest layer"
            )

    def to_json(self, release: str, made: Sequence[Sequence[Generation]]) -> Row:
        """All texts, with their plan and settings, as plain values."""
        return {
            "release": release,
            "model": self.model.name,
            "prompt": self.prompt,
            "sampling": asdict(self.sampling),
            "plan": json.loads(self.plan.to_json()),
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


def _line(text: str) -> str:
    """A text on one line, with backslashes and line breaks escaped."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


@contextmanager
def _live(console: Console, prompt: str) -> Generator[Callable[[Sequence[str]], None]]:
    """Yield a function that shows two growing texts in columns; the final state stays on the screen."""
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def columns(texts: Sequence[str]) -> RenderableType:
        table = Table(expand=True, show_lines=False)
        for name in ("steered", "unsteered"):
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(*(Text.assemble((prompt, "bold"), text) for text in texts))
        return table

    with Live(columns(("", "")), console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        yield lambda texts: live.update(columns(texts))
