"""A match as a transcoder: how well features of one layer predict the stream at a later layer (appendix F).

    1. One pass over texts for fitting: sums for the regressions, and feature sizes (`fit`).
    2. T in every variant from the weights (`maps`).
    3. One pass over validation texts: the strength of each regression, and one scale factor for each T.
    4. Other texts: the error of every prediction, one row per text and pair (`measure`).
    5. On some of these, the loss of the model with the prediction in place of h_B (`measure`).

Steps 1 and 3 use held-out texts, a quarter of all (about a fifth of them for step 3); step 4 uses none of these. Before
step 4, one pass over its texts takes the mean about which their variance is measured. Every pass handles a group of
pairs, as many as fit into memory. A killed run resumes at the group or text where it stopped, and ends with the same
bytes.

    OUT/fitting.jsonl.gz               the texts of steps 1 and 3
    OUT/fits/0.res-1.res.safetensors   the outcome of steps 1 to 3 for a pair
    OUT/rows/                          as in every results folder
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from saeflow.engines import Engine
from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.experiments.inputs import Bars, opened_model
from saeflow.experiments.results import Results, Row, RunRequest, pack_rows, significant, unpack_rows, versions
from saeflow.experiments.sampling import Dataset, is_held_out, open_dataset
from saeflow.experiments.settings import InputNames, TransitionSize
from saeflow.experiments.transition.fit import Fits
from saeflow.experiments.transition.maps import TransitionMap, check_pair
from saeflow.experiments.transition.measure import (
    DictionaryPair,
    Fitted,
    baselines,
    is_run,
    loss_through,
    squared,
    sums,
)
from saeflow.experiments.transition.variants import MapVariant
from saeflow.files import write_atomic
from saeflow.ids import Part, Site
from saeflow.plain_types import Progress
from saeflow.sources.activity import encoder_digest, model_digest, text_batches
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel

EXPERIMENT: Final = "transition"
FITTING: Final = "fitting.jsonl.gz"
VALIDATION: Final = 5
"""One in this many held-out texts is for validation."""

FEWEST: Final = 16
"""Texts with fewer non-special tokens are skipped."""

Pair = tuple[Site, Site]


@dataclass(frozen=True, slots=True)
class TransitionTexts:
    """The texts of a run: those to measure, as (dataset, number, text), and those for fitting and validation."""

    measured: Sequence[tuple[str, int, str]]
    fitting: Sequence[str]
    validation: Sequence[str]


def transition(
    asked: InputNames, size: TransitionSize, *, out: Path | str, bars: Bars | None = None, engine: Engine | None = None
) -> Results:
    """Run the transition experiment (appendix F) into a results folder; an unfinished run is resumed.

    The atlas and the Pearson settings in `asked` are not used, since maps come from the weights. `engine` measures
    the texts; None for this process.

    Raises:
        InvalidArgument: for an unknown dataset or pair, too few texts, or a folder of another request.
        UnknownSite, WidthMismatch: for dictionaries that are missing or do not fit.
        BadFile: when the folder is damaged.
    """
    names = asked.sampled
    opened = [open_dataset(name) for name in names]
    dictionaries = load_dictionaries(asked.release, device=asked.device)
    pairs = size.pairs or neighbours(dictionaries, size.part, asked.layers)
    size = replace(size, pairs=pairs)
    model = opened_model(asked.release, dictionaries, asked.model, device=asked.device, prepend_bos=asked.prepend_bos)
    arguments: dict[str, Any] = {
        "pairs": [f"{a} > {b}" for a, b in pairs],
        "k": list(size.k),
        "tokens": size.tokens,
        "fit_tokens": size.fit_tokens,
        "loss_texts": size.loss_texts,
        "max_length": size.max_length,
        "prepend_bos": model.prepend_bos,
        "memory": size.memory,
        "weights": weights_digest(model, dictionaries, pairs),
    }
    request = RunRequest(EXPERIMENT, asked.release, model.name or asked.release, asked.seed, names, {}, arguments)
    special = set(model.tokenizer.all_special_ids)

    def count(text: str) -> int:
        """The number of non-special tokens of a truncated text."""
        if not text.strip():
            return 0
        ids = model.tokenize([text], max_length=size.max_length).input_ids[0].tolist()
        return sum(one not in special for one in ids)

    texts = partial(take_texts, opened, count, tokens=size.tokens, fit_tokens=size.fit_tokens, seed=asked.seed)
    return run_transition(model, dictionaries, size, texts, request=request, out=out, progress=bars, engine=engine)


def take_texts(
    datasets: Sequence[Dataset], count: Callable[[str], int], *, tokens: int, fit_tokens: int, seed: int = 0
) -> TransitionTexts:
    """Take texts from some datasets, one of each in turn, until there are enough tokens or no more texts.

    Args:
        datasets: what `open_dataset` returned.
        count: returns how many non-special tokens a text has after truncation.
        tokens: how many tokens to measure on, in all.
        fit_tokens: how many tokens to fit on, including validation.
        seed: sets the order of texts.

    Raises:
        InvalidArgument: for fewer than one token, or too few texts that are long enough.
        MissingExtra, BadFile, Unreachable: when a dataset cannot be read.
    """
    if tokens < 1 or fit_tokens < 1:
        raise InvalidArgument(f"{tokens} tokens to measure on, {fit_tokens} to fit on. Give 1 or more.")

    def until(tokens: int, *, kept_out: bool) -> Iterator[tuple[str, str]]:
        """Yield (dataset, text) for texts that are, or are not, held out, until they have this many tokens in all."""
        read = [filter(lambda text: is_held_out(text) is kept_out, dataset.read(seed)) for dataset in datasets]
        left, known = tokens, set[str]()
        for turn in itertools.zip_longest(*read):
            for dataset, text in zip(datasets, turn, strict=True):
                if text is None or (n := count(text)) < FEWEST or text in known:
                    continue
                if left <= 0:
                    return
                known.add(text)
                left -= n
                yield dataset.name, text

    numbers = {dataset.name: itertools.count() for dataset in datasets}
    measured = [(name, next(numbers[name]), text) for name, text in until(tokens, kept_out=False)]
    held = [text for _, text in until(fit_tokens, kept_out=True)]
    validation = [
        text for text in held if hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[1] % VALIDATION == 0
    ]
    fitting = [text for text in held if text not in set(validation)]
    if not (measured and fitting and validation):
        raise InvalidArgument(
            f"there are {len(measured)} texts to measure on, {len(fitting)} to fit on and {len(validation)} for "
            f"validation, of {FEWEST} tokens or more. Give larger datasets, or more --tokens and --fit-tokens."
        )
    return TransitionTexts(measured, fitting, validation)


def run_transition(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    size: TransitionSize,
    texts: Callable[[], TransitionTexts],
    *,
    request: RunRequest,
    out: Path | str,
    progress: Callable[[str], Progress] | None = None,
    engine: Engine | None = None,
) -> Results:
    """Fit and measure all pairs into a results folder; a killed run resumes where it stopped.

    Args:
        model: the model that the dictionaries were trained on.
        dictionaries: those at the sites of the pairs.
        size: gives pairs, k, loss_texts, max_length and memory.
        texts: returns the texts; called for a new folder, or one without its texts for fitting.
        request: the request; its arguments should include `weights_digest`.
        out: the results folder.
        progress: makes a callback for each stage, given the name that users see.
        engine: where texts are measured; None for this process. Workers read the fits from `out`, which must be on
            shared storage if there are several machines. Fits are always made in this process.

    Raises:
        InvalidArgument: when the folder holds a run with other arguments, or a pair cannot be measured.
        UnknownSite: for a pair without a dictionary.
        WidthMismatch: when dictionaries or model do not fit together.
    """
    if not size.pairs:
        raise InvalidArgument("0 pairs were given. Give one or more.")
    # 1. group as many pairs as fit into memory; each needs two float64 copies of its sums while one is solved, or its
    #    maps (k entries per row, or full ones), whichever is larger
    groups: list[list[DictionaryPair]] = []
    left = 0.0
    for pair in _opened(model, dictionaries, size.pairs):
        n, d = pair.source.n_features, pair.source.d_in
        needed = max(16 * n * n + 16 * n * d, 8 * n * sum(k or 2 * d for k in size.k) * 12)
        if not groups or needed > left:
            groups.append([])
            left = size.memory * (1 << 30)
        groups[-1].append(pair)
        left -= needed

    # 2. the texts: one unit per text and group, and the texts for fitting in a file of their own
    def units() -> list[Row]:
        return [
            {
                "dataset": dataset,
                "text": number,
                "content": text,
                "group": group,
                "pairs": [pair.name for pair in pairs],
                "loss": number < size.loss_texts,
            }
            for group, pairs in enumerate(groups)
            for dataset, number, text in given().measured
        ]

    given = cache(texts)
    results = Results.start(out, request, units, versions())
    path = results.folder / FITTING
    if not path.is_file():
        uses = {"fitting": given().fitting, "validation": given().validation}
        write_atomic(path, pack_rows({"text": text, "for": use} for use, kept in uses.items() for text in kept))
    # 3. make the missing fits, then measure every text
    fits = Fits(results.folder, model, size)
    missing = [group for group in groups if not all(fits.path(pair).is_file() for pair in group)]
    for number, group in enumerate(missing):
        fitting, validation = _read_fitting(path)
        measured = list(dict.fromkeys(unit["content"] for unit in results.units()))
        name = "fitting" if len(missing) < 2 else f"fitting {number + 1} of {len(missing)}:"
        fits.make(group, (fitting, validation, measured), progress and progress(name))
    measure = _MeasureText(fits, dictionaries, [[pair.sites for pair in group] for group in groups])
    return results.run(measure, progress and progress("measuring"), engine)


def weights_digest(model: LanguageModel, dictionaries: Mapping[Site, Dictionary], pairs: Sequence[Pair]) -> str:
    """A digest of the weights that a run depends on: the model and the dictionaries of all pairs.

    Raises:
        UnknownSite: for a pair without a dictionary.
        BadFile: when a tensor read on first use is bad.
    """
    _check(dictionaries, pairs)
    digest = hashlib.sha256(model_digest(model).encode())
    for site in sorted({site for pair in pairs for site in pair}):
        dictionary = dictionaries[site]
        digest.update(f"{site} {encoder_digest(dictionary, model)}".encode())
        for tensor in (dictionary.W_dec, dictionary.b_dec):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


@dataclass(eq=False)
class _MeasureText:
    """Measures texts, with the maps of one group of pairs in memory; workers read the fits from the results folder."""

    fits: Fits
    dictionaries: Mapping[Site, Dictionary]
    groups: list[list[Pair]]
    at: int = -1

    def __post_init__(self) -> None:
        self.held: list[tuple[DictionaryPair, Fitted, dict[str, TransitionMap]]] = []

    def __getstate__(self) -> dict[str, Any]:
        fits = replace(self.fits, folder=self.fits.folder.absolute())
        return self.__dict__ | {"at": -1, "held": [], "fits": fits}

    def __call__(self, unit: Row) -> Iterator[Row]:
        """Yield a row for each pair of the unit's group."""
        model = self.fits.model
        if unit["group"] != self.at:
            pairs = _opened(model, self.dictionaries, self.groups[unit["group"]])
            read = [(pair, self.fits.read(pair)) for pair in pairs]
            self.held = [(pair, fitted, self.fits.maps(pair, fitted.units)) for pair, fitted in read]
            self.at = unit["group"]
        [one] = text_batches(model, [unit["content"]], max_length=self.fits.size.max_length)
        captured = model.capture(one.tokens, [end.point for p, _, _ in self.held for end in (p.source, p.target)])
        for pair, fitted, maps in self.held:
            kept = pair.measured(captured, one.real)
            ends = pair.ends(captured, kept)
            b_dec = pair.target.b_dec.float()
            whole = squared(ends.truth, b_dec.expand_as(ends.truth))
            centre = fitted.centre.to(ends.truth).expand_as(ends.truth)
            missed = {name: [_short(squared(ends.truth, h))] for name, h in baselines(pair, ends, fitted)}
            for name, of in sums(ends, ends.truth - b_dec, maps).items():
                missed[name] = [_short(of.missed(whole)), _short(of.missed(whole, fitted.scales[name]))]
            row: Row = {
                "dataset": unit["dataset"],
                "text": unit["text"],
                "pair": pair.name,
                "tokens": len(ends.truth),
                "massive": one.n_tokens - len(ends.truth),
                "total": _short(squared(ends.truth, centre)),
                "missed": missed,
            }
            if unit["loss"]:
                run = {name: of for name, of in maps.items() if (variant := MapVariant.of(name)) and is_run(variant)}
                losses = loss_through(model, pair, one.tokens, kept, ends, run, fitted)
                row["loss"] = {name: _short(value) for name, value in losses.items()}
            yield row


def _short(value: float) -> float:
    """Round to nine digits, since explained variances near 1 are differences of nearly equal numbers."""
    return significant(value, 9)


def _read_fitting(path: Path) -> tuple[list[str], list[str]]:
    """Read the texts for fitting and those for validation."""
    try:
        rows = unpack_rows(path)
        fitting, validation = ([one["text"] for one in rows if one["for"] == use] for use in ("fitting", "validation"))
        return fitting, validation
    except (KeyError, TypeError) as error:
        raise BadFile(f"{path} cannot be read ({error!r}). Remove it and run the command again.") from None


def _check(dictionaries: Mapping[Site, Dictionary], pairs: Sequence[Pair]) -> None:
    missing = sorted({site for pair in pairs for site in pair if site not in dictionaries})
    if missing:
        raise UnknownSite(f"there is no dictionary at {', '.join(map(str, missing))}. Give other pairs.")


def _opened(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], pairs: Sequence[Pair]
) -> list[DictionaryPair]:
    _check(dictionaries, pairs)
    found = [(dictionaries[a].for_model(model), dictionaries[b].for_model(model)) for a, b in pairs]
    for source, target in found:
        check_pair(source, target)
    return [DictionaryPair(*ends) for ends in found]


def neighbours(dictionaries: DictionarySet, part: Part, layers: Sequence[int] = ()) -> tuple[Pair, ...]:
    """Pairs of a part's sites in layers t and t + 1, for the given layers t or for all that have both dictionaries.

    Raises:
        InvalidArgument: for a layer that lacks one of them, or when there is no such pair.
    """
    known = [site.layer for site in dictionaries.sites if site.part is part]
    there = [layer for layer in known if layer + 1 in known]
    chosen = list(layers) or there
    if missing := [layer for layer in chosen if layer not in there]:
        raise InvalidArgument(
            f"--layers {','.join(map(str, layers))}: {dictionaries.name} has not both {part} dictionaries of layers "
            f"{missing} and those after. It has them for {there}."
        )
    if not chosen:
        raise InvalidArgument(f"{dictionaries.name} has no two {part} dictionaries of neighbouring layers.")
    return tuple((Site(layer, part), Site(layer + 1, part)) for layer in chosen)
