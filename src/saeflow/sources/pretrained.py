"""A Hugging Face model and tokenizer, from a folder or the hub; failures become saeflow errors."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from saeflow.errors import BadFile, UnknownArchitecture, UnknownRelease, Unreachable
from saeflow.sources.architectures import architecture_of


def fetch(place: str | Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in `dtype` and its tokenizer; the configuration is checked before any weight is read.

    Raises:
        UnknownRelease: when there is no folder or repository of that name.
        Unreachable: when the hub cannot be reached or refuses the files.
        UnknownArchitecture: when the sites of this kind of model are not mapped.
        BadFile: when a folder is there and lacks a file or holds one that cannot be read.
    """
    folder = Path(place).is_dir()
    if not folder and (Path(place).is_absolute() or str(place).startswith(".")):
        raise _unknown(place, "the folder does not exist.")
    if folder and not any(path for kind in ("tokenizer.*", "vocab.*") for path in Path(place).glob(kind)):
        # transformers would make an empty tokenizer of the family, without a word
        raise _damaged(place, "it holds no tokenizer.")
    try:
        architecture_of(str(AutoConfig.from_pretrained(place).model_type))
        hf_model = cast("PreTrainedModel", AutoModelForCausalLM.from_pretrained(place, dtype=dtype))
        tokenizer = AutoTokenizer.from_pretrained(place)
        tokenizer("a")  # what is wrong with some settings shows here first
        return hf_model, tokenizer
    except UnknownArchitecture:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if folder:
            # of spoiled files the libraries raise KeyError, TypeError, RuntimeError and, tokenizers, Exception itself
            raise _damaged(place, reason) from error
        if not isinstance(error, OSError | ValueError | SafetensorError):
            raise
        causes = (error.__cause__, error.__context__)
        gated = any(isinstance(cause, GatedRepoError) for cause in causes)
        if not gated and any(isinstance(c, RepositoryNotFoundError | HFValidationError) for c in causes):
            raise _unknown(place, reason) from error
        raise Unreachable(
            f"the model {str(place)!r} could not be fetched: {reason} Check the network and, for a model "
            "behind a licence, accept it on the hub and run `hf auth login`; or give a folder that holds the "
            "files."
        ) from error


def _damaged(place: str | Path, reason: str) -> BadFile:
    return BadFile(
        f"the folder {str(place)!r} does not load as a model: {reason} It needs config.json, the weights as "
        "safetensors and the tokenizer's files, as save_pretrained writes them."
    )


def _unknown(place: str | Path, reason: str) -> UnknownRelease:
    return UnknownRelease(
        f"there is no model {str(place)!r}: {reason} "
        "Give a folder that holds config.json, a name on the hub, or 'demo'."
    )
