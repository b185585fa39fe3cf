"""Windows of texts: every token once a pass, no text joined to another, and the same after a pause."""

from __future__ import annotations

import json

import numpy as np
import pytest

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.sampling import is_held_out
from saeflow.training.texts import EVALUATED, TextBatches, WindowBatches, evaluation_texts, is_evaluated

from ..sources.tiny_models import tiny_model
from .learning import windows

MODEL = tiny_model("llama")


def texts(n=300, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{word}" for word in rng.integers(3, 48, int(rng.integers(1, 41)))) for _ in range(n)]


TEXTS = texts()


def shuffled(number):
    return [TEXTS[i] for i in np.random.default_rng(number).permutation(len(TEXTS))]


def ids(text):
    return [int(word[1:]) for word in text.split()]


def batches(read=shuffled, **told):
    return TextBatches(MODEL, read, **({"context": 10, "windows": 4} | told))


def rows_of(tokens):
    return [row[:n] for row, n in zip(tokens.input_ids.tolist(), tokens.lengths, strict=True)]


def test_windows_of_a_pass_are_the_pieces_of_its_texts_each_with_a_beginning():
    kept = [text for text in TEXTS if not is_evaluated(text)]
    expected = sorted([1, *ids(text)[i : i + 9]] for text in kept for i in range(0, len(ids(text)), 9))
    stream, found = batches(), []
    while len(found) < len(expected):
        found += rows_of(next(stream))
    # the pool reads ahead into the next pass, so the first windows are those of pass 0 and maybe a few of pass 1
    counted = [row for row in expected if row in found]
    assert len(counted) > 0.9 * len(expected)
    assert all(row[0] == 1 and 2 <= len(row) <= 10 for row in found)
    # no window holds tokens of two texts
    pieces = {tuple(row) for row in expected}
    assert all(tuple(row) in pieces for row in found)


def test_texts_kept_for_measuring_are_never_trained_on():
    shares = [is_evaluated(text) for text in texts(4000, 1)]
    assert abs(np.mean(shares) - 1 / EVALUATED) < 0.01
    measured = evaluation_texts(shuffled, 5)
    assert len(measured) == 5
    assert all(is_evaluated(text) for text in measured)
    stream = batches(keep=None)
    seen = {tuple(row[1:]) for _ in range(400) for row in rows_of(next(stream))}
    assert not any(tuple(ids(text)[:9]) in seen for text in measured if len(ids(text)) > 4)


def test_the_choice_does_not_hang_together_with_the_quarter_experiments_leave_out():
    found = texts(4000, 2)
    among = [is_held_out(text) for text in found if is_evaluated(text)]
    assert 0.15 < np.mean(among) < 0.35


def test_batches_hold_windows_of_alike_length():
    stream = batches(windows=8)
    padding = [1 - t.attention_mask.float().mean().item() for t in (next(stream) for _ in range(60))]
    assert np.mean(padding) < 0.1


@pytest.mark.parametrize("after", [0, 1, 7, 150, 700])
def test_a_stream_of_texts_goes_on_where_its_state_was_taken(after):
    stream = batches()
    for _ in range(after):
        next(stream)
    state = json.loads(json.dumps(stream.state()))
    again = batches()
    again.restore(state)
    for _ in range(200):
        a, b = next(stream), next(again)
        assert a.input_ids.tolist() == b.input_ids.tolist()
        assert a.attention_mask.tolist() == b.attention_mask.tolist()
    assert stream.passes == again.passes


def test_passes_have_orders_of_their_own():
    stream = batches()
    while stream.passes < 2:
        next(stream)
    assert stream.passes == 2


def test_texts_without_tokens_are_told():
    with pytest.raises(InvalidArgument, match="the 3 texts hold no token to train on"):
        next(batches(lambda number: ["", " ", "   "], keep=lambda text: True))
    with pytest.raises(InvalidArgument, match="none of the texts is kept for measuring"):
        evaluation_texts(lambda number: [t for t in TEXTS if not is_evaluated(t)], 3)


def test_fewer_texts_than_before_are_told():
    stream = batches()
    for _ in range(20):
        next(stream)
    state = stream.state()
    with pytest.raises(BadFile, match=r"had read \d+ texts, and there are only 3 now"):
        batches(lambda number: TEXTS[:3]).restore(state)


def test_windows_come_once_a_pass_in_an_order_of_the_seed_and_the_pass():
    given = windows(20)
    stream = WindowBatches(given, at_once=6, seed=0)
    first, second = ([row for _ in range(4) for row in next(stream).input_ids.tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(given.tolist())
    assert first != second
    other = WindowBatches(given, at_once=6, seed=1)
    assert [row for _ in range(4) for row in next(other).input_ids.tolist()] != first


@pytest.mark.parametrize("after", [0, 1, 4, 5, 9])
def test_a_stream_of_windows_goes_on_where_its_state_was_taken(after):
    stream, again = (WindowBatches(windows(20), at_once=6, seed=0) for _ in range(2))
    for _ in range(after):
        next(stream)
    again.restore(json.loads(json.dumps(stream.state())))
    assert [next(stream).input_ids.tolist() for _ in range(9)] == [next(again).input_ids.tolist() for _ in range(9)]


def test_no_window_is_refused():
    with pytest.raises(InvalidArgument, match="no window of tokens"):
        WindowBatches(np.zeros((0, 5), dtype=np.int64), at_once=2, seed=0)
