"""One unit of a sweep: the texts of a theme, a direction and a method, generated and measured (section 5.3).

What an engine calls. Plans and random draws come back as files beside the rows, so that a worker writes nothing.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from saeflow.experiments.results import Made, Row, significant
from saeflow.ids import FeatureId, Site
from saeflow.records import Match, Progress
from saeflow.steering.generate import Generation, Request, generate
from saeflow.steering.judges import Judged
from saeflow.steering.metrics import distinct, losses
from saeflow.steering.plan import SteeringDirection, SteeringPlan
from saeflow.steering.sampling import Sampling
from saeflow.steering.sweep.baselines import random_mirrors, written_on
from saeflow.steering.sweep.settings import NONE, PROMPT, RANDOM, Setting, seed_of
from saeflow.steering.sweep.theme_plans import ThemePlans

Unsteered = Mapping[tuple[str, SteeringDirection], Sequence[Judged]]


@dataclass(eq=False)
class SweepUnit:
    """The rows and plans of a unit; samples depend on the seed, the stage and their number alone.

    Attributes:
        theme_plans: how each theme is steered.
        seed: of all samples.
        stage: which samples: of the grid, or fresh ones.
        n: samples of each setting.
        unsteered: texts of the grid, for random features that are active where a suppression acts; none in the grid.
        progress: told of the texts of the unit, where it runs in the process that shows them.
    """

    theme_plans: Mapping[str, ThemePlans]
    seed: int
    stage: str
    n: int
    unsteered: Unsteered | None = None
    progress: Progress | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For another process: graphs are grown already, so that it needs no matches."""
        bare = {
            name: replace(prepared, inputs=replace(prepared.inputs, matches=_Grown()))
            for name, prepared in self.theme_plans.items()
        }
        return self.__dict__ | {"theme_plans": bare, "progress": None}

    def __call__(self, unit: Row) -> Made:
        """The settings of the unit one after the other, each with the same samples."""
        prepared, direction = self.theme_plans[unit["theme"]], SteeringDirection(unit["direction"])
        inputs, task = prepared.inputs, prepared.theme.task(direction)
        settings = [Setting.of(told) for told in unit["settings"]]
        seeds = [seed_of(self.seed, self.stage, sample) for sample in range(self.n)]
        prompt = task.asked if unit["method"] == PROMPT else task.prompt
        requests: list[Request] = []
        files: dict[str, bytes] = {}
        for setting in settings:
            plans = self._plans(files, prepared, direction, setting, seeds)
            requests += [Request(prompt, seed, plan) for seed, plan in zip(seeds, plans, strict=True)]
        sampling = Sampling(max_new_tokens=task.max_new_tokens)
        made = generate(
            inputs.model, inputs.dictionaries, requests, sampling, batch=inputs.batch, progress=self.progress
        )
        nats = losses(inputs.model, prompt, [generation.ids for generation in made])
        rows = [
            _row(unit, settings[number // self.n], number % self.n, generation, loss)
            for number, (generation, loss) in enumerate(zip(made, nats, strict=True))
        ]
        return Made(rows, files)

    def _plans(
        self,
        files: dict[str, bytes],
        prepared: ThemePlans,
        direction: SteeringDirection,
        setting: Setting,
        seeds: Sequence[int],
    ) -> Sequence[SteeringPlan | None]:
        """The plan of each sample of a setting, also into `files`; random ones are drawn anew for each sample."""
        if setting.method in (NONE, PROMPT):
            return [None] * len(seeds)
        stem = f"plans/{prepared.theme.name}-{setting.name(direction)}"
        if setting.method != RANDOM:
            plan = prepared.plan(direction, setting)
            files[f"{stem}.json"] = plan.to_json().encode()
            return [plan] * len(seeds)
        copied = Setting(setting.mirrors, setting.layer, setting.schedule, setting.value)
        plan, inputs = prepared.plan(direction, copied), prepared.inputs
        active = None
        if direction is SteeringDirection.SUPPRESS and self.unsteered is not None:
            texts = _whole(prepared, self.unsteered[prepared.theme.name, direction])
            active = written_on(inputs.model, inputs.dictionaries, plan.sites, texts)
        drawn = random_mirrors(
            plan, inputs.dictionaries, inputs.model, avoid=prepared.avoided, seeds=seeds, active=active
        )
        files[f"{stem}.jsonl.gz"] = _packed(drawn)
        return drawn


class _Grown:
    """Matches where no graph is grown any more. Meets `saeflow.flow.trace.Matches`."""

    def has(self, source: Site, target: Site) -> bool:
        """Nothing is matched to anything."""
        del source, target
        return False

    def best(self, feature: FeatureId, target: Site, k: int | None = None) -> tuple[Match, ...]:
        """No match."""
        del feature, target, k
        return ()


def _whole(prepared: ThemePlans, texts: Sequence[Judged]) -> list[str]:
    """Texts with their prompts, decoded together: decoding a text alone may lose the space it begins with."""
    model = prepared.inputs.model
    prompts = {text.prompt for text in texts}
    begin = {prompt: model.tokenize([prompt], add_bos=False).input_ids[0].tolist() for prompt in prompts}
    ids = [[*begin[text.prompt], *text.ids] for text in texts]
    return [str(model.tokenizer.decode(one, skip_special_tokens=True)) for one in ids]


def _row(unit: Row, setting: Setting, sample: int, made: Generation, loss: float) -> Row:
    asked = made.request
    return {
        "theme": unit["theme"],
        "direction": unit["direction"],
        "method": setting.method,
        "layer": setting.layer,
        "schedule": setting.schedule,
        "value": setting.value,
        "sample": sample,
        "seed": asked.seed,
        "prompt": asked.prompt,
        "text": made.text,
        "ids": list(made.ids),
        "n_tokens": len(made.ids),
        "loss": significant(loss) if math.isfinite(loss) else None,
        "distinct_1": significant(distinct(made.ids, 1)),
        "distinct_2": significant(distinct(made.ids, 2)),
        "share_layer": significant(made.share_layer),
        "share_total": significant(made.share_total),
        "n_features": len(asked.plan.steps) if asked.plan else 0,
        "mirrors": setting.mirrors,
    }


def _packed(drawn: Sequence[SteeringPlan]) -> bytes:
    """The random features of each sample and their values, one sample a line."""
    lines = [
        json.dumps({"sample": sample, "steps": {str(step.feature): step.value for step in plan.steps}}) + "\n"
        for sample, plan in enumerate(drawn)
    ]
    return gzip.compress("".join(lines).encode(), mtime=0)
