"""`saeflow train`: SAEs and transcoders at chosen sites of a model, from texts of one's own (section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saeflow.cli.app import Device, Json, PrependBos, print_table, progress, show
from saeflow.cli.engine import PANEL, Address, Cpus, Engine, Gpus, Workers, opened
from saeflow.cli.lists import layers_of, names_of
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.experiments.sampling import Dataset
    from saeflow.sources.model import LanguageModel
    from saeflow.training import TextRun, Trained, TrainingSettings, TrainingTarget


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
        float,
        typer.Option(
            help="Active features a token: the target, or k. 0: 3 % of d_model, and none for jumprelu with --penalty."
        ),
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
    unit_decoder: Annotated[bool | None, typer.Option(help="Keep decoder rows at norm 1 in every step.")] = None,
    centre: Annotated[bool, typer.Option(help="Subtract the mean activation; folded in at the end.")] = True,
    start: Annotated[str, typer.Option(help="A release or folder of dictionaries to go on from.")] = "",
    context: Annotated[int, typer.Option(help="Tokens of a window at most.")] = 256,
    windows: Annotated[int, typer.Option(help="Windows in one forward pass.")] = 32,
    buffer: Annotated[int, typer.Option(help="Rows that are shuffled at a time.")] = 65_536,
    half: Annotated[bool, typer.Option(help="Keep the buffer in bfloat16.")] = False,
    eval_texts: Annotated[int, typer.Option(help="Texts kept for measuring.")] = 32,
    metrics_every: Annotated[int, typer.Option(help="Tokens between measurements; 0: a tenth of all.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Tokens between checkpoints; 0: none.")] = 10_000_000,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Minutes between checkpoints, whatever the tokens; 0: none.")
    ] = 5,
    device: Device = "cpu",
    trainer: Annotated[
        str, typer.Option(help="What moves the weights: sparse (saeflow's own), or sae-lens (the extra train).")
    ] = "sparse",
    dtype: Annotated[str, typer.Option(help="What the model computes in: float32, bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of first weights, of texts and of shuffling.")] = 0,
    shards: Annotated[
        int,
        typer.Option(
            help="Train the sites in so many groups, each by itself; 0 for one here, and one a worker elsewhere.",
            rich_help_panel=PANEL,
        ),
    ] = 0,
    engine: Engine = "here",
    workers: Workers = 0,
    address: Address = "",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    prepend_bos: PrependBos = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it needs and how long it takes, and train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train SAEs or transcoders at sites of a model; activations are streamed once for all of them.

    Writes sae-lens folders that every other command opens, and metrics.jsonl. A killed run resumes from its last
    checkpoint to the same weights. With --shards or an engine groups of sites are trained by themselves, to the same
    weights; all workers must see --out.
    """
    from saeflow.experiments.sampling import expand, open_dataset
    from saeflow.sources.library import load_dictionaries
    from saeflow.sources.model import load_model
    from saeflow.training import (
        ActivationStream,
        Optimiser,
        TextRun,
        TrainingSettings,
        sparsity,
        targets_of,
        train_in_shards,
    )
    from saeflow.training.run import TRAINERS
    from saeflow.training.sae_lens_trainer import SaeLensTrainer, extra
    from saeflow.training.settings import check_targets

    where = opened(engine, workers, address, cpus, gpus)
    whole = engine == "here" and shards in (0, 1)
    if trainer not in TRAINERS:
        raise InvalidArgument(f"--trainer {trainer!r} is not known. Give one of {', '.join(TRAINERS)}.")
    if trainer == SaeLensTrainer.name:
        extra()  # before a model is loaded
    lm = load_model(model, device=device, dtype=_dtype(dtype), prepend_bos=prepend_bos)
    chosen = tuple(range(lm.n_layers)) if layers == "all" else layers_of(layers)
    targets = targets_of(names_of(site), chosen, _widths(width))
    left_to_penalty = architecture == "jumprelu" and penalty is not None
    l0 = l0 or (0 if left_to_penalty else max(1, round(0.03 * lm.d_model)))
    settings = TrainingSettings(
        sparsity(
            architecture,
            l0=l0,
            coefficient=penalty,
            warm_up=penalty_warm_up,
            bandwidth=bandwidth,
            threshold=threshold,
            unit_decoder=unit_decoder,
        ),
        Optimiser(tokens, batch, lr, lr_warm_up, lr_decay, beta1),
        ActivationStream(context, windows, buffer, half),
        seed=seed,
        centre=centre,
        checkpoint_every=checkpoint_every,
        checkpoint_minutes=checkpoint_minutes,
        metrics_every=metrics_every or max(1, tokens // 10),
    )
    check_targets(targets, settings)
    run = TextRun(
        lm,
        _Texts(tuple(open_dataset(name) for name in expand(texts)), seed),
        targets,
        settings,
        eval_texts,
        load_dictionaries(start) if start else None,
        ", ".join(texts),
        trainer=TRAINERS[trainer],
    )
    if dry_run:
        _show_needs(run, max(1, shards), as_json=as_json)
        return
    with where, progress("training") as report:
        done = (
            run.train(out, progress=report)
            if whole
            else train_in_shards(run, out, shards=shards or None, engine=where, progress=report)
        )
    _show(done, settings, as_json=as_json)


@dataclass(frozen=True)
class _Texts:
    """Texts of a pass: one of each dataset in turn, in an order of the seed and the pass."""

    datasets: tuple[Dataset, ...]
    seed: int

    def __call__(self, number: int) -> Iterable[str]:
        for turn in zip_longest(*(dataset.read(self.seed + number) for dataset in self.datasets)):
            yield from (text for text in turn if text is not None)


def _point_widths(lm: LanguageModel, targets: Sequence[TrainingTarget]) -> dict[Any, int]:
    """The width of every place, from one short text."""
    points = tuple(dict.fromkeys(point for target in targets for point in target.points))
    captured = lm.capture(lm.tokenize(["a"]), points)
    return {point: int(captured[point].shape[-1]) for point in points}


def _widths(text: str) -> list[int]:
    if not all(name.isdigit() for name in names_of(text)) or not names_of(text):
        raise InvalidArgument(f"--width {text!r} is no list of whole numbers. Write it as 16384 or 768,768,384.")
    return [int(name) for name in names_of(text)]


def _dtype(name: str) -> Any:
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InvalidArgument(f"--dtype {name!r} is not known. Give one of {', '.join(known)}.")
    return known[name]


def _show_needs(run: TextRun, shards: int, *, as_json: bool) -> None:
    from saeflow.report.tables import duration
    from saeflow.training import needs
    from saeflow.training.shards import grouped

    lm, settings = run.model, run.settings
    widths, itemsize = _point_widths(lm, run.targets), lm.hf_model.dtype.itemsize
    vocabulary = int(lm.hf_model.config.get_text_config().vocab_size)
    each = [needs(group, widths, settings, itemsize, vocabulary)._asdict() for group in grouped(run.targets, shards)]
    needed = {"model": lm.hf_model.get_memory_footprint()} | {key: max(one[key] for one in each) for key in each[0]}
    peak = sum(needed[key] for key in ("model", "dictionaries", "buffer", "measuring"))
    about = {
        "model": "memory: weights",
        "dictionaries": "memory: weights, gradients, Adam's moments, a step",
        "buffer": "memory: rows of every place",
        "measuring": "memory: folded weights, activations, the model's loss",
        "peak": "memory: all of these, besides Python with torch, about 0.5 GB",
        "checkpoint": "disk: two checkpoints, one replacing the other",
    }
    rows = [
        {"what": key, "GB": round(value / 1e9, 3), "": about[key]}
        for key, value in sorted({**needed, "peak": peak}.items(), key=lambda one: list(about).index(one[0]))
    ]
    told: dict[str, Any] = {"dictionaries": len(run.targets), "steps": settings.optimiser.steps}
    if len(each) > 1:
        told["shards, of which the largest takes"] = len(each)
    seconds = round(run.probe().seconds(settings), 1)
    told["time"] = f"about {duration(seconds)} here, from three steps and a measurement"
    data = {
        "dictionaries": len(run.targets),
        "steps": settings.optimiser.steps,
        "shards": len(each),
        "bytes": {**needed, "peak": peak},
        "seconds": seconds,
    }
    show(as_json, data, told, rows)


def _show(done: Trained, settings: TrainingSettings, *, as_json: bool) -> None:
    from saeflow.training.record import missed_by

    asked = settings.sparsity.l0
    missed = {site: share for site, q in done.quality.items() if (share := missed_by(q.l0, asked)) is not None}
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
        told = {str(site): round(share, 4) for site, share in missed.items()}
        data = {"folder": str(done.folder), "settings": settings.to_json(), "sites": rows, "L0 missed by": told}
        show(True, data, {}, [])
        return
    print_table("", rows)
    for site, share in missed.items():
        typer.echo(
            f"{site}: L0 is {done.quality[site].l0:.1f} where {asked:g} was asked for ({share:+.0%}). Train on more "
            "--tokens, in smaller batches, or with a higher --lr."
        )
    typer.echo(f"\n{len(rows)} dictionaries in {done.folder}")
