"""A match as a transcoder: how well features of one layer predict the stream at a later one (appendix F).

    1. One pass over texts for fitting: sums for the regressions and sizes of features (`fit`).
    2. T of every kind from the weights (`maps`).
    3. One pass over other texts: the strength of each regression, and one factor for each T.
    4. Texts of neither: what every prediction misses, a row for each text and pair (`measure`).
    5. On some of these, the loss of the model with the prediction in place of the layer (`loss`).

Held-out texts, a quarter of all, are for steps 1 and 3 (a fifth of them for 3); step 4 never sees one. Of the texts of
step 4 step 3 takes the mean, about which their variance is. Every pass takes
all pairs of a group together: as many as fit into memory. A killed run resumes at the pair or text it was at, and ends
in the same bytes.

    OUT/fitting.jsonl.gz               the texts of steps 1 and 3
    OUT/fits/0.res-1.res.safetensors   the outcome of steps 1 and 3 for a pair
    OUT/rows/                          as every results folder has
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from saeflow.engines import Engine
from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.experiments.inputs import Bars, model_name
from saeflow.experiments.results import Results, Row, RunRequest, significant, versions
from saeflow.experiments.sampling import Dataset, is_held_out, open_dataset
from saeflow.experiments.settings import KS, InputNames, TransitionSize
from saeflow.experiments.transition.fit import Fits, Setup
from saeflow.experiments.transition.loss import is_run, loss_through
from saeflow.experiments.transition.maps import TransitionMap, check_pair
from saeflow.experiments.transition.measure import DictionaryPair, Fitted, baselines, squared, sums
from saeflow.experiments.transition.variants import MapVariant
from saeflow.files import write_atomic
from saeflow.ids import Part, Site
from saeflow.reading import PACKED_WRONG, gzip_lines, parse_json
from saeflow.records import Progress
from saeflow.sources.activity import encoder_digest, model_digest, text_batches
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model

EXPERIMENT: Final = "transition"
FITTING: Final = "fitting.jsonl.gz"
VALIDATION: Final = 5
"""One held-out text in this many is for validation."""

FEWEST: Final = 16
"""A text with fewer tokens that are not special is passed over."""

Pair = tuple[Site, Site]


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a run: those measured as (dataset, number, text), those for fitting and for validation."""

    measured: Sequence[tuple[str, int, str]]
    fitting: Sequence[str]
    validation: Sequence[str]


@dataclass(frozen=True, slots=True)
class TransitionSettings:
    """What is measured.

    Attributes:
        pairs: (A, B), A before B.
        ks: entries of a row of T that are kept; None for all.
        loss_texts: of so many texts of each dataset the loss is measured too; 0 for none.
        max_length: tokens a text is cut to, the begin-of-text token included.
        memory: bytes that sums and maps may take; groups of pairs are made to fit.

    Raises:
        InvalidArgument: for no pair or k, one given twice, or a number out of range.
    """

    pairs: tuple[Pair, ...]
    ks: tuple[int | None, ...] = KS
    loss_texts: int = 20
    max_length: int = 128
    memory: int = 4 << 30

    def __post_init__(self) -> None:
        """Check every range."""
        if not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise InvalidArgument(f"{len(self.pairs)} pairs were given, none or one twice. Give each once.")
        if not self.ks or len(set(self.ks)) < len(self.ks) or any(k is not None and k < 1 for k in self.ks):
            raise InvalidArgument(f"k = {self.ks} is no list of numbers above 0. Give each once, or all: 1,2,5,all.")
        if self.loss_texts < 0 or self.max_length < 2 or self.memory < 1:
            raise InvalidArgument(
                f"loss_texts = {self.loss_texts}, max_length = {self.max_length}, memory = {self.memory}: give 0, 2 "
                "and 1 at least."
            )


def transition(
    asked: InputNames, size: TransitionSize, *, out: Path | str, bars: Bars | None = None, engine: Engine | None = None
) -> Results:
    """The experiment of appendix F into a results folder; a run that was begun resumes.

    Of `asked` the atlas and what concerns Pearson are not used: maps come from the weights. `engine` is where
    texts are measured; this process when None.

    Raises:
        InvalidArgument: for an unknown dataset or pair, too few texts, or a folder of another request.
        UnknownSite, WidthMismatch: for dictionaries that are missing or do not fit.
        BadFile: when the folder is damaged.
    """
    names = asked.sampled
    opened = [open_dataset(name) for name in names]
    dictionaries = load_dictionaries(asked.release, device=asked.device)
    pairs = size.pairs or neighbours(dictionaries, size.part, asked.layers)
    settings = TransitionSettings(pairs, size.k, size.loss_texts, size.max_length, int(size.memory * (1 << 30)))
    named = model_name(asked.release, dictionaries, asked.model)
    model = load_model(named, device=asked.device, prepend_bos=asked.prepend_bos).as_trained(dictionaries)
    arguments: dict[str, Any] = {
        "pairs": [f"{a} > {b}" for a, b in pairs],
        "k": list(settings.ks),
        "tokens": size.tokens,
        "fit_tokens": size.fit_tokens,
        "loss_texts": size.loss_texts,
        "max_length": size.max_length,
        "prepend_bos": model.prepend_bos,
        "memory": size.memory,
        "weights": weights_digest(model, dictionaries, pairs),
    }
    request = RunRequest(EXPERIMENT, asked.release, model.name or asked.release, asked.seed, names, {}, arguments)
    texts = partial(
        take_texts,
        opened,
        _counter(model, size.max_length),
        tokens=size.tokens,
        fit_tokens=size.fit_tokens,
        seed=asked.seed,
    )
    return run_transition(model, dictionaries, settings, texts, request=request, out=out, progress=bars, engine=engine)


def take_texts(
    datasets: Sequence[Dataset], count: Callable[[str], int], *, tokens: int, fit_tokens: int, seed: int = 0
) -> Texts:
    """Texts of some datasets, one of each in turn, until there are tokens enough; fewer where there are no more.

    Args:
        datasets: what `open_dataset` returned.
        count: how many tokens of a text are not special, of those it is cut to.
        tokens: tokens to measure on, in all.
        fit_tokens: tokens to fit on, validation among them.
        seed: sets the order of texts.

    Raises:
        InvalidArgument: for fewer than one token, or where no text is long enough.
        MissingExtra, BadFile, Unreachable: when a dataset cannot be read.
    """
    if tokens < 1 or fit_tokens < 1:
        raise InvalidArgument(f"{tokens} tokens to measure on, {fit_tokens} to fit on. Give 1 or more.")
    measured: list[tuple[str, int, str]] = []
    for dataset, text in _until(datasets, count, tokens, seed, kept_out=False):
        number = sum(name == dataset for name, _, _ in measured)
        measured.append((dataset, number, text))
    held = [text for _, text in _until(datasets, count, fit_tokens, seed, kept_out=True)]
    validation = [text for text in held if hashlib.sha256(text.encode()).digest()[1] % VALIDATION == 0]
    fitting = [text for text in held if text not in set(validation)]
    if not (measured and fitting and validation):
        raise InvalidArgument(
            f"there are {len(measured)} texts to measure on, {len(fitting)} to fit on and {len(validation)} for "
            f"validation, of {FEWEST} tokens or more. Give larger datasets, or more --tokens and --fit-tokens."
        )
    return Texts(measured, fitting, validation)


def run_transition(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    settings: TransitionSettings,
    texts: Callable[[], Texts],
    *,
    request: RunRequest,
    out: Path | str,
    progress: Callable[[str], Progress] | None = None,
    engine: Engine | None = None,
) -> Results:
    """Fit and measure all pairs into a results folder; a killed run resumes where it stopped.

    Args:
        model: the model the dictionaries were trained on.
        dictionaries: at the sites of the pairs.
        settings: what is measured.
        texts: called for a new folder, or one without its texts for fitting.
        request: what is asked; `weights_digest` belongs into its arguments.
        out: the folder.
        progress: makes a callback for each stage, named for people.
        engine: where texts are measured; this process when None. Workers read the fits from `out`: on several machines
            it lies on storage that all of them see. Fits are made by this process.

    Raises:
        InvalidArgument: when the folder holds a run with other arguments, or a pair cannot be measured.
        UnknownSite: for a pair without a dictionary.
        WidthMismatch: when dictionaries or model do not fit together.
    """
    pairs = _opened(model, dictionaries, settings.pairs)
    setup = Setup(model, settings.max_length, settings.ks, settings.memory)
    groups = setup.groups([DictionaryPair(*ends) for ends in pairs])
    results = Results.start(out, request, lambda: _units(groups, texts(), settings), versions())
    if not (results.folder / FITTING).is_file():
        write_atomic(results.folder / FITTING, _packed(texts()))
    fits = Fits(results.folder, setup, lambda: (*_read_fitting(results.folder / FITTING), _measured(results)))
    missing = [group for group in groups if not fits.are_done(group)]
    for number, group in enumerate(missing):
        fits.make(group, progress and progress(_named("fitting", number, missing)))
    measure = _MeasureText(setup, dictionaries, [[pair.sites for pair in group] for group in groups], results.folder)
    return results.run(measure, progress and progress("measuring"), engine)


def weights_digest(model: LanguageModel, dictionaries: Mapping[Site, Dictionary], pairs: Sequence[Pair]) -> str:
    """Tells apart what a run was made from: a digest of the model and of both ends of every pair.

    Raises:
        UnknownSite: for a pair without a dictionary.
        BadFile: when a tensor read at first use is bad.
    """
    _check_sites(dictionaries, pairs)
    digest = hashlib.sha256(model_digest(model).encode())
    for site in sorted({site for pair in pairs for site in pair}):
        dictionary = dictionaries[site]
        digest.update(f"{site} {encoder_digest(dictionary, model)}".encode())
        for tensor in (dictionary.W_dec, dictionary.b_dec):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


@dataclass(eq=False)
class _MeasureText:
    """Measures texts, with the maps of the group of pairs in hand. A worker reads the fits from the results folder."""

    setup: Setup
    dictionaries: Mapping[Site, Dictionary]
    groups: list[list[Pair]]
    folder: Path
    at: int = -1

    def __post_init__(self) -> None:
        self.held: list[tuple[DictionaryPair, Fitted, dict[str, TransitionMap]]] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"at": -1, "held": [], "folder": self.folder.absolute()}

    def __call__(self, unit: Row) -> Iterator[Row]:
        """A row for each pair of the unit's group."""
        if unit["group"] != self.at:
            fits = Fits(self.folder, self.setup, lambda: ([], [], []))
            pairs = [
                DictionaryPair(*ends)
                for ends in _opened(self.setup.model, self.dictionaries, self.groups[unit["group"]])
            ]
            self.held = [(pair, fits.read(pair), fits.maps(pair)) for pair in pairs]
            self.at = unit["group"]
        model = self.setup.model
        [one] = text_batches(model, [unit["content"]], max_length=self.setup.max_length)
        places = [end.point for pair, _, _ in self.held for end in (pair.source, pair.target)]
        captured = model.capture(one.tokens, places)
        for pair, fitted, maps in self.held:
            ends = pair.ends(captured, one.real)
            rest = ends.truth - pair.target.b_dec.float()
            whole = squared(ends.truth, pair.target.b_dec.float().expand_as(ends.truth))
            centre = fitted.centre.to(ends.truth).expand_as(ends.truth)
            found = sums(ends, rest, maps)
            missed = {
                name: [_short(of.missed(whole)), _short(of.missed(whole, fitted.scales[name]))]
                for name, of in found.items()
            }
            said = {name: [_short(squared(ends.truth, rows))] for name, rows in baselines(pair, ends, fitted)}
            row: Row = {
                "dataset": unit["dataset"],
                "text": unit["text"],
                "pair": pair.name,
                "tokens": len(ends.truth),
                "total": _short(squared(ends.truth, centre)),
                "missed": said | missed,
            }
            if unit["loss"]:
                run = {name: of for name, of in maps.items() if (variant := MapVariant.of(name)) and is_run(variant)}
                told = loss_through(model, pair, one.tokens, one.real, ends, run, fitted)
                row["loss"] = {name: _short(value) for name, value in told.items()}
            yield row


def _check_sites(dictionaries: Mapping[Site, Dictionary], pairs: Sequence[Pair]) -> None:
    missing = sorted({site for pair in pairs for site in pair if site not in dictionaries})
    if missing:
        raise UnknownSite(f"there is no dictionary at {', '.join(map(str, missing))}. Give other pairs.")


def _opened(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], pairs: Sequence[Pair]
) -> list[tuple[Dictionary, Dictionary]]:
    _check_sites(dictionaries, pairs)
    found = [(dictionaries[a].for_model(model), dictionaries[b].for_model(model)) for a, b in pairs]
    for source, target in found:
        check_pair(source, target)
    return found


def _units(groups: list[list[DictionaryPair]], texts: Texts, settings: TransitionSettings) -> list[Row]:
    """Each text once for each group of pairs."""
    return [
        {
            "dataset": dataset,
            "text": number,
            "content": text,
            "group": group,
            "pairs": [pair.name for pair in groups[group]],
            "loss": number < settings.loss_texts,
        }
        for group in range(len(groups))
        for dataset, number, text in texts.measured
    ]


def _measured(results: Results) -> list[str]:
    """The texts that are measured, each once."""
    return list(dict.fromkeys(unit["content"] for unit in results.units()))


def _until(
    datasets: Sequence[Dataset], count: Callable[[str], int], tokens: int, seed: int, *, kept_out: bool
) -> Iterator[tuple[str, str]]:
    """Texts that are, or are not, held out, until they have this many tokens together."""
    read = [_named_texts(dataset, seed, kept_out=kept_out) for dataset in datasets]
    left, known = tokens, set[str]()
    for turn in itertools.zip_longest(*read):
        for one in filter(None, turn):
            n = count(one[1])
            if n < FEWEST or one[1] in known:
                continue
            if left <= 0:
                return
            known.add(one[1])
            left -= n
            yield one


def _named_texts(dataset: Dataset, seed: int, *, kept_out: bool) -> Iterator[tuple[str, str]]:
    return ((dataset.name, text) for text in dataset.read(seed) if is_held_out(text) is kept_out)


def _named(what: str, number: int, groups: Sequence[object]) -> str:
    return what if len(groups) < 2 else f"{what} {number + 1} of {len(groups)}:"


def _short(value: float) -> float:
    """Nine digits: explained variances near 1 are differences of numbers that are alike."""
    return significant(value, 9)


def _packed(texts: Texts) -> bytes:
    lines = [
        json.dumps({"text": text, "for": use}, ensure_ascii=False) + "\n"
        for use, kept in (("fitting", texts.fitting), ("validation", texts.validation))
        for text in kept
    ]
    return gzip.compress("".join(lines).encode("utf-8", "surrogatepass"), compresslevel=6, mtime=0)


def _read_fitting(path: Path) -> tuple[list[str], list[str]]:
    """The texts for fitting and those for validation."""
    try:
        told: list[dict[str, Any]] = [parse_json(line) for line in gzip_lines(path, "surrogatepass")]
        return tuple([one["text"] for one in told if one["for"] == use] for use in ("fitting", "validation"))  # pyright: ignore[reportReturnType]
    except (*PACKED_WRONG, KeyError, TypeError) as error:
        raise BadFile(f"{path} cannot be read ({error!r}). Remove it and run the command again.") from None


def neighbours(dictionaries: DictionarySet, part: Part, layers: Sequence[int] = ()) -> tuple[Pair, ...]:
    """Pairs of a part's dictionaries of layers t and t + 1: of the layers asked for, or of all there are.

    Raises:
        InvalidArgument: for a layer without both, or where there is no such pair.
    """
    known = [site.layer for site in dictionaries.sites if site.part is part]
    there = [layer for layer in known if layer + 1 in known]
    asked = list(layers) or there
    if missing := [layer for layer in asked if layer not in there]:
        raise InvalidArgument(
            f"--layers {','.join(map(str, layers))}: {dictionaries.name} has not both {part} dictionaries of layers "
            f"{missing} and those after. It has them for {there}."
        )
    if not asked:
        raise InvalidArgument(f"{dictionaries.name} has no two {part} dictionaries of neighbouring layers.")
    return tuple((Site(layer, part), Site(layer + 1, part)) for layer in asked)


def _counter(model: LanguageModel, max_length: int) -> Callable[[str], int]:
    """Counts tokens of a text that are not special, of those it is cut to."""
    special = set(model.tokenizer.all_special_ids)

    def count(text: str) -> int:
        if not text.strip():
            return 0
        ids = model.tokenize([text], max_length=max_length).input_ids[0].tolist()
        return sum(one not in special for one in ids)

    return count
