"""Texts under plans: many settings in one batch, with the KV cache, steered and unsteered on the same noise.

    requests = [Request("I think", seed, plan) for plan in (None, weak, strong) for seed in range(4)]
    for made in generate(model, dictionaries, requests, Sampling()):
        print(made.request.seed, made.text)

Requests of one prompt share batches, whatever their plans: a forward pass over 256 rows takes about as long as a
few passes over one, so a sweep of settings is many times faster than one call for each. See `sampling` for the
noise and `row_plans` for plans by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import StoppingCriteria

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.records import Progress
from saeflow.sources.decoding import complete, sampling_config
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.steering.plan import SteeringPlan
from saeflow.steering.row_plans import ShareMeter, row_changes
from saeflow.steering.sampling import Sampler, Sampling

OnToken: TypeAlias = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Request:
    """A text to be generated.

    Attributes:
        prompt: what it goes on from; the begin-of-text token is put before it where there is one.
        seed: any integer; the noise of the sampling is a function of it and of the step.
        plan: what steers it; None for the model alone.
    """

    prompt: str
    seed: int
    plan: SteeringPlan | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated text.

    Attributes:
        request: what was asked for.
        text: without the prompt and without special tokens.
        ids: the tokens, without the prompt and the end-of-text token.
        share_layer: the largest over layers of the mean over tokens of |what the plan changes at the layer| /
            |stream after it|; 0 unsteered.
        share_total: the mean over tokens of |sum of all changes| / |stream after the last changed layer|; 0
            unsteered. Both leave the begin-of-text token out; see `row_plans.ShareMeter`.
    """

    request: Request
    text: str
    ids: tuple[int, ...]
    share_layer: float
    share_total: float


def generate(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary] | None,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    batch: int = 256,
    on_token: OnToken | None = None,
    progress: Progress | None = None,
) -> list[Generation]:
    """A text for each request, in their order.

    The noise is a function of (seed, step): requests of one seed and prompt are paired, whatever their plans and
    places. The logits, however, are products of matrices, and those of a row differ in their last bits with the
    size of the batch and the number of threads. Where two tokens are that close, a text can change with what shares
    its batch, seldom in float32 and more often in half precision: to repeat a text exactly, repeat its batch.
    Torch's global generator is not used.

    Args:
        model: the model; sampling settings it ships with are not used.
        dictionaries: where the plans' features are; without any, those of the release the plans name.
        requests: those with one prompt share batches, in the order given.
        sampling: length, temperature and nucleus, for all of them.
        batch: rows of a batch, at most. The largest that fits is the fastest.
        on_token: called after every step with the texts so far of the running batch, in the order of its requests.
        progress: called after every batch with (texts done, texts in all, "texts").

    Raises:
        InvalidArgument: for a `batch` below 1, an empty prompt, or plans of several releases without dictionaries.
        UnknownSite: without a dictionary at a site of a plan.
        UnknownFeature: for an index outside its dictionary.
        WidthMismatch: for a dictionary that does not fit the model.
    """
    if batch < 1:
        raise InvalidArgument(f"batch = {batch} rows hold no text. Give 1 or more.")
    of_prompt: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        of_prompt.setdefault(request.prompt, []).append(place)
    found: dict[int, Generation] = {}
    for places in of_prompt.values():
        for start in range(0, len(places), batch):
            chosen = places[start : start + batch]
            made = _batch(model, dictionaries, [requests[place] for place in chosen], sampling, on_token)
            found.update(zip(chosen, made, strict=True))
            if progress:
                progress(len(found), len(requests), "texts")
    return [found[place] for place in range(len(requests))]


def _batch(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary] | None,
    requests: Sequence[Request],
    sampling: Sampling,
    on_token: OnToken | None,
) -> list[Generation]:
    """The texts of requests of one prompt, all at once."""
    rows, prompt = len(requests), model.tokenize([requests[0].prompt])
    width = prompt.input_ids.shape[1]
    begins = int(prompt.input_ids[0, 0]) == model.tokenizer.bos_token_id
    meter = ShareMeter(skip=int(begins))
    plans = [request.plan for request in requests]
    edits = row_changes(
        plans[:1] if all(plan is plans[0] for plan in plans) else plans, dictionaries, model, meter=meter
    )
    config = sampling_config(
        max_new_tokens=sampling.max_new_tokens, temperature=0, top_p=1, end=model.end_ids, pad=model.pad_id
    )
    drawn = [Sampler(sampling, [request.seed for request in requests], width)] if sampling.temperature else []
    follow = _Follower(model, width, meter, on_token)
    with torch.no_grad(), model.intervening(edits):
        ids = complete(
            model.hf_model,
            prompt.input_ids.expand(rows, -1),
            prompt.attention_mask.expand(rows, -1),
            config,
            processors=drawn,
            criteria=[follow],
        )
    texts = [follow.without_end(row) for row in ids.tolist()]
    return [
        Generation(request, follow.decode(row), tuple(row), layer, total)
        for request, row, layer, total in zip(requests, texts, meter.largest(rows), meter.total(rows), strict=True)
    ]


class _Follower(StoppingCriteria):
    """Sees every token as it comes: tells the meter which texts have ended, and others how far they are."""

    def __init__(self, model: LanguageModel, width: int, meter: ShareMeter, on_token: OnToken | None) -> None:
        self._spelling, self._width = model.spelling, width
        self._ends = frozenset(model.end_ids)
        self._end_ids = torch.tensor(model.end_ids, dtype=torch.long, device=model.device)
        self._meter, self._on_token = meter, on_token

    def __call__(self, input_ids: Int[Tensor, "n pos"], *_: object, **__: object) -> Bool[Tensor, " n"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Ends nothing: transformers stops at the end-of-text token by itself."""
        going = torch.isin(input_ids[:, -1], self._end_ids, invert=True)
        self._meter.live = going if self._meter.live is None else self._meter.live & going
        if self._on_token:
            rows = input_ids[:, self._width :].tolist()
            # a character of several bytes may be half there
            self._on_token([self.decode(self.without_end(row)).rstrip("\ufffd") for row in rows])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """The tokens before the first that ends a text."""
        return list(ids[: next((n for n, token in enumerate(ids) if token in self._ends), len(ids))])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens."""
        return self._spelling.text(ids, skip_special_tokens=True)
