"""`saeflow train`: SAEs and transcoders at chosen sites of a model, from texts of one's own (section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Json, print_table, progress, show
from saeflow.cli.lists import layers_of, names_of
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.experiments.sampling import Dataset
    from saeflow.sources.model import LanguageModel
    from saeflow.training import Settings, Target, Trained


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(train)


def train(
    model: Annotated[str, typer.Argument(help='"demo", a folder, or a model on the hub.')],
    out: Annotated[Path, typer.Option(help="Folder of the run; a killed run goes on there.")],
    texts: Annotated[
        list[str],
        typer.Option(
            help='Where texts come from, once or more: a .txt, .jsonl or .parquet file, "demo", '
            "or a dataset on the hub."
        ),
    ],
    site: Annotated[
        str,
        typer.Option(
            help="What is read, with commas between: att, res, mlp; z (heads, before their projection); mlp_in or mid "
            "for a transcoder that predicts mlp."
        ),
    ] = "att",
    layers: Annotated[str, typer.Option(help='"all", or layers as 6,12,18 or 6-9.')] = "all",
    architecture: Annotated[
        str, typer.Option(help="jumprelu (Gemma Scope), jumprelu-l0 (Gemma Scope 2), topk, batchtopk.")
    ] = "jumprelu-l0",
    width: Annotated[str, typer.Option(help="Features: one number, or one for each of --site.")] = "16384",
    l0: Annotated[
        float, typer.Option(help="Active features a token: the target, or k. 0: 3 % of d_model.")
    ] = 0,
    tokens: Annotated[int, typer.Option(help="Tokens to train on.")] = 100_000_000,
    batch: Annotated[int, typer.Option(help="Tokens a step.")] = 4096,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-4,
    lr_warm_up: Annotated[float, typer.Option(help="Share of the steps over which it rises.")] = 0.02,
    lr_decay: Annotated[float, typer.Option(help="Share of the steps over which it falls to 0.")] = 0.2,
    beta1: Annotated[float, typer.Option(help="Adam's first decay; Gemma Scope has 0.")] = 0.9,
    penalty: Annotated[
        float | None, typer.Option(help="Coefficient of the L0 penalty, or of the loss of dead features.")
    ] = None,
    penalty_warm_up: Annotated[
        float | None, typer.Option(help="Share of the steps over which the L0 penalty grows.")
    ] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Of the gradient of thresholds.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Where thresholds begin.")] = None,
    unit_decoder: Annotated[
        bool | None, typer.Option(help="Keep decoder rows at norm 1 in every step.")
    ] = None,
    centre: Annotated[bool, typer.Option(help="Subtract the mean activation; folded in at the end.")] = True,
    start: Annotated[str, typer.Option(help="A release or folder of dictionaries to go on from.")] = "",
    context: Annotated[int, typer.Option(help="Tokens of a window at most.")] = 256,
    windows: Annotated[int, typer.Option(help="Windows in one forward pass.")] = 32,
    buffer: Annotated[int, typer.Option(help="Rows that are shuffled at a time.")] = 65_536,
    half: Annotated[bool, typer.Option(help="Keep the buffer in bfloat16.")] = False,
    eval_texts: Annotated[int, typer.Option(help="Texts kept for measuring.")] = 32,
    metrics_every: Annotated[int, typer.Option(help="Tokens between measurements; 0: a tenth of all.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Tokens between checkpoints; 0: none.")] = 10_000_000,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="What the model computes in: float32, bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of first weights, of texts and of shuffling.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it needs, and train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train SAEs or transcoders at sites of a model; activations are streamed once for all of them.

    Writes sae-lens folders that every other command opens, and metrics.jsonl. A killed run goes on from its last
    checkpoint to the same weights. Needs the extra train.
    """
    from saeflow.experiments.sampling import expand, open_dataset
    from saeflow.sources.model import load_model
    from saeflow.training import Optimiser, Settings, Stream, needs, sparsity, targets_of
    from saeflow.training.lens import extra
    from saeflow.training.settings import check_targets

    if not dry_run:
        extra()  # before a model is loaded
    lm = load_model(model, device=device, dtype=_dtype(dtype))
    chosen = tuple(range(lm.n_layers)) if layers == "all" else layers_of(layers)
    targets = targets_of(names_of(site), chosen, _widths(width))
    settings = Settings(
        sparsity(
            architecture, l0=l0 or max(1, round(0.03 * lm.d_model)), coefficient=penalty, warm_up=penalty_warm_up,
            bandwidth=bandwidth, threshold=threshold, unit_decoder=unit_decoder,
        ),
        Optimiser(tokens, batch, lr, lr_warm_up, lr_decay, beta1),
        Stream(context, windows, buffer, half),
        seed=seed, centre=centre, checkpoint_every=checkpoint_every,
        metrics_every=metrics_every or max(1, tokens // 10),
    )  # fmt: skip
    check_targets(targets, settings)
    if dry_run:
        needed = needs(targets, _point_widths(lm, targets), settings, lm.hf_model.dtype.itemsize)
        _show_needs(needed._asdict(), len(targets), settings.optimiser.steps, as_json=as_json)
        return
    read = _reader([open_dataset(name) for name in expand(texts)], seed)
    _show(
        _run(lm, read, targets, settings, out, start, eval_texts, ", ".join(texts)), settings, as_json=as_json
    )


def _run(
    lm: LanguageModel, read: Callable[[int], Iterable[str]], targets: Sequence[Target], settings: Settings, out: Path,
    start: str, n_evaluated: int, texts: str,
) -> Trained:  # fmt: skip
    from saeflow.sources.library import load_dictionaries
    from saeflow.training import TextBatches, evaluation_texts
    from saeflow.training import train as run

    stream = settings.stream
    measured = evaluation_texts(read, n_evaluated)
    with progress("training") as report:
        return run(
            lm,
            TextBatches(lm, read, context=stream.context, windows=stream.windows),
            targets, settings, out=out,
            evaluation=[
                lm.tokenize(measured[i : i + 8], max_length=stream.context) for i in range(0, len(measured), 8)
            ],
            start=load_dictionaries(start) if start else None, texts=texts, progress=report,
        )  # fmt: skip


def _reader(datasets: Sequence[Dataset], seed: int) -> Callable[[int], Iterable[str]]:
    """Texts of a pass: one of each dataset in turn, in an order of the seed and the pass."""

    def read(number: int) -> Iterable[str]:
        for turn in zip_longest(*(dataset.read(seed + number) for dataset in datasets)):
            yield from (text for text in turn if text is not None)

    return read


def _point_widths(lm: LanguageModel, targets: Sequence[Target]) -> dict[Any, int]:
    """The width of every place, from one short text."""
    points = tuple(dict.fromkeys(point for target in targets for point in target.points))
    captured = lm.capture(lm.tokenize(["a"]), points)
    return {point: int(captured[point].shape[-1]) for point in points}


def _widths(text: str) -> list[int]:
    if not all(name.isdigit() for name in names_of(text)) or not names_of(text):
        raise InvalidArgument(
            f"--width {text!r} is no list of whole numbers. Write it as 16384 or 768,768,384."
        )
    return [int(name) for name in names_of(text)]


def _dtype(name: str) -> Any:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InvalidArgument(f"--dtype {name!r} is not known. Give one of {', '.join(known)}.")
    return known[name]


def _show_needs(needed: dict[str, int], n: int, steps: int, *, as_json: bool) -> None:
    data = {"dictionaries": n, "steps": steps, "bytes": needed}
    about = {
        "dictionaries": "memory: weights, gradients, Adam's moments",
        "buffer": "memory: rows of every place",
        "checkpoint": "disk: two checkpoints, one replacing the other",
    }
    rows = [{"what": key, "GB": round(value / 1e9, 3), "": about[key]} for key, value in needed.items()]
    show(as_json, data, {"dictionaries": n, "steps": steps}, rows)


def _show(done: Trained, settings: Settings, *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "site": str(site),
            "FVE": round(found.fve, 4),
            "L0": round(found.l0, 2),
            "dead": round(done.dead[site], 4),
            "loss recovered": round(found.loss_recovered, 4),
            "loss added": round(found.loss_added, 4),
        }
        for site, found in done.quality.items()
    ]
    if as_json:
        show(True, {"folder": str(done.folder), "settings": settings.to_json(), "sites": rows}, {}, [])
        return
    print_table("", rows)
    typer.echo(f"\n{len(rows)} dictionaries in {done.folder}")
