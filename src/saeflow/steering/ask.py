"""From names to a plan and to texts with and without it, in one call: what `saeflow plan` and `saeflow steer` do.

    plan = sf.plan("demo", theme="playtime")
    sf.steer("demo", "I think", theme="playtime", samples=3)

Without an explicit strength, a plan has strength `STRENGTH` and is held within `TOTAL`. Both were chosen by the offline
judge on the demo pack's themes (docs/steering.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saeflow.errors import InvalidArgument
from saeflow.flow.scores import Thresholds
from saeflow.ids import FeatureId, FeatureLike, Part
from saeflow.labels import words_for
from saeflow.matching.atlas import Atlas, open_atlas
from saeflow.plain_types import Progress
from saeflow.steering.build import PlanRequest, build_plan
from saeflow.steering.plan import SteeringDirection, SteeringPlan, load_plan
from saeflow.steering.schedule import STRENGTH, STRENGTH_END, Schedule, ScheduleKind, schedule_from
from saeflow.steering.theme import LENGTHS

if TYPE_CHECKING:
    import pandas as pd

    from saeflow.sources.library import DictionarySet
    from saeflow.sources.model import LanguageModel

TOTAL: Final = 0.4
"""Budget without an explicit strength, as a share of the centred norm: a clear effect in text that is still fluent."""

DEMO_TEXTS: Final = 8
"""Texts of each domain of the demo pack that centred norms are measured on by default."""

MEASURED: Final = 64
"""The most texts of each named dataset that they are measured on."""


def plan(
    release: str,
    *,
    theme: str = "",
    starts: Iterable[FeatureLike] = (),
    suppress: bool = False,
    strength: float | None = None,
    schedule: ScheduleKind | str = ScheduleKind.LINEAR,
    strength_end: float = STRENGTH_END,
    r: float = 0.0,
    parts: Iterable[Part | str] = (Part.RES,),
    thresholds: Thresholds | None = None,
    k: int = 1,
    budget_layer: float | None = None,
    budget_total: float | None = None,
    texts: Sequence[str] = (),
    atlas: str = "",
    model: LanguageModel | str = "",
    device: str = "cpu",
) -> SteeringPlan:
    """Plan what to steer: features of flow graphs, each with a strength or a factor.

    Args:
        release: "demo", a folder, or the name of a release.
        theme: the theme to steer by: one of the release, by name, or a .toml file.
        starts: features to grow graphs from, such as "2/res/114"; those of the theme by default.
        suppress: steer away from the features.
        strength: s of activation, above 0; the default is held within 40 % of the centred norm.
        schedule: how s is spread over layers: linear, constant or exponential (B.2).
        strength_end: s at the last layer of a linear schedule.
        r: the factor of suppression: 0 removes, below 0 reverses.
        parts: the parts whose features are changed.
        thresholds: where graphs are cut.
        k: how many matches to follow at each site.
        budget_layer: the most a layer may change, as a share of the centred norm.
        budget_total: the most all layers together may change.
        texts: names of the datasets that centred norms are measured on; the theme's examples by default.
        atlas: the name of an atlas; that of the release by default.
        model: the language model or its name; that of the release by default.
        device: where to compute what is loaded here.

    Raises:
        InvalidArgument: for a value out of range or one that would be ignored, or neither a theme nor features.
        InvalidId, UnknownFeature, UnknownSite, UnknownRelease, BadFile, Unreachable: when something cannot be found.
    """
    opened = open_atlas(atlas or release)
    if suppress and strength is not None:
        raise InvalidArgument("strength is to activate, and would be ignored. Give r, the factor to suppress.")
    if not suppress and r:
        raise InvalidArgument("r is to suppress, and would be ignored. Give strength, or suppress=True.")
    request = PlanRequest(
        release=release,
        direction=SteeringDirection.SUPPRESS if suppress else SteeringDirection.ACTIVATE,
        theme=theme,
        starts=tuple(map(FeatureId.of, starts)),
        schedule=default_schedule(schedule, strength, strength_end),
        r=r,
        thresholds=thresholds or Thresholds(),
        k=k,
        parts=tuple(map(Part, parts)),
        budget_layer=budget_layer,
        budget_total=default_budget(budget_total, strength, suppress=suppress, model=model or opened.model),
    )
    return plan_from_names(request, opened, texts, model=model, device=device)[0]


def steer(
    release: str,
    prompt: str,
    *,
    plan: SteeringPlan | str | Path | None = None,
    samples: int = 1,
    seed: int = 0,
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_p: float = 0.9,
    model: LanguageModel | str = "",
    device: str = "cpu",
    **planned: Any,
) -> pd.DataFrame:
    """Generate texts with and without a plan, from the same seeds: steered and unsteered samples are paired.

    Args:
        release: "demo", a folder, or the name of a release.
        prompt: what the texts continue from.
        plan: a plan or its file; by default a plan is made from `planned`.
        samples: how many samples, with consecutive seeds.
        seed: of the first sample.
        max_new_tokens: length of the texts; by default 36 to activate and 96 to suppress.
        temperature: of sampling; 0 is greedy.
        top_p: probability of the nucleus, in (0, 1].
        model: the language model or its name; that of the release by default.
        device: where to compute what is loaded here.
        planned: arguments for `saeflow.plan`: theme, starts, suppress, strength ...

    Returns:
        One row per sample: its seed, the steered and the unsteered text, and the share of the hidden norm that the plan
        changed in total during generation. `attrs` holds the plan.

    Raises:
        InvalidArgument, TypeError: as `saeflow.plan` does, and for a plan together with `planned`.
        BadFile: when the plan's file is not a plan.
    """
    import pandas as pd

    from saeflow.experiments.inputs import opened_model
    from saeflow.sources.library import load_dictionaries
    from saeflow.steering.generate import Request, Sampling, generate

    if plan is not None and planned:
        raise InvalidArgument(f"the plan has its features, and {', '.join(planned)} would be ignored. Give either.")
    dictionaries = load_dictionaries(release, device=device)
    loaded = opened_model(release, dictionaries, model, device=device)
    if plan is None:
        made = _plan(release, model=loaded, device=device, **planned)
    else:
        made = plan if isinstance(plan, SteeringPlan) else load_plan(plan)
    if made.release and made.release != release:
        raise InvalidArgument(f"this is a plan for the features of {made.release}, and {release} was named.")
    sampling = Sampling(LENGTHS[made.direction] if max_new_tokens is None else max_new_tokens, temperature, top_p)
    rows: list[tuple[int, str, str, float]] = []
    for one in range(seed, seed + samples):  # a batch of two: the last bits of logits depend on what shares a batch
        steered, unsteered = generate(
            loaded, dictionaries, [Request(prompt, one, chosen) for chosen in (made, None)], sampling
        )
        rows.append((one, steered.text, unsteered.text, steered.share_total))
    frame = pd.DataFrame(rows, columns=["seed", "steered", "unsteered", "share"])
    frame.attrs = {"prompt": prompt, "plan": made.to_json()}
    return frame


_plan = plan


def default_schedule(kind: ScheduleKind | str, strength: float | None, strength_end: float, **more: float) -> Schedule:
    """The schedule of a kind, with the default strength if `strength` is None.

    Raises:
        InvalidArgument: for an unknown kind, or a strength that is not above 0.
    """
    s = STRENGTH if strength is None else strength
    if not s > 0:
        raise InvalidArgument(f"strength {s:g} is out of range. Give a number above 0, or steer away (suppress).")
    ends: dict[str, dict[str, float]] = {"linear": {"s_end": strength_end}, "exponential": more}
    return schedule_from({"kind": str(kind), "s": s, **ends.get(str(kind), {})})


def default_budget(total: float | None, strength: float | None, *, suppress: bool, model: object) -> float | None:
    """The total budget of a plan: `TOTAL` if none is given, the strength is the default, and a model can measure it."""
    return TOTAL if total is None and strength is None and not suppress and model else total


def plan_from_names(
    request: PlanRequest,
    atlas: Atlas,
    texts: Sequence[str],
    *,
    model: LanguageModel | str = "",
    device: str = "cpu",
    prepend_bos: bool | None = None,
    progress: Progress | None = None,
) -> tuple[SteeringPlan, DictionarySet | None, LanguageModel | None]:
    """Make the plan of a request; return it with the weights and the model that were loaded for it, if any.

    Raises:
        InvalidArgument: as `build_plan`; when a model is needed and not known, or the texts are unknown.
        UnknownRelease, BadFile, Unreachable: when something cannot be opened.
    """
    # 1. Grow the graphs once without weights, which is fast: mistakes surface before anything large is loaded.
    build_plan(request.from_graphs_alone(), atlas=atlas)

    # 2. Load the weights, the model and the texts that the request needs.
    weights, loaded, measured = None, None, list[str]()
    wants_model = request.needs_model or request.shares or bool(model)
    if request.needs_dictionaries or wants_model:
        from saeflow.experiments.inputs import opened_model
        from saeflow.sources.library import load_dictionaries

        weights = load_dictionaries(request.release, device=device)
        if request.needs_model or (wants_model and (model or weights.model)):
            measured = _measured_texts(request, texts)  # refuses unknown ones before the model is loaded
            loaded = opened_model(request.release, weights, model, device=device, prepend_bos=prepend_bos)

    # 3. Make the plan.
    words = words_for(atlas.release, beside=atlas.folder)
    made = build_plan(
        request, atlas=atlas, dictionaries=weights, model=loaded, words=words, texts=measured, progress=progress
    )
    return made, weights, loaded


def _measured_texts(request: PlanRequest, names: Sequence[str]) -> list[str]:
    """Up to `MEASURED` texts of each named dataset, as seed 0 orders them.

    Without names: nothing if the theme has examples, which `build_plan` then measures on, or else `DEMO_TEXTS` texts of
    each domain of the demo pack.
    """
    from saeflow.experiments.sampling import read_texts
    from saeflow.steering.theme import load_theme

    if not names and request.theme and load_theme(request.theme, request.release).examples:
        return []
    return read_texts(names or ["demo"], MEASURED if names else DEMO_TEXTS)
