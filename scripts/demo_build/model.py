"""Train the demo model: a Llama of six layers on the five domains.

Pre-norm blocks, rotary positions, tied embeddings. AdamW with a cosine schedule. A checkpoint is saved
every 200 steps; a killed build resumes from it with the same batches.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .corpus import DOMAINS, VOCAB_SIZE, load_windows

CONTEXT = 256
D_MODEL = 192
BATCH = 32
PEAK_LR = 3e-3
WARM_UP = 60
# Share of the training windows per domain: roughly its size, with maths and stories slightly increased.
MIXTURE = {"stories": 0.25, "novels": 0.18, "textbooks": 0.22, "maths": 0.13, "python": 0.22}


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=D_MODEL,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.02,
    )


def batches(data: Path, steps: int, seed: int) -> np.ndarray:
    """All training windows in training order: [about steps * BATCH, CONTEXT], a multiple of BATCH."""
    rng = np.random.default_rng(seed)
    total = steps * BATCH
    chosen = []
    for domain in DOMAINS:
        rows = load_windows(data, domain, "train", CONTEXT)
        need = round(total * MIXTURE[domain])
        order = np.concatenate([rng.permutation(len(rows)) for _ in range(math.ceil(need / len(rows)))])
        chosen.append(rows[order[:need]])
    mixed = np.concatenate(chosen)
    mixed = mixed[rng.permutation(len(mixed))]
    return mixed[: len(mixed) // BATCH * BATCH]


def learning_rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return PEAK_LR * (step + 1) / WARM_UP
    return PEAK_LR * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP))))


def train(data: Path, out: Path, *, steps: int, seed: int = 0) -> LlamaForCausalLM:
    """Train for `steps` batches of BATCH x CONTEXT tokens, resuming from out/checkpoint.pt if it exists."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config())
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)
    rows = batches(data, steps, seed)
    steps = len(rows) // BATCH
    checkpoint = out / "checkpoint.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        print(f"resuming the model at step {start}", flush=True)

    @torch.compile
    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    began, shown = time.time(), 0.0
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        ids = torch.from_numpy(rows[step * BATCH : (step + 1) * BATCH])
        loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        shown = loss.item() if step == start else 0.95 * shown + 0.05 * loss.item()
        if (step + 1) % 20 == 0:
            speed = (step + 1 - start) * BATCH * CONTEXT / (time.time() - began)
            left = (steps - step - 1) * BATCH * CONTEXT / speed / 60
            print(f"model {step + 1}/{steps} loss {shown:.3f}  {speed:,.0f} tokens/s  {left:.0f} min left", flush=True)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return model
