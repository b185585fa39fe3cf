"""Causal trials on single tokens: the engine against one whole forward pass with hooks per trial.

    python benchmarks/causal.py [--quick] [--json]

The baseline is what researchers usually write: for every trial, one forward pass of the text with hooks, and the
whole dictionary encoded at the token. It is timed on a sample of the trials and scaled up. The engine is timed on
all trials of a text, including its clean forward pass, caches and clean encodings.

The trials of a text follow the paper's protocol (arXiv 2502.03032, appendix A.2; 35 texts): 5 tokens, 3 layers and
25 features each, with 4 matching strategies that remove all predecessors, and with the closest predecessor of each
part removed on its own (figure 8). Predecessors are drawn from the active features, so that every trial changes
something. This is the most expensive case: in real dictionaries many predecessors are silent and cost nothing.
The loss is measured at the middle layer, for all trials of two tokens at 3/10 and 7/10 of the text, so that on
average half the tokens and about half the layers come after the edit. Identical edits count as separate trials but
are computed once; the figure without this saving is printed as well.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import saeflow
from _timing import Row, arguments, interleaved, peak_memory, show
from saeflow import Dictionary, FeatureId, LanguageModel, Part, Rescale, Site
from saeflow.demo.texts import texts as demo_texts
from saeflow.experiments.causal import Outcome, PreparedText, Trial
from saeflow.interventions import Positions
from saeflow.sources.activations import JumpReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.tokens import Tokens

N_TEXTS, N_TOKENS_A_TEXT, N_FEATURES_A_TOKEN, N_STRATEGIES = 35, 5, 25, 4
N_ACTIVE = 60
SEED = 0


@dataclass(frozen=True)
class World:
    """A model, dictionaries at the sites around some layers, and a text."""

    name: str
    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    tokens: Tokens
    layers: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Token positions spread evenly over the text."""
        n = self.tokens.lengths[0]
        return tuple(int((i + 0.5) * n / N_TOKENS_A_TEXT) for i in range(N_TOKENS_A_TEXT))


def sites_around(layer: int) -> list[Site]:
    """The sites res L-1, att L, mlp L and res L."""
    return [Site(layer - 1, Part.RES), Site(layer, Part.ATT), Site(layer, Part.MLP), Site(layer, Part.RES)]


def gpt2_shape(*, quick: bool) -> World:
    """GPT-2 small with random weights, and random unit-row dictionaries with about 60 active features per token."""
    torch.manual_seed(SEED)
    config = GPT2Config(n_layer=4, n_embd=128, n_head=4, vocab_size=2_000) if quick else GPT2Config()
    hf_model = GPT2LMHeadModel(config)
    for parameter in hf_model.parameters():  # with the default std of 0.02 the embeddings would dominate the stream
        if parameter.dim() == 2:
            parameter.data *= 2
    tokenizer = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)
    model = LanguageModel(hf_model, tokenizer)
    ids = torch.randint(config.vocab_size, (1, 32 if quick else 128))
    tokens = Tokens(ids, torch.ones_like(ids))
    layers = (1, 2, 3) if quick else (3, 6, 9)
    sites = sorted({site for layer in layers for site in sites_around(layer)})
    held = model.capture(tokens, sites)
    made = {site: random_dictionary(site, held[site][0], 512 if quick else 24_576) for site in sites}
    return World("GPT-2 small, random", model, made, tokens, layers)


def random_dictionary(site: Site, h: torch.Tensor, n_features: int, n_active: int = N_ACTIVE) -> Dictionary:
    """A dictionary of random unit rows, about `n_active` of them active on each hidden state of a text."""
    rows = nn.functional.normalize(torch.randn(n_features, h.shape[1]), dim=-1)
    pre = h[1:] @ rows.T
    threshold = pre.flatten().topk(min(n_active, n_features // 8) * len(pre)).values[-1].clamp(min=1e-6)
    return Dictionary(
        site,
        tap=Tap.of(site.part),
        W_enc=rows,
        b_enc=torch.zeros(n_features),
        W_dec=rows,
        b_dec=torch.zeros(h.shape[1]),
        activation=JumpReLU(threshold.expand(n_features)),
    )


def demo() -> World:
    """The small trained model that comes with saeflow, and its dictionaries."""
    model = saeflow.load_model("demo")
    [text] = demo_texts("textbooks", 1, SEED)
    tokens = model.tokenize([text], max_length=128)
    return World("demo pack", model, saeflow.load_dictionaries("demo"), tokens, (2, 3, 4))


def prepare(world: World) -> PreparedText:
    """Run the clean pass, and find all active features at the positions of the trials."""
    text = PreparedText(world.model, world.dictionaries, world.tokens, layers=world.layers, positions=world.positions)
    for layer in world.layers:
        for site, position in itertools.product(sites_around(layer), world.positions):
            text.active(site, position)
    return text


def protocol(world: World, text: PreparedText) -> list[Trial]:
    """The trials of one text."""
    draw = random.Random(SEED)  # noqa: S311  (a sample, no secret)
    trials: list[Trial] = []
    for layer, position in itertools.product(world.layers, world.positions):
        *before, after = sites_around(layer)
        active = {site: [int(i) for i in text.active(site, position)[0]] for site in (*before, after)}
        targets = draw.sample(active[after], min(N_FEATURES_A_TOKEN, len(active[after])))
        for target in targets:
            watch = (FeatureId(after, target),)
            some = draw.sample(before, draw.randint(1, 3))
            removed = [[_removal(site, active[site], draw) for site in some] for _ in range(N_STRATEGIES)]
            removed += [[edit] for edit in removed[0]]
            trials += [Trial(layer, position, tuple(e for e in edits if e is not None), watch) for edits in removed]
    return trials


def _removal(site: Site, active: list[int], draw: random.Random) -> Rescale | None:
    return Rescale((FeatureId(site, draw.choice(active)),)) if active else None


def by_whole_passes(world: World, trials: list[Trial]) -> list[Outcome]:
    """One hooked forward pass per trial, which gives the encoding at the token and the loss."""
    outcomes: list[Outcome] = []
    for trial in trials:
        edits = [Rescale(edit.features, edit.r, Positions((trial.position,))) for edit in trial.edits]
        site = trial.watch[0].site
        with world.model.intervening(edits, world.dictionaries), torch.no_grad():
            held = world.model.capture(world.tokens, [site], logits=True)
            acts = world.dictionaries[site].encode(held[site][0, trial.position])
            after = tuple(float(acts[feature.index]) for feature in trial.watch)
            assert held.logits is not None
            loss = nn.functional.cross_entropy(held.logits[0, :-1], world.tokens.input_ids[0, 1:])
        outcomes.append(Outcome((), after, None, float(loss)))
    return outcomes


def by_engine(world: World, trials: list[Trial], *, loss: bool) -> list[Outcome]:
    """Everything from the tokens of the text to the outcomes, by the engine."""
    return prepare(world).run(trials, loss=loss)


def furthest(found: list[Outcome], expected: list[Outcome], *, loss: bool) -> float:
    """The largest relative difference in activations after the edit and, if `loss`, in losses."""
    pairs = [
        (a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one.after, other.after, strict=True)
    ]
    if loss:
        pairs += [(one.loss_after or 0.0, other.loss_after or 0.0) for one, other in zip(found, expected, strict=True)]
    return max(abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0 for a, b in pairs)


def n_different(trials: list[Trial]) -> int:
    """The number of different counterfactuals among the trials, regardless of what they watch."""
    return len({(trial.layer, trial.position, frozenset(trial.edits)) for trial in trials})


def measure(world: World, *, quick: bool) -> tuple[list[Row], dict[str, float]]:
    """The rows and speed-ups for one model."""
    trials = protocol(world, prepare(world))
    layer = world.layers[len(world.layers) // 2]
    tokens = (world.positions[1], world.positions[3])
    with_loss = [trial for trial in trials if trial.layer == layer and trial.position in tokens]
    n_sample, n_loss = 5, len(with_loss)
    draw = random.Random(SEED + 1)  # noqa: S311  (a sample, no secret)
    sample = draw.sample(trials, n_sample)
    whole_passes = partial(by_whole_passes, world, sample)
    engine = partial(by_engine, world, trials, loss=False)
    engine_loss = partial(by_engine, world, with_loss, loss=True)
    whole_passes(), engine()  # warm up: the weights are read and checked on first use
    # timed separately, because the losses take far longer
    acts = interleaved({"engine": engine, "whole passes": whole_passes}, 3 if quick else 9)
    losses = interleaved({"engine": engine_loss, "whole passes": whole_passes}, 3)
    whole = acts["whole passes"] / n_sample * len(trials)
    whole_loss = losses["whole passes"] / n_sample * n_loss
    speedup, speedup_loss = whole / acts["engine"], whole_loss / losses["engine"]
    checked = [*sample, *draw.sample(with_loss, n_sample)]
    apart = furthest(prepare(world).run(checked, loss=True), by_whole_passes(world, checked), loss=True)
    size = f"{world.tokens.lengths[0]} tokens, {len(trials):,} trials, {n_different(trials):,} different"
    scaled = f"timed on {n_sample} trials and scaled"
    at_middle = f"layer {layer}, {n_loss} trials, {n_different(with_loss)} different"
    rows = [
        Row(f"{world.name}: activations, whole passes", size, whole, note=scaled),
        Row(f"{world.name}: activations, engine", size, acts["engine"], speedup, "whole passes"),
        Row(f"{world.name}: loss, whole passes", at_middle, whole_loss, note=scaled),
        Row(f"{world.name}: loss, engine", at_middle, losses["engine"], speedup_loss, "whole passes"),
    ]
    figures = {
        "speedup_activation": speedup,
        "speedup_loss": speedup_loss,
        "speedup_loss_if_all_differ": speedup_loss * n_different(with_loss) / n_loss,
        "max_relative_difference": apart,
        "trials_a_text": len(trials),
        "seconds_a_text": acts["engine"],
        "seconds_a_loss": losses["engine"] / n_loss,
    }
    return rows, figures


def bound_of_the_loss(world: World) -> float:
    """The largest possible speed-up: multiply-adds of a whole pass over those of what an edit can affect.

    Assumes that an edit is equally likely to first change the input or the output of the middle layer's block.
    """
    config = world.model.hf_model.config
    tokens = (world.positions[1], world.positions[3])
    layer, n = world.layers[len(world.layers) // 2], world.tokens.lengths[0]
    block, head = 12 * config.n_embd**2, config.vocab_size * config.n_embd
    reached = sum(n - 1 - position for position in tokens) / len(tokens)
    return n * (config.n_layer * block + head) / (reached * ((config.n_layer - layer - 0.5) * block + head))


def _big_world(quick: bool) -> tuple[World, list[Trial]]:
    world = gpt2_shape(quick=quick)
    return world, protocol(world, prepare(world))


def _answer(made: tuple[World, list[Trial]]) -> object:
    return by_engine(*made, loss=False)


def main() -> None:
    """Measure, check and print."""
    options = arguments(__doc__).parse_args()
    rows, _ = measure(demo(), quick=options.quick)
    world = gpt2_shape(quick=options.quick)
    more, figures = measure(world, quick=options.quick)
    memory = peak_memory(partial(_big_world, options.quick), _answer) / 1024
    gb = sum(p.numel() for p in world.model.hf_model.parameters()) * 4 / 1e9
    gb += sum(d.W_enc.numel() * 4 * 2 for d in world.dictionaries.values()) / 1e9
    n = figures["trials_a_text"] * N_TEXTS
    hours = N_TEXTS * figures["seconds_a_text"] * figures["speedup_activation"] / 3600
    show(
        [*rows, *more],
        as_json=options.json,
        **{name: figure for name, figure in figures.items() if not name.startswith(("trials", "seconds"))},
        loss_bound_by_arithmetic=bound_of_the_loss(world),
        whole_protocol=(
            f"{N_TEXTS} texts, {n:,} trials: {figures['seconds_a_text'] * N_TEXTS:,.0f} s of activations "
            f"({hours:,.1f} h by whole passes), {figures['seconds_a_loss'] * n / 3600:,.2f} h more for the loss of "
            f"every trial; {gb:.2f} GB of weights (encoder and decoder apart) and {memory:.2f} GB beside them"
        ),
    )


if __name__ == "__main__":
    main()
