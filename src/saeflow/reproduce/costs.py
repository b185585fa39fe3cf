"""Estimates what each stage of a recipe costs: seconds, memory, disk and judge requests, from sizes and speeds.

`measure` takes a few seconds to measure how fast this machine is.

Times are for one process. The estimate distinguishes two kinds of work: matrix products, which scale with the sizes of
model and dictionaries, and small operations, whose number does not depend on them. The constants come from runs on the
demo pack and from the benchmarks (docs/benchmarks.md); estimates are right within a factor of about two.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch

from saeflow.errors import InvalidArgument, SaeflowError
from saeflow.experiments.methods import PEARSON_TOKENS
from saeflow.experiments.sampling import expand
from saeflow.experiments.settings import DeactivationSize, OriginsSize, TransitionSize
from saeflow.ids import Part, Site
from saeflow.matching.atlas import flow_pairs, open_atlas
from saeflow.reproduce.machine import is_held
from saeflow.reproduce.recipe import PaperStage, Recipe, Shape
from saeflow.sources.activity import site_states
from saeflow.sources.library import DictionarySet
from saeflow.sources.model import LanguageModel, load_model
from saeflow.sources.releases import DictionarySize
from saeflow.steering.growth import grow, targets
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.sweep.inputs import find_themes
from saeflow.steering.sweep.settings import NONE, ORDER, PROMPT, Grid

ACTIVE: Final = 100.0
"""Features active on a token, assumed if they cannot be counted; canonical SAEs of published releases are near it."""
BOTH_WAYS: Final = 1.2
"""Cost of matching a pair of sites in both directions, as a multiple of the bare product of their rows."""
ASSIGNMENT: Final = 7.0
"""Cost of the one-to-one assignment of a pair of sites, as a multiple of the bare product of their rows."""
PEARSON_PAIR: Final = 9.5 / 1e5
"""Seconds per token for correlating a pair of sites with 100 features active at each."""
OPEN: Final = 3.0
"""Seconds for opening the model and the dictionaries."""
PAGE: Final = 12.0
"""Seconds for the tables, figures and page of a results folder."""
ORIGIN: Final = 0.03
"""Seconds per text in origins besides products, for six layers."""
TARGET: Final = 0.012
"""Seconds per target in deactivation besides products, with seven strategies and nine r."""
TRIALS: Final = 13.0
"""Distinct edits per target in deactivation, with seven strategies and nine r."""
WRITTEN: Final = 4.2e-4
"""Seconds per generated token in a large batch, besides products."""
CHOSEN: Final = 10.0
"""Settings per theme and direction that are measured again, including random ones."""
MAPS: Final = 30
"""Kinds of T per pair of sites."""
BETWEEN: Final = 1.6
"""Cost of generating a text and computing its loss, in forward passes over its tokens."""

READ: Final = 9.3e-9
"""Seconds per value of the decoder rows read for one graph."""
BASE: Final = 7e8
"""Bytes of the process besides model and dictionaries: libraries, rows, drawing."""
MANY_FIGURES: Final = 9e8
"""Additional bytes for the page of a sweep, which has figures for every theme."""
MB: Final = 1e6


PASS_TOKENS: Final = 128
"""Tokens in the text on which a forward pass is timed; experiments cut texts at this length."""

SMALL_PASS: Final = 0.018
"""Seconds per pass of the demo model where these constants were measured: 2 cores of x86_64, one thread."""

_TIMES: Final = 5


@dataclass(frozen=True, slots=True)
class Speeds:
    """The measured speeds of this machine.

    Attributes:
        products: floating-point operations per second, in matrix products of the model's width.
        small: how many times longer small operations take here than where the constants were measured, judged by a
            pass of the demo model, which ships with saeflow.
        passes: tokens per second in the model's own forward pass; None if the model is not on this machine.
        threads: the number of threads during the measurement.
        device: the device that was measured.
    """

    products: float
    small: float
    passes: float | None
    threads: int
    device: str

    def forward(self, flops: float) -> float:
        """Seconds per token of a forward pass: as measured, or estimated from `flops` if the model is not here."""
        return 1 / self.passes if self.passes else flops / self.products


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one stage: seconds in one process, bytes of memory and of disk, and requests to a judge."""

    seconds: float
    memory: float
    disk: float
    requests: int = 0


@dataclass(frozen=True)
class Costs:
    """The costs of a recipe's stages on this machine.

    Attributes:
        recipe: the recipe.
        shape: the shape of its model.
        sizes: the size of every dictionary.
        speeds: the speeds of this machine.
        judge: the requested judge of steered texts; "" for the recipe's.
        active: features active on a token.
    """

    recipe: Recipe
    shape: Shape
    sizes: Mapping[Site, DictionarySize]
    speeds: Speeds
    judge: str = ""
    active: float = ACTIVE

    def of(self, stage: PaperStage) -> Cost:
        """The cost of a stage, if none of it has been done."""
        of_stage = {
            PaperStage.ATLAS: self._atlas,
            PaperStage.GRAPHS: self._graphs,
            PaperStage.ORIGINS: self._origins,
            PaperStage.DEACTIVATION: self._deactivation,
            PaperStage.STEERING: self._steering,
            PaperStage.TRANSITION: self._transition,
        }
        return of_stage[stage](self.recipe.sizes[stage])

    def _atlas(self, table: Any) -> Cost:
        pairs = flow_pairs(list(self.sizes))
        largest = sorted((4.0 * s.n_features * s.d_in for s in self.sizes.values()), reverse=True)
        disk = sum(16.0 * 5 * self.sizes[site].n_features for pair in pairs for site in pair)
        seconds = 0.0 if self._has_atlas else self._products(pairs) * BOTH_WAYS
        nulls = self._products(pairs) * 2 if table.get("null") else 0.0
        projector = 4.0 * self.shape.parameters if self.recipe.projects else 0.0
        return Cost(seconds + nulls, BASE + sum(largest[:4]) + projector, 0.0 if self._has_atlas else disk)

    def _graphs(self, table: Any) -> Cost:  # noqa: ARG002 - one signature for all stages
        rows = 4.0 * max(s.n_features * s.d_in for s in self.sizes.values())
        read = READ * sum(s.n_features * s.d_in for s in self.sizes.values())
        return Cost(self._small(1.5) + (0.0 if self._has_atlas else read), BASE + 3 * rows, MB)

    def _origins(self, table: Any) -> Cost:
        size = OriginsSize()
        texts = table.get("texts", size.texts) * self._n_datasets(PaperStage.ORIGINS)
        tokens = table.get("tokens", size.tokens)
        layers = self._layers(table, 0)
        encode = self._encoding([site for layer in layers for site in self._around(layer)])
        each = self._pass(table.get("max_length", size.max_length)) + tokens * encode
        each += self._small(ORIGIN) * len(layers) / 6
        methods = table.get("methods", size.methods)
        seconds = texts * each + self._matching(layers, methods) + OPEN + self._small(PAGE)
        return Cost(seconds, self._memory(layers), texts * len(layers) * 2e3)

    def _deactivation(self, table: Any) -> Cost:
        size = DeactivationSize()
        texts = table.get("texts", size.texts) * self._n_datasets(PaperStage.DEACTIVATION)
        layers = self._layers(table, 1)
        # in dictionaries with few active features, a token has fewer targets than requested
        a_token = min(table.get("features", size.features), self.active)
        found = texts * table.get("tokens", size.tokens) * len(layers) * a_token
        length = table.get("max_length", size.max_length)
        # an edit recomputes one block at one token
        edits = found * TRIALS * self.shape.flops / self.shape.layers / self.speeds.products
        with_loss = table.get("loss", size.loss or 0) * 2 * len(table.get("r", size.r))
        # a loss recomputes the later blocks for the later tokens: on average half of each, so a quarter of a pass
        losses = texts * with_loss * self._pass(length) / 4
        seconds = edits + losses + found * self._small(TARGET) + texts * self._pass(length)
        seconds += self._matching(layers, table.get("strategies", size.strategies)) + OPEN + self._small(PAGE)
        return Cost(seconds, self._memory(layers), found * 1.5e3)

    def _steering(self, table: Any) -> Cost:
        plain = Grid()
        grid = Grid(
            tuple(table.get("s", plain.activate)),
            tuple(table.get("r", plain.suppress)),
            tuple(table["layers"]) if "layers" in table else None,
            tuple(table.get("methods", ())),
            table.get("samples", plain.samples),
            table.get("confirm", plain.confirm),
        )
        written, texts = 0.0, 0
        wanted = {SteeringDirection(one) for one in table.get("directions", tuple(SteeringDirection))}
        for theme in find_themes(table.get("themes", ()), self.recipe.release):
            layers = self._steered(theme.starts, table)
            for direction in SteeringDirection:
                task = theme.activate if direction is SteeringDirection.ACTIVATE else theme.suppress
                if task is None or direction not in wanted:
                    continue
                settings = sum(
                    len(grid.of_method(direction, method, layers))
                    for method in ORDER
                    if method in (NONE, PROMPT) or layers
                )
                samples = settings * grid.samples + CHOSEN * grid.confirm
                texts += round(samples)
                written += samples * task.max_new_tokens
        # WRITTEN was measured on the demo model and includes its passes, so these are subtracted
        own = max(0.0, self._pass(1) - self._small(SMALL_PASS) / PASS_TOKENS)
        seconds = written * (own * BETWEEN + self._small(WRITTEN)) + OPEN + self._small(2.5 * PAGE)
        judged = texts if (self.judge or table.get("judge", "offline")) == "llm" else 0
        return Cost(seconds, self._memory([]) + MANY_FIGURES, texts * 1e3, judged)

    def _transition(self, table: Any) -> Cost:
        size = TransitionSize()
        layers = table.get("layers") or [layer for layer in self._layers({}, 0) if layer + 1 in self._layers({}, 0)]
        tokens = table.get("tokens", size.tokens) + table.get("fit_tokens", size.fit_tokens)
        seconds, most = tokens * self._pass(1) * (1 + 0.5 * len(layers)), 0.0
        for layer in layers:
            n, d = self._rows(Site(layer, Part.RES))
            # two regressions of n features on d_model, and for every kind of T its construction and predictions
            seconds += (2 * n**3 / 3 + tokens * 2.0 * n * self.active + MAPS * 2.0 * n * n * d) / self.speeds.products
            most = max(most, 12.0 * n * n)
        lost = table.get("loss_texts", size.loss_texts) * self._n_datasets(PaperStage.TRANSITION) * len(layers)
        seconds += lost * MAPS * self._pass(table.get("max_length", size.max_length)) / 2
        memory = self._memory(list(layers)) + min(most, table.get("memory", size.memory) * 2**30)
        return Cost(seconds + OPEN + self._small(2 * PAGE), memory, len(layers) * 4e6)

    # --- shared by several stages

    @cached_property
    def _has_atlas(self) -> bool:
        return has_atlas(self.recipe.release)

    def _small(self, seconds: float) -> float:
        return seconds * self.speeds.small

    def _pass(self, tokens: float) -> float:
        return tokens * self.speeds.forward(self.shape.flops)

    def _n_datasets(self, stage: PaperStage) -> int:
        return len(expand(self.recipe.datasets(stage)))

    def _layers(self, table: Any, first: int) -> list[int]:
        there = sorted({site.layer for site in self.sizes if site.part is Part.RES and site.layer >= first})
        return list(table.get("layers", there))

    def _around(self, layer: int) -> list[Site]:
        """The residual site of a layer and the sites of its predecessors, as far as they have dictionaries."""
        site = Site(layer, Part.RES)
        return [one for one in (site, *site.predecessors) if one in self.sizes]

    def _rows(self, site: Site) -> tuple[int, int]:
        return self.sizes[site].n_features, self.sizes[site].d_in

    def _products(self, pairs: Sequence[tuple[Site, Site]]) -> float:
        """Seconds for the bare matrix products of all pairs."""
        flops = sum(
            2.0 * self.sizes[a].n_features * self.sizes[b].n_features * max(self.sizes[a].d_in, self.shape.d_model)
            for a, b in pairs
        )
        return flops / self.speeds.products

    def _encoding(self, sites: Sequence[Site]) -> float:
        """Seconds for encoding one token at each of the sites."""
        return sum(2.0 * math.prod(self._rows(site)) for site in set(sites)) / self.speeds.products

    def _matching(self, layers: Sequence[int], methods: Sequence[str]) -> float:
        """Seconds for the match tables of methods other than cosine, assuming that no earlier run has made them."""
        pairs = [
            (Site(layer, Part.RES), site)
            for layer in layers
            for site in Site(layer, Part.RES).predecessors
            if site in self.sizes and Site(layer, Part.RES) in self.sizes
        ]
        seconds = 0.0
        if "permutation" in methods:
            seconds += ASSIGNMENT * self._products(pairs)
        if "pearson" in methods:
            sites = {site for pair in pairs for site in pair}
            a_token = self._pass(1) + self._encoding(tuple(sites))
            a_token += len(pairs) * self._small(PEARSON_PAIR) * (self.active / 100) ** 2
            seconds += PEARSON_TOKENS * a_token
        return seconds

    def _memory(self, layers: Sequence[int]) -> float:
        """Bytes of the model and of every dictionary read at these layers, in float32, and of the process itself."""
        sites = {site for layer in layers for site in self._around(layer)}
        held = sum(8.0 * math.prod(self._rows(site)) for site in sites)
        return BASE + 4.0 * self.shape.parameters + held

    def _steered(self, starts: Any, table: Any) -> list[int]:
        """The layers with a feature to steer; without an atlas, all layers."""
        if not self._has_atlas:
            return self._layers({}, 0)
        parts = tuple(Part(part) for part in table.get("parts", tuple(part.value for part in Part)))
        graphs = grow(starts, open_atlas(self.recipe.release), k=1)
        return sorted({target.feature.layer for target in targets(graphs, parts=parts)})


# --- how fast this machine is -----------------------------------------------------------------------------------------


def has_atlas(release: str) -> bool:
    """Whether a release has an atlas on this machine."""
    try:
        open_atlas(release)
    except SaeflowError:
        return False
    return True


def measure(model: str, d_model: int, *, device: str = "cpu") -> Speeds:
    """Time products of width `d_model`, the demo model, and the model itself if it is on this machine.

    Takes a few seconds, plus the time to load the model.

    Args:
        model: the name of the model on its hub, "demo", or a folder.
        d_model: width of the residual stream, for the products.
        device: where to compute.

    Raises:
        BadFile: when the model is on this machine but cannot be read.
    """
    x, w = torch.randn(PASS_TOKENS, d_model, device=device), torch.randn(d_model, 4 * d_model, device=device)
    product = 2.0 * PASS_TOKENS * d_model * 4 * d_model
    n = max(1, round(2e9 / product))  # long enough to time reliably

    def products() -> None:
        for _ in range(n):
            torch.mm(x, w)

    seconds = _median(products, device)
    small = _pass(load_model("demo"))
    own = PASS_TOKENS / _pass(load_model(model, device=device)) if is_held(model) else None
    return Speeds(n * product / seconds, small / SMALL_PASS, own, torch.get_num_threads(), device)


def active_features(dictionaries: DictionarySet, model: LanguageModel, texts: Sequence[str]) -> float:
    """The mean number of active features per token of some texts, at the first, the middle and the last layer.

    Raises:
        InvalidArgument: without a residual dictionary or a text.
        BadFile: when a dictionary cannot be read.
    """
    layers = sorted(site for site in dictionaries.sites if site.part is Part.RES)
    if not layers or not texts:
        raise InvalidArgument(f"{len(layers)} residual dictionaries and {len(texts)} texts. Give one of each, or more.")
    counts: list[float] = []
    for site in dict.fromkeys((layers[0], layers[len(layers) // 2], layers[-1])):
        for text in texts:
            tokens = model.tokenize([text], max_length=PASS_TOKENS)
            h = site_states(model, dictionaries, [site], tokens)[site][0, 1:]  # the first token has many more
            counts += (dictionaries[site].encode(h) > 0).sum(-1).tolist()
    return statistics.fmean(counts)


def _pass(model: LanguageModel) -> float:
    """Seconds for a forward pass over one text, including the unembedding."""
    ids = torch.arange(PASS_TOKENS) % (len(model.tokenizer) - 1)
    tokens = model.tokenize([str(model.tokenizer.decode(ids.tolist()))], max_length=PASS_TOKENS)
    return _median(lambda: model.loss(tokens), str(model.device))


def _median(act: Callable[[], object], device: str) -> float:
    """The median of a few timings in seconds, after one warm-up."""
    times: list[float] = []
    for _ in range(_TIMES + 1):
        began = time.perf_counter()
        act()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
