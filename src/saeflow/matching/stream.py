"""Active features of a stream of text at many sites, kept on disk as sparse shards (appendix C.4).

The texts are cut into batches of a few texts. For each batch the model runs once, each dictionary encodes
the hidden states of its site, and what is active on the tokens that count goes to disk, one shard per batch and
site, whole or not at all. A stream is bound to its tokens, model and dictionaries by digests, so that what a killed run
left is used again, and nothing else is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from saeflow.errors import BadFile
from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.ids import Site
from saeflow.reading import SHARD, read_bytes
from saeflow.records import Progress
from saeflow.sources.activity import TextBatch, encoded, model_digest, site_groups, site_states
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel


@dataclass(frozen=True, eq=False)
class Stream:
    """The active features of some batches of text at the sites of `dictionaries`, as shards under `folder`."""

    folder: Path
    batches: list[TextBatch]
    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]

    @property
    def n_texts(self) -> int:
        """How many texts there are."""
        return sum(len(batch.real) for batch in self.batches)

    @property
    def n_tokens(self) -> int:
        """How many tokens count."""
        return sum(int(batch.real.sum()) for batch in self.batches)

    @cached_property
    def key(self) -> str:
        """A digest of the model, of the tokens and of which of them count."""
        digest = hashlib.sha256(model_digest(self.model).encode())
        for tensor in (t for batch in self.batches for t in (batch.tokens.input_ids, batch.real)):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def write(self, sites: Sequence[Site], at_once: int, progress: Progress | None = None) -> None:
        """Write every shard of `sites` that is missing; `at_once` dictionaries are in memory at a time.

        Raises:
            UnknownSite: for a site the model or the dictionaries do not have.
            WidthMismatch: when a dictionary does not fit the model.
        """
        done, steps = 0, -(-len(sites) // at_once) * len(self.batches)
        for group in site_groups(self.dictionaries, sites, at_once):
            for number, batch in enumerate(self.batches):
                missing = [site for site in group if not self._shard(site, number).is_file()]
                if missing and progress:
                    progress(done, steps, f"texts at {group[0]} to {group[-1]}")
                states = site_states(self.model, self.dictionaries, missing, batch.tokens) if missing else {}
                for site, h in states.items():
                    data = _shard_bytes(self.dictionaries[site], h[batch.real])
                    write_atomic(self._shard(site, number), add_sha256(data))
                done += 1

    def read(self, site: Site) -> sp.csc_array:
        """The activations at a site, tokens by features, from its shards.

        Raises:
            BadFile: when a shard is missing or cannot be read.
        """
        width = self.dictionaries[site].n_features
        parts = [_read_shard(self._shard(site, number), width) for number in range(len(self.batches))]
        return sp.csc_array(sp.vstack(parts, format="csc"))

    def _shard(self, site: Site, number: int) -> Path:
        return self.folder / f"{site.layer}.{site.part.value}" / f"{number:06d}.safetensors"


def _shard_bytes(dictionary: Dictionary, h: Float[Tensor, "n d_in"]) -> bytes:
    """The active features of some tokens: `indptr`, `index`, `value`, as in a CSR matrix."""
    counts: list[np.ndarray] = [np.zeros(1, np.int64)]
    index: list[np.ndarray] = [np.zeros(0, np.int32)]
    value: list[np.ndarray] = [np.zeros(0, np.float32)]
    for acts in encoded(dictionary, h):
        row, column = acts.nonzero(as_tuple=True)
        counts.append(torch.bincount(row, minlength=len(acts)).cpu().numpy())
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
