"""Words for a release nobody labelled, from the model and any text.

    make_words(load_model("demo"), load_dictionaries("demo"), texts, out="words")

The text streams by once for all sites (once for each group of `sites_at_once`, where memory is short): the model
runs, each dictionary encodes, and of each feature the strongest passages, the tokens with the highest mean
activation and the share of tokens it fires on are kept (`gather`). Then come the logit lens of its row and a label of
its four strongest tokens. A killed run resumes from its last checkpoint, and ends in the same bytes.

Beside the words of a site lie `{layer}.{part}.controls.jsonl.gz`: passages drawn at random, with the features that
fire in each. `detection` takes its silent examples from them.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor

from saeflow.errors import InvalidArgument
from saeflow.files import add_check, add_sha256, agrees_with_check, check_sha256, write_atomic
from saeflow.ids import Site
from saeflow.labels.bulk import ABOUT, FORMAT, VERSION
from saeflow.labels.gather import Control, Seen, State
from saeflow.labels.lines import is_whole, write_lines
from saeflow.labels.local_rows import AT_ONCE, control_line, controls_path, feature_rows, vocabulary_of
from saeflow.labels.neuronpedia import CONTEXTS
from saeflow.labels.sources import LOCAL
from saeflow.labels.words import AFTER, BEFORE, words_path, write_words
from saeflow.reading import SHARD, read_bytes, read_json
from saeflow.records import Progress
from saeflow.sources.activity import TextBatch, encoder_digest, model_digest, site_groups, site_states
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

CONTROLS: Final = 128
"""Passages drawn at random, at most one of a text."""

_UNFINISHED: Final = ".making"


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, and what to call where it came from."""

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
        dictionaries: what to make words for.
        texts: any texts; they are read again for each group of sites and after a kill, so that a generator that can
            be read once is refused. Empty texts are passed over.
        out: the folder. An unfinished run resumes there if it is the same run.
        sites: which sites; all of `dictionaries` when None.
        contexts: passages shown of each feature.
        max_length: tokens of each text, the begin-of-text token included.
        max_tokens: stop after this many tokens that are not special.
        texts_at_once: texts the model runs on together. Words depend on it by the rounding of its matrix products.
        sites_at_once: dictionaries in memory at a time; all when None.
        seed: sets which passages are the controls.
        release: name of the dictionaries, for the folder's own description.
        checkpoint_seconds: how long to work between two checkpoints; 0 makes one after each batch of texts.
        progress: told (texts done over all groups, texts in all or 0 where it is not known, what).

    Raises:
        InvalidArgument: for a number out of range, a generator, or texts without a token.
        UnknownSite: for a site that the model or the dictionaries do not have.
        WidthMismatch: when a dictionary does not fit the model.
        OSError: when the folder cannot be written.
    """
    _check(texts, contexts=contexts, max_length=max_length, texts_at_once=texts_at_once)
    asked = sorted(dictionaries if sites is None else set(sites))
    n_groups = -(-len(asked) // (sites_at_once or max(len(asked), 1)))
    model = model.as_trained(dictionaries)
    said = [contexts, max_length, max_tokens, texts_at_once, seed, VERSION, model_digest(model)]
    for number, group in enumerate(site_groups(dictionaries, asked, sites_at_once)):
        key = _key(said, [dictionaries[site] for site in group], model)
        run = _Run(model, dictionaries, texts, out, group, key, contexts, max_length, max_tokens, texts_at_once, seed)
        if not run.is_done():
            state = run.gather(checkpoint_seconds, _within(progress, number, n_groups, texts))
            run.write(state, release)
    shutil.rmtree(out / _UNFINISHED, ignore_errors=True)
    return out


@dataclass(frozen=True)
class _Run:
    """One group of sites and everything that determines their words."""

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
        """Whether the folder holds these very words, of these texts."""
        sites = _read_about(self.out)["sites"]
        told = [sites.get(str(site), {}) for site in self.group]
        paths = [path(self.out, site) for site in self.group for path in (words_path, controls_path)]
        written = all(is_whole(path) for path in paths)
        if not written or any(one.get("key") != self.key for one in told):
            return False
        full = self.max_tokens is not None and told[0].get("n_tokens", 0) >= self.max_tokens
        digest = self._digest(told[0].get("units", 0) if full else None)
        return all(one.get("texts") == digest for one in told)

    def gather(self, checkpoint_seconds: float, progress: Progress | None) -> State:
        """Read the texts, from the last checkpoint on."""
        state = self._restored()
        digest = hashlib.sha256()
        saved = time.monotonic()
        for number, unit in enumerate(self._units()):
            _add_to(digest, unit)
            if number < state.units:
                continue
            full = self._take(state, unit)
            state.units, state.n_texts, state.digest = (number + 1, state.n_texts + len(unit), digest.hexdigest())
            if progress:
                progress(state.n_texts, 0, f"{self.group[0]} to {self.group[-1]}")
            if full:
                break
            if time.monotonic() - saved >= checkpoint_seconds:
                write_atomic(self._checkpoint, add_sha256(state.pack()))
                saved = time.monotonic()
        if state.n_tokens == 0:
            raise InvalidArgument("the texts hold no token that is not special. Give texts that are not empty.")
        return state

    def write(self, state: State, release: str) -> None:
        """Write the words of the group, then the controls, then that they are done."""
        about: dict[str, Any] = _read_about(self.out) | {"release": release, "model": self.model.name}
        spelling = self.model.spelling
        for site in self.group:
            rows = feature_rows(self.model, self.dictionaries[site], state, self.contexts, spelling)
            write_words(self.out, site, rows)
            lines = (control_line(control, site, state.sources, spelling) for control in state.controls)
            write_lines(controls_path(self.out, site), lines)
            about["sites"][str(site)] = {
                "key": self.key,
                "texts": state.digest,
                "units": state.units,
                "n_texts": state.n_texts,
                "n_tokens": state.n_tokens,
            }
        about["sites"] = dict(sorted(about["sites"].items()))
        write_atomic(self.out / ABOUT, json.dumps(add_check(about), indent=1).encode())
        self._checkpoint.unlink(missing_ok=True)

    def _units(self) -> Iterator[list[Passage]]:
        told = (Passage(one) if isinstance(one, str) else one for one in self.texts)
        passages = (one for one in told if one.text.strip())
        while unit := list(itertools.islice(passages, self.texts_at_once)):
            yield unit

    def _digest(self, units: int | None) -> str:
        digest = hashlib.sha256()
        for unit in itertools.islice(self._units(), units):
            _add_to(digest, unit)
        return digest.hexdigest()

    def _restored(self) -> State:
        """The state of the last checkpoint, if it is of these texts; else nothing seen."""
        fresh = self._fresh()
        try:
            found = fresh.unpack(check_sha256(read_bytes(self._checkpoint, SHARD)))
        except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError):
            return self._fresh()
        return found if found.digest == self._digest(found.units) else self._fresh()

    def _fresh(self) -> State:
        device = self.dictionaries[self.group[0]].W_enc.device
        vocabulary = vocabulary_of(self.model)
        seen = {s: Seen(self.dictionaries[s].n_features, vocabulary, self.contexts, device) for s in self.group}
        return State(seen, torch.zeros(vocabulary, dtype=torch.int64, device=device))

    def _take(self, state: State, unit: Sequence[Passage]) -> bool:
        """Run the model on some texts and take in what fires; returns whether `max_tokens` is reached."""
        left = None if self.max_tokens is None else self.max_tokens - state.n_tokens
        texts = [one.text for one in unit]
        batch = TextBatch.of(self.model, texts, max_length=self.max_length, max_tokens=left)
        state.n_tokens += batch.n_tokens
        ids, real = batch.tokens.input_ids, batch.real
        state.occurred += torch.bincount(ids[real], minlength=len(state.occurred)).to(state.occurred)
        source = torch.tensor([_number_of(one.source, state.sources) for one in unit], device=ids.device)
        drawn = self._draw(state, ids, real, source)
        for site, h in site_states(self.model, self.dictionaries, self.group, batch.tokens).items():
            self._take_site(state, site, h, batch, source, drawn)
        return self.max_tokens is not None and state.n_tokens >= self.max_tokens

    def _take_site(
        self,
        state: State,
        site: Site,
        h: Float[Tensor, "batch pos d_in"],
        batch: TextBatch,
        source: Int[Tensor, " batch"],
        drawn: Mapping[int, tuple[slice, Control]],
    ) -> None:
        dictionary, seen = self.dictionaries[site], state.seen[site]
        some = max(1, AT_ONCE // (h.shape[1] * dictionary.n_features))
        for start in range(0, len(h), some):
            here = slice(start, start + some)
            ids, real = batch.tokens.input_ids[here], batch.real[here]
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
        state: State,
        ids: Int[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"],
        source: Int[Tensor, " batch"],
    ) -> dict[int, tuple[slice, Control]]:
        """The texts of this unit that have a passage among the controls so far; text in the unit -> place, control."""
        drawn: dict[int, tuple[slice, Control]] = {}
        for text in range(len(ids)):
            columns = real[text].nonzero().flatten().tolist()
            if not columns:
                continue
            bits = hashlib.sha256(f"{self.seed} {state.n_texts + text}".encode()).digest()
            middle = columns[int.from_bytes(bits[8:16], "big") % len(columns)]
            span = slice(max(columns[0], middle - BEFORE), min(columns[-1], middle + AFTER) + 1)
            kept = torch.where(real[text], ids[text], -1)[span].tolist()
            control = Control(int.from_bytes(bits[:8], "big"), kept, int(source[text]), {})
            drawn[text] = span, control
        lowest = heapq.nsmallest(CONTROLS, [*state.controls, *(c for _, c in drawn.values())], key=lambda c: c.ticket)
        state.controls = lowest
        return {text: one for text, one in drawn.items() if any(one[1] is control for control in lowest)}


def _check(texts: object, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InvalidArgument(f"{name} = {value}. Give 1 or more.")
    if isinstance(texts, str) or (isinstance(texts, Iterable) and iter(cast("Iterable[Any]", texts)) is texts):
        raise InvalidArgument(
            f"texts are read more than once, and this {type(texts).__name__} cannot be. Give a list, or an object "
            "whose __iter__ begins anew."
        )


def _within(progress: Progress | None, number: int, groups: int, texts: object) -> Progress | None:
    if progress is None:
        return None
    n = len(texts) if isinstance(texts, Sized) else 0
    return lambda done, _total, what: progress(number * n + done, groups * n, what)


def _key(said: list[Any], dictionaries: Sequence[Dictionary], model: LanguageModel) -> str:
    """A digest of everything but the texts that determines the words of a group."""
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


def _number_of(source: str, sources: list[str]) -> int:
    if source not in sources:
        sources.append(source)
    return sources.index(source)


def _read_about(out: Path) -> dict[str, Any]:
    """What the folder says of itself; anew where it says nothing of this kind."""
    fresh: dict[str, Any] = {"format": FORMAT, "version": VERSION, "origin": LOCAL, "sites": {}}
    try:
        told = read_json(out / ABOUT)
        same = all(told[name] == fresh[name] for name in ("format", "version", "origin"))
        same = same and agrees_with_check(told)
        return cast("dict[str, Any]", told) if same and isinstance(told["sites"], dict) else fresh
    except (OSError, ValueError, KeyError, TypeError):
        return fresh
