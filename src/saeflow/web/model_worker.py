"""The loaded model: it reads, traces and steers texts. The only module of the explorer that imports torch."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import InvalidArgument, MissingExtra
from saeflow.experiments.one_text import deactivate
from saeflow.flow.trace import Matches
from saeflow.ids import FeatureId, Site
from saeflow.labels.words import Words
from saeflow.matching.atlas import Atlas
from saeflow.prompt_graph import Fidelity, PromptGraph, Pruning
from saeflow.prompt_graph.fidelity import measure_fidelity
from saeflow.prompt_graph.trace import trace_text
from saeflow.sources.activity import site_states
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model
from saeflow.steering.generate import Generation, Request, Sampling, generate
from saeflow.steering.judges import Judged, final_score
from saeflow.steering.judges.offline import OfflineJudge, pack_background
from saeflow.steering.metrics import losses
from saeflow.steering.plan import SteeringDirection, SteeringPlan
from saeflow.steering.theme import Theme
from saeflow.web.limits import MOST_NODES, MOST_TOKENS, printable
from saeflow.web.model_thread import Line
from saeflow.web.requests import DeactivateBody, SteerBody, TextBody, TraceBody
from saeflow.web.responses import ActiveFeature, DeactivateResponse, Removal, TextResponse, TokenInfo, ms_since

_K = TypeVar("_K")
_T = TypeVar("_T")
Put = Callable[[Line], None]
_Prompt = tuple[str, int, int, str, str]
"""What a prompt graph is traced from: text, token, tokens before it, target, and the token taken off it."""

KEPT_BYTES: Final = 8 << 30
"""If the dictionaries of the requested sites are larger than this together, each is unloaded after use."""

REFERENCE: Final = 8
"""Unsteered texts that a judge uses as its reference."""

MOST_JUDGES: Final = 32
"""Judges kept, one per theme, prompt and sampling settings."""

MOST_GRAPHS: Final = 4
"""Prompt graphs kept in full, before pruning, because users move the cuts often."""

MOST_SCALES: Final = 1 << 18
"""Features whose label and strongest activation are cached."""

MOST_FIDELITIES: Final = 32
"""Fidelities kept, one per set of nodes: moving a cut may drop no node, and a drawn graph may be exported."""

RANDOM_GRAPHS: Final = 5
"""Random graphs with which a prompt graph's fidelity is compared."""


@dataclass(eq=False)
class LoadedModel:
    """A loaded model with the dictionaries of its release. A full cache drops what was made first."""

    model: LanguageModel
    dictionaries: DictionarySet
    _judges: OrderedDict[tuple[str, str, Sampling], OfflineJudge] = field(
        default_factory=OrderedDict[tuple[str, str, Sampling], OfflineJudge]
    )
    _traced: OrderedDict[_Prompt, PromptGraph] = field(default_factory=OrderedDict[_Prompt, PromptGraph])
    _fidelities: OrderedDict[tuple[_Prompt, tuple[str, ...]], Fidelity] = field(
        default_factory=OrderedDict[tuple[_Prompt, tuple[str, ...]], Fidelity]
    )
    _scales: OrderedDict[FeatureId, tuple[str, float]] = field(
        default_factory=OrderedDict[FeatureId, tuple[str, float]]
    )

    @staticmethod
    def load(release: str, model: str, device: str) -> LoadedModel:
        """Load the model and its dictionaries, which read their tensors at first use.

        Raises:
            SaeflowError: when either cannot be loaded.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()  # nobody watches the terminal
        dictionaries = load_dictionaries(release, device=device)
        return LoadedModel(load_model(model, device=device).as_trained(dictionaries), dictionaries)

    def lend(self, use: Callable[[Any, Any], _T]) -> _T:
        """The result of `use(dictionaries, model)`."""
        return use(self.dictionaries, self.model)

    def text(self, request: TextBody, sites: Sequence[Site], words: Words) -> TextResponse:
        """The features that fire most strongly on each token of a text, at some sites, relative to their own scale.

        Each activation is divided by the feature's strongest activation in its stored passages: features differ in
        scale, and raw activations would rank the same large features first everywhere. Features without passages come
        last.

        Raises:
            UnknownSite: when the dictionaries or the model lack one of the sites.
            InvalidArgument: when the text has no token.
        """
        start = time.perf_counter()
        tokens = self.model.tokenize([request.text], max_length=MOST_TOKENS)
        ids: list[int] = tokens.input_ids[0].tolist()
        chosen = {site: self.dictionaries[site] for site in sites}
        states = site_states(self.model, chosen, chosen, tokens)
        active: dict[str, list[list[ActiveFeature]]] = {}
        large = sum(one.n_features * one.d_in * 8 for one in chosen.values()) > KEPT_BYTES
        for site, dictionary in chosen.items():
            with torch.no_grad():
                acts = dictionary.encode(states[site][0].to(dictionary.W_enc.dtype)).float()
            active[str(site)] = self._ranked(site, acts, request.top, words)
            if large:
                dictionary.unload()
        texts = [printable(text) for text in self.model.spelling.tokens(ids)]
        return TextResponse(
            tokens=[TokenInfo(text=text, id=token) for text, token in zip(texts, ids, strict=True)],
            active=active,
            took_ms=ms_since(start),
        )

    def _ranked(
        self, site: Site, acts: Float[Tensor, "pos n_features"], top: int, words: Words
    ) -> list[list[ActiveFeature]]:
        """For each token, its `top` active features by activation relative to the feature's strongest one."""
        rows: list[list[ActiveFeature]] = [[] for _ in acts]
        places: list[list[int]] = acts.gt(0).nonzero().tolist()
        found: list[float] = acts[acts > 0].tolist()
        # in order of feature: words are stored in compressed blocks, and this way each block is unpacked once
        fires = [(index, place, value) for (place, index), value in zip(places, found, strict=True)]
        for index, place, value in sorted(fires):
            feature = FeatureId(site, index)
            if feature not in self._scales:
                known = words.get(feature)
                peak = max((v for c in known.contexts for v in c.values), default=0.0) if known else 0.0
                _keep(self._scales, feature, (known.label if known else "", peak), MOST_SCALES)
            label, peak = self._scales[feature]
            share = value / peak if peak > 0 else None
            rows[place].append(ActiveFeature(index=index, value=value, share=share, label=label))
        return [
            sorted(row, key=lambda one: (one.share is not None, one.share or 0.0, one.value), reverse=True)[:top]
            for row in rows
        ]

    def deactivate(self, request: DeactivateBody, matches: Atlas) -> DeactivateResponse:
        """A residual feature's activation at a token, before and after each removal of its matched predecessors.

        Raises:
            InvalidArgument: for a feature that is not residual or does not fire there, or a token outside the text.
        """
        start = time.perf_counter()
        rows = deactivate(
            self.model,
            self.dictionaries,
            request.text,
            request.feature,
            atlas=matches,
            token=request.token,
            max_length=MOST_TOKENS,
        ).to_dict("records")
        return DeactivateResponse(
            before=rows[0]["before"],
            removals=[
                Removal(
                    removed=row["removed"],
                    features=row["features"].split(),
                    after=row["after"],
                    change=row["change"],
                    control=row["control"].split(),
                    control_change=None if math.isnan(row["change under control"]) else row["change under control"],
                )
                for row in rows
            ],
            took_ms=ms_since(start),
        )

    def trace(self, request: TraceBody, matches: Matches) -> PromptGraph:
        """The pruned prompt graph of a token of a text, with its fidelity.

        Raises:
            InvalidArgument: for a token outside the text, pins or groups that name unknown nodes, a release without
                residual autoencoders, or a graph with more nodes than anybody can read.
        """
        key = request.text, request.token, request.before, request.target, request.against
        if key not in self._traced:
            traced = trace_text(
                request.text,
                self.dictionaries,
                token=request.token,
                before=request.before,
                target=request.target,
                against=request.against,
                model=self.model,
                atlas=matches,
                pruning=None,
                fidelity=False,
                max_length=MOST_TOKENS,
            )
            _keep(self._traced, key, traced, MOST_GRAPHS)
        graph = self._traced[key]
        for name, nodes in request.groups.items():
            graph = graph.group(name, nodes)
        graph = graph.prune(Pruning(request.effect, request.cosine, request.share, tuple(request.pins)))
        if len(graph.nodes) > MOST_NODES:
            raise InvalidArgument(
                f"the graph has {len(graph.nodes)} nodes, and no more than {MOST_NODES} are drawn. Raise the effect."
            )
        drawn = key, tuple(graph.nodes["node"])  # fidelity depends on nothing else
        if drawn not in self._fidelities:
            measured = measure_fidelity(graph, self.model, self.dictionaries, random_graphs=RANDOM_GRAPHS)
            _keep(self._fidelities, drawn, measured, MOST_FIDELITIES)
        return replace(graph, fidelity=self._fidelities[drawn])

    def steer(
        self, request: SteerBody, plan: SteeringPlan, theme: Theme | None, others: Sequence[Theme], put: Put
    ) -> None:
        """Generate every sample with and without the plan, all in one batch, then score them by the theme if given.

        Raises:
            SaeflowError: when the plan does not fit the model.
        """
        start = time.perf_counter()
        put({"type": "state", "model": "ready"})
        sampling = Sampling(request.new_tokens, request.temperature, request.top_p)
        requests = [
            Request(request.prompt, seed, which)
            for seed in range(request.seed, request.seed + request.samples)
            for which in (plan, None)
        ]
        sent = [""] * len(requests)

        def put_new(texts: Sequence[str]) -> None:
            for row, text in enumerate(map(printable, texts)):
                if text != sent[row]:
                    # with more tokens, the tokenizer may decode the earlier ones differently
                    grew = text.startswith(sent[row])
                    new = {"text": text[len(sent[row]) :]} if grew else {"text": text, "replace": True}
                    sent[row] = text
                    put({"type": "token", **_sample(row), **new})

        written = generate(self.model, self.dictionaries, requests, sampling, batch=len(requests), on_token=put_new)
        for row, one in enumerate(written):
            put(
                {
                    "type": "sample",
                    **_sample(row),
                    "seed": one.request.seed,
                    "text": printable(one.text),
                    "tokens": len(one.ids),
                    "share_layer": one.share_layer if math.isfinite(one.share_layer) else None,
                    "share_total": one.share_total if math.isfinite(one.share_total) else None,
                }
            )
        if theme is not None:
            self._score(written, plan.direction, theme, others, sampling, put)
        put({"type": "done", "took_s": round(time.perf_counter() - start, 3)})

    def _score(
        self,
        written: Sequence[Generation],
        direction: SteeringDirection,
        theme: Theme,
        others: Sequence[Theme],
        sampling: Sampling,
        put: Put,
    ) -> None:
        """Send the offline judge's scores, or a note that says why there are none."""
        prompt = written[0].request.prompt
        try:
            judge = self._judge(prompt, theme, others, sampling, put)
            scores = judge.score(theme, direction, self._with_losses(prompt, written))
        except (InvalidArgument, MissingExtra) as error:
            put({"type": "note", "text": f"No scores: {error}"})
            return
        for row, score in enumerate(scores):
            final = final_score(score.behavior, score.coherence, suppress=direction is SteeringDirection.SUPPRESS)
            marks = {"behavior": score.behavior, "coherence": score.coherence, "final": final}
            put({"type": "scores", **_sample(row), **marks})

    def _judge(self, prompt: str, theme: Theme, others: Sequence[Theme], sampling: Sampling, put: Put) -> OfflineJudge:
        """The cached judge of a prompt's continuations; it has read unsteered ones, and keeps the topics it learns."""
        key = (theme.name, prompt, sampling)
        if key not in self._judges:
            step = 0

            def put_progress(_: Sequence[str]) -> None:
                # the page does not show these lines, but `put` raises if the client has left
                nonlocal step
                step += 1
                put({"type": "progress", "what": "scoring", "done": step, "total": sampling.max_new_tokens})

            # negative seeds, which no sample has, so that no text serves as its own reference
            wanted = [Request(prompt, -1 - number) for number in range(REFERENCE)]
            plain = generate(self.model, None, wanted, sampling, on_token=put_progress)
            # texts about other topics: from the pack's domains, or else the examples of the other themes
            background = pack_background(self.dictionaries.name) or [
                text for other in others if other.name != theme.name for text in other.examples
            ]
            _keep(self._judges, key, OfflineJudge(background, self._with_losses(prompt, plain)), MOST_JUDGES)
        return self._judges[key]

    def _with_losses(self, prompt: str, written: Sequence[Generation]) -> list[Judged]:
        found = losses(self.model, prompt, [one.ids for one in written])
        return [Judged(one.text, prompt, loss, one.ids) for one, loss in zip(written, found, strict=True)]


def _keep(cache: OrderedDict[_K, _T], key: _K, value: _T, most: int) -> None:
    """Add to a cache, and drop what was added first if that makes more than `most`."""
    cache[key] = value
    if len(cache) > most:
        cache.popitem(last=False)


def _sample(row: int) -> dict[str, Any]:
    """Which sample a row of the batch is: even rows are steered, odd rows are not."""
    return {"sample": row // 2, "side": "plain" if row % 2 else "steered"}
