"""Words made from a model and text, against counts in plain numpy, and bytes that survive a kill."""

import gzip
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.ids import Part, Site
from saeflow.labels import WordsFolder
from saeflow.labels.folders import LOCAL, read_about
from saeflow.labels.from_texts import CONTROLS, QUARTERS, Passage, controls_path, lens_scale, make_words
from saeflow.labels.gather import BINS, PRIOR, SLOTS, FeatureStatistics, ranks
from saeflow.labels.words import AFTER, BEFORE
from saeflow.sources.activations import JumpReLU, ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary

from ..sources.tiny_models import D_MODEL, MASSIVE, VOCAB, massive_model, tiny_model

N = 40
RES, MLP, ATT = Site(1, Part.RES), Site(0, Part.MLP), Site(1, Part.ATT)


def dictionary(site, seed, *, tap=None, d_in=D_MODEL):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    threshold = torch.full((N,), 0.5)
    threshold[3] = 1e9  # never fires
    return Dictionary(
        site,
        tap=tap or Tap(site.part.value),
        W_enc=draw(N, d_in),
        b_enc=draw(N) - 1,
        W_dec=draw(N, d_in),
        b_dec=torch.zeros(d_in),
        activation=JumpReLU(threshold),
    )


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def dictionaries(model):
    d_z = model.attention_writer(1)[0].shape[1]
    return {RES: dictionary(RES, 1), MLP: dictionary(MLP, 2), ATT: dictionary(ATT, 3, tap=Tap.Z, d_in=d_z)}


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    made = [" ".join(f"w{i}" for i in rng.integers(3, VOCAB, rng.integers(3, 30))) for _ in range(70)]
    return [*made, "", "  ", made[0], made[1]]


@pytest.fixture(scope="module")
def folder(model, dictionaries, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("words")
    named = [Passage(t, f"s{i % 3}") for i, t in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("saeflow.labels.gather.SLOTS", VOCAB)  # nothing is left out: exact
        return make_words(model, dictionaries, named, out, texts_at_once=8)


def counted(model, dictionaries, texts, site):
    """Every text alone: tokens and activations, without the begin-of-text token."""
    place = (site.layer, Tap.Z) if dictionaries[site].tap is Tap.Z else site
    for text in texts:
        if text.strip():
            tokens = model.tokenize([text], max_length=128)
            acts = dictionaries[site].encode(model.capture(tokens, [place])[place])[0, 1:]
            yield tokens.input_ids[0, 1:].numpy(), acts.numpy()


@pytest.mark.parametrize("site", [RES, MLP, ATT])
def test_a_card_has_every_activation_in_a_histogram_and_a_passage_from_each_quarter(
    model, dictionaries, texts, folder, site
):
    found = list(counted(model, dictionaries, texts, site))
    quarters = []
    for f, row in enumerate(WordsFolder(folder).site(site)):
        if row is None:
            continue
        fires = np.concatenate([acts[:, f][acts[:, f] > 0] for _, acts in found])
        assert row.histogram.counts == tuple(np.bincount((fires / row.histogram.width).astype(int)))
        assert BINS // 2 <= len(row.histogram.counts) <= BINS
        quantiles = [context.quantile for context in row.spread]
        assert quantiles == sorted(quantiles, reverse=True)
        quarters.append([int(quantile * QUARTERS) for quantile in quantiles])
        assert len(set(quarters[-1])) == len(quarters[-1])
        for context in row.spread:
            assert all(context.tokens != strong.tokens for strong in row.contexts)
            words = [([f" w{i}" for i in ids], acts[:, f]) for ids, acts in found]
            n = len(context.tokens)
            spans = [(w[i : i + n], a[i : i + n]) for w, a in words for i in range(len(w) - n + 1)]
            assert any(
                tuple(w) == context.tokens and np.allclose(a, context.values, rtol=1e-3, atol=1e-4) for w, a in spans
            )
            bins = [int(value / row.histogram.width) for value in context.values if value > 0]
            shares = [[(fires < end * row.histogram.width).mean() for end in (one, one + 1)] for one in bins]
            assert any(low - 1e-3 <= context.quantile <= high + 1e-3 for low, high in shares)
        assert all(context.quantile is None for context in row.contexts)
    assert np.mean([len(shown) == QUARTERS for shown in quarters]) > 0.4, (
        "all quarters, where there are passages for it"
    )


def test_near_rows_are_those_of_the_highest_cosine(dictionaries, folder):
    rows = torch.nn.functional.normalize(dictionaries[RES].W_dec, dim=1)
    cosines = (rows @ rows.T).fill_diagonal_(-1)
    for f, row in enumerate(WordsFolder(folder).site(RES)):
        if row is not None:
            best = cosines[f].topk(5)
            assert [index for index, _ in row.near] == best.indices.tolist()
            assert [cosine for _, cosine in row.near] == pytest.approx(best.values.tolist(), abs=1e-3)


@pytest.mark.parametrize("site", [RES, MLP, ATT])
def test_words_are_what_counting_text_by_text_gives(model, dictionaries, texts, folder, site):
    rows = WordsFolder(folder).site(site)
    assert len(rows) == N
    fired, total, occurred, n = np.zeros(N), np.zeros((N, VOCAB)), np.zeros(VOCAB), 0
    passages = [{} for _ in range(N)]
    for ids, acts in counted(model, dictionaries, texts, site):
        fired += (acts > 0).sum(0)
        n += len(ids)
        np.add.at(occurred, ids, 1)
        np.add.at(total.T, ids, acts)
        for f in np.flatnonzero(acts.max(0) > 0):
            top = int(acts[:, f].argmax())
            span = slice(max(0, top - BEFORE), top + AFTER + 1)
            passages[f].setdefault(tuple(f" w{i}" for i in ids[span]), acts[span, f])
    mean = total / (occurred + PRIOR)
    for f, row in enumerate(rows):
        if fired[f] == 0:
            assert row is None
            continue
        assert row.frequency == pytest.approx(fired[f] / n, rel=1e-3)
        shown = [int(token.strip()[1:]) for token in row.tokens]
        best = np.sort(mean[f])[::-1][: len(shown)]
        assert mean[f, shown] == pytest.approx(best, rel=1e-4), "the tokens with the highest means, best first"
        assert len(shown) == min(10, (total[f] > 0).sum())
        expected = sorted(passages[f].items(), key=lambda item: -item[1].max())[:4]
        peaks = [max(context.values) for context in row.contexts]
        assert peaks == pytest.approx([values.max() for _, values in expected], rel=1e-3)
        for context in row.contexts:
            assert np.allclose(context.values, passages[f][context.tokens], rtol=1e-3, atol=1e-4)
            assert context.source in {"s0", "s1", "s2"}
        assert row.label == ", ".join(token.strip() for token in row.tokens[:4])
    assert rows[3] is None
    assert sum(row is not None for row in rows) > N / 2


def test_a_massive_position_does_not_count_where_it_is_massive(dictionaries, texts, tmp_path):
    model, sites = massive_model(), {site: dictionaries[site] for site in (RES, MLP)}
    words = [word for text in texts for word in text.split()]
    folder = make_words(model, sites, texts, tmp_path / "words", texts_at_once=8)
    about = read_about(folder, origin=LOCAL)["sites"]
    assert {name: one["massive"] for name, one in about.items()} == {str(MLP): 0, str(RES): words.count(MASSIVE)}
    fired = np.zeros(N)
    for ids, acts in counted(model, dictionaries, texts, RES):
        fired += (acts[ids != int(MASSIVE[1:])] > 0).sum(0)
    for row, n in zip(WordsFolder(folder).site(RES), fired, strict=True):
        assert (row is None) == (n == 0)
        if row is not None:
            assert row.frequency == pytest.approx(n / (len(words) - words.count(MASSIVE)), rel=1e-3)
            assert f" {MASSIVE}" not in row.tokens
            assert max(row.contexts[0].values) < 100


def test_what_a_feature_promotes_is_the_logit_lens_of_its_row_for_what_each_token_gets_elsewhere(
    model, dictionaries, folder
):
    W_U = model.hf_model.lm_head.weight * model.hf_model.model.norm.weight
    for site in (RES, ATT):
        logits = dictionaries[site].directions(model) @ W_U.T / W_U.norm(dim=1)
        logits[:, :3] = -1  # special tokens
        low = -logits
        low[:, :3] = -1
        for name, best in (("promotes", logits.topk(10, dim=1)), ("suppresses", low.topk(10, dim=1))):
            for row, ids, values in zip(WordsFolder(folder).site(site), best.indices, best.values, strict=True):
                expected = tuple(f" w{token}" for token, value in zip(ids, values, strict=True) if value > 0)
                assert row is None or getattr(row, name) == expected


def test_a_token_with_a_long_row_is_not_promoted_by_everything(dictionaries):
    """Rows of rare tokens are long: their logits lead under any direction."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.hf_model.lm_head.weight[30:40] *= 5
    directions = dictionaries[RES].directions(model)
    plain, scaled = model.unembed(directions), model.unembed(directions) * lens_scale(model)

    def long_ones(logits):
        best = logits.nan_to_num(nan=-9e9).topk(5, dim=1).indices
        return ((best >= 30) & (best < 40)).float().mean()

    assert long_ones(plain) > 0.6
    assert long_ones(scaled) < 0.4
    assert lens_scale(model)[:3].isnan().all()


def test_controls_say_what_fires_in_them(model, dictionaries, texts, folder):
    lines = [
        json.loads(line) for line in gzip.decompress(controls_path(folder, RES).read_bytes()).decode().splitlines()
    ]
    real = [text for text in texts if text.strip()]
    assert len(lines) == min(CONTROLS, len(real)) == len(real)
    known = [(" ".join(f"w{i}" for i in ids), ids, acts) for ids, acts in counted(model, dictionaries, texts, RES)]
    for line in lines:
        passage = "".join(line["tokens"]).strip()
        assert 1 <= len(line["tokens"]) <= BEFORE + 1 + AFTER
        ids, acts = next((ids, acts) for text, ids, acts in known if f" {passage} " in f" {text} ")
        words = [f" w{i}" for i in ids]
        n = len(line["tokens"])
        starts = [i for i in range(len(words)) if words[i : i + n] == line["tokens"]]
        assert line["active"] in [np.flatnonzero((acts[i : i + n] > 0).any(0)).tolist() for i in starts]


def told_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_run_does_nothing_and_other_texts_do_all_again(model, dictionaries, texts, tmp_path, monkeypatch):
    out = make_words(model, {MLP: dictionaries[MLP]}, texts, tmp_path, texts_at_once=8)
    before, runs = told_of(out), []
    real = type(model).capture
    monkeypatch.setattr(type(model), "capture", lambda self, *a, **k: runs.append(1) or real(self, *a, **k))
    make_words(model, {MLP: dictionaries[MLP]}, texts, tmp_path, texts_at_once=8)
    assert runs == []
    make_words(model, {MLP: dictionaries[MLP]}, [*texts, "w5 w6"], tmp_path, texts_at_once=8)
    assert runs
    assert told_of(out) != before
    make_words(model, {MLP: dictionaries[MLP]}, texts, tmp_path, texts_at_once=8)
    assert told_of(out) == before


def test_neither_memory_nor_checkpoints_change_the_words(model, dictionaries, texts, tmp_path, monkeypatch):
    once = make_words(model, dictionaries, texts, tmp_path / "once", texts_at_once=8)
    apart = make_words(
        model, dictionaries, texts, tmp_path / "apart", texts_at_once=8, sites_at_once=1, checkpoint_seconds=0
    )
    monkeypatch.setattr("saeflow.labels.from_texts.AT_ONCE", N * 40)
    some = make_words(model, dictionaries, texts, tmp_path / "some", texts_at_once=8)
    words = [{k: v for k, v in told_of(out).items() if k != "about.json"} for out in (once, apart, some)]
    assert len(words[0]) == 6
    assert words[0] == words[1] == words[2]
    assert not (tmp_path / "apart" / ".making").exists()


def test_reading_stops_after_enough_tokens(model, dictionaries, texts, tmp_path):
    make_words(model, {MLP: dictionaries[MLP]}, texts, tmp_path, max_tokens=100, texts_at_once=8)
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["sites"]["0/mlp"]["n_tokens"] == 100
    assert about["sites"]["0/mlp"]["n_texts"] < len(texts)


def test_progress_counts_texts_over_all_groups(model, dictionaries, texts, tmp_path):
    told = []
    make_words(
        model, dictionaries, texts[:20], tmp_path, texts_at_once=8, sites_at_once=2, progress=lambda *a: told.append(a)
    )
    assert [done for done, _, _ in told] == [8, 16, 20, 28, 36, 40]
    assert {total for _, total, _ in told} == {40}


@pytest.mark.parametrize(
    "wrong",
    [
        {"contexts": 0},
        {"max_length": 0},
        {"texts_at_once": 0},
        {"texts": iter(["w3"])},
        {"texts": "w3 w4"},
        {"texts": []},
        {"texts": ["", " "]},
    ],
)
def test_what_cannot_be_done_is_refused(model, dictionaries, tmp_path, wrong):
    arguments = {"texts": ["w3 w4"]} | wrong
    found = arguments.pop("texts")
    with pytest.raises(InvalidArgument):
        make_words(model, {MLP: dictionaries[MLP]}, found, tmp_path, **arguments)


def test_a_dictionary_of_another_model_is_said(model, tmp_path):
    with pytest.raises(WidthMismatch):
        make_words(model, {MLP: dictionary(MLP, 0, d_in=7)}, ["w3 w4"], tmp_path)


def test_kept_tokens_are_exact_while_there_are_few_and_bounded_when_there_are_many():
    rng = np.random.default_rng(0)
    vocabulary = 4 * SLOTS
    seen = FeatureStatistics(2, vocabulary, 1, "cpu")
    occurred = torch.zeros(vocabulary, dtype=torch.int64)
    for _ in range(20):
        ids = torch.from_numpy(rng.integers(0, vocabulary, (4, 50)))
        acts = torch.rand(4, 50, 2, generator=torch.Generator().manual_seed(0))
        acts[..., 0] *= ids == 5
        acts[..., 1] += 10.0 * (ids == 7)
        occurred += torch.bincount(ids.flatten(), minlength=vocabulary)
        seen.add(acts, ids, torch.ones(4, 50, dtype=torch.bool), torch.zeros(4, dtype=torch.int64))
        seen.settle(occurred)
    kept = {f: (seen.pairs // vocabulary == f).sum().item() for f in (0, 1)}
    assert kept == {0: 1, 1: SLOTS}
    assert 7 in (seen.pairs % vocabulary)[seen.pairs // vocabulary == 1].tolist()


def test_ranks_are_places_within_a_group():
    group = torch.tensor([0, 0, 0, 2, 2, 5])
    value = torch.tensor([1.0, 3.0, 3.0, 0.0, 9.0, 4.0])
    assert ranks(group, value).tolist() == [2, 0, 1, 1, 0, 0]


def test_relu_features_have_words_too(model, texts, tmp_path):
    made = dictionary(MLP, 2)
    plain = Dictionary(
        MLP, tap=Tap.MLP, W_enc=made.W_enc, b_enc=made.b_enc, W_dec=made.W_dec, b_dec=made.b_dec, activation=ReLU()
    )
    make_words(model, {MLP: plain}, texts[:5], tmp_path)
    assert all(row is None or row.contexts for row in WordsFolder(tmp_path).site(MLP))


SLOWLY = """
import sys, time
from pathlib import Path
from tests.labels.test_from_texts import ATT, MLP, RES, dictionary
from tests.sources.tiny_models import tiny_model
from saeflow.labels.from_texts import make_words
import numpy as np

def progress(done, total, now):
    print(done, flush=True)
    time.sleep(0.02)

rng = np.random.default_rng(0)
texts = [" ".join(f"w{i}" for i in rng.integers(3, 48, 20)) for _ in range(60)]
dictionaries = {RES: dictionary(RES, 1), MLP: dictionary(MLP, 2)}
make_words(tiny_model("llama"), dictionaries, texts, Path(sys.argv[1]), texts_at_once=4, sites_at_once=1,
           checkpoint_seconds=0.05, progress=progress)
"""


def test_a_run_that_is_killed_goes_on_and_ends_in_the_same_bytes(tmp_path, pytestconfig):
    command = [sys.executable, "-c", SLOWLY]
    root = pytestconfig.rootpath
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, cwd=root)
    with subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True, cwd=root) as running:
        for line in running.stdout:
            if int(line) == 96:  # in the second group
                os.kill(running.pid, signal.SIGKILL)
                break
    assert running.returncode == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "killed").rglob("*.gz")}
    assert left == {"0.mlp.jsonl.gz", "0.mlp.controls.jsonl.gz"}
    assert list((tmp_path / "killed" / ".making").glob("*.safetensors"))
    again = subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True, cwd=root, text=True)
    assert 60 < int(again.stdout.split()[0]) <= 100, "neither the first group nor its beginning was done again"
    assert told_of(tmp_path / "killed") == told_of(tmp_path / "whole")
