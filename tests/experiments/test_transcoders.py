"""A transcoder reads one tensor and writes another: what uses its features does it rightly, or refuses."""

import numpy as np
import pytest
import torch

from saeflow.errors import InvalidArgument, WidthMismatch
from saeflow.experiments.causal import PreparedText, Trial
from saeflow.experiments.groups import Origin
from saeflow.experiments.methods import top_k
from saeflow.experiments.origins import observe_origins
from saeflow.experiments.sampling import Sample
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Rescale
from saeflow.labels.from_texts import make_words
from saeflow.labels.words import WordsFolder
from saeflow.matching.methods import EdgeEnd, check, match, reading_rows
from saeflow.matching.table import MatchTable
from saeflow.sources.activations import ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary
from saeflow.steering.activity import activity

from ..sources.tiny_models import D_MODEL, tiny_model

N = 20
RES, MLP, BEFORE = Site(1, Part.RES), Site(1, Part.MLP), Site(0, Part.RES)
TEXTS = ["w5 w9 w12 w7 w30 w41 w8 w19", "w17 w4 w40 w11 w25 w6 w33 w2"]


def made(site, tap, seed):
    draw = torch.Generator().manual_seed(seed)
    W_enc, W_dec = torch.randn(2, N, D_MODEL, generator=draw)
    return Dictionary(
        site, tap=tap, W_enc=W_enc, b_enc=torch.zeros(N), W_dec=W_dec, b_dec=torch.zeros(D_MODEL), activation=ReLU()
    )


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(params=[Tap.MLP_IN, Tap.MID], ids=str)
def dictionaries(request):
    return {BEFORE: made(BEFORE, Tap.RES, 0), RES: made(RES, Tap.RES, 1), MLP: made(MLP, request.param, 2)}


def read_by_hand(model, dictionaries, texts):
    """Activations of the transcoder on the tensor it reads, and on the one it must not be given."""
    tokens = model.tokenize(texts)
    one = dictionaries[MLP]
    held = model.capture(tokens, [(1, one.tap), MLP])
    real = tokens.input_ids > 2
    return one.encode(held[1, one.tap])[real], one.encode(held[MLP])[real]


def test_origins_take_it_as_active_by_what_it_reads(model, dictionaries) -> None:
    index = np.arange(N, dtype=np.int32)[:, None]
    table = MatchTable(RES, MLP, "cosine", N, index, np.ones((N, 1), np.float32))
    sample = Sample("planted", 0, TEXTS[0], tuple(range(1, 9)))
    trials = observe_origins(model, dictionaries, [top_k("cosine", {(RES, MLP): table})], sample, layers=[1])
    right, wrong = read_by_hand(model, dictionaries, TEXTS[:1])
    found = torch.zeros(8, N, dtype=torch.bool)
    seen = torch.zeros(8, N, dtype=torch.bool)
    for row, trial in enumerate(trials):
        seen[row, list(trial.features)] = True
        for feature, digit in zip(trial.features, trial.groups["cosine"], strict=True):
            found[row, feature] = Origin.MLP in Origin(int(digit))
    assert torch.equal(found[seen], right[seen] > 0)
    assert not torch.equal(found[seen], wrong[seen] > 0)


def test_a_trial_that_edits_or_reads_it_is_refused(model, dictionaries) -> None:
    text = PreparedText(model, dictionaries, model.tokenize(TEXTS[:1]), layers=[1], positions=[3])
    res, own = FeatureId(RES, 0), FeatureId(MLP, 3)
    fine = Trial(1, 3, (Rescale((FeatureId(BEFORE, 0),), 0.0),), (res,))
    assert len(text.run([fine])) == 1
    words = r"dictionary at 1/mlp is a transcoder: it reads (mlp_in|mid) .*Leave 1/mlp out"
    for trial in (Trial(1, 3, (Rescale((own,), 0.0),), (res,)), Trial(1, 3, fine.edits, (own,))):
        with pytest.raises(InvalidArgument, match=words):
            text.run([trial])
    with pytest.raises(InvalidArgument, match=words):
        text.active(MLP, 3)


def test_its_mean_activity_is_of_what_it_reads(model, dictionaries) -> None:
    found = activity(model, dictionaries, TEXTS[:1], sites=[MLP])
    right, wrong = read_by_hand(model, dictionaries, TEXTS[:1])
    got = torch.from_numpy(found.means[MLP].toarray()[0]).float()
    torch.testing.assert_close(got, right.mean(dim=0).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, wrong.mean(dim=0), atol=1e-2)


def test_its_words_are_of_what_it_reads(model, dictionaries, tmp_path) -> None:
    make_words(model, dictionaries, TEXTS, tmp_path, sites=[MLP])
    right, wrong = read_by_hand(model, dictionaries, TEXTS)
    rows = WordsFolder(tmp_path).site(MLP)
    frequency = [0.0 if row is None else row.frequency for row in rows]
    assert frequency == pytest.approx((right > 0).float().mean(dim=0).tolist(), abs=1e-4)
    assert frequency != pytest.approx((wrong > 0).float().mean(dim=0).tolist(), abs=1e-4)


def test_as_a_parent_it_writes_like_any_dictionary(dictionaries) -> None:
    found = match(dictionaries[MLP], dictionaries[RES], k=2, method="virtual")
    product = dictionaries[MLP].W_dec @ dictionaries[RES].W_enc.T
    np.testing.assert_allclose(found.score, product.topk(2, dim=1).values, rtol=1e-5)


def test_as_a_child_it_reads_the_stream_itself_or_is_refused() -> None:
    parent, mid, behind = made(BEFORE, Tap.RES, 0), made(MLP, Tap.MID, 1), made(MLP, Tap.MLP_IN, 2)
    torch.testing.assert_close(reading_rows(mid), mid.W_enc)
    found = match(parent, mid, k=2, method="virtual")
    np.testing.assert_allclose(found.score, (parent.W_dec @ mid.W_enc.T).topk(2, dim=1).values, rtol=1e-5)
    check(mid, "virtual", EdgeEnd.CHILD)
    words = "transcoder at 1/mlp reads mlp_in, the stream after the norm"
    for ask in (
        lambda: reading_rows(behind),
        lambda: match(parent, behind, method="virtual"),
        lambda: match(parent, behind, method="permutation-encoder"),
        lambda: check(behind, "virtual", EdgeEnd.CHILD),
    ):
        with pytest.raises(WidthMismatch, match=words):
            ask()
    check(behind, "virtual", EdgeEnd.PARENT)
    assert match(parent, behind, method="cosine").target == MLP
