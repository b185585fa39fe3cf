"""Training SAEs: our stream through sae-lens's trainers, sae-lens alone site by site, and lean loops as limits.

    python benchmarks/training.py [--json] [--quick] [--sites 6] [--width 768] [--batch 2048] [--steps 40]
    python benchmarks/training.py --quality [--tokens 2000000] [--l0 6] [--layer 3]

Needs the extra train. Every method trains JumpReLU SAEs with a target L0 on the same activations of the demo model,
held in memory; ours is also timed with the model running beside it. Tokens are counted once for each site.

    sae-lens            SAETrainer.fit, a site at a time, fed the rows in batches: what a user would run
    saeflow             the shuffled buffer, the normalisation and all sites in step through MultiSAETrainer
    lean loop           the same loss, gradients and Adam written out without autograd, one site at a time
    matrix products     the five products of a step, forward and backward, and nothing else: the floor

With --quality: FVE, L0 and dead features at ten checkpoints for JumpReLU and TopK on one layer, as a table.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from _timing import Row, arguments, interleaved, machine, show
from saeflow.demo.texts import DOMAINS, all_texts
from saeflow.sources.architectures import Point
from saeflow.sources.model import LanguageModel, load_model
from saeflow.training import (
    ActivationStream,
    Optimiser,
    TextBatches,
    TrainingSettings,
    TrainingTarget,
    evaluation_texts,
    read_metrics,
    sparsity,
    targets_of,
    train,
)
from saeflow.training.buffer import ActivationRows, Rows, ShuffledBuffer
from saeflow.training.folding import Normalisation
from saeflow.training.sae_lens_trainer import SaeLensTrainer, extra, make_sae, trainer_config
from saeflow.training.settings import first_threshold
from saeflow.training.trainer import TrainerInputs

L0 = 6


def mixed(number: int) -> list[str]:
    """All texts of the demo pack, in an order of the pass."""
    texts = [text for domain in DOMAINS for text in all_texts(domain)]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(number))
    return [texts[i] for i in order.tolist()]


def stream(model: LanguageModel) -> TextBatches:
    return TextBatches(model, mixed, context=256, windows=32)


def captured(model: LanguageModel, points: list[Point], n: int) -> Rows:
    """`n` rows of each place."""
    rows, found = ActivationRows(model, stream(model), points), dict[Point, list[Tensor]]()
    while sum(len(piece) for piece in found.get(points[0], [])) < n:
        for point, new in next(rows).items():
            found.setdefault(point, []).append(new)
    return {point: torch.cat(pieces)[:n] for point, pieces in found.items()}


def again_and_again(rows: Rows) -> Iterator[Rows]:
    while True:
        yield rows


class LeanLoop:
    """One JumpReLU SAE with a target L0: sae-lens's loss, its gradients written out, torch's fused Adam."""

    def __init__(self, d_in: int, width: int, batch: int, bandwidth: float) -> None:
        generator = torch.Generator().manual_seed(0)
        W_dec = torch.nn.functional.normalize(torch.randn(width, d_in, generator=generator), dim=1)
        self.W_enc, self.W_dec = W_dec.T.contiguous(), W_dec
        self.b_enc, self.b_dec = torch.zeros(width), torch.zeros(d_in)
        self.threshold = torch.full((width,), first_threshold(L0, width))
        held = (self.W_enc, self.W_dec, self.b_enc, self.b_dec, self.threshold)
        self.parameters = [torch.nn.Parameter(tensor) for tensor in held]
        self.adam = torch.optim.Adam(self.parameters, lr=3e-3, fused=True)
        self.bandwidth, self.batch = bandwidth, batch

    @torch.no_grad()
    def step(self, x: Tensor) -> None:
        W_enc, W_dec, b_enc, b_dec, threshold = (p.data for p in self.parameters)
        pre = torch.addmm(b_enc, x, W_enc)
        on = pre > threshold
        acts = pre * on
        error = torch.addmm(b_dec, acts, W_dec).sub_(x)
        out_grad = error.mul_(2 / len(x))
        l0 = on.sum(1, dtype=torch.float32)
        l0_grad = (4 / L0 / len(x)) * (l0 - L0)
        acts_grad = out_grad @ W_dec.T
        near = (pre - threshold).abs_() < self.bandwidth / 2
        pull = acts_grad.mul(threshold).add_(l0_grad[:, None]).mul_(near)
        pre_grad = acts_grad.mul_(on)
        gradients = (
            x.T @ pre_grad,
            acts.T @ out_grad,
            pre_grad.sum(0),
            out_grad.sum(0),
            pull.sum(0).mul_(-1 / self.bandwidth),
        )
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        threshold.clamp_(min=0)
        W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def products(self, x: Tensor) -> None:
        """The matrix products of a step, on whatever numbers."""
        W_enc, W_dec = self.parameters[0].data, self.parameters[1].data
        acts = x @ W_enc
        out = acts @ W_dec
        back = out @ W_dec.T
        _ = acts.T @ out, x.T @ back


def speed(sites: int, width: int, batch: int, steps: int, repeats: int) -> list[Row]:
    model = load_model("demo")
    targets = targets_of(["res"], list(range(sites)), [width])
    points = [target.read for target in targets]
    settings = TrainingSettings(
        sparsity("jumprelu-l0", l0=L0), Optimiser(steps * batch, batch, 3e-3), ActivationStream(buffer=4 * batch)
    )
    rows = captured(model, points, 4 * batch)
    d_in = model.d_model
    norms = {
        p: Normalisation.of(h.mean(0).double(), (h - h.mean(0)).norm(dim=1).mean().double(), str(p))
        for p, h in rows.items()
    }
    job = TrainerInputs(targets, {t.name: (d_in, d_in) for t in targets}, settings, torch.device("cpu"), {})

    def sae_lens() -> None:
        trainer = extra("sae_lens.training.sae_trainer").SAETrainer
        for target in targets:
            batches = ShuffledBuffer(
                again_and_again({target.read: rows[target.read]}), rows=4 * batch, batch=batch, seed=0
            )
            ready = (norms[target.read](b[target.read]) for b in batches)
            with contextlib.redirect_stderr(io.StringIO()):  # its own bar
                trainer(
                    cfg=trainer_config(settings, torch.device("cpu")), sae=make_sae(target, job), data_provider=ready
                ).fit()

    def ours(source: Iterator[Rows]) -> None:
        buffer, learners = ShuffledBuffer(source, rows=4 * batch, batch=batch, seed=0), SaeLensTrainer(job)
        for _ in range(steps):
            found = next(buffer)
            learners.step({t.name: norms[t.read](found[t.read]) for t in targets})

    def lean(step: str) -> None:
        for target in targets:
            loop, x = LeanLoop(d_in, width, batch, 0.5), norms[target.read](rows[target.read])
            act = getattr(loop, step)
            for i in range(steps):
                act(x[(i % 4) * batch : (i % 4 + 1) * batch])

    def capture() -> None:
        source = ActivationRows(model, stream(model), points)
        n = 0
        while n < steps * batch:
            n += len(next(source)[points[0]])

    methods = {
        "sae-lens, a site at a time": sae_lens,
        "saeflow, from memory": lambda: ours(again_and_again(rows)),
        "saeflow, with the model": lambda: ours(ActivationRows(model, stream(model), points)),
        "the model alone": capture,
        "lean loop": lambda: lean("step"),
        "matrix products": lambda: lean("products"),
    }
    methods["sae-lens, a site at a time"]()  # imports and first calls
    taken = interleaved(methods, repeats)
    size, floor = f"{sites} sites, {d_in} to {width}, batch {batch}", taken["lean loop"]
    return [
        Row(name, size, seconds, seconds / floor, "lean loop", None, f"{sites * steps * batch / seconds:,.0f} tokens/s")
        for name, seconds in taken.items()
    ]


def quality(tokens: int, l0: int, layer: int, width: int, batch: int, parts: list[str]) -> list[dict[str, object]]:
    """FVE, L0 and dead features at ten checkpoints, for JumpReLU with a target L0 and TopK."""
    model, found = load_model("demo"), list[dict[str, object]]()
    measured = evaluation_texts(mixed, 32)
    evaluation = [model.tokenize(measured[i : i + 8], max_length=256) for i in range(0, len(measured), 8)]
    targets: list[TrainingTarget] = targets_of(parts, [layer], [width])
    for objective in ("jumprelu-l0", "topk"):
        settings = TrainingSettings(
            sparsity(objective, l0=l0), Optimiser(tokens, batch, 3e-3), ActivationStream(), metrics_every=tokens // 10
        )
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            train(model, stream(model), targets, settings, out=out, evaluation=evaluation, texts="demo")
            found += [{"objective": objective, **row} for row in read_metrics(out)]
    return found


def as_table(rows: list[dict[str, object]]) -> str:
    columns = ("objective", "site", "step", "tokens", "fve", "l0", "dead", "silent", "loss_recovered")
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    for row in rows:
        cells = [
            f"{row[c]:.3f}" if isinstance(row[c], float) else f"{row[c]:,}" if isinstance(row[c], int) else str(row[c])
            for c in columns
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sites", type=int, default=6)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--quality", action="store_true", help="FVE and L0 against steps, in place of speed")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--l0", type=int, default=L0)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--site", default="res", help="of --quality, with commas between")
    told = parser.parse_args()
    if told.quality:
        tokens = 20 * told.batch if told.quick else told.tokens
        rows = quality(tokens, told.l0, told.layer, told.width, told.batch, told.site.split(","))
        if told.json:
            show([], as_json=True, quality=rows)
        else:
            print(f"{machine()}\n\n{as_table(rows)}")
        return
    if told.quick:
        rows = speed(min(told.sites, 2), 128, 256, 4, 1)
    else:
        rows = speed(told.sites, told.width, told.batch, told.steps, 5)
    show(rows, as_json=told.json)


if __name__ == "__main__":
    main()
