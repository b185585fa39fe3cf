"""Train one JumpReLU SAE at every layer x {res, mlp, att} of the demo model, with `saeflow.training`.

There is one run per part. The activations of its six sites are streamed from the training windows through one buffer,
so all sites see the same tokens in the same order; each SAE has its own seed. Parts whose recipe says so are then
refined: training continues from their weights with a lower target L0. A killed build resumes from the last checkpoint
of its current run and reaches the same weights. The loss is that of sae-lens: JumpReLU with a quadratic penalty around
a target L0 (Gemma Scope 2).

The target L0 is about 3 % of d_model. At 12 % nearly any dictionary reconstructs well, so its rows stay near their
random initialisation and there is no flow to trace.

The shipped pack was trained before this stage was written, by sae-lens's trainer on 1.5 million cached tokens, with a
different order of tokens for each site (decision 0005).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saeflow.ids import Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import LanguageModel, load_model
from saeflow.sources.tokens import Tokens
from saeflow.training import (
    ActivationStream,
    Optimiser,
    Trained,
    TrainingSettings,
    WindowBatches,
    sparsity,
    targets_of,
    train,
)
from saeflow.training.settings import seed_of

from .corpus import DOMAINS, load_windows
from .model import CONTEXT, MIXTURE

BATCH = 2048
LEARNING_RATE = 3e-3
AT_ONCE = 32
RAREST = 1e-5
MEASURED_WINDOWS = 8
COUNTED = 6000


@dataclass(frozen=True)
class Recipe:
    """The settings that differ between the parts of a layer."""

    width: int
    target_l0: float
    tokens: int
    refine_l0: float = 0.0
    refine_tokens: int = 0


# L0 drifts above its target late in training. Attention outputs have few directions in a model this
# small: a wide dictionary would be mostly dead.
RECIPES = {
    "res": Recipe(width=768, target_l0=5.3, tokens=7_000_000, refine_l0=5.0, refine_tokens=6_000_000),
    "mlp": Recipe(width=768, target_l0=5.3, tokens=3_500_000),
    "att": Recipe(width=384, target_l0=5.3, tokens=3_500_000, refine_l0=4.6, refine_tokens=3_000_000),
}


def settings_of(recipe: Recipe, seed: int, *, refine: bool) -> TrainingSettings:
    """The settings of one run, with the penalty and schedule of the pack."""
    tokens = recipe.refine_tokens if refine else recipe.tokens
    steps = max(1, tokens // BATCH)
    loss = sparsity(
        "jumprelu-l0",
        l0=recipe.refine_l0 if refine else recipe.target_l0,
        bandwidth=0.5,
        threshold=0.1,
        unit_decoder=False,
        warm_up=0.0 if refine else min(1.0, 300 / steps),
    )
    optimiser = Optimiser(tokens, BATCH, LEARNING_RATE, warm_up=min(0.1, 100 / steps), decay=0.5 if refine else 0.3)
    return TrainingSettings(
        loss,
        optimiser,
        ActivationStream(CONTEXT, AT_ONCE),
        seed=seed,
        checkpoint_every=500_000,
        metrics_every=max(1, tokens // 10),
    )


def training_windows(data: Path, seed: int) -> np.ndarray:
    """Training windows, with domains in the proportions of the model's training mixture: [n, CONTEXT]."""
    rng = np.random.default_rng(seed)
    found = {domain: load_windows(data, domain, "train", CONTEXT) for domain in DOMAINS}
    whole = min(len(rows) / MIXTURE[domain] for domain, rows in found.items())
    return np.concatenate([rng.permutation(rows)[: round(whole * MIXTURE[d])] for d, rows in found.items()])


def measured_windows(data: Path) -> list[Tokens]:
    """Held-out windows, one batch per domain."""
    found = [torch.from_numpy(load_windows(data, d, "held_out", CONTEXT)[:MEASURED_WINDOWS]) for d in DOMAINS]
    return [Tokens(ids, torch.ones_like(ids)) for ids in found if len(ids)]


def train_part(
    model: LanguageModel, data: Path, first: Path, out: Path, part: str, recipe: Recipe, seed: int
) -> Trained:
    """Train the SAEs of a part at all layers into `first` and refine them into `out`; without refining, into `out`."""
    windows, evaluation = training_windows(data, seed), measured_windows(data)
    targets = targets_of([part], range(model.n_layers), [recipe.width])
    shared = {"evaluation": evaluation, "texts": "demo corpora", "model_name": "demo"}

    def run(folder: Path, *, refine: bool, start: Mapping[Site, Dictionary] | None) -> Trained:
        told = settings_of(recipe, seed + refine, refine=refine)

        def report(done: int, total: int, now: str) -> None:
            if done % (200 * BATCH) == 0 or done == total:
                print(f"sae {part}{' (refining)' if refine else ''} {done:,}/{total:,} tokens: {now}", flush=True)

        batches = WindowBatches(windows, at_once=AT_ONCE, seed=told.seed)
        return train(model, batches, targets, told, out=folder, start=start, progress=report, **shared)

    done = run((first if recipe.refine_tokens else out) / part, refine=False, start=None)
    if not recipe.refine_tokens:
        return done
    return run(out / part, refine=True, start=load_dictionaries(done.folder))


def _train_part(folder: Path, data: Path, first: Path, out: Path, part: str, recipe: Recipe, seed: int) -> str:
    torch.set_num_threads(1)
    train_part(load_model(str(folder)), data, first, out, part, recipe, seed)
    return part


def train_all(
    folder: Path,
    data: Path,
    first: Path,
    out: Path,
    *,
    seed: int,
    recipes: Mapping[str, Recipe] = RECIPES,
    workers: int = 2,
) -> None:
    """Train every part, `workers` at a time and one thread each; finished parts are left as they are.

    `folder` contains the model. `first` keeps the SAEs from before refining; `out` gets the final ones of every part.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_train_part, folder, data, first, out, part, recipe, seed_of(seed, part) % 2**31)
            for part, recipe in recipes.items()
        ]
        for job in jobs:
            job.result()


def fired(model: LanguageModel, dictionaries: Mapping[Site, Dictionary], windows: np.ndarray) -> dict[Site, Tensor]:
    """For every site, the share of tokens (BOS excluded) on which each feature fires."""
    sites = sorted(dictionaries)
    counts = {site: torch.zeros(dictionaries[site].n_features) for site in sites}
    for start in range(0, len(windows), AT_ONCE):
        ids = torch.from_numpy(windows[start : start + AT_ONCE])
        captured = model.capture(Tokens(ids, torch.ones_like(ids)), sites)
        for site in sites:
            counts[site] += (dictionaries[site].encode(captured[site][ids != 0]) > 0).sum(0)
    return {site: count / int((windows != 0).sum()) for site, count in counts.items()}


def collect(model: LanguageModel, data: Path, trained: Path, *, seed: int) -> dict[Site, Dictionary]:
    """Load the SAEs of all parts, without the silent features of modules: a small model's modules have few directions.

    Residual SAEs keep their full width. Firing is counted on COUNTED training windows.
    """
    found: dict[Site, Dictionary] = {}
    windows = np.random.default_rng(seed).permutation(training_windows(data, seed))[:COUNTED]
    for part in sorted(path.name for path in trained.iterdir() if path.is_dir()):
        dictionaries = load_dictionaries(trained / part)
        shares = {} if part == "res" else fired(model, dictionaries, windows)
        for site in dictionaries:
            found[site] = without_silent(dictionaries[site], shares[site]) if shares else dictionaries[site]
    return found


def without_silent(dictionary: Dictionary, share: Tensor) -> Dictionary:
    """The dictionary with only the features that fire on at least a share RAREST of the tokens.

    Silent rows are not features worth tracing. Reconstructions of these tokens hardly change, since the dropped
    features contribute to few or none of them.
    """
    keep = torch.nonzero(share >= RAREST).flatten()
    return Dictionary(
        dictionary.site,
        tap=dictionary.tap,
        W_enc=dictionary.W_enc[keep],
        b_enc=dictionary.b_enc[keep],
        W_dec=dictionary.W_dec[keep],
        b_dec=dictionary.b_dec,
        activation=dictionary.activation.of(keep),
    )
