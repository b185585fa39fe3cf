"""Steered generation: the overhead of hooks per call, and the speed-up from batching many settings.

    python benchmarks/steering.py [--quick] [--json] [--settings 64]

`overhead`: `generate` of transformers inside `model.intervening(plan)` against the same call on the unsteered model.
Uses the demo model, 16 rows, greedy, 64 tokens; the plan adds the features at every site that the flow graphs of three
starts reach (attention, MLP and residual stream of all layers), with a schedule. Making the vectors is included.

`sweep_speedup`: `saeflow.steering.generate` with many settings in one call, which forms batches of up to 256 rows,
against one call per setting, both with the same sampler, prompt and seeds. The rows give the ratio for 1, 4, 16 and 64
samples per setting; the headline figure is the one for 4. With many samples, one setting already fills the machine and
batching saves little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import GenerationConfig

import saeflow
from _timing import Row, arguments, interleaved, peak_memory, show
from saeflow import Add, FeatureId, LanguageModel, Part, Site
from saeflow.sources.library import DictionarySet
from saeflow.steering.build import PlanRequest, plan_of
from saeflow.steering.generate import Generation, Request, Sampling, generate
from saeflow.steering.growth import Chosen, grow, targets
from saeflow.steering.plan import SteeringPlan
from saeflow.steering.schedule import Exponential

PROMPT = "I think"
BATCH = 256
SAMPLES = (1, 4, 16, 64)
KEY = 4


@dataclass(frozen=True)
class World:
    """The demo pack, and a plan that changes every layer."""

    model: LanguageModel
    dictionaries: DictionarySet
    plan: SteeringPlan


def world() -> World:
    """Plan from the flow graphs of three features at 3/res, one of which spans the whole depth."""
    model, dictionaries = saeflow.load_model("demo"), saeflow.load_dictionaries("demo")
    starts = [FeatureId(Site(3, Part.RES), index) for index in (541, 5, 17)]
    found = targets(grow(starts, saeflow.open_atlas("demo"), thresholds=saeflow.Thresholds(res=0.0, mlp=0.0, att=0.0)))
    request = PlanRequest("demo", starts=tuple(starts), schedule=Exponential(1.0))
    return World(model, dictionaries, plan_of(Chosen(found), request))


def plainly(world: World, tokens: int, *, rows: int = 16) -> None:
    """Run `generate` of transformers with a fixed length."""
    prompt = world.model.tokenize([PROMPT] * rows)
    config = GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=world.model.pad_id
    )
    world.model.hf_model.generate(prompt.input_ids, attention_mask=prompt.attention_mask, generation_config=config)


def steered(world: World, tokens: int) -> None:
    with world.model.intervening(world.plan, world.dictionaries):
        plainly(world, tokens)


def settings(world: World, n: int) -> list[SteeringPlan]:
    """Plans for `n` settings: layers 0 to l of the plan, at various strengths."""
    plan, layers = world.plan, world.model.n_layers
    upto = [tuple(step for step in plan.steps if step.feature.layer <= i % layers) for i in range(n)]
    return [replace(plan, steps=steps).scaled(0.5 + 4 * i / n) for i, steps in enumerate(upto)]


def requests(plans: list[SteeringPlan], samples: int) -> list[Request]:
    return [Request(PROMPT, seed, plan) for plan in plans for seed in range(samples)]


def together(world: World, plans: list[SteeringPlan], samples: int, sampling: Sampling) -> list[Generation]:
    return generate(world.model, world.dictionaries, requests(plans, samples), sampling, batch=BATCH)


def one_by_one(world: World, plans: list[SteeringPlan], samples: int, sampling: Sampling) -> list[Generation]:
    found: list[Generation] = []
    for plan in plans:
        found += generate(world.model, world.dictionaries, requests([plan], samples), sampling)
    return found


def overhead(world: World, tokens: int, repeats: int) -> tuple[list[Row], float]:
    taken = interleaved(
        {"unsteered": partial(plainly, world, tokens), "steered": partial(steered, world, tokens)}, repeats
    )
    ratio = taken["steered"] / taken["unsteered"]
    size = f"demo model, 16 rows, {tokens} tokens"
    sites = sum(isinstance(edit, Add) for edit in world.plan)
    rows = [
        Row("generate of transformers", size, taken["unsteered"]),
        Row(
            "the same, inside intervening(plan)",
            size,
            taken["steered"],
            ratio,
            "unsteered",
            note=f"{len(world.plan.features)} features at {sites} sites",
        ),
    ]
    return rows, ratio


def sweep(world: World, n: int, samples: int, sampling: Sampling, repeats: int) -> tuple[list[Row], float]:
    plans = settings(world, n)
    batch, single = (partial(way, world, plans, samples, sampling) for way in (together, one_by_one))
    same = sum(a.ids == b.ids for a, b in zip(batch(), single(), strict=True)) / (n * samples)
    taken = interleaved({"batch": batch, "single": single}, repeats)
    ratio = taken["batch"] / taken["single"]
    size = f"{n} settings x {samples} samples, {sampling.max_new_tokens} tokens"
    extra = None if samples != KEY else peak_memory(world_, partial(_in_a_batch, n=n, sampling=sampling))
    rows = [
        Row("a call a setting", size, taken["single"]),
        Row(
            "all settings in one call",
            size,
            taken["batch"],
            ratio,
            "a call a setting",
            extra,
            note=f"{1 / ratio:.1f} times faster; {same:.1%} of the texts are the same",
        ),
    ]
    return rows, 1 / ratio


def world_() -> World:
    """A warmed-up world: everything that is read only once has been read."""
    made = world()
    together(made, settings(made, 1), 1, Sampling(max_new_tokens=2))
    return made


def _in_a_batch(made: World, n: int, sampling: Sampling) -> None:
    together(made, settings(made, n), KEY, sampling)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--settings", type=int, default=64)
    told = parser.parse_args()
    n, tokens = (8, 8) if told.quick else (told.settings, 64)
    sampling = Sampling(max_new_tokens=8) if told.quick else Sampling()
    made = world_()
    with torch.no_grad():
        rows, more = overhead(made, tokens, 3 if told.quick else 15)
    speedups: dict[int, float] = {}
    for samples in SAMPLES[:2] if told.quick else SAMPLES:
        found, speedups[samples] = sweep(made, n, samples, sampling, 1 if told.quick else 3)
        rows += found
    show(rows, as_json=told.json, overhead=more, sweep_speedup=speedups[KEY])


if __name__ == "__main__":
    main()
