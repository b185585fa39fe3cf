"""`saeflow origins` and `saeflow deactivate`: the experiments of sections 5.1 and 5.2 into results folders.

Both go on where a killed run stopped, when they are called again with the same arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Json, Release, bars, print_table, progress
from saeflow.cli.lists import layers_of, names_of, number_of, numbers_of
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.experiments.methods import Matchings
    from saeflow.experiments.predecessors import Predecessors
    from saeflow.experiments.records import RunRequest
    from saeflow.experiments.results import Results, SummaryTable
    from saeflow.experiments.sampling import Sample
    from saeflow.sources.library import DictionarySet
    from saeflow.sources.model import LanguageModel

Atlas = Annotated[str, typer.Option(help="Atlas of cosine matches; that of the release when not given.")]
Model = Annotated[str, typer.Option(help="Language model; the one the release names when not given.")]
Datasets = Annotated[
    str, typer.Option(help='Datasets, with commas between: "demo", "demo:stories", fineweb, a file.')
]
Texts = Annotated[int, typer.Option(help="Texts of each dataset, at most.")]
TokensOf = Annotated[int, typer.Option("--tokens", help="Random tokens of each text.")]
Layers = Annotated[
    str, typer.Option(help="Residual layers, with commas between, 6-9 for a range; empty for all.")
]
MaxLength = Annotated[int, typer.Option(help="Tokens a text is cut to.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
Pearson = Annotated[
    str, typer.Option(help="Atlas of Pearson correlations; made on held-out texts when not given.")
]
PearsonDatasets = Annotated[
    str, typer.Option(help="Datasets it is made on; the first one, and for the demo all but python.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(origins)
    app.command()(deactivate)


def origins(
    release: Release,
    atlas: Atlas = "",
    model: Model = "",
    datasets: Datasets = "demo",
    texts: Texts = 250,
    tokens: TokensOf = 5,
    layers: Layers = "",
    methods: Annotated[
        str, typer.Option(help="Matching methods: cosine, cosine-top-5, permutation, pearson.")
    ] = "cosine,cosine-top-5,permutation,pearson",
    pearson: Pearson = "",
    pearson_datasets: PearsonDatasets = "",
    max_length: MaxLength = 128,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="Results folder; origins-RELEASE when not given.")] = None,
    as_json: Json = False,
) -> None:
    """Which matched predecessors are active with each active feature (section 5.1)."""
    from saeflow.experiments.methods import origin_methods
    from saeflow.experiments.origins import run_origins

    lab = _Lab.open(release, model, atlas, device, layers, datasets, pearson, pearson_datasets, seed, first=0)
    with bars() as bar:
        matched = origin_methods(names_of(methods), lab.matchings(bar))
    samples = partial(lab.samples, texts, tokens, max_length)
    arguments = {"texts": texts, "tokens": tokens, "layers": lab.layers, "max_length": max_length}
    request = lab.request("origins", matched, arguments)
    with progress("origins") as report:
        results = run_origins(
            lab.model, lab.dictionaries, matched, samples, request=request,
            out=out or Path(f"origins-{Path(release).name}"), progress=report,
        )  # fmt: skip
    _finish(results, ("shares_by_dataset", "activity_differences", "agreement"), as_json=as_json)


def deactivate(
    release: Release,
    atlas: Atlas = "",
    model: Model = "",
    datasets: Datasets = "demo",
    texts: Texts = 35,
    tokens: TokensOf = 5,
    features: Annotated[int, typer.Option(help="Targets of a token and layer, at most.")] = 25,
    layers: Layers = "",
    strategies: Annotated[
        str,
        typer.Option(
            help="top-1, top-5, random, permutation, pearson, exhaustive, greedy; the first is swept over r."
        ),
    ] = "top-1,top-5,random,permutation,pearson,exhaustive,greedy",
    r: Annotated[str, typer.Option("--r", help="Factors of the sweep.")] = "-2,-1,-0.5,0,0.5,1,1.5,2,3",
    loss: Annotated[
        str, typer.Option(help='Targets of a text whose sweep has the loss: a number, or "all".')
    ] = "4",
    pearson: Pearson = "",
    pearson_datasets: PearsonDatasets = "",
    max_length: MaxLength = 128,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Results folder; deactivation-RELEASE when not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove the predecessors of active features, and see what is left of them (section 5.2)."""
    from saeflow.experiments.deactivation import Protocol, run_deactivation
    from saeflow.experiments.methods import deactivation_strategies

    lab = _Lab.open(release, model, atlas, device, layers, datasets, pearson, pearson_datasets, seed, first=1)
    with bars() as bar:
        matched, searches = deactivation_strategies(names_of(strategies), lab.matchings(bar))
    sweep = numbers_of("--r", r)
    loss_targets = None if loss == "all" else int(number_of("--loss", loss))
    protocol = Protocol(tuple(lab.layers), features, sweep, loss_targets, searches, max_length, seed)
    samples = partial(lab.samples, texts, tokens, max_length)
    arguments = {
        "texts": texts, "tokens": tokens, "features": features, "layers": lab.layers, "r": sweep,
        "loss": loss, "searches": searches, "max_length": max_length,
    }  # fmt: skip
    request = lab.request("deactivation", matched, arguments)
    with progress("deactivation") as report:
        results = run_deactivation(
            lab.model, lab.dictionaries, matched, samples, protocol, request=request,
            out=out or Path(f"deactivation-{Path(release).name}"), progress=report,
        )  # fmt: skip
    _finish(results, ("by_strategy_layer", "table_1", "paired", "remaining"), as_json=as_json)


@dataclass(frozen=True)
class _Lab:
    """What both commands open: the model, the dictionaries, the atlas, and names of datasets."""

    release: str
    model: LanguageModel
    dictionaries: DictionarySet
    atlas: Any
    layers: list[int]
    datasets: tuple[str, ...]
    pearson: str
    fitted: tuple[str, ...]
    seed: int

    @staticmethod
    def open(
        release: str,
        model: str,
        atlas: str,
        device: str,
        layers: str,
        datasets: str,
        pearson: str,
        fitted: str,
        seed: int,
        *,
        first: int,
    ) -> _Lab:
        from saeflow.experiments.sampling import expand, open_dataset
        from saeflow.ids import Part
        from saeflow.matching.atlas import open_atlas
        from saeflow.sources.library import load_dictionaries
        from saeflow.sources.model import load_model

        names = expand(names_of(datasets))
        chosen = expand(names_of(fitted)) if fitted else tuple(n for n in names if n.startswith("demo:"))
        if not fitted:
            chosen = tuple(n for n in chosen if n != "demo:python") or names[:1]
        for name in (*names, *chosen):
            open_dataset(name)  # refuses an unknown one before anything large is loaded
        matches = open_atlas(atlas or release)
        covered = sorted(
            {source.layer for source, target in matches if source.part is Part.RES and target < source}
        )
        asked = list(layers_of(layers)) or [layer for layer in covered if layer >= first]
        if missing := sorted(set(asked) - set(covered)):
            raise InvalidArgument(
                f"--layers {layers}: the atlas has no matches of {missing}. It covers {covered}."
            )
        dictionaries = load_dictionaries(release, device=device)
        named = model or ("demo" if release == "demo" else dictionaries.model)
        if not named:
            raise InvalidArgument(f"{release} does not say which model it is of. Give it with --model.")
        loaded = load_model(named, device=device)
        return _Lab(release, loaded, dictionaries, matches, asked, names, pearson, chosen, seed)

    def matchings(self, bar: Callable[[str], Callable[[int, int, str], None]]) -> Matchings:
        from saeflow.experiments.methods import Matchings
        from saeflow.experiments.sampling import open_dataset
        from saeflow.matching.atlas import open_atlas
        from saeflow.paths import cache_folder

        return Matchings(
            self.model, self.dictionaries, self.atlas, self.layers, cache_folder() / "matches",
            [open_dataset(name) for name in self.fitted],
            open_atlas(self.pearson) if self.pearson else None, self.release, self.seed, bar,
        )  # fmt: skip

    def samples(self, n_texts: int, n_tokens: int, max_length: int) -> list[Sample]:
        from saeflow.experiments.sampling import draw, open_dataset

        def encode(text: str) -> Sequence[int]:
            return self.model.tokenize([text], max_length=max_length).input_ids[0].tolist()

        special = self.model.tokenizer.all_special_ids
        found: list[Sample] = []
        for name in self.datasets:
            drawn = draw(
                open_dataset(name),
                encode,
                n_texts=n_texts,
                n_tokens=n_tokens,
                seed=self.seed,
                special=special,
            )
            if len(drawn) < n_texts:
                typer.echo(f"{name}: {len(drawn)} texts, as many as there are to sample", err=True)
            found += drawn
        return found

    def request(
        self, experiment: str, methods: Sequence[Predecessors], arguments: dict[str, Any]
    ) -> RunRequest:
        from saeflow.experiments.records import RunRequest

        atlases = {method.method: method.made_by for method in methods}
        fitted = list(self.fitted) if any("pearson" in name for name in atlases) and not self.pearson else []
        return RunRequest(
            experiment, self.release, self.model.name or self.release, self.seed, self.datasets, atlases,
            arguments | {"pearson_datasets": fitted},
        )  # fmt: skip


def _finish(results: Results, shown: Sequence[str], *, as_json: bool) -> None:
    """Make the tables and the page, and print the tables that say most."""
    from saeflow.experiments.summary import summarize
    from saeflow.report.results import write_page

    tables = summarize(results)
    page = write_page(results.folder)
    if as_json:
        told = {name: {"columns": table.columns, "rows": table.rows} for name, table in tables.items()}
        typer.echo(json.dumps({"folder": str(results.folder), "tables": told}))
        return
    for name in shown:
        if tables[name].rows:
            print_table(tables[name].title, _overall(tables[name]))
            typer.echo(f"{tables[name].note}\n")
    typer.echo(f"{results.record.total} texts, {len(tables)} tables, in {results.folder}; open {page}")


def _overall(table: SummaryTable) -> list[dict[str, Any]]:
    """The rows that pool layers and datasets, for reading: an estimate with its interval is one cell."""
    rows = table.dicts()
    for column in ("dataset", "layer"):
        if any(row.get(column) == "all" for row in rows):
            rows = [{k: v for k, v in row.items() if k != column} for row in rows if row[column] == "all"]
    return [_readable(row) for row in rows]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """The cells as text; where `low` and `high` follow a value they join it, and others' bounds are left out."""
    names = list(row)
    cells: dict[str, Any] = {}
    for place, (name, value) in enumerate(row.items()):
        if name.endswith(("low", "high")) or name in ("control_change", "control_n", "in_distribution"):
            continue
        text = f"{value:.3f}" if isinstance(value, float) else "" if value is None else value
        if names[place + 1 : place + 3] == ["low", "high"] and row["low"] is not None:
            text = f"{text} ({row['low']:.3f} to {row['high']:.3f})"
        cells[name.replace("control_deactivated", "control").replace("_", " ")] = text
    return cells
