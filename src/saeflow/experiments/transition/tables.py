"""Tables of a transition: figures 23 and 24, the loss of skipping a layer, and differences on the same texts. No torch.

Every number is a ratio of sums over tokens; its interval is of texts. "all pairs"
is their mean, each counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from saeflow.errors import InvalidArgument
from saeflow.experiments.results import Results, SummaryTable
from saeflow.experiments.statistics import Tally
from saeflow.experiments.tables import Texts
from saeflow.experiments.transition.facts import read_facts

BINARY, VALUES = "binary", "values"
MATCHING, BASELINE = "matching", "baseline"
CLEAN: Final = "clean"
ALL: Final = "all pairs"
COSINE: Final = "cosine top-1"
PERMUTATIONS: Final = {
    "permutation": "permutation",
    "permutation-encoder": "permutation + encoder",
    "permutation-encoder-bias": "permutation + encoder + b_enc",
}
PRODUCTS: Final = {"decoders": "W_dec W_dec", "reads": "W_dec W_enc"}
SCALES: Final = {"RAW": "raw", "FOLDED": "folded", "MEAN": "mean activation"}
_EV = "ev, low, high, n, scale, scaled, scaled_low, scaled_high"
_DEFINED = (
    "Explained variance: 1 - sum |h - prediction|^2 / sum |h - mean|^2, over tokens and all dimensions together, the "
    "begin-of-text and other special tokens left out. The mean is that of the tokens measured. "
)
_SCALED = "scaled: the same after one factor (scale), fitted on validation texts. "
_ABOUT = "n counts tokens; intervals are of texts; all pairs: their mean."


@dataclass(frozen=True, slots=True)
class VariantName:
    """The name of a variant, taken apart: as `Variant`, without torch."""

    weights: str
    k: str
    entries: str
    matched: str
    applied: str

    @staticmethod
    def of(name: str) -> VariantName | None:
        """The parts of a variant's name; None for a baseline."""
        parts = name.split("/")
        return VariantName(*parts) if len(parts) == 5 else None

    @property
    def is_permutation(self) -> bool:
        """Whether it pairs features one to one."""
        return self.weights in PERMUTATIONS

    @property
    def is_cosine(self) -> bool:
        """Whether it is the best cosine, as 1."""
        return (self.weights, self.k, self.entries, self.matched) == ("decoders", "1", BINARY, "RAW")

    @property
    def told(self) -> str:
        """The variant in words."""
        how = {"RAW": "", "FOLDED": ", applied folded", "MEAN": ", applied by mean"}[self.applied]
        on = "" if self.matched == "RAW" else ", matched folded"
        if self.is_permutation:
            return f"{PERMUTATIONS[self.weights]}{on}{how}"
        if self.is_cosine:
            return f"{COSINE}{how}"
        top = "all" if self.k == "all" else f"top-{self.k}"
        return f"{top} {PRODUCTS[self.weights]}, {self.entries}{on}{how}"


@dataclass(frozen=True, eq=False)
class _Measured:
    """All rows of a run as arrays: texts by pairs by what predicts."""

    texts: Texts
    pairs: list[str]
    names: list[str]
    missed: Float[np.ndarray, "n k n_maps"]
    scaled: Float[np.ndarray, "n k n_maps"]
    total: Float[np.ndarray, "n k"]
    tokens: Float[np.ndarray, "n k"]

    @staticmethod
    def of(results: Results) -> _Measured:
        """Read the rows."""
        rows = list(results.rows())
        if not rows:
            raise InvalidArgument(f"{results.folder} holds no rows yet. Run its command again to go on with it.")
        texts = Texts.of([row["dataset"] for row in rows], [row["text"] for row in rows])
        at = texts.clusters([row["dataset"] for row in rows], [row["text"] for row in rows])
        pairs = list(dict.fromkeys(row["pair"] for row in rows))
        names = list(dict.fromkeys(name for row in rows for name in row["missed"]))
        shape = len(texts.number), len(pairs)
        found = _Measured(
            texts,
            pairs,
            names,
            np.full((*shape, len(names)), np.nan),
            np.full((*shape, len(names)), np.nan),
            np.zeros(shape),
            np.zeros(shape),
        )
        for text, row in zip(at.tolist(), rows, strict=True):
            pair = pairs.index(row["pair"])
            found.total[text, pair], found.tokens[text, pair] = row["total"], row["tokens"]
            for name, values in row["missed"].items():
                place = text, pair, names.index(name)
                found.missed[place], found.scaled[place] = values[0], values[-1]
        return found

    @cached_property
    def plain(self) -> _Explained:
        """Explained variance of every prediction."""
        return _Explained(self.missed, self.total, self.texts.datasets)

    @cached_property
    def fitted(self) -> _Explained:
        """The same with one factor fitted."""
        return _Explained(self.scaled, self.total, self.texts.datasets)

    @property
    def shown(self) -> list[tuple[str, int]]:
        """Pairs with their place, the mean of all first where there are several."""
        every = [(ALL, len(self.pairs))] if len(self.pairs) > 1 else []
        return every + [(pair, place) for place, pair in enumerate(self.pairs)]

    def there(self, place: int) -> list[str]:
        """What was measured at a pair: folding is not possible everywhere."""
        known = np.isfinite(self.plain.value[place])
        return [name for at, name in enumerate(self.names) if known[at]]

    def n(self, place: int) -> int:
        """Tokens of a pair; of all pairs the most that one has."""
        counts = self.tokens.sum(axis=0)
        return int(counts[place] if place < len(counts) else counts.max())

    def cells(self, place: int, name: str, scale: float | None) -> list[Any]:
        """The cells of `_EV`."""
        at = self.names.index(name)
        fitted: Sequence[Any] = self.fitted.at(place, at) if VariantName.of(name) else (None, None, None)
        return [*self.plain.at(place, at), self.n(place), scale, *fitted]


@dataclass(frozen=True, eq=False)
class _Explained:
    """Explained variance: sums by text; after the last pair comes the mean of all."""

    missed: Float[np.ndarray, "n k n_maps"]
    total: Float[np.ndarray, "n k"]
    datasets: np.ndarray

    @cached_property
    def value(self) -> Float[np.ndarray, "k n_maps"]:
        """In the data."""
        found = 1 - self.missed.sum(axis=0) / self.total.sum(axis=0)[:, None]
        return np.concatenate([found, found.mean(axis=0, keepdims=True)])

    def at(self, place: int, name: int) -> tuple[Any, Any, Any]:
        """A value with its interval."""
        return self._told(place, [name], lambda ev: ev[:, 0])

    def difference(self, place: int, a: int, b: int) -> tuple[Any, Any, Any]:
        """a - b with its interval, on the same texts."""
        return self._told(place, [a, b], lambda ev: ev[:, 0] - ev[:, 1])

    def _told(self, place: int, names: list[int], of: Callable[[np.ndarray], np.ndarray]) -> tuple[Any, Any, Any]:
        pairs = slice(None) if place == self.total.shape[1] else slice(place, place + 1)
        sums = np.concatenate([self.missed[:, pairs][..., names], self.total[:, pairs, None]], -1)
        tally = Tally(sums, self.datasets)
        return tally.told(lambda x: of((1 - x[..., :-1] / x[..., -1:]).mean(1)), sizes=sums[..., -1]).interval


def summarize_transition(folder: Path | str) -> dict[str, SummaryTable]:
    """Make the tables of a folder from its rows and fits and write them as summary.json and CSV files.

    Raises:
        InvalidArgument: for a folder without rows.
        BadFile: when a file of the folder is damaged.
    """
    results = Results.open(folder)
    measured = _Measured.of(results)
    facts = {pair: read_facts(results.folder, pair) for pair in measured.pairs}
    scale = {(pair, name): value for pair, told in facts.items() for name, value in told["scales"].items()}

    def of(pair: str, name: str) -> float | None:
        return scale.get((pair, name))

    tables = [
        _permutations(measured, of),
        _top_k(measured, of),
        *_losses(results, measured.texts),
        _paired(measured),
        _fits(facts),
    ]
    results.write_tables(tables)
    return {table.name: table for table in tables}


_Scale = Callable[[str, str], float | None]


def _permutations(measured: _Measured, scale: _Scale) -> SummaryTable:
    def rows() -> Iterator[list[Any]]:
        for pair, place in measured.shown:
            for name in measured.there(place):
                cells = measured.cells(place, name, scale(pair, name))
                told = VariantName.of(name)
                if told is None:
                    yield [pair, BASELINE, name, "", "", *cells]
                elif told.is_permutation or told.is_cosine:
                    method = COSINE if told.is_cosine else PERMUTATIONS[told.weights]
                    yield [pair, MATCHING, method, SCALES[told.matched], SCALES[told.applied], *cells]

    return SummaryTable.of(
        "transition_permutations",
        "A match as a transcoder: permutations and the best cosine",
        "fig. 23",
        _DEFINED + "matched: the rows the permutation was found on; applied: the units of activations and decoder rows "
        "when it is used. " + _SCALED + _ABOUT,
        f"pair, kind, method, matched, applied, {_EV}",
        rows(),
    )


def _top_k(measured: _Measured, scale: _Scale) -> SummaryTable:
    def rows() -> Iterator[list[Any]]:
        for pair, place in measured.shown:
            for name in measured.there(place):
                cells = measured.cells(place, name, scale(pair, name))
                told = VariantName.of(name)
                if told is None:
                    yield [pair, BASELINE, name, "", "", "", "", *cells]
                elif not told.is_permutation or (told.weights, told.matched) == ("permutation", "RAW"):
                    weights = PRODUCTS.get(told.weights, told.weights)
                    entries, k = ("", "") if told.is_permutation else (told.entries, told.k)
                    on, how = SCALES[told.matched], SCALES[told.applied]
                    yield [pair, MATCHING, weights, k, entries, on, how, *cells]

    return SummaryTable.of(
        "transition_top_k",
        "A match as a transcoder: the k largest products of weights",
        "fig. 24",
        _DEFINED + "T holds the k largest entries of each row of W_dec(A) W_dec(B)^T or W_dec(A) W_enc(B)^T, as they "
        "are (values) or as 1 where above 0 (binary; of decoders by cosine). " + _SCALED + _ABOUT,
        f"pair, kind, weights, k, entries, matched, applied, {_EV}",
        rows(),
    )


def _losses(results: Results, texts: Texts) -> list[SummaryTable]:
    """The loss table; none where no loss was measured."""
    rows = [row for row in results.rows() if "loss" in row]
    if not rows:
        return []
    at = texts.clusters([row["dataset"] for row in rows], [row["text"] for row in rows])
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    names = [name for name in dict.fromkeys(name for row in rows for name in row["loss"]) if name != CLEAN]
    shape = len(texts.number), len(pairs)
    change, clean, n = np.zeros((*shape, len(names))), np.zeros(shape), np.zeros(shape)
    for text, row in zip(at.tolist(), rows, strict=True):
        pair = pairs.index(row["pair"])
        n[text, pair] = row["tokens"]
        clean[text, pair] = row["tokens"] * row["loss"][CLEAN]
        for place, name in enumerate(names):
            change[text, pair, place] = row["tokens"] * (row["loss"].get(name, np.nan) - row["loss"][CLEAN])
    # a loss change is a ratio of sums too: 1 - (1 - x)
    explained = _Explained(n[:, :, None] - change, n, texts.datasets)
    every = [(ALL, len(pairs))] if len(pairs) > 1 else []
    found = [
        [
            pair,
            BASELINE if VariantName.of(name) is None else MATCHING,
            told.told if (told := VariantName.of(name)) else name,
            *explained.at(place, i),
            float((clean.sum(0) / n.sum(0))[place if place < len(pairs) else slice(None)].mean()),
            int(n.sum(0)[place] if place < len(pairs) else n.sum(0).max()),
        ]
        for pair, place in [*every, *((pair, place) for place, pair in enumerate(pairs))]
        for i, name in enumerate(names)
        if np.isfinite(explained.value[place, i])
    ]
    return [
        SummaryTable.of(
            "transition_loss",
            "Skipping a layer through a map",
            "appendix F, beyond the paper",
            "Next-token loss in nats above that of the model left alone (clean), with the prediction in place of the "
            "stream at B, and the rest of the model run on. identity skips the layer; reconstruction is what B's own "
            "dictionary makes of the stream; special tokens keep theirs. " + _ABOUT,
            "pair, kind, map, change, low, high, clean, n",
            found,
        )
    ]


def _paired(measured: _Measured) -> SummaryTable:
    cosine, plain = "decoders/1/binary/RAW/", "permutation/1/binary/RAW/"
    bias = "permutation-encoder-bias/1/binary/"
    asked = [
        *((f"{cosine}{how}", f"{plain}{how}") for how in SCALES),
        ("decoders/2/values/RAW/RAW", f"{plain}RAW"),
        ("decoders/2/values/RAW/FOLDED", f"{plain}FOLDED"),
        ("decoders/2/values/RAW/FOLDED", f"{plain}RAW"),
        *((f"{one}FOLDED", f"{one}RAW") for one in (cosine, plain)),
        *((f"{one}MEAN", f"{one}RAW") for one in (cosine, plain)),
        *(
            (f"{one}/1/binary/FOLDED/{how}", f"{one}/1/binary/RAW/{how}")
            for one in PERMUTATIONS
            for how in ("RAW", "FOLDED")
        ),
        (f"{bias}FOLDED/RAW", f"{plain}RAW"),
        *((f"{cosine}RAW", other) for other in ("identity", "source reconstruction", "least squares")),
        ("least squares", "reconstruction"),
        ("least squares", "affine map of h"),
    ]

    def rows() -> Iterator[list[Any]]:
        for pair, place in measured.shown:
            for a, b in asked:
                if {a, b} <= set(measured.there(place)):
                    told = [one.told if (one := VariantName.of(name)) else name for name in (a, b)]
                    i, j = measured.names.index(a), measured.names.index(b)
                    yield [pair, *told, *measured.plain.difference(place, i, j), measured.n(place)]

    return SummaryTable.of(
        "transition_paired",
        "Differences in explained variance",
        "appendix F, beyond the paper",
        "a - b on the same tokens, without a fitted factor. " + _ABOUT,
        "pair, a, b, difference, low, high, n",
        rows(),
    )


def _fits(facts: dict[str, dict[str, Any]]) -> SummaryTable:
    names = ("least_squares_strength", "affine_strength", "fit_tokens", "validation_tokens")
    return SummaryTable.of(
        "transition_fits",
        "What was fitted",
        "",
        "Ridge strengths, as shares of each variable's sum of squares, chosen on validation texts; tokens of either.",
        ", ".join(("pair", *names)),
        ([pair, *(told["facts"][name] for name in names)] for pair, told in facts.items()),
    )
