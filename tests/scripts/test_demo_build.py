"""The parts of the demo pack's build that do not need a training run."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
from demo_build import corpus, saes, texts


def reconstruct(state, x):
    pre = x @ state["W_enc"].T + state["b_enc"]
    acts = torch.relu(pre) * (pre > state["threshold"])
    return acts, acts @ state["W_dec"] + state["b_dec"]


@pytest.fixture
def trained():
    """Weights as the trainer leaves them: W_enc [d_in, n_features], rows of any norm."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "W_enc": draw(8, 20), "b_enc": draw(20), "W_dec": draw(20, 8), "b_dec": draw(8), "threshold": draw(20).abs(),
    }  # fmt: skip


MEAN, SCALE = torch.arange(8, dtype=torch.float64), 0.3


def test_folding_in_the_normalisation_changes_no_reconstruction(trained):
    x = 5 * torch.randn(50, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + MEAN
    normalised = trained | {"W_enc": trained["W_enc"].T}
    acts, out = reconstruct(normalised, (x - MEAN) * SCALE)
    folded = saes.fold_in(trained, MEAN, SCALE)
    folded_acts, folded_out = reconstruct(folded, x)
    assert torch.equal(acts > 0, folded_acts > 0)
    assert torch.allclose(out / SCALE + MEAN, folded_out)
    assert torch.allclose(folded["W_dec"].norm(dim=1), torch.ones(20, dtype=torch.float64))


def test_unfolding_is_the_inverse(trained):
    folded = saes.fold_in(trained, MEAN, SCALE)
    again = saes.fold_in(saes.unfold(folded, MEAN, SCALE), MEAN, SCALE)
    for name, tensor in folded.items():
        assert torch.allclose(again[name], tensor), name


def test_windows_open_with_bos_and_lose_only_the_rest():
    rows = corpus.windows(np.arange(1, 24, dtype=np.uint16), 6, 0)
    assert rows.shape == (4, 6)
    assert (rows[:, 0] == 0).all()
    assert rows[:, 1:].ravel().tolist() == list(range(1, 21))


def test_held_out_documents_are_never_trained_on():
    train, held_out = corpus.split([str(i) for i in range(120)])
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == 120


def test_a_copied_run_is_found_wherever_it_starts():
    source = "".join(chr(97 + (7 * i * i) % 26) for i in range(400))
    runs = {hash(source[i : i + texts.COPY_RUN]) for i in range(0, len(source) - texts.COPY_RUN, 2)}
    for start in (10, 11):
        assert texts._copied("A new text. " + source[start : start + texts.COPY_RUN + 1] + " more", runs)
    assert not texts._copied(
        "A text of its own that repeats nothing of the source at all, however long it is.", runs
    )
