"""The buffer: every row once, rows of all places together, mixed, and the same after a pause."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.sources.architectures import Point, Tap
from saeflow.training.buffer import ActivationRows, ShuffledBuffer
from saeflow.training.texts import WindowBatches

from ..sources.tiny_models import D_MODEL, tiny_model
from .learning import windows

A, B = Point(0, Tap.RES), Point(1, Tap.Z)


class Numbered:
    """Rows that carry their number, in pieces of uneven size; of place B the double, two columns wide."""

    def __init__(self, n: int | None, seed: int = 0) -> None:
        self.n, self.next, self.rng = n, 0, np.random.default_rng(seed)

    def __iter__(self):
        return self

    def __next__(self):
        n = int(self.rng.integers(0, 23))
        n = n if self.n is None else min(n, self.n - self.next)
        if self.n is not None and self.next >= self.n:
            raise StopIteration
        numbers = torch.arange(self.next, self.next + n, dtype=torch.float32)
        self.next += n
        return {A: numbers[:, None], B: torch.stack([2 * numbers, -numbers], dim=1)}


@pytest.mark.parametrize("rows", [40, 41, 97, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_lost_and_none_comes_twice(rows, seed):
    served = torch.cat(
        [batch[A][:, 0] for batch in ShuffledBuffer(Numbered(600, seed), rows=rows, batch=20, seed=seed)]
    )
    assert sorted(served.tolist()) == list(range(600))


@pytest.mark.parametrize("uses", [2, 3])
def test_a_row_is_served_so_many_times_and_never_twice_in_a_batch(uses):
    batches = [b[A][:, 0] for b in ShuffledBuffer(Numbered(600), rows=100, batch=20, seed=0, uses=uses)]
    assert all(len(batch.unique()) == 20 for batch in batches)
    times = torch.cat(batches).long().bincount(minlength=600)
    assert int(times.max()) == uses
    assert int((times < uses).sum()) < 20  # less than a batch is left at the end


def test_the_source_is_drawn_from_half_as_often_for_two_uses():
    drawn = {}
    for uses in (1, 2):
        source = Numbered(None)
        buffer = ShuffledBuffer(source, rows=100, batch=20, seed=0, uses=uses)
        served = torch.cat([next(buffer)[A][:, 0] for _ in range(200)])
        drawn[uses] = float(served.max())
    assert drawn[2] == pytest.approx(drawn[1] / 2, rel=0.05)


def test_every_place_gets_the_same_rows_in_the_same_order():
    for batch in ShuffledBuffer(Numbered(600), rows=100, batch=20, seed=0):
        assert torch.equal(batch[B], torch.cat([2 * batch[A], -batch[A]], dim=1))


def test_less_than_a_batch_is_left_at_the_end():
    buffer = ShuffledBuffer(Numbered(607), rows=100, batch=20, seed=0)
    assert sum(len(batch[A]) for batch in buffer) == 600
    assert buffer.left == 7


def test_a_batch_mixes_rows_of_now_and_of_before():
    buffer = ShuffledBuffer(Numbered(None), rows=400, batch=20, seed=0)
    batches = [next(buffer)[A][:, 0] for _ in range(60)]
    # a row is in the buffer for some refills: each batch spans more than the half that is filled at a time
    spans = [float(batch.max() - batch.min()) for batch in batches[30:]]
    assert np.mean(spans) > 300
    # and neighbours in a batch were no neighbours in the texts
    apart = torch.cat([batch.diff().abs() for batch in batches[30:]])
    assert float((apart == 1).float().mean()) < 0.02
    # half of what waits is served between two refills, so that few rows wait for many
    assert float((torch.cat(batches[50:]) > 600).float().mean()) > 0.8


def test_the_order_is_a_function_of_the_seed():
    def served(seed):
        buffer = ShuffledBuffer(Numbered(None), rows=100, batch=20, seed=seed)
        return torch.cat([next(buffer)[A] for _ in range(20)])

    assert torch.equal(served(1), served(1))
    assert not torch.equal(served(1), served(2))


@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize("uses", [1, 2])
def test_a_buffer_goes_on_where_its_state_was_taken(after, uses):
    source = Numbered(None)
    buffer = ShuffledBuffer(source, rows=90, batch=20, seed=5, uses=uses)
    for _ in range(after):
        next(buffer)
    tensors, told = buffer.state()
    again = ShuffledBuffer(copy.deepcopy(source), rows=90, batch=20, seed=77, uses=uses)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = [next(buffer) for _ in range(15)]
    again.restore(tensors, told)
    for batch in expected:
        got = next(again)
        assert torch.equal(got[A], batch[A])
        assert torch.equal(got[B], batch[B])


def test_moments_are_those_of_the_rows_held():
    buffer = ShuffledBuffer(Numbered(None), rows=50, batch=20, seed=0)
    buffer.fill()
    rows = buffer.state()[0]["left.1/z"].double()
    mean, norm, limit = buffer.moments(centre=True, massive=0)[B]
    assert limit == math.inf
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(norm, (rows - rows.mean(0)).norm(dim=1).mean())
    zero, norm, _ = buffer.moments(centre=False, massive=0)[B]
    assert not zero.any()
    torch.testing.assert_close(norm, rows.norm(dim=1).mean())
    # those that are massive are in no mean
    squares = rows.square().sum(1)
    ratio = float(squares.sort().values[-3] / squares.median()) * 1.0001
    usual = rows[squares <= ratio * squares.median()]
    assert len(usual) == len(rows) - 2
    mean, norm, limit = buffer.moments(centre=True, massive=ratio)[B]
    assert limit == pytest.approx(ratio * float(squares.median()))
    torch.testing.assert_close(mean, usual.mean(0))
    torch.testing.assert_close(norm, (usual - usual.mean(0)).norm(dim=1).mean())


def test_an_empty_source_is_told():
    buffer = ShuffledBuffer(Numbered(0), rows=50, batch=20, seed=0)
    buffer.fill()
    with pytest.raises(InvalidArgument, match="gave no row of activations"):
        buffer.moments(centre=True, massive=100)


def test_buffers_and_rows_that_do_not_fit_are_refused():
    with pytest.raises(InvalidArgument, match="two batches or more"):
        ShuffledBuffer(Numbered(10), rows=39, batch=20, seed=0)
    ragged = iter([{A: torch.zeros(5, 2), B: torch.zeros(4, 2)}])
    with pytest.raises(WidthMismatch, match=r"0/res': \(5, 2\), '1/z': \(4, 2\)"):
        next(ShuffledBuffer(ragged, rows=50, batch=20, seed=0))
    changed = iter([{A: torch.zeros(5, 2)}, {A: torch.zeros(5, 3)}])
    with pytest.raises(WidthMismatch, match=r"\(5, 3\).* widths \{'0/res': 2\}"):
        next(ShuffledBuffer(changed, rows=50, batch=20, seed=0))


def test_rows_are_the_models_own_without_the_begin_of_text():
    model = tiny_model("gemma2")
    ids = windows(4)
    batches = WindowBatches(ids, at_once=4, seed=0)
    points = (Point(1, Tap.RES), Point(0, Tap.Z), Point(2, Tap.MLP_IN))
    rows = next(ActivationRows(model, batches, points))
    again = WindowBatches(ids, at_once=4, seed=0)
    captured = model.capture(next(again), points)
    for point in points:
        assert torch.equal(rows[point], captured[point][:, 1:].flatten(0, 1))
    assert rows[points[0]].shape == (4 * 11, D_MODEL)
    assert next(ActivationRows(model, batches, points, half=True))[points[1]].dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(bad):
    model = tiny_model("llama")
    with torch.no_grad():
        model.block(1).get_submodule("mlp.down_proj").weight[3, 5] = bad
    rows = ActivationRows(model, WindowBatches(windows(), at_once=4, seed=0), [Point(0, Tap.RES), Point(1, Tap.MLP)])
    with pytest.raises(InvalidArgument, match="at 1/mlp hold NaN or infinite values"):
        next(rows)
