"""Words for a release nobody labelled, from the model and any text.

    make_words(load_model("demo"), load_dictionaries("demo"), texts, out="words")

The text streams by once for all sites (once for each group of `sites_at_once`, if memory is short): the model runs,
each dictionary encodes, and `gather` keeps for each feature the strongest passages and some random ones, the tokens
with the highest mean activation, a histogram of its activations and the share of tokens it fires on. A position that is
massive at a site (`sources.massive`) does not count there: the features that fire on it, often hundreds, do so because
of its size. Then come the logit lens of the feature's row, the rows nearest to it, and a label of its four strongest
tokens. A killed run resumes from its last checkpoint, and ends in the same bytes.

Next to the words of a site lies `{layer}.{part}.controls.jsonl.gz`: passages drawn at random, with the features that
fire in each. `detection` takes its silent examples from them.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from saeflow.errors import InvalidArgument
from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.ids import Site
from saeflow.labels.folders import LOCAL, VERSION, read_about, write_about
from saeflow.labels.gather import BINS, DRAWN, Control, FeatureStatistics, GatherState, PassageSlots, means, ranks
from saeflow.labels.lines import is_whole, write_lines
from saeflow.labels.neuronpedia import CONTEXTS, TOKENS
from saeflow.labels.words import (
    AFTER,
    BEFORE,
    ActivationHistogram,
    Context,
    FeatureWords,
    label_of,
    sentence_span,
    words_path,
    write_words,
)
from saeflow.plain_types import Progress
from saeflow.reading import SHARD, read_bytes
from saeflow.sources.activity import TextBatch, encoder_digest, model_digest, site_groups, site_states
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.massive import RATIO, ordinary
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Spelling

CONTROLS: Final = 128
"""Maximum passages drawn at random, at most one from each text."""

AT_ONCE: Final = 1 << 26
"""Numbers in memory at a time: activations of some texts, or logits of some features."""

NEAR: Final = 5
"""Nearest rows of the same dictionary listed for each feature."""

QUARTERS: Final = 4
"""Equal parts of a feature's activations, by quantile; a passage is shown from each."""

_SHOWN: Final = (BEFORE, AFTER, DRAWN, BINS, NEAR)
_UNFINISHED: Final = ".making"


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, and a name for where it came from."""

    text: str
    source: str = ""


def make_words(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    texts: Iterable[str] | Iterable[Passage],
    out: Path,
    *,
    sites: Iterable[Site] | None = None,
    contexts: int = CONTEXTS,
    max_length: int = 128,
    max_tokens: int | None = None,
    texts_at_once: int = 16,
    sites_at_once: int | None = None,
    seed: int = 0,
    release: str = "",
    checkpoint_seconds: float = 60.0,
    progress: Progress | None = None,
) -> Path:
    """Make words for every feature of some sites, and write them as a folder of words; returns the folder.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: dictionaries by site.
        texts: any texts; they are read again for each group of sites and after a kill, so a generator, which can be
            read only once, is refused. Empty texts are skipped.
        out: the folder. An unfinished run resumes there if it is the same run.
        sites: which sites; all of `dictionaries` when None.
        contexts: passages shown per feature.
        max_length: maximum tokens per text, including the begin-of-text token.
        max_tokens: stop after this many tokens that are not special.
        texts_at_once: texts per forward pass. Words depend on it through the rounding of matrix products.
        sites_at_once: dictionaries in memory at a time; all when None.
        seed: determines which passages are the controls.
        release: name of the dictionaries, recorded in the folder.
        checkpoint_seconds: seconds of work between two checkpoints; 0 makes one after each batch of texts.
        progress: called with (texts done over all groups, texts in all or 0 if unknown, what).

    Raises:
        InvalidArgument: for a number out of range, a generator, or texts without a token.
        UnknownSite: for a site that the model or the dictionaries do not have.
        WidthMismatch: when a dictionary does not fit the model.
        OSError: when the folder cannot be written.
    """
    for name, value in (("contexts", contexts), ("max_length", max_length), ("texts_at_once", texts_at_once)):
        if value < 1:
            raise InvalidArgument(f"{name} = {value}. Give 1 or more.")
    if isinstance(texts, str) or iter(cast("Iterable[Any]", texts)) is texts:
        raise InvalidArgument(
            f"texts are read more than once, and this {type(texts).__name__} cannot be. Give a list, or an object "
            "whose __iter__ begins anew."
        )
    asked = sorted(dictionaries if sites is None else set(sites))
    n_groups = -(-len(asked) // (sites_at_once or max(len(asked), 1)))
    n_texts = len(texts) if isinstance(texts, Sized) else 0
    model = model.as_trained(dictionaries)
    said = [contexts, max_length, max_tokens, texts_at_once, seed, VERSION, RATIO, model_digest(model), *_SHOWN]
    for number, group in enumerate(site_groups(dictionaries, asked, sites_at_once)):
        key = _key(said, [dictionaries[site] for site in group], model)
        limits = (contexts, max_length, max_tokens, texts_at_once, seed)
        run = _GroupRun(model, dictionaries, texts, out, group, key, *limits)
        if not run.is_done():

            def received(done: int, _total: int, what: str, before: int = number * n_texts) -> None:
                if progress:
                    progress(before + done, n_groups * n_texts, what)

            run.write(run.gather(checkpoint_seconds, received), release)
    shutil.rmtree(out / _UNFINISHED, ignore_errors=True)
    return out


@dataclass(frozen=True)
class _GroupRun:
    """One group of sites, and everything that determines their words."""

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    texts: Iterable[str] | Iterable[Passage]
    out: Path
    group: Sequence[Site]
    key: str
    contexts: int
    max_length: int
    max_tokens: int | None
    texts_at_once: int
    seed: int

    @property
    def _checkpoint(self) -> Path:
        return self.out / _UNFINISHED / f"{self.key}.safetensors"

    def is_done(self) -> bool:
        """Whether the folder holds exactly these words, of these texts."""
        sites = read_about(self.out, origin=LOCAL)["sites"]
        known = [sites.get(str(site), {}) for site in self.group]
        paths = [path(self.out, site) for site in self.group for path in (words_path, controls_path)]
        written = all(is_whole(path) for path in paths)
        if not written or any(one.get("key") != self.key for one in known):
            return False
        full = self.max_tokens is not None and known[0].get("n_tokens", 0) >= self.max_tokens
        digest = self._digest(known[0].get("units", 0) if full else None)
        return all(one.get("texts") == digest for one in known)

    def gather(self, checkpoint_seconds: float, progress: Progress) -> GatherState:
        """Read the texts, starting from the last checkpoint."""
        state = self._restored()
        digest = hashlib.sha256()
        saved = time.monotonic()
        for number, unit in enumerate(self._units()):
            _add_to(digest, unit)
            if number < state.units:
                continue
            full = self._take(state, unit)
            state.units, state.n_texts, state.digest = (number + 1, state.n_texts + len(unit), digest.hexdigest())
            progress(state.n_texts, 0, f"{self.group[0]} to {self.group[-1]}")
            if full:
                break
            if time.monotonic() - saved >= checkpoint_seconds:
                write_atomic(self._checkpoint, add_sha256(state.pack()))
                saved = time.monotonic()
        if state.n_tokens == 0:
            raise InvalidArgument("the texts hold no token that is not special. Give texts that are not empty.")
        return state

    def write(self, state: GatherState, release: str) -> None:
        """Write the words of the group, then the controls, then a note that they are done."""
        about: dict[str, Any] = read_about(self.out, origin=LOCAL) | {"release": release, "model": self.model.name}
        spelling, scale = self.model.spelling, lens_scale(self.model)
        for site in self.group:
            rows = feature_rows(self.model, self.dictionaries[site], state, self.contexts, spelling, scale)
            write_words(self.out, site, rows)
            lines = (control_line(control, site, state.sources, spelling) for control in state.controls)
            write_lines(controls_path(self.out, site), lines)
            about["sites"][str(site)] = {
                "key": self.key,
                "texts": state.digest,
                "units": state.units,
                "n_texts": state.n_texts,
                "n_tokens": state.n_tokens,
                "massive": int(state.seen[site].massive),
            }
        about["sites"] = dict(sorted(about["sites"].items()))
        write_about(self.out, about)
        self._checkpoint.unlink(missing_ok=True)

    def _units(self) -> Iterator[list[Passage]]:
        everything = (Passage(one) if isinstance(one, str) else one for one in self.texts)
        passages = (one for one in everything if one.text.strip())
        while unit := list(itertools.islice(passages, self.texts_at_once)):
            yield unit

    def _digest(self, units: int | None) -> str:
        digest = hashlib.sha256()
        for unit in itertools.islice(self._units(), units):
            _add_to(digest, unit)
        return digest.hexdigest()

    def _restored(self) -> GatherState:
        """The state of the last checkpoint if it is of these texts; otherwise an empty state."""
        device, vocabulary = self.dictionaries[self.group[0]].W_enc.device, vocabulary_of(self.model)

        def fresh() -> GatherState:
            sizes = {site: self.dictionaries[site].n_features for site in self.group}
            seen = {site: FeatureStatistics(n, vocabulary, self.contexts, device) for site, n in sizes.items()}
            return GatherState(seen, torch.zeros(vocabulary, dtype=torch.int64, device=device))

        try:
            found = fresh().unpack(check_sha256(read_bytes(self._checkpoint, SHARD)))
        except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError):
            return fresh()
        return found if found.digest == self._digest(found.units) else fresh()

    def _take(self, state: GatherState, unit: Sequence[Passage]) -> bool:
        """Run the model on some texts and take in what fires; returns whether `max_tokens` is reached."""
        left = None if self.max_tokens is None else self.max_tokens - state.n_tokens
        texts = [one.text for one in unit]
        batch = TextBatch.of(self.model, texts, max_length=self.max_length, max_tokens=left)
        state.n_tokens += batch.n_tokens
        ids, real = batch.tokens.input_ids, batch.real
        state.occurred += torch.bincount(ids[real], minlength=len(state.occurred)).to(state.occurred)
        state.sources += [name for name in dict.fromkeys(one.source for one in unit) if name not in state.sources]
        source = torch.tensor([state.sources.index(one.source) for one in unit], device=ids.device)
        drawn = self._draw(state, ids, real, source)
        for site, h in site_states(self.model, self.dictionaries, self.group, batch.tokens).items():
            self._take_site(state, site, h, batch, source, drawn)
        return self.max_tokens is not None and state.n_tokens >= self.max_tokens

    def _take_site(
        self,
        state: GatherState,
        site: Site,
        h: Float[Tensor, "batch pos d_in"],
        batch: TextBatch,
        source: Int[Tensor, " batch"],
        drawn: Mapping[int, tuple[slice, Control]],
    ) -> None:
        dictionary, seen = self.dictionaries[site], state.seen[site]
        counted = ordinary(h, batch.real)
        seen.massive += batch.n_tokens - int(counted.sum())
        some = max(1, AT_ONCE // (h.shape[1] * dictionary.n_features))
        for start in range(0, len(h), some):
            here = slice(start, start + some)
            ids, real = batch.tokens.input_ids[here], counted[here]
            with torch.no_grad():
                acts = dictionary.encode(h[here]).float()
            seen.add(acts, ids, real, source[here])
            for text, (span, control) in drawn.items():
                if start <= text < start + some:
                    fires = (acts[text - start, span] > 0) & real[text - start, span, None]
                    control.active[str(site)] = fires.any(dim=0).nonzero().flatten().tolist()
        seen.settle(state.occurred)

    def _draw(
        self,
        state: GatherState,
        ids: Int[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"],
        source: Int[Tensor, " batch"],
    ) -> dict[int, tuple[slice, Control]]:
        """Draw a passage per text, and return those among the controls so far: text in the unit -> (span, control)."""
        drawn: dict[int, tuple[slice, Control]] = {}
        for text in range(len(ids)):
            columns = real[text].nonzero().flatten().tolist()
            if not columns:
                continue
            bits = hashlib.sha256(f"{self.seed} {state.n_texts + text}".encode()).digest()
            middle = columns[int.from_bytes(bits[8:16], "big") % len(columns)]
            first, last = max(columns[0], middle - BEFORE), min(columns[-1], middle + AFTER) + 1
            found = sentence_span(self.model.spelling.tokens(ids[text, first:last].tolist()), middle - first)
            span = slice(first + found.start, first + found.stop)
            kept = torch.where(real[text], ids[text], -1)[span].tolist()
            control = Control(int.from_bytes(bits[:8], "big"), kept, int(source[text]), {})
            drawn[text] = span, control
        lowest = heapq.nsmallest(CONTROLS, [*state.controls, *(c for _, c in drawn.values())], key=lambda c: c.ticket)
        state.controls = lowest
        return {text: one for text, one in drawn.items() if any(one[1] is control for control in lowest)}


def _key(said: list[Any], dictionaries: Sequence[Dictionary], model: LanguageModel) -> str:
    """A digest of everything except the texts that determines the words of a group."""
    digest = hashlib.sha256(json.dumps(said).encode())
    for dictionary in dictionaries:
        digest.update(f"{dictionary.site} {encoder_digest(dictionary, model)} {dictionary.W_dec.dtype}".encode())
        rows = dictionary.W_dec.detach().cpu().contiguous()
        digest.update(rows.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _add_to(digest: Any, unit: Sequence[Passage]) -> None:
    for one in unit:
        data = json.dumps([one.text, one.source]).encode()
        digest.update(len(data).to_bytes(8, "big") + data)


def vocabulary_of(model: LanguageModel) -> int:
    """How many tokens the model knows, including those that pad its embedding."""
    return int(cast("nn.Embedding", model.hf_model.get_input_embeddings()).num_embeddings)


def controls_path(folder: Path, site: Site) -> Path:
    """The file of a site's randomly drawn passages, in a folder of words."""
    return folder / f"{site.layer}.{site.part.value}.controls.jsonl.gz"


def feature_rows(
    model: LanguageModel,
    dictionary: Dictionary,
    state: GatherState,
    n_contexts: int,
    spelling: Spelling,
    scale: Float[Tensor, " vocab"],
) -> Iterator[FeatureWords | None]:
    """Words of every feature of a site, in order; None for one that never fired."""
    seen = state.seen[dictionary.site]
    tokens = _strongest_tokens(seen, state.occurred)
    fired = seen.fired.tolist()
    lens, near = _promotes(model, dictionary, scale, spelling), _nearest(dictionary)
    for row, ((promoted, suppressed), neighbours) in enumerate(zip(lens, near, strict=True)):
        if fired[row] == 0:
            yield None
            continue
        strong = tuple(spelling.token(token) for token in tokens.get(row, ()))
        counts = seen.counts[row].tolist()
        last = max(i for i, count in enumerate(counts) if count)
        histogram = ActivationHistogram(2.0 ** int(seen.exponent[row]) / BINS, tuple(counts[: last + 1]))
        shown = _contexts(seen.strongest, row, state.sources, spelling, most=n_contexts)
        drawn = _contexts(seen.drawn, row, state.sources, spelling, histogram)
        yield FeatureWords(
            label_of(strong),
            strong,
            promoted,
            shown,
            float(f"{fired[row] / (state.n_tokens - int(seen.massive)):.4g}"),
            suppresses=suppressed,
            spread=_by_quarter(drawn, {context.tokens for context in shown}),
            histogram=histogram,
            near=neighbours,
        )


def control_line(control: Control, site: Site, sources: Sequence[str], spelling: Spelling) -> str:
    """A control as a line of JSON, with the features of the site that fire in it."""
    tokens = spelling.tokens([token for token in control.ids if token >= 0])
    row = {"tokens": tokens, "source": sources[control.source], "active": control.active[str(site)]}
    return json.dumps(row, separators=(",", ":"))


def _strongest_tokens(seen: FeatureStatistics, occurred: Int[Tensor, " vocab"]) -> dict[int, list[int]]:
    """For each feature, the ids of the tokens with the highest mean activation, best first."""
    feature, token = seen.pairs // seen.vocabulary, seen.pairs % seen.vocabulary
    rank = ranks(feature, means(seen.sums, occurred[token]))
    shown = rank < TOKENS
    found: dict[int, list[int]] = {}
    order = rank[shown].sort(stable=True).indices
    for row, one in zip(feature[shown][order].tolist(), token[shown][order].tolist(), strict=True):
        found.setdefault(row, []).append(one)
    return found


def lens_scale(model: LanguageModel) -> Float[Tensor, " vocab"]:
    """1 over the norm of each token's row in the logit lens; NaN for tokens that are not shown.

    The rarer a token, the longer its row: in SmolLM2 135M the median norm is 2.5 for tokens that come 100 times in a
    million or more, and 3.4 for the 20,000 that never came. Most directions therefore have their highest logits on rare
    pieces. Divided by the norm of its row, a logit is, up to one factor, the cosine of direction and row: how far it
    stands out among the logits that other directions give the token. Special tokens, pure whitespace and parts of a
    character are not shown.
    """
    vocabulary = vocabulary_of(model)
    squares = torch.zeros(vocabulary, device=model.device)
    for some in torch.eye(model.d_model, device=model.device).split(max(1, AT_ONCE // vocabulary)):
        squares += model.unembed(some).float().square().sum(dim=0)
    words = (model.spelling.token(token) for token in range(vocabulary))
    shown = torch.tensor([bool(word.strip()) and "\ufffd" not in word for word in words], device=model.device)
    shown[[token for token in model.tokenizer.all_special_ids if token < vocabulary]] = False
    return squares.rsqrt().masked_fill(~shown | (squares == 0), torch.nan)


def _promotes(
    model: LanguageModel, dictionary: Dictionary, scale: Float[Tensor, " vocab"], spelling: Spelling
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The tokens each row raises and lowers most in the logit lens, with logits scaled by `lens_scale`."""
    rows = dictionary.directions(model).to(model.device)
    k = min(TOKENS, len(scale))
    for some in rows.split(max(1, AT_ONCE // len(scale))):
        logits = model.unembed(some).float() * scale
        ends: list[list[tuple[str, ...]]] = []
        for signed in (logits, -logits):
            best = signed.nan_to_num_(nan=-torch.inf).topk(k, dim=1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ends.append(
                [tuple(spelling.token(i) for i, v in zip(ids, values, strict=True) if v > 0) for ids, values in pairs]
            )
        yield from zip(*ends, strict=True)


def _nearest(dictionary: Dictionary) -> Iterator[tuple[tuple[int, float], ...]]:
    """For each row, the others of the dictionary with the highest cosine of decoder rows, best first."""
    rows = nn.functional.normalize(dictionary.W_dec.detach().float(), dim=1)
    own = torch.arange(len(rows), device=rows.device)
    for some, numbers in zip(*(x.split(max(1, AT_ONCE // len(rows))) for x in (rows, own)), strict=True):
        cosines = (some @ rows.T).scatter_(1, numbers[:, None], -torch.inf)
        best = cosines.topk(min(NEAR, len(rows) - 1), dim=1)
        for found, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            yield tuple((index, round(value, 3)) for index, value in zip(found, values, strict=True))


def _contexts(
    kept: PassageSlots,
    row: int,
    sources: Sequence[str],
    spelling: Spelling,
    histogram: ActivationHistogram | None = None,
    *,
    most: int | None = None,
) -> tuple[Context, ...]:
    """The distinct passages of a feature in the order they are kept, with quantiles if there is a histogram."""
    found: dict[tuple[str, ...], Context] = {}
    before = (kept.ids[row, :, :BEFORE] >= 0).sum(dim=1)
    slots = (one[row].tolist() for one in (kept.rank, kept.ids, kept.values, kept.source))
    passages = zip(*slots, before.tolist(), strict=True)
    for rank, ids, values, source, top in passages:
        if len(found) == most:
            break
        if rank > 0:
            tokens = spelling.tokens([token for token in ids if token >= 0])
            span = sentence_span(tokens, top)
            real = [value for token, value in zip(ids, values, strict=True) if token >= 0]
            shown = tuple(float(f"{value:.4g}") for value in real[span])
            quantile = None if histogram is None else round(histogram.quantile(values[BEFORE]), 3)
            context = Context(tuple(tokens[span]), shown, sources[int(source)], quantile)
            found.setdefault(context.tokens, context)
    return tuple(found.values())


def _by_quarter(drawn: Iterable[Context], known: Collection[tuple[str, ...]]) -> tuple[Context, ...]:
    """The first passage not in `known` from each quarter of a feature's activations, strong ones first."""
    found: dict[int, Context] = {}
    for context in drawn:
        if context.quantile is not None and context.tokens not in known:
            found.setdefault(min(int(context.quantile * QUARTERS), QUARTERS - 1), context)
    return tuple(found[quarter] for quarter in sorted(found, reverse=True))
