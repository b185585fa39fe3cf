"""Contributions on one token are eq. 1 written out."""

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.matching.virtual import weighted_virtual
from saeflow.sources.architectures import Tap

from .parts import Writer, random_dictionary


def oracle(acts, written, read, k):
    """a_i (W_dec[i] . W_enc[j]) for every j and i, sorted."""
    parts = read.double().numpy() @ (written.double().numpy() * acts.double().numpy()[:, None]).T
    index = np.argsort(-parts, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(parts, index, axis=1)


@pytest.fixture
def source():
    return random_dictionary("2/res", 30, seed=1)


@pytest.fixture
def target():
    return random_dictionary("3/res", 40, seed=2)


def acts_of(n, n_active, seed=3, sign=1.0):
    g = torch.Generator().manual_seed(seed)
    acts = torch.zeros(n)
    acts[torch.randperm(n, generator=g)[:n_active]] = sign * (torch.rand(n_active, generator=g) + 0.1)
    return acts


@pytest.mark.parametrize("n_active", [0, 1, 4, 30])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_contributions_are_equation_1_sorted(source, target, n_active, k):
    acts = acts_of(30, n_active)
    table = weighted_virtual(acts, source, target, k=k)
    index, score = oracle(acts, source.W_dec, target.W_enc, k)
    assert (table.source, table.target) == (target.site, source.site)
    assert (table.n_source, table.n_target, table.method) == (40, 30, "virtual-weighted")
    assert np.array_equal(table.index, index)
    assert table.score == pytest.approx(score, rel=1e-5, abs=1e-6)


def test_all_contributions_add_up_to_what_the_reconstruction_adds(source, target):
    acts = source.encode(torch.randn(12, generator=torch.Generator().manual_seed(4)))
    table = weighted_virtual(acts, source, target, k=30)
    added = target.W_enc @ (source.decode(acts) - source.b_dec)
    assert table.score.sum(axis=1) == pytest.approx(added.numpy(), rel=1e-4, abs=1e-4)


def test_blocks_do_not_matter(source, target, monkeypatch):
    acts = acts_of(30, 9)
    whole = weighted_virtual(acts, source, target)
    monkeypatch.setattr("saeflow.matching.virtual.BLOCK", 7)
    parts = weighted_virtual(acts, source, target)
    assert np.array_equal(whole.index, parts.index)
    assert whole.score == pytest.approx(parts.score, abs=1e-6)


def test_a_source_in_z_writes_through_the_model(target):
    writer, on_z = Writer(12, 8), random_dictionary("3/att", 15, 8, seed=5, tap=Tap.Z)
    acts = acts_of(15, 6)
    table = weighted_virtual(acts, on_z, target, k=3, projector=writer)
    index, score = oracle(acts, (on_z.W_dec @ writer.W_O.T) * writer.gain, target.W_enc, 3)
    assert np.array_equal(table.index, index)
    assert table.score == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_what_makes_no_sense_is_refused(source, target):
    acts = acts_of(30, 5)
    with pytest.raises(InvalidArgument, match="3/res does not come before 2/res"):
        weighted_virtual(acts_of(40, 5), target, source)
    with pytest.raises(InvalidArgument, match="does not come before"):
        weighted_virtual(acts, source, source)
    with pytest.raises(WidthMismatch, match="29 activations for the 30 features"):
        weighted_virtual(acts[:29], source, target)
    with pytest.raises(InvalidArgument, match="NaN"):
        weighted_virtual(acts * float("nan"), source, target)
    with pytest.raises(WidthMismatch, match=r"12 wide .* 11"):
        weighted_virtual(acts, source, random_dictionary("3/res", 9, 11))
    for k in (0, 31):
        with pytest.raises(InvalidArgument, match=f"k={k} "):
            weighted_virtual(acts, source, target, k=k)
