"""Match features by their activations over text: by Pearson correlation (appendix C.4), or by optimal transport.

    r = (n Sxy - Sx Sy) / sqrt((n Sxx - Sx^2) (n Syy - Sy^2))        sums over n tokens, in float64

1. The texts are split into batches of a few. For each batch the model runs once, each dictionary encodes the hidden
   states of its site, and the active features on the tokens that count go to disk: one shard per batch and site.
2. Each pair of sites is correlated from these shards, both directions at once. The sums of products Sxy of one source
   feature with all targets are one sparse product over the tokens it fires on; a block of sources is correlated, ranked
   along both axes and discarded. The full matrix is never in memory, and two features that never fire together still
   get their exact, slightly negative r.
3. The tables make an atlas with the method "pearson", and the activations are removed.

With the method "transport", `matching.transport` takes the place of step 2: it compares the tokens that features fire
on, represented by hidden states at one reference site, which take one more pass.

Every file appears whole or not at all, and digests bind it to the tokens, the model and the dictionaries it was made
from, so a killed run resumes where it stopped and ends with the same bytes.

A position that is massive at either site of a pair (`sources.massive`) does not count for that pair: hundreds of
features may fire there at a hundred times their usual strength, and r would describe only that token.

A feature that never fires, or fires equally on every token, has no defined correlation: it has no matches, and is not
a match of any other feature.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, UnknownSite, WidthMismatch
from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.ids import Part, Site
from saeflow.matching.atlas import (
    MANIFEST,
    Atlas,
    Pair,
    both_ways,
    flow_pairs,
    open_atlas,
    save_manifest,
    table_entry,
    table_file,
)
from saeflow.matching.build import weights_of
from saeflow.matching.methods import EdgeEnd, rows_of
from saeflow.matching.rows import check_k
from saeflow.matching.table import MatchTable
from saeflow.matching.transport import METHOD as TRANSPORT
from saeflow.matching.transport import draw_atoms, top_transport, unit_states
from saeflow.plain_types import Progress
from saeflow.reading import SHARD, read_bytes, read_json
from saeflow.sources.activity import (
    ENCODED_AT_ONCE,
    TextBatch,
    encoded,
    encoder_digest,
    model_digest,
    site_groups,
    site_states,
    text_batches,
)
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.massive import ordinary
from saeflow.sources.model import LanguageModel
from saeflow.version import __version__

METHOD: Final = "pearson"
RUN: Final = "correlation.json"
BLOCK: Final = 256
"""Sources correlated before they are ranked: 32 MiB of float64 against 16,384 targets."""
_FORMAT: Final = "saeflow-correlation"
_SHARDS: Final = "activations"
MASSIVE: Final = "massive"
"""Key of `correlation.json`: how many positions are massive, by site; missing if there are none."""
_FIRST, _MOST_WAITING = 16, 4_000_000
"""Sources seen before the first ranking of candidates, and candidates that wait for a ranking at most."""
_CONSTANT = 1e-9
"""Below this ratio of variance to mean square, float32 activations do not distinguish the variance from 0."""


def correlate(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    texts: Sequence[str],
    *,
    out: Path | str,
    k: int = 5,
    pairs: Sequence[Pair] | None = None,
    max_length: int | None = 256,
    max_tokens: int | None = None,
    texts_at_once: int = 8,
    sites_at_once: int | None = None,
    release: str = "",
    keep_activations: bool = False,
    method: Literal["pearson", "transport"] = METHOD,
    reference: Site | None = None,
    progress: Progress | None = None,
) -> Atlas:
    """Build an atlas in the folder `out` whose scores are Pearson correlations over `texts`, in [-1, 1].

    With the method "transport" the scores are those of `matching.transport`, also in [-1, 1]. The same texts give the
    same atlas. The paper uses 100,000 tokens. Each active feature of a token takes 8 bytes on disk until the end, and
    about 40 bytes in memory while its pair of sites is matched. A feature that never fires has no match: see
    `top_correlations` for its row.

    Args:
        model: The model the dictionaries were trained on.
        dictionaries: Dictionaries by site; a `DictionarySet` reads each when it is used.
        texts: Texts to run, in order.
        out: Folder of the atlas; a killed run resumes there.
        k: Matches to keep per feature.
        pairs: Ordered pairs of sites to match, each in both directions; those of a flow graph by default.
        max_length: Cut each text to this many tokens, the begin-of-text token included.
        max_tokens: Stop after this many tokens that are not special.
        texts_at_once: Texts in one forward pass and one shard.
        sites_at_once: Dictionaries in memory at a time, all by default; fewer take more passes over the texts.
        release: Name to write into the atlas.
        keep_activations: Leave the activations in `out`, for a run with another `k`.
        method: "pearson" or "transport".
        reference: Residual site whose hidden states are transported; by default the one in the middle of the model.
        progress: Called with (done, total, what is being done).

    Raises:
        UnknownSite: when a site of `pairs` has no dictionary, no two sites are neighbours in the flow, or the model
            lacks the layer of `reference`.
        InvalidArgument: for texts with fewer than two tokens, a number out of range, a folder that holds other
            files, an unknown method, or a reference that is not residual or for the method "pearson".
        WidthMismatch: when a dictionary does not fit the model.
    """
    # 1. check the arguments, and that the folder may be written to
    out = Path(out)
    numbers = {"k": k, "max_tokens": max_tokens, "texts_at_once": texts_at_once, "sites_at_once": sites_at_once}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise InvalidArgument(f"{name}={number} is out of range. Give 1 or more.")
    if method not in (METHOD, TRANSPORT) or (
        reference is not None and (method == METHOD or reference.part is not Part.RES)
    ):
        raise InvalidArgument(
            f"method {method!r} with reference {reference} matches nothing by activations. Give {METHOD!r}, or "
            f"{TRANSPORT!r} with a residual site or none."
        )
    if method == TRANSPORT:
        reference = reference or Site(model.n_layers // 2, Part.RES)
        model.block(reference.layer)  # refuses a layer that the model does not have
    wanted = _pairs(dictionaries, pairs, k)
    if not (out / RUN).is_file() and out.is_dir() and any(out.iterdir()):
        raise InvalidArgument(f"{out} holds other files. Give an empty folder, or one of an earlier correlation.")
    model = model.as_trained(dictionaries)
    batches = text_batches(model, texts, max_length=max_length, max_tokens=max_tokens, texts_at_once=texts_at_once)
    shards = ActivationShards(out / _SHARDS, list(batches), model, dictionaries)
    writers = _begin(out, shards, wanted, max_length, reference)
    # 2. write the activations at the sites of pairs whose tables are missing
    missing = [
        pair for pair in wanted if not all(_is_done(out / table_file(*way), k, method) for way in both_ways(pair))
    ]
    sites = sorted({site for pair in missing for site in pair})
    shards.write(sites, sites_at_once or max(len(sites), 1), progress)
    if massive := {str(site): n for site in sites if (n := len(shards.massive(site)))}:
        said = cast("dict[str, Any]", read_json(out / RUN))
        said[MASSIVE] = said.get(MASSIVE, {}) | massive
        write_atomic(out / RUN, (json.dumps(said, indent=1) + "\n").encode())
    # 3. match these pairs and write their tables
    transported = _Transport(shards, reference) if reference is not None and missing else None
    for done, pair in enumerate(missing):
        if progress:
            progress(done, len(missing), f"{pair[0]} and {pair[1]}")
        ranked = transported.top(*pair, k) if transported else top_correlations(*shards.read_pair(*pair), k)
        for (source, target), found in zip(both_ways(pair), ranked, strict=True):
            made_from, n_target = (writers[source], writers[target]), dictionaries[target].n_features
            table = MatchTable(source, target, method, n_target, found.index, found.score, made_from)
            table.save(out / table_file(source, target))
    if progress:
        progress(len(missing), len(missing), "done")
    files = {way: table_entry(out, *way) for pair in wanted for way in both_ways(pair)}
    weights = weights_of(dictionaries, writers)
    save_manifest(Atlas(out, release, model.name, k, f"saeflow {__version__}", files, method, weights=weights))
    if not keep_activations:
        shutil.rmtree(out / _SHARDS, ignore_errors=True)
    return open_atlas(out)


def _pairs(dictionaries: Mapping[Site, Dictionary], pairs: Sequence[Pair] | None, k: int) -> list[Pair]:
    """The pairs to match by `k`; if a pair and its reverse are given, only the first of them."""
    wanted = flow_pairs(list(dictionaries)) if pairs is None else list(pairs)
    have = ", ".join(str(s) for s in sorted(dictionaries)) or "none"
    for site in (site for pair in wanted for site in pair):
        if site not in dictionaries:
            raise UnknownSite(f"there is no dictionary at {site} to correlate. There are: {have}.")
    if not wanted:
        raise UnknownSite(
            f"no residual site has a predecessor among the sites found ({have}). A flow needs two; or give pairs."
        )
    kept: dict[frozenset[Site], Pair] = {}
    for pair in wanted:
        kept.setdefault(frozenset(pair), pair)
        check_k(k, min(dictionaries[site].n_features for site in pair), f"features at {pair[0]} or {pair[1]}")
    return list(kept.values())


def _begin(
    out: Path, shards: ActivationShards, pairs: Sequence[Pair], max_length: int | None, reference: Site | None
) -> dict[Site, str]:
    """Describe the run in `correlation.json`, remove what another run left, and return the decoders' fingerprints."""
    writers: dict[Site, str] = {}
    encoders: dict[str, str] = {}
    for site in sorted({site for pair in pairs for site in pair}):
        dictionary = shards.dictionaries[site]
        writers[site] = rows_of(dictionary, EdgeEnd.CHILD, projector=shards.model).fingerprint
        encoders[str(site)] = encoder_digest(dictionary, shards.model)
        dictionary.unload()
    stated = {
        "format": _FORMAT,
        "version": 2,
        "texts": shards.n_texts,
        "tokens": shards.n_tokens,
        "max_length": max_length,
        "model_and_tokens": shards.key,
        "encoders": encoders,
        "decoders": {str(site): writer for site, writer in writers.items()},
    }
    if reference is not None:
        stated["reference"] = str(reference)
    try:
        earlier: Any = read_json(out / RUN)
    except (OSError, ValueError):
        earlier = None
    if isinstance(earlier, dict) and MASSIVE in earlier:
        stated[MASSIVE] = earlier[MASSIVE]
    if earlier != stated:
        stated.pop(MASSIVE, None)
        shutil.rmtree(out / _SHARDS, ignore_errors=True)
        for table in out.glob("*.safetensors"):
            table.unlink()
    write_atomic(out / RUN, (json.dumps(stated, indent=1) + "\n").encode())
    # no manifest may vouch for tables while they are being replaced
    (out / MANIFEST).unlink(missing_ok=True)
    return writers


def _is_done(path: Path, k: int, method: str) -> bool:
    try:
        table = MatchTable.load(path)
    except BadFile:
        return False
    return table.k == k and table.method == method


# Active features on disk


@dataclass(frozen=True, eq=False)
class ActivationShards:
    """The active features of batches of text at the sites of `dictionaries`, as shards under `folder`."""

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
        """A digest of the model, the tokens, and which of them count."""
        digest = hashlib.sha256(model_digest(self.model).encode())
        for tensor in (t for batch in self.batches for t in (batch.tokens.input_ids, batch.real)):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def write(self, sites: Sequence[Site], at_once: int, progress: Progress | None = None) -> None:
        """Write every missing shard of `sites`, with `at_once` dictionaries in memory at a time.

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
                    data = _shard_bytes(self.dictionaries[site], h[batch.real], ordinary(h, batch.real)[batch.real])
                    write_atomic(self._shard(site, number), add_sha256(data))
                done += 1

    def read(self, site: Site) -> sp.csc_array:
        """Read the activations at a site from its shards, tokens by features; all 0 at massive positions.

        Raises:
            BadFile: when a shard is missing or cannot be read.
        """
        width = self.dictionaries[site].n_features
        parts = [
            sp.csr_array((held["value"], held["index"], held["indptr"]), shape=(len(held["indptr"]) - 1, width))
            for held in self._shards_of(site)
        ]
        return sp.csc_array(sp.vstack(parts, format="csc"))

    def massive(self, site: Site) -> Int64[np.ndarray, " n"]:
        """The numbers, ascending, of the tokens that count and are massive at a site.

        Raises:
            BadFile: when a shard is missing or cannot be read.
        """
        begins = np.cumsum([0, *(batch.n_tokens for batch in self.batches)])
        parts = [begin + held["massive"] for begin, held in zip(begins, self._shards_of(site), strict=False)]
        return np.concatenate(parts)

    def read_pair(self, a: Site, b: Site) -> tuple[sp.csc_array, sp.csc_array]:
        """Read the activations at two sites, on the tokens that are massive at neither.

        Raises:
            BadFile: when a shard is missing or cannot be read.
        """
        x, y = self.read(a), self.read(b)
        left_out = np.union1d(self.massive(a), self.massive(b))
        if not len(left_out):
            return x, y
        kept = np.setdiff1d(np.arange(self.n_tokens), left_out)
        return sp.csc_array(sp.csr_array(x)[kept]), sp.csc_array(sp.csr_array(y)[kept])

    def _shards_of(self, site: Site) -> Iterator[dict[str, np.ndarray]]:
        for number in range(len(self.batches)):
            yield read_shard(self._shard(site, number))

    def _shard(self, site: Site, number: int) -> Path:
        return self.folder / f"{site.layer}.{site.part.value}" / f"{number:06d}.safetensors"


class _Transport:
    """The tokens that the features of every site fire on, as hidden states of the reference site."""

    def __init__(self, shards: ActivationShards, reference: Site) -> None:
        self.shards, self.atoms = shards, dict[Site, Int64[np.ndarray, "n_features atoms"]]()
        states = np.empty((shards.n_tokens, shards.model.d_model), np.float32)
        counts = np.empty(shards.n_tokens, np.bool_)
        start = 0
        for batch in shards.batches:
            h = shards.model.capture(batch.tokens, [reference])[reference].float()
            here = slice(start, start + batch.n_tokens)
            counts[here] = ordinary(h, batch.real)[batch.real].cpu().numpy()
            states[here] = h[batch.real].cpu().numpy()
            start = here.stop
        self.states = unit_states(states, counts)

    def top(self, source: Site, target: Site, k: int) -> tuple[RankedFeatures, ...]:
        """The `k` best matches of each feature, in both directions."""
        for site in (source, target):
            if site not in self.atoms:
                self.atoms[site] = draw_atoms(self.shards.read(site))
        found = top_transport(self.atoms[source], self.atoms[target], self.states, k)
        return tuple(RankedFeatures.of(index, score) for index, score in found)


def read_shard(path: Path) -> dict[str, np.ndarray]:
    """Read what `ActivationShards` wrote for one batch at one site: sparse activations and the massive tokens.

    Raises:
        BadFile: when it is missing or cannot be read.
    """
    try:
        held = load(check_sha256(read_bytes(path, SHARD)))
        return {name: held[name] for name in ("indptr", "index", "value", "massive")}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BadFile(
            f"{path} is no readable shard of activations ({error}). Remove it and run the same again."
        ) from None


def _shard_bytes(dictionary: Dictionary, h: Float[Tensor, "n d_in"], counts_here: Bool[Tensor, " n"]) -> bytes:
    """The active features of some tokens, `indptr`, `index` and `value` of a CSR matrix, and the `massive` tokens."""
    counts: list[np.ndarray] = [np.zeros(1, np.int64)]
    index: list[np.ndarray] = [np.zeros(0, np.int32)]
    value: list[np.ndarray] = [np.zeros(0, np.float32)]
    for every, kept in zip(encoded(dictionary, h), counts_here.split(ENCODED_AT_ONCE), strict=True):
        acts = every * kept[:, None]
        row, column = acts.nonzero(as_tuple=True)
        counts.append(torch.bincount(row, minlength=len(acts)).cpu().numpy())
        index.append(column.to(torch.int32).cpu().numpy())
        value.append(acts[row, column].float().cpu().numpy())
    indptr = np.concatenate(counts).cumsum().astype(np.int32)
    massive = (~counts_here).nonzero().flatten().to(torch.int32).cpu().numpy()
    return save({"indptr": indptr, "index": np.concatenate(index), "value": np.concatenate(value), "massive": massive})


# Correlation


@dataclass(frozen=True, slots=True, eq=False)
class RankedFeatures:
    """The best `k` columns of each row, best first, and their scores."""

    index: Int32[np.ndarray, "n k"]
    score: Float32[np.ndarray, "n k"]

    @staticmethod
    def of(index: Int64[np.ndarray, "n k"], r: Float[np.ndarray, "n k"]) -> RankedFeatures:
        """Matches as tables store them: index 0 where r is -inf, and |r| cut to 1, which rounding may exceed."""
        score = np.where(np.isfinite(r), np.clip(r, -1.0, 1.0), r).astype(np.float32)
        return RankedFeatures(np.where(np.isneginf(score), 0, index).astype(np.int32), score)


@dataclass(frozen=True, eq=False)
class FeatureMoments:
    """Sums over `n` tokens of every feature's activation and of its square."""

    n: int
    total: Float64[np.ndarray, " n_features"]
    squares: Float64[np.ndarray, " n_features"]

    @staticmethod
    def of(acts: sp.csc_array) -> FeatureMoments:
        """The moments of activations, tokens by features."""
        n, _ = size(acts)
        every = np.ones(n)
        squared = sp.csc_array((acts.data.astype(np.float64) ** 2, acts.indices, acts.indptr), shape=acts.shape)
        total, squares = acts.T @ every, squared.T @ every
        return FeatureMoments(n, total, squares)

    @cached_property
    def spread(self) -> Float64[np.ndarray, " n_features"]:
        """sqrt(n Sxx - Sx^2), n times the standard deviation; 0 for a constant feature."""
        variance = self.n * self.squares - self.total**2
        return np.sqrt(np.where(variance > _CONSTANT * self.n * self.squares, variance, 0.0))

    @property
    def constant(self) -> Bool[np.ndarray, " n_features"]:
        """Which features have no correlation: they never fire, or fire equally on every token."""
        return self.spread == 0.0

    @cached_property
    def inverse(self) -> Float64[np.ndarray, " n_features"]:
        """1 / spread; 0 for a constant feature."""
        return np.divide(1.0, self.spread, out=np.zeros_like(self.spread), where=self.spread > 0.0)


def top_correlations(
    x: sp.csc_array, y: sp.csc_array, k: int, *, block: int = BLOCK
) -> tuple[RankedFeatures, RankedFeatures]:
    """The `k` columns of `y` that correlate best with each column of `x`, and the other way round.

    Scores are r in [-1, 1]. If two are equal to the bit the lower index comes first, except at place `k`, where
    either may be kept. Index 0 with score -inf marks a missing match: for a constant column, and where fewer than
    `k` columns of the other side vary. No score is NaN.

    Args:
        x: activations, tokens by source features, without duplicate entries.
        y: activations of the target features on the same tokens.
        k: matches to keep per feature.
        block: sources in memory at a time, against all targets; the answer does not depend on it.

    Raises:
        WidthMismatch: when the two differ in their number of tokens.
        InvalidArgument: when `k` is not between 1 and the smaller number of features, `block` is below 1, or there
            are no tokens.
    """
    (n, n_source), (m, n_target) = size(x), size(y)
    if n != m:
        raise WidthMismatch(
            f"activations on {n} tokens cannot be correlated with activations on {m}. Encode the same tokens at "
            "both sites."
        )
    if n == 0:
        raise InvalidArgument("there are no tokens to correlate over. Give texts with at least two tokens.")
    smaller = min(n_source, n_target)
    check_k(k, smaller, "features")
    if block < 1:
        raise InvalidArgument(f"block={block} holds no feature. Give 1 or more.")
    mx, my, rows_of_y = FeatureMoments.of(x), FeatureMoments.of(y), sp.csr_array(y)
    forward: list[tuple[np.ndarray, np.ndarray]] = []
    backward = _BestSources(n_target, k)
    for start in range(0, n_source, block):
        r = _correlations(x, rows_of_y, mx, my, range(start, min(start + block, n_source)))
        score, index = (found.numpy() for found in torch.from_numpy(r).topk(k, dim=1))
        order = np.lexsort((index, -score), axis=1)
        forward.append((np.take_along_axis(index, order, 1), np.take_along_axis(score, order, 1)))
        backward.add(r, start)
    backward.rank()
    index, score = (np.concatenate(parts) for parts in zip(*forward, strict=True))
    return RankedFeatures.of(index, score), RankedFeatures.of(backward.index, backward.score)


def _correlations(
    x: sp.csc_array, y: sp.csr_array, mx: FeatureMoments, my: FeatureMoments, sources: range
) -> Float64[np.ndarray, "n_source n_target"]:
    """r of the source features `sources` with every target, -inf where it is not defined."""
    mean_y, undefined = my.total * my.inverse, np.flatnonzero(my.constant)
    out = np.empty((len(sources), len(my.total)))
    for row, i in zip(out, sources, strict=True):
        if mx.constant[i]:
            row[:] = -np.inf
            continue
        here = slice(x.indptr[i], x.indptr[i + 1])
        # only the tokens the source fires on: their rows of y, weighted and summed in one pass
        fired, value = x.indices[here], x.data[here].astype(np.float64)
        np.multiply(y[fired].T @ (value * (mx.n * mx.inverse[i])), my.inverse, out=row)
        np.subtract(row, mean_y * (mx.total[i] * mx.inverse[i]), out=row)
        row[undefined] = -np.inf
    return out


class _BestSources:
    """The best `k` sources of every target so far.

    Candidates that beat the k-th best of their target wait in a list. They are ranked whenever the number of
    sources seen has doubled, which is about as often as the k-th best still changes much.
    """

    def __init__(self, n: int, k: int) -> None:
        self.index: Int64[np.ndarray, "n k"] = np.full((n, k), -1, dtype=np.int64)
        self.score: Float64[np.ndarray, "n k"] = np.full((n, k), -np.inf)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._seen, self._next = 0, _FIRST

    def add(self, r: Float64[np.ndarray, "n_source n_target"], offset: int) -> None:
        """Take in a block of sources, numbered from `offset`."""
        done = 0
        while done < len(r):
            # the first blocks are short: until a target has k matches every source is a candidate
            part = r[done : done + max(self._next - self._seen, 1)]
            source, target = np.nonzero(part > self.score[:, -1].copy())
            self._waiting.append((target, source + (offset + done), part[source, target]))
            self._seen, done = self._seen + len(part), done + len(part)
            waiting = sum(len(found[0]) for found in self._waiting)
            if self._seen >= self._next or waiting > _MOST_WAITING:
                self.rank()

    def rank(self) -> None:
        """Rank what waits: `index` and `score` then cover all sources seen, -inf where fewer than `k` have an r."""
        n, k = self.index.shape
        self._next = 2 * self._seen
        target = np.concatenate([np.repeat(np.arange(n), k), *(found[0] for found in self._waiting)])
        index = np.concatenate([self.index.ravel(), *(found[1] for found in self._waiting)])
        score = np.concatenate([self.score.ravel(), *(found[2] for found in self._waiting)])
        order = np.lexsort((index, -score, target))
        kept = order[np.searchsorted(target[order], np.arange(n))[:, None] + np.arange(k)]
        self.index, self.score = index[kept], score[kept]
        self._waiting.clear()


def size(acts: sp.csc_array | sp.csr_array) -> tuple[int, int]:
    """The numbers of tokens and of features of activations."""
    return cast("tuple[int, int]", acts.shape)
