"""Put the pack together: half-precision model, dictionaries, atlas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saeflow.ids import Part, Site
from saeflow.matching.atlas import Atlas
from saeflow.matching.build import build_atlas
from saeflow.matching.calibration import calibrate
from saeflow.sources.activations import JumpReLU
from saeflow.sources.dictionary import Dictionary, Tap
from saeflow.sources.formats import save_release
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model

from .corpus import BOS

NAME = "saeflow-demo"
RAREST = 1e-5


def write_model(final: Path, tokenizer: Path, out: Path) -> None:
    """The trained model and its tokenizer as a Hugging Face folder in float16."""
    out.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM.from_pretrained(final).to(torch.float16).save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(tokenizer)), bos_token=BOS, eos_token=BOS, pad_token=BOS,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)


def open_model(folder: Path) -> LanguageModel:
    return load_model(str(folder))


def _kept(state: dict[str, Tensor], acts: Path) -> dict[str, Tensor]:
    """The features that fire on at least RAREST of the captured tokens: a silent row is no feature to trace.

    Nothing else changes: features left out contribute to no reconstruction on those tokens, or to next to none.
    """
    rows = np.memmap(acts, dtype=np.float16, mode="r").reshape(-1, state["W_enc"].shape[1])
    fired = torch.zeros(len(state["b_enc"]))
    for start in range(0, len(rows), 20_000):
        x = torch.from_numpy(rows[start : start + 20_000].astype(np.float32))
        fired += (x @ state["W_enc"].T + state["b_enc"] > state["threshold"]).sum(0)
    keep = fired >= RAREST * len(rows)
    return {name: t if name == "b_dec" else t[keep].contiguous() for name, t in state.items()}


def write_dictionaries(trained: Path, acts: Path, out: Path) -> tuple[DictionarySet, Atlas]:
    """The SAEs as a saeflow folder in float16, and their atlas, from what was written.

    Modules of a small model have few directions, and their dictionaries keep the features that fire; those
    of the residual stream keep their full width.
    """
    found: dict[Site, Dictionary] = {}
    for path in sorted(trained.glob("*.safetensors")):
        layer, part = path.stem.split(".")
        state = load_file(path)
        if part != "res":
            state = _kept(state, acts / f"{path.stem}.f16")
        site = Site(int(layer), Part(part))
        found[site] = Dictionary(
            site, tap=Tap(part), W_enc=state["W_enc"], b_enc=state["b_enc"], W_dec=state["W_dec"],
            b_dec=state["b_dec"], activation=JumpReLU(state["threshold"]),
        )  # fmt: skip
    save_release(out / "saes", found, name="demo", model=NAME)
    dictionaries = load_dictionaries(out / "saes")
    atlas = build_atlas(dictionaries, out=out / "atlas", k=5, release="demo", model=NAME)
    return dictionaries, calibrate(dictionaries, atlas)
