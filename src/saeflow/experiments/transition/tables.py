"""Tables of a transition: figures 23 and 24, the loss of skipping a layer, and differences on the same texts. No torch.

    rows -> measured: one line per text, pair and map -> Explained -> tables

Every number is a ratio of sums over tokens; its interval treats texts as the independent units. "all pairs" is the
unweighted mean over pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pandas as pd

from saeflow.errors import InvalidArgument
from saeflow.experiments.results import Results, Row, SummaryTable
from saeflow.experiments.statistics import TEXT, Estimate, Tally
from saeflow.experiments.transition.variants import CLEAN, MapSource, MapVariant, Scaling, read_facts

MATCHING, BASELINE = "matching", "baseline"
ALL: Final = "all pairs"
COSINE: Final = "cosine top-1"
_EV = ["ev", "low", "high", "n", "scale", "scaled", "scaled_low", "scaled_high"]
_DEFINED = (
    "Explained variance: 1 - sum |h - prediction|^2 / sum |h - mean|^2, over tokens and all dimensions together, the "
    "begin-of-text and other special tokens and massive positions left out. The mean is that of the tokens measured. "
)
_SCALED = "scaled: the same after one factor (scale), fitted on validation texts. "
_ABOUT = "n counts tokens; intervals are of texts; all pairs: their mean."


def measured(rows: Iterable[Row]) -> pd.DataFrame:
    """The error of every map, one line per text, pair and map, from the rows of a results folder.

    Columns: dataset, text, pair, tokens, total (squared distance from the mean), map, missed (squared error), scaled
    (squared error with the fitted scale factor), loss (of the text, with the prediction in place of h_B) and clean (the
    loss of the unmodified model), both in nats and missing where no loss was measured.

    Raises:
        InvalidArgument: when there are no rows.
    """
    lines = [
        {name: row[name] for name in (*TEXT, "pair", "tokens", "total")}
        | {"map": name, "missed": values[0], "scaled": values[-1]}
        | {"loss": row.get("loss", {}).get(name), "clean": row.get("loss", {}).get(CLEAN)}
        for row in rows
        for name, values in row["missed"].items()
    ]
    if not lines:
        raise InvalidArgument("the run has no rows yet. Run its command again to go on with it.")
    return pd.DataFrame(lines).astype({"loss": np.float64, "clean": np.float64})


class Explained:
    """Explained variance, 1 - sum missed / sum total, of every map at every pair, and its mean over pairs.

    Attributes:
        pairs: the pairs, in the order of the rows.
        shown: the pairs that tables show, preceded by "all pairs" if there are several.
        maps: the maps, in the order of the rows.
    """

    def __init__(self, lines: pd.DataFrame, missed: str = "missed") -> None:
        """Read lines of `measured`, or others like them, with the errors in the column that `missed` names."""
        self.pairs, self.maps = lines["pair"].unique().tolist(), lines["map"].unique().tolist()
        self.shown = [ALL, *self.pairs] if len(self.pairs) > 1 else self.pairs
        self._missed = lines.pivot(index=TEXT, columns=["map", "pair"], values=missed)
        each = lines.drop_duplicates([*TEXT, "pair"])
        self._total, self._tokens = (
            each.pivot(index=TEXT, columns="pair", values=name) for name in ("total", "tokens")
        )
        self._datasets = pd.factorize(self._total.index.get_level_values("dataset"))[0]

    def at(self, pair: str, name: str, less: str | None = None) -> Estimate:
        """The explained variance of a map at a pair, or over all pairs, minus that of the map `less`, if given."""
        pairs = self.pairs if pair == ALL else [pair]
        columns = [self._missed.reindex(columns=[(one, p) for p in pairs]) for one in (name, less) if one is not None]
        sums = np.stack([*columns, self._total[pairs]], -1)

        def of(x: np.ndarray) -> np.ndarray:
            ev = 1 - x[..., :-1] / x[..., -1:]
            return (ev[..., 0] if less is None else ev[..., 0] - ev[..., 1]).mean(1)

        return Tally(sums, self._datasets).estimate(of, sizes=sums[..., -1])

    def maps_at(self, pair: str) -> list[str]:
        """The maps that were measured at a pair, or at all pairs; folded maps are not possible everywhere."""
        pairs = self.pairs if pair == ALL else [pair]
        known = self._missed.notna().all()
        return [name for name in self.maps if all(known.get((name, one), False) for one in pairs)]

    def n(self, pair: str) -> int:
        """The number of tokens of a pair; for all pairs, the largest number."""
        return int(self._tokens[self.pairs if pair == ALL else [pair]].sum().max())


def summarize_transition(results: Results) -> dict[str, SummaryTable]:
    """Make the tables of a run from its rows and write them as summary.json and CSV files.

    Raises:
        InvalidArgument: for a folder without rows.
        BadFile: when a file of the folder is damaged.
    """
    lines = measured(results.rows())
    explained, scaled = Explained(lines), Explained(lines, "scaled")
    facts = {pair: read_facts(results.folder, pair) for pair in explained.pairs}
    found: list[dict[str, Any]] = []
    for pair in explained.shown:
        for name in explained.maps_at(pair):
            cells = [*explained.at(pair, name).interval, explained.n(pair)]
            cells += [facts[pair]["scales"].get(name) if pair in facts else None]
            cells += scaled.at(pair, name).interval if MapVariant.of(name) else (None, None, None)
            found.append({"pair": pair, "map": name} | dict(zip(_EV, cells, strict=True)))
    maps = pd.DataFrame(found)
    return results.write_tables([permutations(maps), top_k(maps), *losses(lines), paired(explained), fits(facts)])


def permutations(maps: pd.DataFrame) -> SummaryTable:
    """Figure 23: permutations, the best cosine, and baselines. `maps` has pair, map, and the columns `_EV`."""
    rows: list[list[Any]] = []
    for line in maps.astype(object).to_dict("records"):
        variant, cells = MapVariant.of(line["map"]), [line[name] for name in _EV]
        if variant is None:
            rows.append([line["pair"], BASELINE, line["map"], "", "", *cells])
        elif variant.source.one_to_one or variant.is_cosine:
            method = COSINE if variant.is_cosine else variant.source.label
            rows.append([line["pair"], MATCHING, method, variant.matched.value, variant.applied.value, *cells])
    return SummaryTable.of(
        "transition_permutations",
        "A match as a transcoder: permutations and the best cosine",
        "fig. 23",
        _DEFINED
        + "`matched`: the rows the permutation was found on. `applied`: the units of activations and decoder rows "
        "when it is used. " + _SCALED + _ABOUT,
        f"pair, kind, method, matched, applied, {', '.join(_EV)}",
        rows,
    )


def top_k(maps: pd.DataFrame) -> SummaryTable:
    """Figure 24: the k largest entries of each row, the plain permutation, and baselines."""
    rows: list[list[Any]] = []
    for line in maps.astype(object).to_dict("records"):
        variant, cells = MapVariant.of(line["map"]), [line[name] for name in _EV]
        if variant is None:
            rows.append([line["pair"], BASELINE, line["map"], "", "", "", "", *cells])
        elif not variant.source.one_to_one or (variant.source.label, variant.matched) == ("permutation", Scaling.RAW):
            entries, k = ("", "") if variant.source.one_to_one else (variant.entries, str(variant.k or "all"))
            how = [variant.source.label, k, entries, variant.matched.value, variant.applied.value]
            rows.append([line["pair"], MATCHING, *how, *cells])
    return SummaryTable.of(
        "transition_top_k",
        "A match as a transcoder: the k largest products of weights",
        "fig. 24",
        _DEFINED + "T holds the k largest entries of each row of W_dec(A) W_dec(B)^T or W_dec(A) W_enc(B)^T, as they "
        "are (values) or as 1 where above 0 (binary; of decoders by cosine). " + _SCALED + _ABOUT,
        f"pair, kind, weights, k, entries, matched, applied, {', '.join(_EV)}",
        rows,
    )


def losses(lines: pd.DataFrame) -> list[SummaryTable]:
    """The loss table, in a list; an empty list if no loss was measured."""
    lines = lines[lines["clean"].notna()]
    if lines.empty:
        return []
    # a loss change x is an explained variance too: 1 - (1 - x)
    kept = lines["tokens"] - lines["tokens"] * (lines["loss"] - lines["clean"])
    explained = Explained(lines.assign(kept=kept, total=lines["tokens"].astype(np.float64)), "kept")
    each = lines.drop_duplicates([*TEXT, "pair"]).assign(clean=lambda frame: frame["clean"] * frame["tokens"])
    sums = each.groupby("pair", sort=False)[["clean", "tokens"]].sum()
    clean = (sums["clean"] / sums["tokens"]).to_dict()
    clean[ALL] = float(np.mean(list(clean.values())))
    rows = [
        [
            pair,
            MATCHING if (variant := MapVariant.of(name)) else BASELINE,
            variant.words if variant else name,
            *explained.at(pair, name).interval,
            clean[pair],
            explained.n(pair),
        ]
        for pair in explained.shown
        for name in explained.maps_at(pair)
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
            rows,
        )
    ]


def paired(explained: Explained) -> SummaryTable:
    """Differences in explained variance between maps on the same tokens."""
    cosine, plain = "decoders/1/binary/RAW/", "permutation/1/binary/RAW/"
    bias = "permutation-encoder-bias/1/binary/"
    pairs = [
        *((f"{cosine}{how.name}", f"{plain}{how.name}") for how in Scaling),
        ("decoders/2/values/RAW/RAW", f"{plain}RAW"),
        ("decoders/2/values/RAW/FOLDED", f"{plain}FOLDED"),
        ("decoders/2/values/RAW/FOLDED", f"{plain}RAW"),
        *((f"{one}FOLDED", f"{one}RAW") for one in (cosine, plain)),
        *((f"{one}MEAN", f"{one}RAW") for one in (cosine, plain)),
        *(
            (f"{one}/1/binary/FOLDED/{how}", f"{one}/1/binary/RAW/{how}")
            for one in MapSource
            if one.one_to_one
            for how in ("RAW", "FOLDED")
        ),
        (f"{bias}FOLDED/RAW", f"{plain}RAW"),
        *((f"{cosine}RAW", other) for other in ("identity", "source reconstruction", "least squares")),
        ("least squares", "reconstruction"),
        ("least squares", "affine map of h"),
    ]
    rows = [
        [
            pair,
            *(variant.words if (variant := MapVariant.of(name)) else name for name in (a, b)),
            *explained.at(pair, a, less=b).interval,
            explained.n(pair),
        ]
        for pair in explained.shown
        for a, b in pairs
        if {a, b} <= set(explained.maps_at(pair))
    ]
    return SummaryTable.of(
        "transition_paired",
        "Differences in explained variance",
        "appendix F, beyond the paper",
        "a - b on the same tokens, without a fitted factor. " + _ABOUT,
        "pair, a, b, difference, low, high, n",
        rows,
    )


def fits(facts: dict[str, dict[str, Any]]) -> SummaryTable:
    """The ridge strengths and token counts of the fit at each pair."""
    names = ("least_squares_strength", "affine_strength", "fit_tokens", "validation_tokens", "massive_tokens")
    return SummaryTable.of(
        "transition_fits",
        "What was fitted",
        "",
        "Ridge strengths, as shares of each variable's sum of squares, chosen on validation texts; tokens of either, "
        "and how many positions of both were left out as massive (squared norms above 100 medians).",
        ", ".join(("pair", *names)),
        ([pair, *(fit["facts"].get(name, 0) for name in names)] for pair, fit in facts.items()),
    )
