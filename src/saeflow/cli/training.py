"""`saeflow train`: train SAEs and transcoders at chosen sites of a model, on any texts (section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter

from saeflow.cli.options import WHERE, Device, Flag, Json, LogTo, OutFolder, PrependBos, TextSources, Where
from saeflow.cli.output import Row, print_table, progress, show
from saeflow.errors import InvalidArgument

if TYPE_CHECKING:
    from saeflow.experiments.sampling import Dataset
    from saeflow.training import TextRun, Trained, TrainingSettings


_FASTER: Final = 1.5
"""A dtype that is more than this many times as fast is suggested."""


def train(
    model: str,
    /,
    *,
    out: Annotated[Path, OutFolder],
    texts: TextSources,
    sites: tuple[str, ...] = ("att",),
    layers: tuple[int | None, ...] = (None,),
    architecture: Literal["jumprelu", "jumprelu-l0", "topk", "batchtopk"] = "jumprelu-l0",
    width: tuple[int, ...] = (16384,),
    l0: float = 0,
    tokens: int = 100_000_000,
    batch: int = 4096,
    lr: float = 3e-4,
    lr_warm_up: float = 0.02,
    lr_decay: float = 0.2,
    beta1: float = 0.9,
    penalty: float | None = None,
    penalty_warm_up: float | None = None,
    bandwidth: float | None = None,
    threshold: float | None = None,
    unit_decoder: bool | None = None,
    centre: bool = True,
    init: str = "",
    max_length: int = 256,
    windows: int = 32,
    buffer: int = 65_536,
    half: bool = False,
    uses: int = 1,
    massive: float = 100,
    n_eval_texts: int = 32,
    metrics_every: int = 0,
    loss_every_time: Flag = False,
    checkpoint_every: int = 10_000_000,
    checkpoint_minutes: float = 5,
    keep_every: int = 0,
    device: Device = "cpu",
    trainer: Literal["sparse", "sae-lens"] = "sparse",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
    shards: Annotated[int, Parameter(group=WHERE)] = 0,
    where: Where = Where(),
    prepend_bos: PrependBos = None,
    log: LogTo = "",
    dry_run: Flag = False,
    as_json: Json = False,
) -> None:
    """Train SAEs or transcoders at sites of a model; activations are streamed once for all of them.

    Writes folders in the format of sae-lens, which every other command opens, and metrics.jsonl. A killed run resumes
    from its last checkpoint and ends with the same weights. With --shards or an engine, groups of sites are trained
    separately, also with the same weights in the end; all workers must see --out.

    Args:
        model: Language model: "demo", a folder, or a name on the hub.
        out: Where to write: the folder of the run; a killed run resumes there.
        sites: Sites, or parts at all layers: 12/res,13/mlp or res; also z (the heads' outputs before the projection),
            and mlp_in or mid for a transcoder that predicts mlp.
        layers: Layers, such as 2,3 or 6-9: for the parts in --sites, all by default.
        architecture: Kind of dictionary: jumprelu is that of Gemma Scope, jumprelu-l0 that of Gemma Scope 2.
        width: Features of a dictionary: one number, or one for each of --sites.
        l0: Active features per token: the target, or k. 0 means 3 % of d_model; with jumprelu and --penalty, no target.
        tokens: Total number of tokens: those to train on.
        batch: Tokens per step.
        lr: Peak learning rate.
        lr_warm_up: Share of the steps over which the learning rate rises.
        lr_decay: Share of the steps over which the learning rate falls to 0.
        beta1: Adam's first decay; Gemma Scope uses 0.
        penalty: Coefficient of the L0 penalty, or of the loss of dead features.
        penalty_warm_up: Share of the steps over which the L0 penalty grows.
        bandwidth: Bandwidth of the gradient of thresholds.
        threshold: Where thresholds start.
        unit_decoder: Keep decoder rows at norm 1 in every step.
        centre: Subtract the mean activation: it is folded into the dictionaries at the end.
        init: Release or folder of dictionaries to start from.
        max_length: Maximum length of a text, in tokens: longer texts are cut into windows of this length.
        windows: Windows in one forward pass.
        buffer: Rows in the shuffle buffer.
        half: Keep the buffer in bfloat16.
        uses: Times each row of the buffer is trained on; 2 halves what the model costs.
        massive: Leave out positions with a squared norm of more than this many medians of their site; 0 for none.
        n_eval_texts: Texts held out for measuring.
        metrics_every: Tokens between measurements; 0 for a tenth of all.
        loss_every_time: Measure the model's loss each time, not only at the end.
        checkpoint_every: Tokens between checkpoints; 0 for none.
        checkpoint_minutes: Minutes between checkpoints, whatever the tokens; 0 for none.
        keep_every: Tokens between dictionaries that are kept, for a chain: in the folder OUT-steps; 0 for none.
        trainer: Trainer: sparse (saeflow's own), or sae-lens (the extra train).
        dtype: Data type of the model: what it computes in.
        seed: Random seed: of the first weights, the order of the texts and the shuffling.
        shards: Train the sites in this many groups, each separately; 0 for one here, or one per worker of an engine.
        dry_run: Estimate the cost, and stop: memory, disk and time.
    """
    import torch

    from saeflow.experiments.sampling import expand, open_dataset
    from saeflow.loggers import logger
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
    from saeflow.training.sae_lens_trainer import extra
    from saeflow.training.settings import check_targets

    # 1. The model and the targets.
    engine = where.open()
    in_one = where.engine == "here" and shards in (0, 1)
    if log and not in_one:
        raise InvalidArgument("--log is for a run in one process. Leave out --log, --shards and --engine.")
    to = None if dry_run else logger(log, out)
    if trainer == "sae-lens":
        extra()  # before a model is loaded
    lm = load_model(model, device=device, dtype=getattr(torch, dtype), prepend_bos=prepend_bos)
    chosen = tuple(layer for layer in layers if layer is not None)
    targets = targets_of(list(sites), chosen or tuple(range(lm.n_layers)), list(width))

    # 2. The settings.
    left_to_penalty = architecture == "jumprelu" and penalty is not None
    loss = sparsity(
        architecture,
        l0=l0 or (0 if left_to_penalty else max(1, round(0.03 * lm.d_model))),
        coefficient=penalty,
        warm_up=penalty_warm_up,
        bandwidth=bandwidth,
        threshold=threshold,
        unit_decoder=unit_decoder,
    )
    settings = TrainingSettings(
        loss,
        Optimiser(tokens, batch, lr, lr_warm_up, lr_decay, beta1),
        ActivationStream(max_length, windows, buffer, half, uses),
        seed=seed,
        centre=centre,
        massive=massive,
        checkpoint_every=checkpoint_every,
        checkpoint_minutes=checkpoint_minutes,
        metrics_every=metrics_every or max(1, tokens // 10),
        loss_every_time=loss_every_time,
        keep_every=keep_every,
    )
    check_targets(targets, settings)

    # 3. The run.
    datasets = tuple(open_dataset(name) for name in expand(texts))
    begin = load_dictionaries(init) if init else None
    run = TextRun(
        lm,
        partial(texts_of_pass, datasets, seed),
        targets,
        settings,
        n_eval_texts,
        begin,
        ", ".join(texts),
        trainer=TRAINERS[trainer],
    )
    if dry_run:
        _show_needs(run, max(1, shards), as_json=as_json)
        return
    with engine, progress("training") as report:
        if in_one:
            done = run.train(out, progress=report, log=to)
        else:
            done = train_in_shards(run, out, shards=shards or None, engine=engine, progress=report)
    _show(done, settings, as_json=as_json)


def texts_of_pass(datasets: Sequence[Dataset], seed: int, number: int) -> Iterable[str]:
    """The texts of one pass over datasets, one of each in turn; the seed and the pass's number set their order."""
    for turn in zip_longest(*(dataset.read(seed + number) for dataset in datasets)):
        yield from (text for text in turn if text is not None)


def _show_needs(run: TextRun, shards: int, *, as_json: bool) -> None:
    """Print what a run takes in memory, on disk and in time."""
    import torch

    from saeflow.report.tables import duration
    from saeflow.training import needs
    from saeflow.training.shards import grouped
    from saeflow.training.text_run import n_vocabulary, product_seconds

    # 1. The most bytes of each kind that a shard takes; the widths come from one short text.
    lm, settings = run.model, run.settings
    points = tuple(dict.fromkeys(point for target in run.targets for point in target.points))
    captured = lm.capture(lm.tokenize(["a"]), points)
    widths: dict[Any, int] = {point: int(captured[point].shape[-1]) for point in points}
    itemsize, vocabulary, dense = lm.hf_model.dtype.itemsize, n_vocabulary(lm), run.trainer.name == "sae-lens"
    at_once = torch.get_num_threads() if lm.device.type == "cpu" else 1
    each = [
        needs(group, widths, settings, itemsize, vocabulary, dense=dense, at_once=at_once)._asdict()
        for group in grouped(run.targets, shards)
    ]
    needed = {"model": lm.hf_model.get_memory_footprint()} | {key: max(one[key] for one in each) for key in each[0]}
    needed["peak"] = sum(needed[key] for key in ("model", "dictionaries", "buffer", "measuring"))

    # 2. These, and the time that the run takes in this process, as lines and rows.
    pace = run.probe()
    seconds = round(pace.seconds(settings), 1)
    about = {
        "model": "memory: weights",
        "dictionaries": "memory: weights, gradients, Adam's moments, a step",
        "buffer": "memory: rows of every place",
        "measuring": "memory: folded weights, activations, the model's loss",
        "peak": "memory: all of these, besides Python with torch, about 0.5 GB",
        "checkpoint": "disk: two checkpoints, one replacing the other",
    }
    rows = [{"what": key, "GB": round(needed[key] / 1e9, 3), "": what} for key, what in about.items() if key in needed]
    summary: Row = {"dictionaries": len(run.targets), "steps": settings.optimiser.steps}
    parts = {"a row": pace.row, "a step": pace.step, "a first step": pace.first_step}
    parts |= {"a measurement": pace.measurement, "the model's loss": pace.loss}
    data = summary | {"shards": len(each), "bytes": needed, "seconds": seconds}
    data |= {"seconds of": {name: float(f"{value:.3g}") for name, value in parts.items()}, "first L0": pace.first_l0}
    if len(each) > 1:
        summary["shards, of which the largest takes"] = len(each)
    at = ""
    if pace.first_l0:
        at = f" at the target L0, {settings.sparsity.l0:g}, and at that of the first weights, {pace.first_l0:.0f}"
    summary["time"] = f"about {duration(seconds)} here, from three steps{at}, and a measurement"

    # 3. On the CPU, whether another dtype is faster.
    if lm.device.type == "cpu":
        taken = {str(dtype).removeprefix("torch."): s for dtype, s in product_seconds(lm).items()}
        data["seconds of a product"] = {name: float(f"{s:.3g}") for name, s in taken.items()}
        mine = str(lm.hf_model.dtype).removeprefix("torch.")
        best = min(taken, key=taken.__getitem__)
        if mine in taken and taken[mine] > _FASTER * taken[best]:
            summary["dtype"] = (
                f"--dtype {best} is faster here: a product of the model takes {1000 * taken[best]:.3g} ms in it, and "
                f"{1000 * taken[mine]:.3g} ms in {mine}"
            )
    show(as_json, data, summary, rows)


def _show(done: Trained, settings: TrainingSettings, *, as_json: bool) -> None:
    """Print the quality of the dictionaries, and which of them missed the target L0."""
    from saeflow.training.record import missed_by

    target = settings.sparsity.l0
    missed = {site: share for site, q in done.quality.items() if (share := missed_by(q.l0, target)) is not None}
    rows: list[Row] = [
        {
            "site": str(site),
            "FVE": round(found.fve, 4),
            "FVE of all": round(found.fve_all, 4),
            "L0": round(found.l0, 2),
            "dead": round(done.dead[site], 4),
            "loss recovered": round(found.loss_recovered, 4),
            "loss added": round(found.loss_added, 4),
        }
        for site, found in done.quality.items()
    ]
    if as_json:
        shares = {str(site): round(share, 4) for site, share in missed.items()}
        data = {"folder": str(done.folder), "settings": settings.to_json(), "sites": rows, "L0 missed by": shares}
        show(True, data, {}, [])
        return
    print_table(rows)
    trained_on = settings.optimiser.steps * settings.optimiser.batch
    for site, n in done.massive.items():
        if n or done.quality[site].massive:
            print(
                f"{site}: {n:,} of {trained_on:,} positions ({n / trained_on:.2%}) were left out as massive: their "
                f"squared norm is above {settings.massive:g} times the median. 'FVE of all' includes them."
            )
    for site, share in missed.items():
        print(
            f"{site}: L0 is {done.quality[site].l0:.1f} where {target:g} was requested ({share:+.0%}). Train on more "
            "--tokens, in smaller batches, or with a higher --lr."
        )
    print(f"\n{len(rows)} dictionaries in {done.folder}")
