"""Active features of a stream of text at many sites, kept on disk as sparse shards (appendix C.4).

The texts are cut into units of a few texts. For each unit the model runs once, each dictionary encodes
the hidden states of its site, and what is active on the real tokens goes to disk, one shard a unit and
site, whole or not at all. Special tokens (begin, end, padding, whatever the tokenizer calls special) are
left out. A stream is bound to its tokens, model and dictionaries by digests, so that what a killed run
left is used again, and nothing else is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.ids import Site
from saeflow.reading import SHARD, read_bytes
from saeflow.records import Progress
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.sources.modules import parameters_of
from saeflow.sources.tokens import Tokens

ENCODED_AT_ONCE: Final = 1024
"""Tokens whose dense activations are in memory at a time: 64 MiB at 16,384 features."""


def special_tokens(model: LanguageModel, tokens: Tokens) -> Bool[Tensor, "batch pos"]:
    """Which tokens are not text: padding, and every id the tokenizer calls special."""
    ids = torch.tensor(model.tokenizer.all_special_ids, dtype=torch.long, device=tokens.input_ids.device)
    return (tokens.attention_mask == 0) | torch.isin(tokens.input_ids, ids)


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Some texts as tokens, and which of the tokens count."""

    tokens: Tokens
    real: Bool[Tensor, "batch pos"]


def cut_into_units(
    model: LanguageModel,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    max_tokens: int | None = None,
    texts_at_once: int = 8,
) -> list[Unit]:
    """The texts in units of `texts_at_once`, up to `max_tokens` tokens that are not special.

    Raises:
        InvalidArgument: when fewer than two tokens are left.
    """
    units: list[Unit] = []
    left = max_tokens
    for start in range(0, len(texts), texts_at_once):
        tokens = model.tokenize(texts[start : start + texts_at_once], max_length=max_length)
        real = ~special_tokens(model, tokens)
        if left is not None:
            real &= (real.flatten().cumsum(0) <= left).view_as(real)
            left -= int(real.sum())
        units.append(Unit(tokens, real))
        if left == 0:
            break
    found = sum(int(unit.real.sum()) for unit in units)
    if found < 2:
        raise InvalidArgument(
            f"{len(texts)} texts hold {found} tokens that are not special, and a correlation needs two or more. "
            "Give longer texts, or more."
        )
    return units


@dataclass(frozen=True, eq=False)
class Stream:
    """The active features of some units of text at the sites of `dictionaries`, as shards under `folder`."""

    folder: Path
    units: list[Unit]
    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]

    @property
    def n_texts(self) -> int:
        """How many texts there are."""
        return sum(len(unit.real) for unit in self.units)

    @property
    def n_tokens(self) -> int:
        """How many tokens count."""
        return sum(int(unit.real.sum()) for unit in self.units)

    @cached_property
    def key(self) -> str:
        """A digest of the model, of the tokens and of which of them count."""
        digest = hashlib.sha256(model_digest(self.model).encode())
        for tensor in (t for unit in self.units for t in (unit.tokens.input_ids, unit.real)):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def write(self, sites: Sequence[Site], at_once: int, progress: Progress | None = None) -> None:
        """Write every shard of `sites` that is missing; `at_once` dictionaries are in memory at a time.

        Raises:
            UnknownSite: for a site the model or the dictionaries do not have.
            WidthMismatch: when a dictionary does not fit the model.
        """
        groups = [sites[i : i + at_once] for i in range(0, len(sites), at_once)]
        steps = [(group, number) for group in groups for number in range(len(self.units))]
        for done, (group, number) in enumerate(steps):
            missing = [site for site in group if not self._shard(site, number).is_file()]
            if missing:
                if progress:
                    progress(done, len(steps), f"texts at {group[0]} to {group[-1]}")
                for site, data in self._encoded(missing, self.units[number]):
                    write_atomic(self._shard(site, number), add_sha256(data))
            if number == len(self.units) - 1:
                for site in group:
                    self.dictionaries[site].unload()

    def read(self, site: Site) -> sp.csc_array:
        """The activations at a site, tokens by features, from its shards.

        Raises:
            BadFile: when a shard is missing or cannot be read.
        """
        width = self.dictionaries[site].n_features
        parts = [_read_shard(self._shard(site, number), width) for number in range(len(self.units))]
        return sp.csc_array(sp.vstack(parts, format="csc"))

    def _encoded(self, sites: Sequence[Site], unit: Unit) -> Iterator[tuple[Site, bytes]]:
        places = {site: self.dictionaries[site].point for site in sites}
        held = self.model.capture(unit.tokens, places.values())
        for site, place in places.items():
            yield site, _shard_bytes(self.dictionaries[site], held[place][unit.real])

    def _shard(self, site: Site, number: int) -> Path:
        return self.folder / f"{site.layer}.{site.part.value}" / f"{number:06d}.safetensors"


def encoder_digest(dictionary: Dictionary, model: LanguageModel) -> str:
    """A digest of everything `encode` uses, of where it reads, and of the kind of device.

    Raises:
        BadFile: when a tensor read at first use is bad.
    """
    activation = dictionary.activation
    said = f"{dictionary.point} {dictionary.preprocessing} {activation.kind} {model.device.type}"
    digest = hashlib.sha256(said.encode())
    numbers: list[Tensor] = [dictionary.W_enc, dictionary.b_enc]
    if dictionary.preprocessing.subtract_b_dec:
        numbers.append(dictionary.b_dec)
    numbers += [torch.as_tensor(getattr(activation, n)) for n in ("threshold", "k") if hasattr(activation, n)]
    for tensor in numbers:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_digest(model: LanguageModel) -> str:
    """Tells models apart: every parameter's name, shape, dtype and first values, and how texts are begun."""
    digest = hashlib.sha256()
    if not model.prepend_bos and model.tokenizer.bos_token_id is not None:
        digest.update(b"texts without the begin-of-text token")
    for name, tensor in parameters_of(model.hf_model):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().reshape(-1)[:4096].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _shard_bytes(dictionary: Dictionary, h: Float[Tensor, "n d_in"]) -> bytes:
    """The active features of some tokens: `indptr`, `index`, `value`, as in a CSR matrix."""
    counts: list[np.ndarray] = [np.zeros(1, np.int64)]
    index: list[np.ndarray] = [np.zeros(0, np.int32)]
    value: list[np.ndarray] = [np.zeros(0, np.float32)]
    with torch.no_grad():
        for some in h.split(ENCODED_AT_ONCE):
            acts = dictionary.encode(some)
            row, column = acts.nonzero(as_tuple=True)
            counts.append(torch.bincount(row, minlength=len(some)).cpu().numpy())
            index.append(column.to(torch.int32).cpu().numpy())
            value.append(acts[row, column].float().cpu().numpy())
    indptr = np.concatenate(counts).cumsum().astype(np.int32)
    return save({"indptr": indptr, "index": np.concatenate(index), "value": np.concatenate(value)})


def _read_shard(path: Path, width: int) -> sp.csr_array:
    try:
        held = load(check_sha256(read_bytes(path, SHARD)))
        index, value, indptr = held["index"], held["value"], held["indptr"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BadFile(
            f"{path} is no readable shard of activations ({error}). Remove it and run the same again."
        ) from None
    return sp.csr_array((value, index, indptr), shape=(len(indptr) - 1, width))
