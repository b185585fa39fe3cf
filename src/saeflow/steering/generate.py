"""Generate text under plans: many settings in one batch, with the KV cache and the same noise for all.

    requests = [Request("I think", seed, plan) for plan in (None, weak, strong) for seed in range(4)]
    for made in generate(model, dictionaries, requests, Sampling()):
        print(made.request.seed, made.text)

Requests with the same prompt share batches, whatever their plans: a forward pass over 256 rows takes about as long as a
few passes over one row, so a sweep of settings is many times faster than one call for each. `row_plans` applies a
different plan to each row.

The noise of sampling depends only on the seed and the step, which pairs steered and unsteered texts. With l the logits
of a row and T the temperature, the next token is

    argmax over the nucleus of  l / T + g(seed, step)        g: Gumbel noise, one number per token of the vocabulary

which is an exact draw from softmax(l / T) restricted to the nucleus and normalised (the Gumbel-max trick, Gumbel
1954; Maddison et al. 2014, arXiv 1411.0030). The nucleus of top-p is the smallest set of most likely tokens with
probability p or more (Holtzman et al. 2020, arXiv 1904.09751). Since g does not depend on the plan, the batch or its
order, two texts of one seed differ only where the logits do: plans are compared with common random numbers.

The noise is counter-based: number t of a seed and step is SplitMix64 at counter t (Steele, Lea and Flood 2014), in
integers, so that it is the same on any machine. It is computed once per seed and step, however many rows share it.

Finding the nucleus takes no sorting. The token with the highest noisy logit in the whole vocabulary is a draw from
softmax(l / T), and it lies in the nucleus if the tokens likelier than it sum to less than p. Otherwise every token that
is no likelier lies outside too, and the best of the remaining tokens is tried next. The first try succeeds with
probability p or more, so top-p costs little more than a softmax, whatever the size of the nucleus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.plain_types import Progress
from saeflow.sources.decoding import check_sampling, complete, sampling_config
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.steering.plan import SteeringPlan
from saeflow.steering.row_plans import ShareMeter, row_changes

OnToken: TypeAlias = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Request:
    """A text to generate.

    Attributes:
        prompt: what the text continues; the begin-of-text token is prepended if the model uses one.
        seed: any integer; the sampling noise is a function of it and of the step.
        plan: what steers the text; None for the unsteered model.
    """

    prompt: str
    seed: int
    plan: SteeringPlan | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings; the defaults are those of appendix B.2 (B.1 takes 96 tokens).

    Attributes:
        max_new_tokens: a text ends after this many tokens, or earlier at an end-of-text token.
        temperature: what logits are divided by; 0 always takes the most likely token.
        top_p: probability of the nucleus, in (0, 1]; 1 keeps the whole vocabulary.

    Raises:
        InvalidArgument: for a setting outside its range.
    """

    max_new_tokens: int = 36
    temperature: float = 1.27
    top_p: float = 0.7

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p)


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated text.

    Attributes:
        request: the request it answers.
        text: the generated text, without the prompt and special tokens.
        ids: its tokens, without the prompt and the end-of-text token.
        share_layer: the maximum over layers of the mean over tokens of |what the plan changes at the layer| /
            |stream after it|; 0 for unsteered text.
        share_total: the mean over tokens of |sum of all changes| / |stream after the last changed layer|; 0 for
            unsteered text. Both leave out the begin-of-text token; see `row_plans.ShareMeter`.
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
    """Generate a text for each request, in order.

    The noise is a function of (seed, step), so requests with the same seed and prompt are paired, whatever their plans
    and order. The logits of a row, however, differ in their last bits with the size of the batch and the number of
    threads, as matrix products do. Where two tokens are that close, a text can depend on what shares its batch, seldom
    in float32 and more often in half precision: to reproduce a text exactly, reproduce its batch. Torch's global
    generator is not used.

    Args:
        model: the model; the sampling settings it ships with are ignored.
        dictionaries: of the plans' sites; None loads those of the release the plans name.
        requests: requests with the same prompt share batches, in the order given.
        sampling: length, temperature and nucleus of all texts.
        batch: the most rows in a batch. The largest that fits in memory is the fastest.
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
    """Generate the texts of requests with one prompt in one batch."""
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
    """Follows decoding: tells the meter which texts have ended, and passes the texts so far to `on_token`."""

    def __init__(self, model: LanguageModel, width: int, meter: ShareMeter, on_token: OnToken | None) -> None:
        self._spelling, self._width = model.spelling, width
        self._ends = frozenset(model.end_ids)
        self._end_ids = torch.tensor(model.end_ids, dtype=torch.long, device=model.device)
        self._meter, self._on_token = meter, on_token

    def __call__(self, input_ids: Int[Tensor, "n pos"], *_: object, **__: object) -> Bool[Tensor, " n"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the meter and call `on_token`; end-of-text tokens are left to transformers, so nothing stops here."""
        going = torch.isin(input_ids[:, -1], self._end_ids, invert=True)
        self._meter.live = going if self._meter.live is None else self._meter.live & going
        if self._on_token:
            rows = input_ids[:, self._width :].tolist()
            # the last character may still lack some of its bytes
            self._on_token([self.decode(self.without_end(row)).rstrip("\ufffd") for row in rows])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """The tokens before the first end-of-text token."""
        return list(ids[: next((n for n, token in enumerate(ids) if token in self._ends), len(ids))])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens."""
        return self._spelling.text(ids, skip_special_tokens=True)


# --- noise and draws --------------------------------------------------------------------------------------------------

_WORD: Final = (1 << 64) - 1
_STEP: Final = 0x9E3779B97F4A7C15
_MIX: Final = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST: Final = 31
"""SplitMix64: the increment of the counter (`_STEP`), and the shifts and factors of the mixing."""


class Noise:
    """Gumbel noise over a vocabulary, by seed and step."""

    def __init__(self, n_tokens: int, device: torch.device | str = "cpu") -> None:
        """Prepare the counters; `n_tokens` is the width of the logits."""
        self._counter = torch.arange(1, n_tokens + 1, device=device) * _signed(_STEP)

    def of(self, seeds: Sequence[int], step: int) -> Float[Tensor, "n vocab"]:
        """The noise of each seed at a step, in float32; seeds are any integers, taken modulo 2^64."""
        keys = [_signed(_mixed(_mixed(seed & _WORD) + step * _STEP & _WORD)) for seed in seeds]
        x = torch.tensor(keys, device=self._counter.device)[:, None] + self._counter
        for shift, factor in _MIX:
            x = x.bitwise_xor_(_shifted(x, shift)).mul_(_signed(factor))
        x = x.bitwise_xor_(_shifted(x, _LAST))
        # (52 bits + 0.5) / 2^52 lies strictly between 0 and 1 in float64, so that both logarithms are finite
        uniform = _shifted(x, 12).double().add_(0.5).mul_(2.0**-52)
        return uniform.log_().neg_().log_().neg_().float()


def _mixed(x: int) -> int:
    for shift, factor in _MIX:
        x = (x ^ x >> shift) * factor & _WORD
    return x ^ x >> _LAST


def _signed(x: int) -> int:
    """The 64 bits of `x` as a signed integer, as torch stores them."""
    return x - (1 << 64) if x >> 63 else x


def _shifted(x: Int[Tensor, "n vocab"], shift: int) -> Int[Tensor, "n vocab"]:
    """Logical shift: `x >> shift` with zeros shifted in, as for unsigned integers."""
    return (x >> shift).bitwise_and_((1 << 64 - shift) - 1)


def likelier(
    probabilities: Float[Tensor, "n vocab"], tokens: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n vocab"], Float[Tensor, " n"]]:
    """The probabilities, set to 0 for every token no likelier than the row's token, and their sum for each row.

    The row's token lies in the nucleus of p if the sum is below p. Equally likely tokens are in or out together.
    """
    own = probabilities.gather(1, tokens[:, None])
    # write the comparison as 0.0 and 1.0 directly: converting it from booleans would take most of the time
    above = torch.gt(probabilities, own, out=torch.empty_like(probabilities)).mul_(probabilities)
    return above, above.sum(dim=-1)


def draw(logits: Float[Tensor, "n vocab"], noise: Float[Tensor, "#n vocab"], top_p: float) -> Int[Tensor, " n"]:
    """For each row, the token of the nucleus with the highest logits + noise: an exact draw."""
    noisy = logits + noise
    found = noisy.max(dim=-1).indices  # faster than argmax
    if top_p >= 1.0:
        return found
    probabilities = logits.softmax(dim=-1)
    pending = torch.arange(len(found), device=found.device)
    tokens = found
    while True:
        above, mass = likelier(probabilities, tokens)
        out = (mass >= top_p).nonzero().flatten()
        if not len(out):
            return found
        pending, probabilities = pending[out], above[out]
        noisy = noisy[out].masked_fill_(probabilities == 0, -math.inf)
        tokens = noisy.max(dim=-1).indices
        found[pending] = tokens


class Sampler(LogitsProcessor):
    """Makes each row's drawn token the only possible one, so that greedy decoding takes it.

    The `generate` method of transformers calls it at every step with the texts so far and the logits.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], n_before: int) -> None:
        """Take one seed per row; `n_before` is the number of token columns of the prompt."""
        self._sampling = sampling
        self._seeds = tuple(dict.fromkeys(seeds))
        place = {seed: number for number, seed in enumerate(self._seeds)}
        self._row = torch.tensor([place[seed] for seed in seeds])
        self._n_before = n_before
        self._noise: Noise | None = None

    def __call__(self, input_ids: Int[Tensor, "n pos"], scores: Float[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
        """0 at the drawn token of each row, minus infinity elsewhere."""
        if self._noise is None:
            self._noise = Noise(scores.shape[1], scores.device)
            self._row = self._row.to(scores.device)
        noise = self._noise.of(self._seeds, input_ids.shape[1] - self._n_before)
        if 1 < len(self._seeds) < len(scores):
            noise = noise[self._row]
        tokens = draw(scores / self._sampling.temperature, noise, self._sampling.top_p)
        return torch.full_like(scores, -math.inf).scatter_(1, tokens[:, None], 0.0)
