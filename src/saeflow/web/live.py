"""What the desk does with a model: reads texts, and writes with and without a plan. The only file here with torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import InvalidArgument, MissingExtra
from saeflow.ids import FeatureId, Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model
from saeflow.steering.generate import Generation, Request, generate
from saeflow.steering.judges.offline import OfflineJudge
from saeflow.steering.judges.scores import Judged, Score, final_score
from saeflow.steering.metrics import losses
from saeflow.steering.plan import Direction, SteeringPlan
from saeflow.steering.sampling import Sampling
from saeflow.steering.theme import Theme
from saeflow.web.answers_bench import Active, TextAnswer, TokenInfo
from saeflow.web.asked import SteerAsked, TextAsked
from saeflow.web.desk import Line
from saeflow.web.lookups import printable

_T = TypeVar("_T")
Put = Callable[[Line], None]

KEPT_BYTES: Final = 8 << 30
"""Dictionaries stay in memory while all of them are smaller than this; else each is let go after its use."""

REFERENCE: Final = 8
"""Unsteered texts that a judge compares with."""

MOST_JUDGES: Final = 32
"""Prompts whose judges are kept."""

MOST_TOKENS: Final = 1024
"""Tokens of a text that is read."""


@dataclass(eq=False)
class Live:
    """A loaded model with the dictionaries of its release."""

    model: LanguageModel
    dictionaries: DictionarySet
    _judges: dict[tuple[str, str, Sampling], OfflineJudge] = field(
        default_factory=dict[tuple[str, str, Sampling], OfflineJudge]
    )

    @staticmethod
    def load(release: str, model: str, device: str) -> Live:
        """Load both; dictionaries read their tensors at first use.

        Raises:
            SaeflowError: when one cannot be loaded.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()  # nobody looks at the terminal
        dictionaries = load_dictionaries(release, device=device)
        return Live(load_model(model, device=device).as_trained(dictionaries), dictionaries)

    def lend(self, use: Callable[[Any, Any], _T]) -> _T:
        """What `use` makes of (dictionaries, model)."""
        return use(self.dictionaries, self.model)

    def text(self, asked: TextAsked, sites: Sequence[Site], label: Callable[[FeatureId], str]) -> TextAnswer:
        """The strongest features of each token of a text, at some sites.

        Raises:
            UnknownSite: when the dictionaries or the model have no such site.
            InvalidArgument: when the text gives no token.
        """
        start = time.perf_counter()
        tokens = self.model.tokenize([asked.text], max_length=MOST_TOKENS)
        ids: list[int] = tokens.input_ids[0].tolist()
        chosen = {site: self.dictionaries[site] for site in sites}
        held = self.model.capture(tokens, [dictionary.place for dictionary in chosen.values()])
        active: dict[str, list[list[Active]]] = {}
        large = sum(one.n_features * one.d_in * 8 for one in chosen.values()) > KEPT_BYTES
        for site, dictionary in chosen.items():
            with torch.no_grad():
                rows = _strongest(dictionary, held[dictionary.place][0], asked.top)
            active[str(site)] = [
                [Active(index=i, value=value, label=label(FeatureId(site, i))) for i, value in row] for row in rows
            ]
            if large:
                dictionary.unload()
        texts = [printable(text) for text in self.model.spelling.tokens(ids)]
        return TextAnswer(
            tokens=[TokenInfo(text=text, id=token) for text, token in zip(texts, ids, strict=True)],
            active=active,
            took_ms=round(1000 * (time.perf_counter() - start), 2),
        )

    def steer(
        self, asked: SteerAsked, plan: SteeringPlan, theme: Theme | None, others: Sequence[Theme], put: Put
    ) -> None:
        """Write every sample with and without the plan, all in one batch, then score them by the theme if any.

        Raises:
            SaeflowError: when the plan does not fit the model.
        """
        start = time.perf_counter()
        put({"type": "state", "model": "ready"})
        sampling = Sampling(asked.new_tokens, asked.temperature, asked.top_p)
        requests = [
            Request(asked.prompt, seed, which)
            for seed in range(asked.seed, asked.seed + asked.samples)
            for which in (plan, None)
        ]
        teller = _Teller(put, len(requests))
        made = generate(self.model, self.dictionaries, requests, sampling, batch=len(requests), on_token=teller.tell)
        for row, one in enumerate(made):
            shares = {"share_layer": _finite(one.share_layer), "share_total": _finite(one.share_total)}
            told = {"text": printable(one.text), "tokens": len(one.ids), **shares}
            put({"type": "sample", **_row(row), "seed": one.request.seed, **told})
        if theme is not None:
            self._score(made, plan.direction, theme, others, sampling, put)
        put({"type": "done", "took_s": round(time.perf_counter() - start, 3)})

    def _score(
        self,
        made: Sequence[Generation],
        direction: Direction,
        theme: Theme,
        others: Sequence[Theme],
        sampling: Sampling,
        put: Put,
    ) -> None:
        """Marks of the offline judge, or a note that says why there are none."""
        try:
            scores = self._judged(made, direction, theme, others, sampling, put)
        except (InvalidArgument, MissingExtra) as error:
            put({"type": "note", "text": f"No scores: {error}"})
            return
        for row, score in enumerate(scores):
            final = final_score(score.behavior, score.coherence, suppress=direction is Direction.SUPPRESS)
            told = {"behavior": score.behavior, "coherence": score.coherence, "final": final}
            put({"type": "scores", **_row(row), **told})

    def _judged(
        self,
        made: Sequence[Generation],
        direction: Direction,
        theme: Theme,
        others: Sequence[Theme],
        sampling: Sampling,
        put: Put,
    ) -> list[Score]:
        prompt = made[0].request.prompt
        judge = self._judge(prompt, theme, others, sampling, put)
        return judge.score(theme, direction, self._with_losses(prompt, made))

    def _judge(self, prompt: str, theme: Theme, others: Sequence[Theme], sampling: Sampling, put: Put) -> OfflineJudge:
        """The judge of texts of a prompt: it has read unsteered ones, and keeps the topics it has learnt."""
        key = (theme.name, prompt, sampling)
        if key not in self._judges:
            if len(self._judges) >= MOST_JUDGES:
                self._judges.clear()
            step = 0

            def tell(_: Sequence[str]) -> None:
                # not shown; but a client that leaves stops it
                nonlocal step
                step += 1
                put({"type": "progress", "what": "scoring", "done": step, "total": sampling.max_new_tokens})

            # seeds that no sample of a page has, so that no text is its own reference
            wanted = [Request(prompt, -1 - number) for number in range(REFERENCE)]
            plain = generate(self.model, None, wanted, sampling, on_token=tell)
            self._judges[key] = OfflineJudge(self._background(theme, others), self._with_losses(prompt, plain))
        return self._judges[key]

    def _with_losses(self, prompt: str, made: Sequence[Generation]) -> list[Judged]:
        found = losses(self.model, prompt, [one.ids for one in made])
        return [Judged(one.text, prompt, loss, one.ids) for one, loss in zip(made, found, strict=True)]

    def _background(self, theme: Theme, others: Sequence[Theme]) -> list[str]:
        """Texts about other things: of the demo pack's domains, or the examples of the other themes."""
        if self.dictionaries.name == "demo":
            from saeflow.steering.judges.offline import demo_background

            return demo_background()
        return [text for other in others if other.name != theme.name for text in other.examples]


class _Teller:
    """Puts what is new of each text."""

    def __init__(self, put: Put, rows: int) -> None:
        self._put = put
        self._sent = [""] * rows

    def tell(self, texts: Sequence[str]) -> None:
        for row, text in enumerate(map(printable, texts)):
            sent = self._sent[row]
            if text == sent:
                continue
            # a tokenizer may change what it has written when more comes
            new = {"text": text[len(sent) :]} if text.startswith(sent) else {"text": text, "replace": True}
            self._sent[row] = text
            self._put({"type": "token", **_row(row), **new})


def _row(row: int) -> dict[str, Any]:
    return {"sample": row // 2, "side": "plain" if row % 2 else "steered"}


def _finite(share: float) -> float | None:
    return share if math.isfinite(share) else None


def _strongest(dictionary: Dictionary, h: Float[Tensor, "pos d_in"], top: int) -> list[list[tuple[int, float]]]:
    """For each token its active features, strongest first, at most `top`."""
    active = dictionary.encode(h.to(dictionary.W_enc.dtype)).float()
    best = active.topk(min(top, active.shape[1]), dim=-1)
    return [
        [(index, value) for index, value in zip(indices, values, strict=True) if value > 0]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
