"""Two dictionaries between which the right T is known, on a model whose blocks add nothing.

The stream is the same at every layer, so that what fits h at layer 0 fits it at layer 1. The rows of A are an
orthonormal basis with both signs: what it makes of h is h, up to its thresholds. B has the same rows in another order,
each longer or shorter: feature i of A is feature order[i] of B, active size[i] times as strongly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saeflow.experiments.results import RunRequest
from saeflow.experiments.settings import TransitionSize
from saeflow.experiments.transition.run import TransitionTexts, run_transition, weights_digest
from saeflow.ids import Site
from saeflow.sources.activations import JumpReLU, ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel

from ..sources.tiny_models import D_MODEL, tiny_model

A, B = Site.parse("0/res"), Site.parse("1/res")
N = 2 * D_MODEL


@dataclass(frozen=True)
class World:
    """The model, A and B, and the truth between them."""

    model: LanguageModel
    dictionaries: dict[Site, Dictionary]
    order: torch.Tensor
    size: torch.Tensor


def still_model(seed=0):
    """A tiny Llama whose blocks add nothing."""
    model = tiny_model("llama", seed)
    with torch.no_grad():
        for layer in range(model.n_layers):
            block = model.block(layer)
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    return model


def dictionary(site, rows, *, threshold=None, size=None, b_dec=None, reads=None):
    """A dictionary of these rows; a feature of size s is active s times as strongly, its row 1 / s as long."""
    size = torch.ones(len(rows)) if size is None else size
    reads = rows if reads is None else reads
    return Dictionary(
        site,
        tap=Tap.RES,
        W_enc=reads * size[:, None],
        b_enc=torch.zeros(len(rows)),
        W_dec=rows / size[:, None],
        b_dec=torch.zeros(rows.shape[1]) if b_dec is None else b_dec,
        activation=ReLU() if threshold is None else JumpReLU(threshold * size),
    )


def plant(seed=0, *, sized=True):
    """The world of the head of the file."""
    make = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=make))[0]
    rows = torch.cat([basis, -basis])
    threshold = 1e-5 * (1 + torch.rand(N, generator=make))
    order = torch.randperm(N, generator=make)
    size = torch.exp(torch.randn(N, generator=make)) if sized else torch.ones(N)
    back = torch.argsort(order)  # row j of B is row back[j] of A
    made = {
        A: dictionary(A, rows, threshold=threshold),
        B: dictionary(B, rows[back], threshold=threshold[back], size=size[back]),
    }
    return World(still_model(), made, order, size)


def random_pair(seed=0, *, n=(30, 26)):
    """Two unrelated JumpReLU dictionaries with biases."""
    make = torch.Generator().manual_seed(seed)
    found = {}
    for site, many in zip((A, B), n, strict=True):
        rows, reads = torch.randn(2, many, D_MODEL, generator=make)
        found[site] = Dictionary(
            site,
            tap=Tap.RES,
            W_enc=0.3 * reads,
            b_enc=0.1 * torch.randn(many, generator=make),
            W_dec=0.4 * rows,
            b_dec=0.2 * torch.randn(D_MODEL, generator=make),
            activation=JumpReLU(0.1 + torch.rand(many, generator=make)),
        )
    return found


def texts(n=24, *, datasets=2, words=20):
    """TransitionTexts of random words: so many to measure on, as many to fit on, half as many for validation."""
    make = torch.Generator().manual_seed(5)

    def some(many):
        drawn = torch.randint(3, 48, (many, words), generator=make).tolist()
        return [" ".join(f"w{i}" for i in row) for row in drawn]

    measured = [(f"set {i % datasets}", i // datasets, text) for i, text in enumerate(some(n))]
    return TransitionTexts(measured, some(2 * n), some(n // 2))


def run(out, world, *, settings=None, given=None, progress=None):
    """A run into a folder."""
    settings = settings or TransitionSize(((A, B),), k=(1, 2, None), loss_texts=2)
    digest = weights_digest(world.model, world.dictionaries, settings.pairs)
    request = RunRequest(
        "transition",
        "planted",
        "tiny",
        0,
        ("set 0", "set 1"),
        {},
        {"k": list(settings.k), "memory": settings.memory, "weights": digest},
    )
    return run_transition(
        world.model, world.dictionaries, settings, given or texts, request=request, out=out, progress=progress
    )


def explained(results, *, scaled=False):
    """Explained variance of every prediction, from the rows, by name."""
    missed: dict[str, float] = {}
    total = 0.0
    for row in results.rows():
        total += row["total"]
        for name, values in row["missed"].items():
            missed[name] = missed.get(name, 0.0) + values[-1 if scaled else 0]
    return {name: 1 - value / total for name, value in missed.items()}
