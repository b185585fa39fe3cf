"""Load a Hugging Face model and tokenizer from a folder, a .gguf file or the hub; failures become saeflow errors."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import torch
import transformers
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging

from saeflow.errors import BadFile, UnknownArchitecture, UnknownRelease, Unreachable, UnsupportedFormat
from saeflow.reading import regular, safetensors
from saeflow.sources.architectures import architecture_of
from saeflow.sources.gguf_models import gguf_file, load_gguf
from saeflow.sources.remote.hub_file import reachable

_FAST: Final = "TokenizersBackend"
"""The class name that transformers 5 saves for what transformers 4 calls PreTrainedTokenizerFast."""
_FORMER: Final = {
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
}
"""An entry of `rope_parameters` -> its names in configurations of transformers 4."""
_LOCAL: Final = "rope_local_base_freq"
"""The name in transformers 4 of the rotary theta of layers with a sliding window."""
TEXTS: Final = 128 << 20
"""Largest size in bytes of a configuration, vocabulary or tokenizer file; the largest published have about 35 MB."""
_BESIDE: Final = (".json", ".txt", ".model", ".jinja")


def fetch(
    place: str | Path, dtype: torch.dtype, *, mapped: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in `dtype` and its tokenizer; the configuration is checked before any weight is read.

    With `mapped`, the user supplies a site map, so any model family is accepted.

    Raises:
        UnknownRelease: when there is no folder or repository of that name.
        Unreachable: when the hub cannot be reached or refuses the files.
        UnknownArchitecture: when the sites of this kind of model are not mapped.
        BadFile: when a folder lacks a file or holds one that cannot be read, or transformers cannot convert a GGUF
            file.
        MissingExtra: for a GGUF file, when gguf or accelerate is not installed.
        UnsupportedFormat: when the installed transformers would drop rotary settings of the file, or weights of a GGUF
            file.
    """
    gguf = gguf_file(Path(place))
    if gguf is not None:
        with without_bar():
            return load_gguf(gguf, dtype)
    folder = Path(place).is_dir()
    if Path(place).is_file():
        raise _unknown(place, "it is a file, and no .gguf.")
    if not folder and (Path(place).is_absolute() or str(place).startswith(".")):
        raise _unknown(place, "the folder does not exist.")
    if folder and not any(path for kind in ("tokenizer.*", "vocab.*") for path in Path(place).glob(kind)):
        # transformers would silently make an empty tokenizer of the family
        raise _damaged(place, "it holds no tokenizer.")
    if folder:
        _check_files(place)
    try:
        config = AutoConfig.from_pretrained(place if folder else reachable(str(place), "config.json"))
        if not mapped:
            architecture_of(config)
        if lost := lost_rope(type(config).get_config_dict(place)[0], config):
            raise UnsupportedFormat(
                f"the model {str(place)!r} was saved by transformers 5, and transformers {transformers.__version__} "
                f"would run it without {lost}. Install transformers 5 or later, or save the model with the version "
                "installed."
            )
        with without_bar():
            hf_model = cast("PreTrainedModel", AutoModelForCausalLM.from_pretrained(place, dtype=dtype))
        tokenizer = _tokenizer(place)
        tokenizer("a")  # some bad settings raise errors only at first use
        return hf_model, tokenizer
    except (UnknownArchitecture, UnsupportedFormat):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if folder:
            # on damaged files the libraries raise KeyError, TypeError, RuntimeError and (tokenizers) Exception itself
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


@contextmanager
def without_bar() -> Generator[None]:
    """Hide transformers' progress bars for reading and writing tensors, but keep huggingface_hub's for downloads."""
    if are_progress_bars_disabled() or not logging.is_progress_bar_enabled():
        yield  # some bars are already off: change nothing
        return
    logging.disable_progress_bar()
    enable_progress_bars()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _check_files(folder: str | Path) -> None:
    """Check, before transformers reads them whole, that a folder's files are regular and of plausible size.

    Raises:
        BadFile: for the first file that is not.
    """
    for path in sorted(Path(folder).iterdir()):
        try:
            if path.suffix == ".safetensors":
                safetensors(path)
            elif not path.is_dir() and regular(path) > TEXTS and path.suffix in _BESIDE:
                raise ValueError(f"it has more than {TEXTS:,} bytes")
        except (OSError, ValueError) as error:
            raise _damaged(folder, f"{path.name}: {error}.") from None


def lost_rope(stored: Mapping[str, Any], config: object) -> str:
    """Which `rope_parameters` of a file the configuration read from it has lost, in words; empty if none.

    transformers 5 writes the rotary settings there. Earlier versions look elsewhere and fall back to defaults.
    """
    kind = type(config)
    if hasattr(kind, "rope_parameters") or "rope_parameters" in inspect.signature(kind.__init__).parameters:
        return ""
    lost = [
        f"{key} {value!r} ({name}, {found!r} here)"
        for name, key, value, found in _rotary(stored, config)
        if value != found
    ]
    inner = stored.get("text_config")
    text = getattr(config, "text_config", None)
    lost += [lost_rope(inner, text)] if isinstance(inner, Mapping) and text is not None else []
    return ", ".join(filter(None, lost))


def _rotary(stored: Mapping[str, Any], config: object) -> Iterator[tuple[str, str, object, object]]:
    """Yield for each rotary setting: where it is in the file, its key, its value, and the configuration's value."""
    rope = stored.get("rope_parameters")
    rope = rope if isinstance(rope, Mapping) else {}
    kinds = {name: entry for name, entry in rope.items() if isinstance(entry, Mapping)}
    for name, entries in (kinds or {"": rope}).items():
        where = f"rope_parameters {name}".strip()
        scaling = getattr(config, "rope_scaling", None) or {}
        scaling = {} if name.startswith("sliding") else scaling
        for key, value in entries.items():
            names = (_LOCAL,) if name.startswith("sliding") and key == "rope_theta" else _FORMER.get(key, ())
            found = next((getattr(config, one) for one in names if hasattr(config, one)), scaling.get(key))
            default = key == "rope_type" and found is None
            yield where, key, value, scaling.get("type", "default") if default else found


def _tokenizer(place: str | Path) -> PreTrainedTokenizerBase:
    named = get_tokenizer_config(place).get("tokenizer_class")
    if named == _FAST and not hasattr(transformers, _FAST):
        return PreTrainedTokenizerFast.from_pretrained(place)
    return AutoTokenizer.from_pretrained(place)


def _damaged(place: str | Path, reason: str) -> BadFile:
    return BadFile(
        f"the folder {str(place)!r} does not load as a model: {reason} It needs config.json, the weights as "
        "safetensors and the tokenizer's files, as save_pretrained writes them."
    )


def _unknown(place: str | Path, reason: str) -> UnknownRelease:
    return UnknownRelease(
        f"there is no model {str(place)!r}: {reason} "
        "Give a folder that holds config.json, a .gguf file, a name on the hub, or 'demo'."
    )
