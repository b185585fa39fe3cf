"""The sampler draws exactly from the nucleus, on noise that knows the seed and the step and nothing else."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TopPLogitsWarper

from saeflow.errors import InvalidArgument
from saeflow.steering.generate import Noise, Sampler, Sampling, draw, likelier


def logits_of(rows, vocabulary, spread=2.0, seed=0):
    return spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def nucleus(logits, top_p):
    """Every token of every row, asked for one by one as the sampler asks."""
    probabilities = logits.softmax(dim=-1)
    asked = [likelier(probabilities, torch.full((len(logits),), t))[1] < top_p for t in range(logits.shape[1])]
    return torch.stack(asked, dim=1)


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.7, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_the_nucleus_is_that_of_transformers(top_p, spread):
    logits = logits_of(40, 300, spread)
    kept = TopPLogitsWarper(top_p)(None, logits).isfinite()
    assert torch.equal(nucleus(logits, top_p), kept)
    assert kept.any(dim=1).all()
    assert kept.all() == (spread == 0.1 and top_p == 0.999)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_a_draw_is_the_best_noisy_token_of_the_sorted_nucleus(top_p):
    logits = logits_of(500, 200, 1.5)
    noise = Noise(200).of(range(500), 3)
    kept = logits if top_p == 1 else TopPLogitsWarper(top_p)(None, logits)
    expected = (kept + noise).argmax(dim=-1)
    assert torch.equal(draw(logits, noise, top_p), expected)
    if top_p < 1:
        assert not torch.equal((logits + noise).argmax(dim=-1), expected)  # the noise alone often leaves the nucleus


def test_equally_likely_tokens_are_in_or_out_together():
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]]))
    assert nucleus(logits, 0.3).tolist() == [[True, False, False, False]]
    assert nucleus(logits, 0.5).tolist() == [[True, True, True, True]]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.27, 0.7), (0.5, 0.95)])
def test_draws_follow_the_softmax_within_the_nucleus(temperature, top_p):
    n, logits = 40_000, torch.tensor([[1.2, 0.3, 0.1, -0.4, -0.6, -1.0, -2.5, 0.8]])
    scaled = logits / temperature
    kept = scaled if top_p == 1 else TopPLogitsWarper(top_p)(None, scaled)
    expected = kept.softmax(dim=-1)[0].double().numpy() * n
    scores = Sampler(Sampling(temperature=temperature, top_p=top_p), range(n), 0)(
        torch.zeros(n, 4, dtype=torch.long), logits.expand(n, -1)
    )
    found = np.bincount(scores.argmax(dim=-1).numpy(), minlength=8)
    inside = expected > 0
    assert found[~inside].sum() == 0
    assert stats.chisquare(found[inside], expected[inside] * found.sum() / expected.sum()).pvalue > 1e-3


def test_draws_follow_the_softmax_over_steps_of_one_seed_too():
    n, logits = 4_000, torch.tensor([[1.2, 0.3, 0.1, -0.4, -0.6]])
    sampler = Sampler(Sampling(temperature=1.0, top_p=1.0), [11], 0)
    found = [int(sampler(torch.zeros(1, step, dtype=torch.long), logits).argmax()) for step in range(n)]
    expected = logits.softmax(dim=-1)[0].double().numpy() * n
    assert stats.chisquare(np.bincount(found, minlength=5), expected * n / expected.sum()).pvalue > 1e-3


def test_the_noise_is_gumbel_and_independent_between_tokens_steps_and_seeds():
    noise = Noise(500)
    some = torch.stack([noise.of(range(20), step) for step in range(20)]).double()  # step, seed, token
    assert some.isfinite().all()
    assert stats.kstest(some.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    uniform = torch.exp(-torch.exp(-some)) - 0.5
    pairs = {
        "tokens": (uniform[..., 1:], uniform[..., :-1]),
        "seeds": (uniform[:, 1:], uniform[:, :-1]),
        "steps": (uniform[1:], uniform[:-1]),
        "seed and step": (uniform[1:, :-1], uniform[:-1, 1:]),
    }
    for name, (a, b) in pairs.items():
        z = (a * b).mean() * 12 * math.sqrt(a.numel())
        assert abs(z) < 4, (name, z)


def test_the_noise_is_the_published_generator():
    # SplitMix64 from the state of seed 0 and step 0, which mixes to 0: first outputs as in the reference code
    first = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)
    expected = [-math.log(-math.log(((word >> 12) + 0.5) / 2**52)) for word in first]
    assert Noise(4).of([0], 0)[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_the_noise_of_a_seed_and_step_does_not_depend_on_what_it_is_asked_with():
    noise = Noise(64)
    table = noise.of([5, -3, 2**70, 9], 7)
    assert torch.equal(noise.of([9], 7)[0], table[3])
    assert torch.equal(noise.of([2**70, -3], 7), table[[2, 1]])
    assert len({tuple(row) for row in table.tolist()}) == 4
    assert not torch.equal(noise.of([9], 8)[0], table[3])
    assert torch.equal(Noise(16).of([9], 7)[0], table[3, :16])  # nor on the size of the vocabulary


def test_rows_of_one_seed_share_their_noise_and_it_is_made_once(monkeypatch):
    asked = []
    plain = Noise.of
    monkeypatch.setattr(
        Noise, "of", lambda self, seeds, step: (asked.append(tuple(seeds)), plain(self, seeds, step))[1]
    )
    logits = logits_of(1, 50).expand(6, -1)
    sampler = Sampler(Sampling(), [4, 7, 4, 4, 7, 1], 3)
    chosen = sampler(torch.zeros(6, 5, dtype=torch.long), logits).argmax(dim=-1).tolist()
    assert asked == [(4, 7, 1)]
    assert chosen[0] == chosen[2] == chosen[3]
    assert chosen[1] == chosen[4]
    alone = Sampler(Sampling(), [7], 0)(torch.zeros(1, 2, dtype=torch.long), logits[:1])
    assert alone.argmax().item() == chosen[1]  # step 2 of either


def test_the_sampler_leaves_one_token_and_the_logits_as_they_were():
    logits = logits_of(7, 30)
    kept = logits.clone()
    scores = Sampler(Sampling(), range(7), 2)(torch.zeros(7, 2, dtype=torch.long), logits)
    assert torch.equal(logits, kept)
    assert (scores == 0).sum(dim=-1).tolist() == [1] * 7
    assert scores.isneginf().sum().item() == 7 * 29


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_end_the_draw_all_the_same(bad):
    logits = logits_of(3, 20)
    logits[1, 4] = bad
    logits[2] = bad
    tokens = draw(logits, Noise(20).of(range(3), 0), 0.5)
    assert ((tokens >= 0) & (tokens < 20)).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": -0.5}, "temperature = -0.5"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.01}, "top_p = 1.01"),
    ],
)
def test_a_setting_outside_its_range_is_named(setting, message):
    with pytest.raises(InvalidArgument, match=message):
        Sampling(**setting)


def test_the_same_noise_comes_in_another_process():
    code = "from saeflow.steering.generate import Noise; print(Noise(5).of([12, -1], 3).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(Noise(5).of([12, -1], 3).tolist())
