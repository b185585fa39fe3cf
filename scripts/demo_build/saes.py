"""Train one JumpReLU SAE at every layer x {res, mlp, att} of the demo model.

Activations are captured once in half precision; each site then trains alone, from its own seed, on one
thread, two sites at a time. The losses and the trainer are sae-lens's: JumpReLU with a quadratic
penalty around a target L0 (Gemma Scope 2). A killed build starts again at the first site without a file.

The target L0 is 3-4 % of d_model. At 12 % nearly any dictionary reconstructs, its rows stay near their
random start, and there is no flow to trace.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from .corpus import DOMAINS, load_windows
from .model import CONTEXT, D_MODEL, MIXTURE

BATCH = 2048
LEARNING_RATE = 3e-3
SHARED_ORDER = 99


@dataclass(frozen=True)
class Recipe:
    """What differs between the parts of a layer."""

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


def capture(model: LlamaForCausalLM, data: Path, out: Path, *, tokens: int, seed: int) -> None:
    """Write {layer}.{part}.f16 for every site: activations of `tokens` training tokens, BOS left out."""
    rng = np.random.default_rng(seed)
    rows = []
    for domain in DOMAINS:
        found = load_windows(data, domain, "train", CONTEXT)
        rows.append(rng.permutation(found)[: round(tokens * MIXTURE[domain] / (CONTEXT - 1))])
    ids = torch.from_numpy(rng.permutation(np.concatenate(rows)))
    taps = {
        f"{layer}.{part}": module
        for layer, block in enumerate(model.model.layers)
        for part, module in (("res", block), ("mlp", block.mlp), ("att", block.self_attn))
    }
    files = {name: (out / f"{name}.tmp").open("wb") for name in taps}
    keep = torch.empty(0)

    def writer(name: str):
        def hook(_module, _inputs, output):
            h = output[0] if isinstance(output, tuple) else output
            files[name].write(h[keep].to(torch.float16).numpy().tobytes())

        return hook

    handles = [module.register_forward_hook(writer(name)) for name, module in taps.items()]
    began = time.time()
    with torch.no_grad():
        for start in range(0, len(ids), 32):
            batch = ids[start : start + 32]
            keep = batch != 0
            model.model(input_ids=batch, use_cache=False)
            if start % 3200 == 0:
                print(f"capture {start}/{len(ids)} windows, {time.time() - began:.0f} s", flush=True)
    for handle in handles:
        handle.remove()
    for name, file in files.items():
        file.close()
        (out / f"{name}.tmp").replace(out / f"{name}.f16")


def _provider(acts: np.ndarray, mean: torch.Tensor, scale: float, seed: int) -> Iterator[torch.Tensor]:
    """Shuffled batches, centred and scaled to a mean norm of sqrt(d_model)."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(acts))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = np.sort(order[start : start + BATCH])
            yield (torch.from_numpy(acts[rows]).float() - mean) * scale


def normalisation(acts: np.ndarray) -> tuple[torch.Tensor, float]:
    """(mean [d_in], scale): (x - mean) * scale has a mean norm of sqrt(d_in)."""
    sample = torch.from_numpy(acts[:100_000]).float()
    mean = sample.mean(0)
    return mean, float(sample.shape[1] ** 0.5 / (sample - mean).norm(dim=1).mean())


def fold_in(state: dict[str, torch.Tensor], mean: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
    """Undo the normalisation inside the weights and give decoder rows unit norm.

    Trained on x' = (x - mean) scale. With n the norms of the decoder rows, an activation in the units of x
    is a = a' n / scale, so that W_enc <- n W_enc, b_enc <- n (b_enc / scale - mean W_enc),
    threshold <- n threshold / scale, W_dec <- W_dec / n and b_dec <- b_dec / scale + mean.
    """
    W_enc, W_dec = state["W_enc"], state["W_dec"]  # [d_in, n_features], [n_features, d_in]
    norm = W_dec.norm(dim=1)
    return {
        "W_enc": (W_enc * norm).T.contiguous(),
        "b_enc": norm * (state["b_enc"] / scale - mean @ W_enc),
        "threshold": norm * state["threshold"] / scale,
        "W_dec": (W_dec / norm[:, None]).contiguous(),
        "b_dec": state["b_dec"] / scale + mean,
    }


def unfold(state: dict[str, torch.Tensor], mean: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
    """The inverse of `fold_in`, with decoder rows left at unit norm."""
    W_enc = state["W_enc"].T.contiguous()
    return {
        "W_enc": W_enc,
        "b_enc": scale * (state["b_enc"] + mean @ W_enc),
        "threshold": scale * state["threshold"],
        "W_dec": state["W_dec"],
        "b_dec": (state["b_dec"] - mean) * scale,
    }


def train_site(acts_file: Path, out: Path, name: str, seed: int, start: Path | None = None) -> None:
    """Train the SAE of one site and write {name}.safetensors and {name}.json.

    From scratch, with its own seed for weights and order; or from the weights in `start`, to refine them:
    then every site sees the same tokens in the same order, which is what several SAEs trained at once see.
    """
    os.environ.setdefault("WANDB_MODE", "disabled")
    torch.set_num_threads(1)
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    recipe = RECIPES[name.split(".")[1]]
    acts = np.fromfile(acts_file, dtype=np.float16).reshape(-1, D_MODEL)
    mean, scale = normalisation(acts)
    torch.manual_seed(seed)
    sae = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=D_MODEL, d_sae=recipe.width, device="cpu", dtype="float32", normalize_activations="none",
            apply_b_dec_to_input=False, jumprelu_sparsity_loss_mode="quadratic",
            target_l0=recipe.refine_l0 if start else recipe.target_l0,
            l0_coefficient=1.0, l0_warm_up_steps=0 if start else 300, jumprelu_init_threshold=0.1,
            jumprelu_bandwidth=0.5,
        )
    )  # fmt: skip
    if start:
        sae.load_state_dict(unfold(load_file(start), mean, scale))
    steps = (recipe.refine_tokens if start else recipe.tokens) // BATCH
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, lr=LEARNING_RATE,
            lr_end=LEARNING_RATE / 100, lr_warm_up_steps=100, lr_decay_steps=int(steps * (0.5 if start else 0.3)),
            device="cpu", dead_feature_window=200, feature_sampling_window=500,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae, _provider(acts, mean, scale, SHARED_ORDER if start else seed),
    )  # fmt: skip
    began = time.time()
    trainer.fit()
    state = fold_in({k: v.detach().float() for k, v in sae.state_dict().items()}, mean, scale)
    measured = measure(state, torch.from_numpy(acts[-50_000:]).float())
    measured |= {"seconds": time.time() - began, "tokens": steps * BATCH, "seed": seed}
    save_file(state, out / f"{name}.tmp")
    (out / f"{name}.json").write_text(json.dumps(measured))
    (out / f"{name}.tmp").replace(out / f"{name}.safetensors")
    print(f"\nsae {name}: " + ", ".join(f"{k} {v:.3g}" for k, v in measured.items()), flush=True)


def measure(state: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, float]:
    """FVE, L0 and share of features silent on `x`: [n_tokens, d_in]."""
    pre = x @ state["W_enc"].T + state["b_enc"]
    acts = torch.relu(pre) * (pre > state["threshold"])
    error = x - (acts @ state["W_dec"] + state["b_dec"])
    fve = 1 - float(error.pow(2).sum() / (x - x.mean(0)).pow(2).sum())
    return {
        "fve": fve,
        "l0": float((acts > 0).sum(1).float().mean()),
        "dead": float((acts == 0).all(0).float().mean()),
    }


def train_all(acts: Path, first: Path, out: Path, *, seed: int, workers: int = 2) -> None:
    """Train every site that has no file yet, `workers` at a time, then refine those whose recipe says so.

    `first` keeps the SAEs before refining; `out` gets every site's last one.
    """
    names = sorted((p.stem for p in acts.glob("*.f16")), key=lambda n: (n.split(".")[1] != "res", n))
    numbered = list(enumerate(names))
    refined = [n for n in names if RECIPES[n.split(".")[1]].refine_tokens]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = []
        for i, name in numbered:
            folder = first if name in refined else out
            if not (folder / f"{name}.safetensors").exists():
                jobs.append(pool.submit(train_site, acts / f"{name}.f16", folder, name, seed + 1000 + i))
        for job in jobs:
            job.result()
        jobs = [
            pool.submit(train_site, acts / f"{n}.f16", out, n, seed + 1000 + i, first / f"{n}.safetensors")
            for i, n in numbered
            if n in refined and not (out / f"{n}.safetensors").exists()
        ]
        for job in jobs:
            job.result()
