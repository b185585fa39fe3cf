"""Labels go over to features that have none, where rows agree, and say where they are from."""

import json

import pytest
import torch

from saeflow.comparison.transfer import transfer_labels
from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId
from saeflow.labels.words import FeatureWords, WordsFolder, write_words

from ..matching.planted import dictionary
from .planted import SITE, Known, noisy, unit


@pytest.fixture
def releases():
    """Rows 0 to 5 of the target are at 0.98 with rows 5 to 0 of the source, 6 to 9 at about 0.7, the rest apart."""
    rows = unit(20, 1)
    near, far = noisy(rows[:6].flip(0), 0.2, 2), noisy(rows[6:10], 1.0, 3)
    return dictionary(SITE, rows), dictionary(SITE, torch.cat([near, far, unit(8, 4)]))


def labels(n):
    return [FeatureWords(f"label {row}", tokens=(f"t{row}",), frequency=0.1) for row in range(n)]


def test_labels_go_over_where_rows_agree_with_their_source_and_cosine(releases, tmp_path):
    source, target = releases
    own: list[FeatureWords | None] = [None] * 18
    own[2] = FeatureWords("its own")
    found = transfer_labels(
        {SITE: source},
        {SITE: target},
        [(SITE, SITE)],
        release="old",
        target_release="new",
        least=0.9,
        words=Known(labels(20)),
        known=Known(own),
        out=tmp_path,
    )
    assert {label.feature.index: label.source.index for label in found.labels} == {0: 5, 1: 4, 3: 2, 4: 1, 5: 0}
    assert found.unlabelled == 17
    words = WordsFolder(tmp_path).get(FeatureId(SITE, 0))
    cosine = float(torch.nn.functional.cosine_similarity(source.W_dec[5], target.W_dec[0], dim=0))
    assert words.label == "label 5"
    assert words.by == f"old 1/res/5, cosine {cosine:.3f}"
    assert (words.tokens, words.frequency) == ((), None), "what was measured on the other feature stays there"
    assert WordsFolder(tmp_path).get(FeatureId(SITE, 2)) is None
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["sites"]["1/res"] == {"source": "old 1/res", "least": 0.9, "features": 18, "labelled": 5}


def test_a_match_that_is_not_mutual_goes_over_only_when_asked(releases):
    source, target = releases
    twice = dictionary(SITE, torch.cat([target.W_dec, noisy(source.W_dec[5:6], 0.3, 9)]))

    def moved(**how):
        known = Known([None] * 19)
        words = Known(labels(20))
        told = {"release": "old", "words": words, "known": known, **how}
        return {
            one.feature.index for one in transfer_labels({SITE: source}, {SITE: twice}, [(SITE, SITE)], **told).labels
        }

    assert 18 not in moved()
    assert 18 in moved(mutual=False)
    assert moved(least=0.5) > moved()


def test_a_source_without_labels_and_wrong_numbers_are_refused(releases):
    source, target = releases
    pair = ({SITE: source}, {SITE: target}, [(SITE, SITE)])
    nothing = Known([])
    with pytest.raises(InvalidArgument, match="no feature of old at 1/res has a label"):
        transfer_labels(*pair, release="old", words=nothing, known=nothing)
    with pytest.raises(InvalidArgument, match=r"least=1\.5"):
        transfer_labels(*pair, release="old", least=1.5, words=nothing, known=nothing)
    with pytest.raises(InvalidArgument, match="in two pairs"):
        transfer_labels({SITE: source}, {SITE: target}, [(SITE, SITE)] * 2, release="old", words=nothing, known=nothing)


def test_the_command_writes_words_that_every_command_then_shows(stdout, refusal, tmp_path, monkeypatch):
    from saeflow.sources.formats.saeflow_folder import save_release
    from saeflow.sources.library import load_dictionaries

    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    demo = load_dictionaries("demo")["2/res"]
    rows = demo.W_dec.clone()
    rows[0] = -rows[0]
    save_release(tmp_path / "copy", {demo.site: dictionary(demo.site, rows)}, name="copy", model="demo")
    told = json.loads(stdout("labels", "transfer", "demo", tmp_path / "copy", "--json"))
    assert told["transferred"] > 300
    assert told["unlabelled"] == demo.n_features
    assert "2/res/0" not in {row["feature"] for row in told["labels"]}
    first = told["labels"][0]
    shown = stdout("labels", "show", tmp_path / "copy", first["feature"])
    assert first["label"] in shown
    assert f"demo {first['from']}, cosine {first['cosine']:.3f}" in shown
    refusal("labels", "transfer", tmp_path / "copy", "demo", "--min", "2")


def test_words_that_are_there_already_stay(releases, tmp_path):
    source, target = releases
    write_words(tmp_path / "words", SITE, labels(18))
    found = transfer_labels(
        {SITE: source},
        {SITE: target},
        [(SITE, SITE)],
        release="old",
        words=Known(labels(20)),
        known=WordsFolder(tmp_path / "words"),
    )
    assert (found.labels, found.unlabelled) == ((), 0)
