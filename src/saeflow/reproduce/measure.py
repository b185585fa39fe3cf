"""How fast this machine is, measured in a few seconds: what a plan of a run is made from."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from saeflow.errors import InvalidArgument
from saeflow.ids import Part
from saeflow.reproduce.revisions import is_held
from saeflow.sources.library import DictionarySet
from saeflow.sources.model import LanguageModel, load_model

PASS_TOKENS: Final = 128
"""Tokens of the text that a pass is timed on: where experiments cut texts."""

SMALL_PASS: Final = 0.018
"""Seconds of a pass of the demo model where the constants of `costs` were measured: 2 cores of x86_64, one thread."""

_TIMES: Final = 5


@dataclass(frozen=True, slots=True)
class Speeds:
    """What was measured.

    Attributes:
        products: floating-point operations a second, in products of the model's shape.
        small: how much slower than where the constants were measured this machine does small operations: a pass of
            the demo model, which ships with saeflow.
        passes: tokens a second of the model's own forward pass; None where it is not on this machine.
        threads: it was measured with.
        device: where.
    """

    products: float
    small: float
    passes: float | None
    threads: int
    device: str

    def forward(self, flops: float) -> float:
        """Seconds a token of a forward pass: as measured, or from the products where the model is not here."""
        return 1 / self.passes if self.passes else flops / self.products


def measure(model: str, d_model: int, *, device: str = "cpu") -> Speeds:
    """Time products of width `d_model`, the demo model, and the model itself where it is on this machine.

    Takes a few seconds, and what loading the model takes.

    Args:
        model: as its hub calls it, "demo", or a folder.
        d_model: width of the stream, for the products.
        device: where to compute.

    Raises:
        BadFile: when the model that is here cannot be read.
    """
    x, w = torch.randn(PASS_TOKENS, d_model, device=device), torch.randn(d_model, 4 * d_model, device=device)
    product = 2.0 * PASS_TOKENS * d_model * 4 * d_model
    n = max(1, round(2e9 / product))  # long enough for the clock

    def products() -> None:
        for _ in range(n):
            torch.mm(x, w)

    seconds = _median(products, device)
    small = _pass(load_model("demo"))
    own: float | None = None
    if model == "demo":
        own = PASS_TOKENS / small
    elif is_held(model):
        own = PASS_TOKENS / _pass(load_model(model, device=device))
    return Speeds(n * product / seconds, small / SMALL_PASS, own, torch.get_num_threads(), device)


def active_features(dictionaries: DictionarySet, model: LanguageModel, texts: Sequence[str]) -> float:
    """Features active on a token: the mean over tokens of some texts at the first, the middle and the last layer.

    Raises:
        InvalidArgument: without a residual dictionary or a text.
        BadFile: when a dictionary cannot be read.
    """
    layers = sorted(site for site in dictionaries.sites if site.part is Part.RES)
    if not layers or not texts:
        raise InvalidArgument(f"{len(layers)} residual dictionaries and {len(texts)} texts. Give one of each, or more.")
    counts: list[float] = []
    for site in dict.fromkeys((layers[0], layers[len(layers) // 2], layers[-1])):
        dictionary = dictionaries[site]
        for text in texts:
            tokens = model.tokenize([text], max_length=PASS_TOKENS)
            held = model.capture(tokens, [dictionary.point])[dictionary.point][0, 1:]  # the first has many of its own
            counts += (dictionary.encode(held) > 0).sum(-1).tolist()
    return statistics.fmean(counts)


def _pass(model: LanguageModel) -> float:
    """Seconds of a forward pass of one text, the vocabulary's product included."""
    ids = torch.arange(PASS_TOKENS) % (len(model.tokenizer) - 1)
    tokens = model.tokenize([str(model.tokenizer.decode(ids.tolist()))], max_length=PASS_TOKENS)
    return _median(lambda: model.loss(tokens), str(model.device))


def _median(act: Callable[[], object], device: str) -> float:
    """Of a few times, after one that warms up."""
    times: list[float] = []
    for _ in range(_TIMES + 1):
        began = time.perf_counter()
        act()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
