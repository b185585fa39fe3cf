"""Training SAEs: speed and final quality of saeflow's trainer compared with sae-lens's.

    python benchmarks/training.py [--json] [--quick] [--widths 2304,4608] [--batch 4096] [--steps 20]
    python benchmarks/training.py --curves [--objectives jumprelu-l0] [--tokens 300000] [--seeds 3] [--layer 3]
    python benchmarks/training.py --whole [--model smollm2-135m] [--dtype float32] [--widths 2304] [--tokens 200000]

Without the extra `train`, only saeflow's trainer runs.

Speed: both trainers alternate on the same batches of 576 planted dimensions (2,000 directions of unequal frequency, 16
active), with a target L0 of 20. Reported are the median processor time per step after the first 30 % of the run, when
L0 has reached its target, and the mean over all steps, which start with eight times as many active features.

Whole: a run at nine sites (res, mlp and z of three consecutive layers), from text to output files, in a separate
process for each trainer: processor time per token for the model's forward pass, the training steps and the
evaluation, and peak memory. sae-lens's trainer runs on an eighth of the tokens. It is given the same forward pass,
buffer and evaluation; its own runs train one site each and would need nine of them.

Curves: final FVE, L0 and dead features on one layer of the demo model, for both trainers and several seeds.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _timing import arguments, machine, memory, show
from saeflow.demo.texts import DOMAINS, all_texts
from saeflow.ids import Site
from saeflow.sources.architectures import Tap
from saeflow.sources.model import load_model
from saeflow.training import (
    ActivationStream,
    Evaluation,
    Optimiser,
    TextBatches,
    TextRun,
    TrainingSettings,
    TrainingTarget,
    evaluation_texts,
    sparsity,
    targets_of,
    train,
)
from saeflow.training.buffer import ActivationRows
from saeflow.training.run import TRAINERS
from saeflow.training.trainer_interface import TrainerInputs

D, DIRECTIONS, ACTIVE, L0 = 576, 2000, 16, 20


def planted(n: int, seed: int) -> Tensor:
    """Rows that each combine 16 of 2,000 directions, centred and scaled to a mean norm of sqrt(d)."""
    own = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(DIRECTIONS, D, generator=own), dim=1)
    frequency = torch.arange(1, DIRECTIONS + 1).float() ** -0.7
    own.manual_seed(1 + seed)
    on = torch.multinomial(frequency.expand(n, -1), ACTIVE, generator=own)
    x = torch.zeros(n, DIRECTIONS).scatter(1, on, 1 + torch.rand(n, ACTIVE, generator=own)) @ truth
    x += 0.02 * torch.randn(n, D, generator=own)
    x -= x.mean(dim=0)
    return x * D**0.5 / x.norm(dim=1).mean()


def names() -> list[str]:
    return [name for name in TRAINERS if name != "sae-lens" or importlib.util.find_spec("sae_lens")]


def speed(objectives: list[str], widths: list[int], batch: int, steps: int) -> list[dict[str, object]]:
    data, rows = [planted(batch, seed) for seed in range(4)], list[dict[str, object]]()
    for width in widths:
        for objective in objectives:
            target = TrainingTarget(Site.parse("3/res"), Tap.RES, width)
            settings = TrainingSettings(
                sparsity(objective, l0=L0), Optimiser(steps * batch, batch, 1e-3), ActivationStream(buffer=2 * batch)
            )
            job = TrainerInputs([target], {target.name: (D, D)}, settings, torch.device("cpu"), {})
            trainers = {name: TRAINERS[name](job) for name in names()}
            taken = {name: list[float]() for name in trainers}
            for step in range(steps):
                for name, trainer in trainers.items():
                    began = time.process_time()
                    trainer.step({target.name: data[step % len(data)]})
                    taken[name].append((time.process_time() - began) * 1e6 / batch)
            for name, times in taken.items():
                settled = statistics.median(times[round(0.3 * steps) :])
                rows.append(
                    {
                        "objective": objective,
                        "width": width,
                        "trainer": name,
                        "microseconds a token": round(settled, 1),
                        "tokens/s": round(1e6 / settled),
                        "tokens/s, all steps": round(1e6 / statistics.mean(times[1:])),
                        "mse at the end": round(trainers[name].losses(target.name)["mse_loss"], 2),
                    }
                )
    return rows


def mixed(number: int) -> list[str]:
    """All texts of the demo pack, in an order determined by the number of the pass."""
    texts = [text for domain in DOMAINS for text in all_texts(domain)]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(number))
    return [texts[i] for i in order.tolist()]


def curves(
    objectives: list[str], tokens: int, seeds: int, layer: int, width: int, batch: int
) -> list[dict[str, object]]:
    model, rows = load_model("demo"), list[dict[str, object]]()
    measured = model.tokenize(evaluation_texts(mixed, 8), max_length=256)
    targets = targets_of(["res"], [layer], [width])
    for objective in objectives:
        for name in names():
            for seed in range(seeds):
                settings = TrainingSettings(
                    sparsity(objective, l0=6),
                    Optimiser(tokens, batch, 3e-3),
                    ActivationStream(buffer=16_384),
                    seed=seed,
                )
                with tempfile.TemporaryDirectory() as folder:
                    batches = TextBatches(model, mixed, context=256, windows=32)
                    out = Path(folder) / "run"
                    done = train(
                        model, batches, targets, settings, out=out, evaluation=[measured], trainer=TRAINERS[name]
                    )
                site = targets[0].site
                quality = done.quality[site]
                rows.append(
                    {
                        "objective": objective,
                        "trainer": name,
                        "seed": seed,
                        "fve": round(quality.fve, 4),
                        "l0": round(quality.l0, 2),
                        "dead": round(done.dead[site], 4),
                        "loss recovered": round(quality.loss_recovered, 4),
                    }
                )
    return rows


def whole(model: str, dtype: str, objective: str, width: int, tokens: int, batch: int) -> list[dict[str, object]]:
    rows = list[dict[str, object]]()
    for name in names():
        n = tokens if name != "sae-lens" else tokens // 8
        context = multiprocessing.get_context("spawn")
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=timed_run, args=(name, model, dtype, objective, width, n, batch, send))
        child.start()
        send.close()
        rows.append({"trainer": name, "objective": objective, "width": width, "tokens": n} | receive.recv())
        child.join()
    return rows


def timed_run(
    name: str, model_name: str, dtype: str, objective: str, width: int, tokens: int, batch: int, send: Any
) -> None:
    """Train nine dictionaries and send back where the processor time went."""
    torch.set_num_threads(1)
    parts: defaultdict[str, float] = defaultdict(float)

    def timing(owner: type, method: str, part: str) -> None:
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                parts[part] += time.process_time() - began

        setattr(owner, method, timed)

    timing(ActivationRows, "__next__", "pass")
    timing(TRAINERS[name], "step", "steps")  # pyright: ignore[reportArgumentType]
    timing(Evaluation, "measure", "measuring")
    model = load_model(model_name, dtype=getattr(torch, dtype))
    first = model.n_layers // 3
    targets = targets_of(["res", "mlp", "z"], range(first, first + 3), [width])
    settings = TrainingSettings(
        sparsity(objective, l0=L0),
        Optimiser(tokens, batch, 1e-3),
        ActivationStream(buffer=4 * batch),
        metrics_every=tokens // 10,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = TextRun(model, mixed, targets, settings, trainer=TRAINERS[name])
        began = time.process_time()
        done = run.train(Path(folder) / "run")
        taken = time.process_time() - began
    parts["the rest"] = taken - sum(parts.values())
    quality = done.quality.values()
    send.send(
        {
            "tokens/s": round(tokens / taken),
            **{f"{part}, us a token": round(1e6 * seconds / tokens) for part, seconds in parts.items()},
            "tokens/s of steps": round(tokens / parts["steps"]),
            "measuring of all": round(parts["measuring"] / taken, 3),
            "peak MB": round(memory()),
            "fve": round(statistics.mean(one.fve for one in quality), 3),
            "l0": round(statistics.mean(one.l0 for one in quality), 1),
            "loss on": max(one.loss_tokens for one in quality),
        }
    )


def as_table(rows: list[dict[str, object]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([f"{row[c]}" for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--objectives", default="jumprelu-l0,topk,batchtopk")
    parser.add_argument("--widths", default="2304,4608")
    parser.add_argument("--batch", type=int, default=0, help="4096, and 2048 for curves")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--curves", action="store_true", help="where both arrive, in place of speed")
    parser.add_argument("--whole", action="store_true", help="a run at nine sites, from text to files")
    parser.add_argument("--model", default="smollm2-135m", help="of --whole")
    parser.add_argument("--dtype", default="float32", help="of the model of --whole")
    parser.add_argument("--tokens", type=int, default=0, help="300,000, and 200,000 of --whole")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--width", type=int, default=768)
    told = parser.parse_args()
    torch.set_num_threads(1)
    objectives = told.objectives.split(",")
    if told.curves:
        batch = told.batch or 2048
        tokens = 20 * batch if told.quick else told.tokens or 300_000
        rows = curves(objectives, tokens, told.seeds, told.layer, told.width, batch)
    elif told.whole:
        rows = []
        model, width, tokens, batch = told.model, int(told.widths.split(",")[0]), told.tokens or 200_000, 2048
        if told.quick:
            model, width, tokens, batch = "demo", 64, 4096, 256
        for objective in objectives:
            rows += whole(model, told.dtype, objective, width, tokens, told.batch or batch)
    elif told.quick:
        rows = speed(objectives, [128], 256, 4)
    else:
        rows = speed(objectives, [int(width) for width in told.widths.split(",")], told.batch or 4096, told.steps)
    if told.json:
        show([], as_json=True, table=rows)
    else:
        print(f"{machine()}\n\n{as_table(rows)}")


if __name__ == "__main__":
    main()
