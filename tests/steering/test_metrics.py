"""Losses are those of the whole sequence computed alone; distinct-n and the combined score are their formulas."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import InvalidArgument
from saeflow.steering.judges import Score, final_score
from saeflow.steering.metrics import distinct, losses

from ..sources.tiny_models import VOCAB, tiny_model

PROMPT = "w5 w9 w12"
FAMILIES = ("llama", "gemma2", "gpt2")


def generations(n=9, longest=12, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(3, VOCAB, size=draw.integers(1, longest + 1)).tolist() for _ in range(n)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 4, None])
def test_a_loss_is_that_of_the_whole_sequence_alone(family, batch) -> None:
    model, made = tiny_model(family), generations()
    found = losses(model, PROMPT, made, batch=batch)
    for ids, loss in zip(made, found, strict=True):
        text = f"{PROMPT} " + " ".join(f"w{i}" for i in ids)
        alone = model.loss(model.tokenize([text]))[0, -len(ids) :]
        assert loss == pytest.approx(alone.mean().item(), rel=1e-5)


def test_a_loss_is_minus_the_mean_log_probability_of_the_texts_own_tokens() -> None:
    model, ids = tiny_model("llama"), [7, 30, 30, 11]
    whole = torch.tensor([[1, 5, 9, 12, *ids]])
    with torch.no_grad():
        logs = model.hf_model(whole).logits[0].log_softmax(-1)
    expected = -sum(logs[3 + at, token].item() for at, token in enumerate(ids)) / 4
    assert losses(model, PROMPT, [ids]) == pytest.approx([expected], rel=1e-5)


def test_order_is_kept_and_a_text_without_tokens_has_no_loss() -> None:
    model, made = tiny_model("llama"), generations()
    there, back = losses(model, PROMPT, made), losses(model, PROMPT, made[::-1])
    assert there == pytest.approx(back[::-1], rel=1e-5)
    found = losses(model, PROMPT, [[], made[0], []])
    assert [math.isnan(loss) for loss in found] == [True, False, True]
    assert found[1] == pytest.approx(there[0], rel=1e-5)
    assert losses(model, PROMPT, []) == []
    assert losses(model, "", made[:1])  # the begin-of-text token alone


def test_no_more_logits_at_once_than_there_is_room_for(monkeypatch) -> None:
    model, made, rows = tiny_model("llama"), generations(20), []
    monkeypatch.setattr("saeflow.steering.metrics.LOGITS_CPU", 4 * VOCAB * 16 * 3)
    loss = model.loss
    monkeypatch.setattr(model, "loss", lambda tokens: rows.append(tuple(tokens.input_ids.shape)) or loss(tokens))
    few = losses(model, PROMPT, made)
    assert max(batch * width for batch, width in rows) <= 16 * 3
    assert sum(batch for batch, _ in rows) == 20
    monkeypatch.undo()
    assert few == pytest.approx(losses(model, PROMPT, made), rel=1e-5)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="batch = 0"):
        losses(tiny_model("llama"), PROMPT, [[5]], batch=0)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 4))
def test_distinct_n_counts_different_n_grams(ids, n) -> None:
    seen, total = [], 0
    for at in range(len(ids)):
        gram = ids[at : at + n]
        if len(gram) == n:
            total += 1
            seen += [gram] if gram not in seen else []
    assert distinct(ids, n) == (len(seen) / total if total else 0.0)
    assert distinct([str(i) for i in ids], n) == distinct(ids, n)


@given(st.lists(st.integers(0, 9), min_size=3, max_size=12), st.integers(2, 4), st.integers(1, 3))
def test_saying_it_again_lowers_distinct_n(ids, times, n) -> None:
    assert distinct(ids * times, n) < distinct(ids, n) or distinct(ids, n) == 0
    assert distinct(list(range(40)), n) == 1.0


def test_no_n_grams_of_length_0() -> None:
    with pytest.raises(InvalidArgument, match="n = 0"):
        distinct([1, 2], 0)


@pytest.mark.parametrize(("behavior", "coherence"), list(itertools.product(range(6), repeat=2)))
def test_the_combined_score_is_that_of_section_4_2_in_both_directions(behavior, coherence) -> None:
    assert final_score(behavior, coherence, suppress=False) == pytest.approx(behavior * coherence / 25)
    assert final_score(behavior, coherence, suppress=True) == pytest.approx((5 - behavior) * coherence / 25)


@pytest.mark.parametrize("marks", [(5.1, 0), (0, -0.1), (math.nan, 1), (1, math.inf)])
def test_marks_outside_0_to_5_are_no_score(marks) -> None:
    with pytest.raises(InvalidArgument, match="is no mark"):
        Score(*marks)


@pytest.mark.parametrize("module", ["metrics", "judges", "judges.llm", "judges.offline", "judges.rubrics"])
def test_no_torch_and_no_optional_package_is_loaded_to_import_them(module) -> None:
    code = (
        f"import saeflow.steering.{module}, sys\n"
        "assert not {'torch', 'sklearn', 'openai', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
