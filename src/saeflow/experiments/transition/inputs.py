"""Transitions from names: what appendix F is measured on, opened and asked for (figures 23 and 24)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from saeflow.engines import Engine
from saeflow.errors import InvalidArgument
from saeflow.experiments.inputs import Bars, InputNames, model_name
from saeflow.experiments.records import RunRequest
from saeflow.experiments.results import Results
from saeflow.experiments.sampling import open_dataset
from saeflow.experiments.transition.maps import KS
from saeflow.experiments.transition.run import (
    EXPERIMENT,
    Pair,
    TransitionSettings,
    run_transition,
    take_texts,
    weights_digest,
)
from saeflow.ids import Part, Site
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model


@dataclass(frozen=True, slots=True)
class TransitionSize:
    """How much of appendix F is done.

    Attributes:
        pairs: of sites; none for those of neighbouring layers.
        part: whose dictionaries are paired where no pair is named.
        k: entries of a row of T that are kept; None for all.
        tokens: to measure on, in all.
        fit_tokens: to fit on, of other texts, at most.
        loss_texts: texts of each dataset on which a layer is skipped; 0 for none.
        max_length: tokens a text is cut to.
        memory: GiB that sums and maps of a group of pairs may take.
    """

    pairs: tuple[Pair, ...] = ()
    part: Part = Part.RES
    k: tuple[int | None, ...] = field(default=KS)
    tokens: int = 20_000
    fit_tokens: int = 100_000
    loss_texts: int = 20
    max_length: int = 128
    memory: float = 4.0


def transition(
    asked: InputNames,
    size: TransitionSize,
    *,
    out: Path | str,
    bars: Bars | None = None,
    engine: Engine | None = None,
) -> Results:
    """The experiment of appendix F into a results folder; one that was begun is gone on with.

    Of `asked` the atlas and what concerns Pearson are not used: maps come from the weights. `engine` is where
    texts are measured; this process when None.

    Raises:
        InvalidArgument: for an unknown dataset or pair, too few texts, or a folder of another request.
        UnknownSite, WidthMismatch: for dictionaries that are missing or do not fit.
        BadFile: when the folder is damaged.
    """
    names = asked.sampled
    opened = [open_dataset(name) for name in names]
    dictionaries = load_dictionaries(asked.release, device=asked.device)
    pairs = size.pairs or neighbours(dictionaries, size.part, asked.layers)
    settings = TransitionSettings(
        pairs, size.k, size.loss_texts, size.max_length, int(size.memory * (1 << 30))
    )
    named = model_name(asked.release, dictionaries, asked.model)
    model = load_model(named, device=asked.device, prepend_bos=asked.prepend_bos).as_trained(dictionaries)
    arguments: dict[str, Any] = {
        "pairs": [f"{a} > {b}" for a, b in pairs], "k": list(settings.ks), "tokens": size.tokens,
        "fit_tokens": size.fit_tokens, "loss_texts": size.loss_texts, "max_length": size.max_length,
        "prepend_bos": model.prepend_bos,
        "memory": size.memory, "weights": weights_digest(model, dictionaries, pairs),
    }  # fmt: skip
    request = RunRequest(
        EXPERIMENT, asked.release, model.name or asked.release, asked.seed, names, {}, arguments
    )
    texts = partial(
        take_texts, opened, _counter(model, size.max_length), tokens=size.tokens, fit_tokens=size.fit_tokens,
        seed=asked.seed,
    )  # fmt: skip
    return run_transition(
        model, dictionaries, settings, texts, request=request, out=out, progress=bars, engine=engine
    )


def neighbours(dictionaries: DictionarySet, part: Part, layers: Sequence[int] = ()) -> tuple[Pair, ...]:
    """Pairs of a part's dictionaries of layers t and t + 1: of the layers asked for, or of all there are.

    Raises:
        InvalidArgument: for a layer without both, or where there is no such pair.
    """
    known = [site.layer for site in dictionaries.sites if site.part is part]
    there = [layer for layer in known if layer + 1 in known]
    asked = list(layers) or there
    if missing := [layer for layer in asked if layer not in there]:
        raise InvalidArgument(
            f"--layers {','.join(map(str, layers))}: {dictionaries.name} has not both {part} dictionaries of layers "
            f"{missing} and those after. It has them for {there}."
        )
    if not asked:
        raise InvalidArgument(f"{dictionaries.name} has no two {part} dictionaries of neighbouring layers.")
    return tuple((Site(layer, part), Site(layer + 1, part)) for layer in asked)


def _counter(model: LanguageModel, max_length: int) -> Callable[[str], int]:
    """Counts tokens of a text that are not special, of those it is cut to."""
    special = set(model.tokenizer.all_special_ids)

    def count(text: str) -> int:
        if not text.strip():
            return 0
        ids = model.tokenize([text], max_length=max_length).input_ids[0].tolist()
        return sum(one not in special for one in ids)

    return count
