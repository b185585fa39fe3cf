"""The parts of the demo pack's build that do not need a training run."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
from demo_build import corpus, pack, saes, texts
from saeflow.ids import Site
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model
from saeflow.sources.tokens import Tokens

SMALL = {
    "res": saes.Recipe(width=24, target_l0=4, tokens=3 * saes.BATCH, refine_l0=3, refine_tokens=2 * saes.BATCH),
    "att": saes.Recipe(width=16, target_l0=4, tokens=2 * saes.BATCH),
}


@pytest.fixture
def data(tmp_path):
    """Tokens of the five domains as `tokenize` writes them, of the shipped model's vocabulary."""
    rng = np.random.default_rng(0)
    for domain in corpus.DOMAINS:
        for part, n in (("train", 20_000), ("held_out", 700)):
            np.save(tmp_path / f"{domain}.{part}.npy", rng.integers(1, 4096, n).astype(np.uint16))
    return tmp_path


def test_training_windows_hold_each_domain_in_its_share(data):
    rows = saes.training_windows(data, 0)
    assert rows.shape[1] == saes.CONTEXT
    assert (rows[:, 0] == 0).all()
    # the domain with the largest share is used whole, the others as its share says
    assert len(rows) == pytest.approx(78 / max(saes.MIXTURE.values()), abs=3)


@pytest.mark.parametrize("part", list(saes.RECIPES))
def test_recipes_are_the_packs_and_refining_goes_on_at_full_penalty(part):
    recipe = saes.RECIPES[part]
    first = saes.settings_of(recipe, 0, refine=False)
    assert (first.optimiser.steps, first.sparsity.l0) == (recipe.tokens // 2048, recipe.target_l0)
    assert round(first.sparsity.warm_up * first.optimiser.steps) == 300
    assert round(first.optimiser.warm_up * first.optimiser.steps) == 100
    if recipe.refine_tokens:
        more = saes.settings_of(recipe, 1, refine=True)
        assert (more.sparsity.l0, more.sparsity.warm_up, more.optimiser.decay) == (recipe.refine_l0, 0, 0.5)


@pytest.mark.filterwarnings("ignore")
def test_the_sae_stage_runs_on_small_input(data, tmp_path):
    pytest.importorskip("sae_lens", reason="sae-lens is not installed: pip install -e '.[train]'")
    model = load_model("demo")
    for part, recipe in SMALL.items():
        saes.train_part(model, data, tmp_path / "first", tmp_path / "saes", part, recipe, 0)
    found = saes.collect(model, data, tmp_path / "saes", seed=0)
    assert sorted(map(str, found)) == sorted(f"{layer}/{part}" for layer in range(6) for part in SMALL)
    assert found[Site.parse("3/res")].n_features == 24
    assert load_dictionaries(tmp_path / "first" / "res").sites == load_dictionaries(tmp_path / "saes" / "res").sites
    refined, first = (load_dictionaries(tmp_path / name / "res")[Site.parse("3/res")] for name in ("saes", "first"))
    cosines = (refined.directions() * first.directions()).sum(1)
    assert float(cosines.min()) > 0.5  # it went on from there
    assert not torch.equal(refined.W_dec, first.W_dec)
    dictionaries, atlas = pack.write_dictionaries(found, tmp_path / "pack")
    assert len(dictionaries) == 12
    assert len(atlas.sites) == 12


def test_module_features_that_never_fire_are_left_out_and_change_nothing():
    site = Site.parse("2/att")
    made = load_dictionaries("demo")[site]
    share = torch.ones(made.n_features)
    share[[3, 7]] = 0
    kept = saes.without_silent(made, share)
    x = torch.randn(50, made.d_in, generator=torch.Generator().manual_seed(0))
    rows = [i for i in range(made.n_features) if i not in (3, 7)]
    assert torch.allclose(kept.encode(x), made.encode(x)[:, rows], atol=1e-5)
    assert torch.equal(kept.W_dec, made.W_dec[rows])


def test_firing_is_counted_on_all_tokens_but_the_first():
    model, site = load_model("demo"), Site.parse("2/res")
    dictionaries = {site: load_dictionaries("demo")[site]}
    ids = np.random.default_rng(0).integers(1, 4096, (40, 20))
    ids[:, 0] = 0
    share = saes.fired(model, dictionaries, ids)[site]
    tokens = Tokens(torch.from_numpy(ids), torch.ones(40, 20, dtype=torch.long))
    acts = dictionaries[site].encode(model.capture(tokens, [site])[site][:, 1:].flatten(0, 1))
    assert torch.allclose(share, (acts > 0).float().mean(0), atol=2e-3)


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
    return texts.runs_of(tmp_path, "maths"), corpus.documents(tmp_path, "maths")


@pytest.mark.parametrize("before", ["", "A new text. "])
@pytest.mark.parametrize("after", ["", " more"])
@pytest.mark.parametrize("start", [0, 1, 10, 11, -2, -1])
def test_a_copied_run_is_found_wherever_it_lies(runs, start, before, after):
    found, (_, trained) = runs
    n = texts.COPY_RUN + 1
    first = start if start >= 0 else len(trained) - n + 1 + start
    copied = trained[first : first + n]
    assert len(copied) == n
    assert texts.copied(before + copied + after, found)
    assert not texts.copied(before + copied[: n - 2] + after, found)


def test_text_of_its_own_and_held_out_text_are_no_copies(runs):
    found, (held_out, _) = runs
    assert not texts.copied(noise(1000, 99), found)
    assert not texts.copied(held_out[11:150], found)


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
        texts.write_domain(tmp_path, domain, ["one", "two"])
    assert texts.complete(tmp_path)
    monkeypatch.setattr(texts, "PASSAGES", 3)
    assert not texts.complete(tmp_path)
