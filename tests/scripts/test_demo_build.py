"""The parts of the demo pack's build that do not need a training run."""

import itertools
import json
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


def noise(n, seed):
    """`n` random letters: no run of two of them is the same."""
    return "".join(chr(97 + int(i)) for i in np.random.default_rng(seed).integers(0, 26, n))


@pytest.fixture
def runs(tmp_path):
    """Runs of one training document of 400 letters (the one before it is held out), and the document."""
    rows = [{"question": noise(200, seed), "answer": noise(200, seed + 10)} for seed in range(2)]
    (tmp_path / "gsm8k_train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return texts._runs(tmp_path, "maths"), corpus.documents(tmp_path, "maths")


@pytest.mark.parametrize("before", ["", "A new text. "])
@pytest.mark.parametrize("after", ["", " more"])
@pytest.mark.parametrize("start", [0, 1, 10, 11, -2, -1])
def test_a_copied_run_is_found_wherever_it_lies(runs, start, before, after):
    found, (_, trained) = runs
    n = texts.COPY_RUN + 1
    first = start if start >= 0 else len(trained) - n + 1 + start
    copied = trained[first : first + n]
    assert len(copied) == n
    assert texts._copied(before + copied + after, found)
    assert not texts._copied(before + copied[: n - 2] + after, found)


def test_text_of_its_own_and_held_out_text_are_no_copies(runs):
    found, (held_out, _) = runs
    assert not texts._copied(noise(1000, 99), found)
    assert not texts._copied(held_out[11:150], found)


def chosen(monkeypatch, written, passages, runs=None):
    monkeypatch.setattr(texts, "PASSAGES", passages)
    monkeypatch.setattr(texts, "FIRST", 30)
    return texts._chosen(iter(written), "maths", runs or {"maths": set()}, 0)


def test_more_passages_leave_the_first_ones_first_and_in_their_order(monkeypatch):
    written = [noise(200, seed) for seed in range(100)]
    first, _ = chosen(monkeypatch, written, 30)
    more, _ = chosen(monkeypatch, written, 80)
    assert more[:30] == first
    assert sorted(more) == sorted(written[:80])
    assert first != written[:30]
    assert more[30:] != written[30:80]


def test_short_passages_and_those_written_twice_are_passed_over_and_are_no_copies(monkeypatch):
    written = [noise(200, seed) for seed in range(50)]
    mixed = itertools.chain.from_iterable((text[: texts.SHORTEST - 1], text, text) for text in written)
    found, dropped = chosen(monkeypatch, mixed, 50)
    assert sorted(found) == sorted(written)
    assert dropped == 0


def test_copies_of_the_domain_are_dropped_and_after_the_first_those_of_any(monkeypatch):
    written = [noise(200, seed) for seed in range(80)]

    def of(numbers):
        return {hash(written[n][7 : 7 + texts.COPY_RUN]) for n in numbers}

    runs = {"maths": of([0, 60]), "novels": of([5, 61, 62])}
    found, dropped = chosen(monkeypatch, written, 70, runs)
    assert dropped == 4
    assert set(written[:74]) - set(found) == {written[n] for n in (0, 60, 61, 62)}


def test_texts_are_complete_when_every_domain_has_all_its_passages(tmp_path, monkeypatch):
    assert not texts.complete(tmp_path)
    monkeypatch.setattr(texts, "PASSAGES", 2)
    for domain in texts.PROMPTS:
        assert not texts.complete(tmp_path)
        texts._write(tmp_path, domain, ["one", "two"])
    assert texts.complete(tmp_path)
    monkeypatch.setattr(texts, "PASSAGES", 3)
    assert not texts.complete(tmp_path)
