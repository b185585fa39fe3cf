"""Faults planted in a dictionary of the demo pack, one at a time, each with the check that has to name it.

python tests/doctor/faults.py [NAME]      what the doctor says of each: the page docs/doctor.md shows this
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from saeflow.demo import DOMAINS, quality
from saeflow.demo.texts import texts as demo_texts
from saeflow.doctor.examine import examine
from saeflow.doctor.findings import CheckKind, Examination, Severity
from saeflow.ids import Site
from saeflow.sources.activations import JumpReLU, ReLU
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing, Tap
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model

RES, ATT, MLP = Site.parse("3/res"), Site.parse("3/att"), Site.parse("3/mlp")


@dataclass(frozen=True)
class World:
    """The demo pack."""

    dictionaries: DictionarySet
    model: LanguageModel

    def __getitem__(self, site: Site) -> Dictionary:
        return self.dictionaries[site]


@dataclass(frozen=True)
class Fault:
    """What is done to a dictionary, at which site, and which check names it; `weights`: already without a model."""

    plant: Callable[[World], Dictionary]
    check: CheckKind
    said: str
    weights: bool = False
    severity: Severity = Severity.WRONG


def world() -> World:
    return World(load_dictionaries("demo"), load_model("demo"))


def texts(n: int = 12) -> list[str]:
    """Some of each domain, mixed."""
    return [text for row in zip(*(demo_texts(domain, n) for domain in DOMAINS), strict=True) for text in row]


def stated() -> dict[Site, float]:
    return {Site.parse(name): row["l0"] for name, row in quality()["saes"].items()}


def remade(
    d: Dictionary,
    *,
    site: Site | None = None,
    tap: Tap | None = None,
    preprocessing: Preprocessing | None = None,
    **changed: torch.Tensor,
) -> Dictionary:
    """A dictionary with some tensors replaced."""
    threshold = changed.pop("threshold", d.activation.threshold)
    tensors = {name: getattr(d, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")} | changed
    return Dictionary(
        site or d.site,
        tap=tap or Tap.of((site or d.site).part),
        activation=JumpReLU(threshold),
        preprocessing=preprocessing or d.preprocessing,
        **tensors,
    )


def missing_factor(w: World, c: float | None = None) -> Dictionary:
    """Trained on c * h, c = sqrt(d) / mean |h| where none is given, and read on h."""
    d = w[RES]
    if c is None:
        tokens = w.model.tokenize(texts(4), max_length=256)
        h = w.model.capture(tokens, [RES])[RES][:, 1:][tokens.attention_mask[:, 1:] == 1]
        c = float(h.shape[-1] ** 0.5 / h.norm(dim=-1).mean())
    return remade(d, W_enc=d.W_enc, b_enc=d.b_enc * c, threshold=d.activation.threshold * c, b_dec=d.b_dec * c)


def duplicated(w: World) -> Dictionary:
    rows = w[RES].W_dec.clone()
    rows[100:200] = rows[0:100]
    return remade(w[RES], W_dec=rows)


def changed_rows(name: str, value: float, n: int) -> Callable[[World], Dictionary]:
    def plant(w: World) -> Dictionary:
        d = w[RES]
        tensor = (d.activation.threshold if name == "threshold" else getattr(d, name)).clone()
        tensor[:n] = value
        return remade(d, **{name: tensor})

    return plant


def turned(name: str) -> Callable[[World], Dictionary]:
    """A matrix written as [d_in, n_features], and read as [n_features, d_in]."""

    def plant(w: World) -> Dictionary:
        matrix = getattr(w[RES], name)
        return remade(w[RES], **{name: matrix.T.contiguous().reshape(matrix.shape)})

    return plant


def square(w: World) -> Dictionary:
    """As many features as there are dimensions, the first ones; the decoder transposed."""
    d = w[RES]
    n = d.d_in
    return remade(d, W_enc=d.W_enc[:n], b_enc=d.b_enc[:n], W_dec=d.W_dec[:n].T, threshold=d.activation.threshold[:n])


def shuffled(w: World) -> Dictionary:
    order = torch.randperm(w[RES].n_features, generator=torch.Generator().manual_seed(0))
    return remade(w[RES], W_dec=w[RES].W_dec[order])


def trained_on_z(w: World) -> Dictionary:
    """The main directions of z, both ways round, told to be of att."""
    tokens = w.model.tokenize(texts(4), max_length=256)
    z = w.model.capture(tokens, [(3, Tap.Z)])[3, Tap.Z][:, 1:][tokens.attention_mask[:, 1:] == 1]
    rows = torch.pca_lowrank(z, 96, niter=4)[2].T
    both = torch.cat([rows, -rows])
    bias = -both @ z.mean(dim=0)
    return Dictionary(ATT, tap=Tap.ATT, W_enc=both, b_enc=bias, W_dec=both, b_dec=z.mean(dim=0), activation=ReLU())


def threshold_times(c: float) -> Callable[[World], Dictionary]:
    return lambda w: remade(w[RES], threshold=w[RES].activation.threshold * c)


FAULTS: dict[str, Fault] = {
    "the layer before": Fault(
        lambda w: remade(w[RES], site=Site.parse("4/res")), CheckKind.TAP, "reads best at 3/res, told 4/res"
    ),
    "another part": Fault(lambda w: remade(w[ATT], site=MLP), CheckKind.TAP, "reads best at 3/att, told 3/mlp"),
    "z told as att": Fault(trained_on_z, CheckKind.TAP, "reads best at 3/att before o_proj, told 3/att"),
    "transposed decoder": Fault(turned("W_dec"), CheckKind.TRANSPOSED, "with the decoder read the other way", True),
    "transposed encoder": Fault(turned("W_enc"), CheckKind.TRANSPOSED, "with the encoder read the other way", True),
    "transposed, square": Fault(square, CheckKind.TRANSPOSED, "with the decoder read the other way", True),
    "another order": Fault(shuffled, CheckKind.ORDER, "with the decoder row it is most alike", True),
    "missing factor sqrt(d) / mean norm": Fault(missing_factor, CheckKind.SCALE, "the factor is sqrt(d_in) / mean |h|"),
    "missing factor 20": Fault(lambda w: missing_factor(w, 20.0), CheckKind.SCALE, "with the input times"),
    "thresholds times 5": Fault(threshold_times(5.0), CheckKind.THRESHOLD_SCALE, "with the thresholds times"),
    "thresholds times 0.02": Fault(threshold_times(0.02), CheckKind.L0, "met with the thresholds times"),
    "b_dec subtracted": Fault(
        lambda w: remade(w[RES], preprocessing=Preprocessing(subtract_b_dec=True)),
        CheckKind.B_DEC,
        "b_dec not subtracted",
    ),
    "normalised": Fault(
        lambda w: remade(w[RES], preprocessing=Preprocessing(norm=Norm.RESCALE)), CheckKind.NORM, "not normalised"
    ),
    "duplicated rows": Fault(duplicated, CheckKind.DUPLICATES, "200 of 768 decoder rows have a twin", True),
    "NaN": Fault(
        changed_rows("W_enc", float("nan"), 3), CheckKind.FINITE, "'W_enc' has NaN or infinite values in 3", True
    ),
    "zero rows": Fault(
        changed_rows("W_dec", 0.0, 4),
        CheckKind.ZERO_ROWS,
        "4 of 768 decoder rows are zeros (first rows [0, 1, 2, 3])",
        severity=Severity.LOOK,
    ),
    "dead": Fault(changed_rows("b_enc", -1e5, 300), CheckKind.DEAD, "39.1% cannot be reached", severity=Severity.LOOK),
    "thresholds below 0": Fault(
        lambda w: remade(w[RES], threshold=w[RES].activation.threshold.log() - 3),
        CheckKind.THRESHOLDS,
        "thresholds are below 0",
        True,
    ),
}


def examined(planted: Dictionary, w: World | None, tokens: int = 400) -> Examination:
    """What the doctor says of one dictionary."""
    dictionaries: Mapping[Site, Dictionary] = {planted.site: planted}
    return examine(
        dictionaries,
        release="planted",
        model=None if w is None else w.model,
        texts=texts(),
        tokens=tokens,
        sites=[planted.site],
        stated_l0=stated(),
    )


def main() -> None:
    w = world()
    for name, fault in FAULTS.items():
        if len(sys.argv) > 1 and sys.argv[1] != name:
            continue
        print(f"\n{name}")  # noqa: T201
        for finding in examined(fault.plant(w), w, 2_000).findings:
            if finding.severity is not Severity.OK:
                print(f"  {finding.severity.value:5} {finding.check.value}: {finding.said}")  # noqa: T201


if __name__ == "__main__":
    main()
