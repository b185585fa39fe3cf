"""Settings of origins, deactivation and transition: what they run on, and how much. No torch.

The command line takes its options from these classes, and their help from the docstrings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from saeflow.errors import InvalidArgument
from saeflow.ids import Part, Site

KS: Final[tuple[int | None, ...]] = (1, 2, 5, 10, 50, None)
"""How many entries of each row of a transition matrix are kept; None for all."""


@dataclass(frozen=True, slots=True)
class InputNames:
    """What to open, by name.

    Attributes:
        release: "demo", a folder, or the name of a release.
        model: Language model: the one that the release names by default.
        atlas: Atlas of cosine matches: that of the release by default.
        device: Where to compute: cpu, cuda, cuda:1, mps.
        layers: Residual layers, such as 2,3 or 6-9: by default all from the first that the experiment can use.
        datasets: Datasets to sample from: "demo" (its five domains), "demo:stories", fineweb, a file.
        pearson: Atlas of Pearson correlations; by default one is made on held-out texts when it is needed.
        pearson_datasets: Datasets that atlas is made on; by default the first one, or all of the demo pack but Python.
        seed: Random seed.
        prepend_bos: Begin texts with the begin-of-text token; by default as the SAEs' files say, or else the tokenizer.
    """

    release: str
    model: str = ""
    atlas: str = ""
    device: str = "cpu"
    layers: Sequence[int] = ()
    datasets: Sequence[str] = ("demo",)
    pearson: str = ""
    pearson_datasets: Sequence[str] = ()
    seed: int = 0
    prepend_bos: bool | None = None

    @property
    def sampled(self) -> tuple[str, ...]:
        """Names of the single datasets that texts are sampled from."""
        from saeflow.experiments.sampling import expand

        return expand(self.datasets)

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the single datasets whose held-out texts Pearson tables are made on."""
        if self.pearson_datasets:
            from saeflow.experiments.sampling import expand

            return expand(self.pearson_datasets)
        own = tuple(name for name in self.sampled if name.startswith("demo:") and name != "demo:python")
        return own or self.sampled[:1]


@dataclass(frozen=True, slots=True)
class OriginsSize:
    """The size of the origins experiment (section 5.1).

    Attributes:
        methods: Matching methods: of cosine, cosine-top-5, permutation, pearson.
        texts: Number of texts: of each dataset, at most.
        tokens: Random tokens per text.
        max_length: Maximum length of a text, in tokens.
    """

    methods: tuple[str, ...] = ("cosine", "cosine-top-5", "permutation", "pearson")
    texts: int = 250
    tokens: int = 5
    max_length: int = 128


@dataclass(frozen=True, slots=True)
class DeactivationSize:
    """The size of the deactivation experiment (section 5.2).

    Attributes:
        strategies: Which predecessors are removed: top-1, top-5, random, permutation, pearson, exhaustive, greedy; the
            first of them is swept over r.
        texts: Number of texts: of each dataset, at most.
        tokens: Random tokens per text.
        features: Targets of each token and layer, at most.
        r: Factor of suppression: those of the sweep.
        loss: Targets of each text whose sweep measures the loss; None for all.
        max_length: Maximum length of a text, in tokens.

    Raises:
        InvalidArgument: for a number out of range.
    """

    strategies: tuple[str, ...] = ("top-1", "top-5", "random", "permutation", "pearson", "exhaustive", "greedy")
    texts: int = 35
    tokens: int = 5
    features: int = 25
    r: tuple[float, ...] = (-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3)
    loss: int | None = 4
    max_length: int = 128

    def __post_init__(self) -> None:
        """Check every range."""
        if self.features < 1 or self.max_length < 1 or (self.loss or 0) < 0:
            raise InvalidArgument(
                f"features = {self.features}, max_length = {self.max_length}, loss = {self.loss}: the first two are 1 "
                "or more, the third 0 or more, or None for all."
            )
        if not all(map(math.isfinite, self.r)):
            raise InvalidArgument(f"the factors r = {self.r} hold one that is not a number. 0 removes, 1 keeps.")


@dataclass(frozen=True, slots=True)
class TransitionSize:
    """The size of the transition experiment (appendix F).

    Attributes:
        pairs: Pairs of sites; none for those of neighbouring layers.
        part: Part of the model whose dictionaries are paired where no pair is named: res, mlp or att.
        k: Matches per feature: how many are kept in its row of T; "all" for all of them.
        tokens: Total number of tokens: those to measure on.
        fit_tokens: Tokens to fit on, of other texts, at most.
        loss_texts: Texts of each dataset on which a layer is skipped; 0 for none.
        max_length: Maximum length of a text, in tokens.
        memory: Memory limit, in GiB, for the sums and maps of a group of pairs.

    Raises:
        InvalidArgument: for a pair or k given twice, or a number out of range.
    """

    pairs: tuple[tuple[Site, Site], ...] = ()
    part: Part = Part.RES
    k: tuple[int | None, ...] = KS
    tokens: int = 20_000
    fit_tokens: int = 100_000
    loss_texts: int = 20
    max_length: int = 128
    memory: float = 4.0

    def __post_init__(self) -> None:
        """Check every range."""
        if len(set(self.pairs)) < len(self.pairs):
            raise InvalidArgument(f"{len(self.pairs)} pairs were given, one of them twice. Give each once.")
        if not self.k or len(set(self.k)) < len(self.k) or any(k is not None and k < 1 for k in self.k):
            raise InvalidArgument(f"k = {self.k} is no list of numbers above 0. Give each once, or all: 1,2,5,all.")
        if self.loss_texts < 0 or self.max_length < 2 or self.memory <= 0:
            raise InvalidArgument(
                f"loss_texts = {self.loss_texts}, max_length = {self.max_length}, memory = {self.memory}: give 0 or "
                "more, 2 or more, and a number above 0."
            )
