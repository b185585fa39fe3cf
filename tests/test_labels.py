"""Words are read from their folder, a site at a time, and a cut file is a clear error."""

import gzip
import json

import pytest

from saeflow.errors import BadFile
from saeflow.ids import FeatureId, Site
from saeflow.labels import no_words, open_words

ROW = {
    "label": "king, queen",
    "tokens": [" king", " queen"],
    "promotes": [" throne"],
    "frequency": 0.01,
    "contexts": [{"tokens": ["the", " king"], "values": [0, 2.5], "source": "novels"}],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "4.res.jsonl.gz").write_bytes(gzip.compress(f"{json.dumps(ROW)}\nnull\n".encode()))
    return tmp_path


def test_words_of_a_feature_are_what_the_file_says(folder):
    words = open_words(folder)
    known = words.get(FeatureId.parse("4/res/0"))
    assert known is not None
    assert (known.label, known.tokens, known.frequency) == ("king, queen", (" king", " queen"), 0.01)
    assert known.contexts[0].values == (0.0, 2.5)
    assert [w is not None for w in words.site(Site.parse("4/res"))] == [True, False]


@pytest.mark.parametrize("feature", ["4/res/1", "4/res/99", "3/res/0"])
def test_what_is_not_known_is_none(folder, feature):
    assert open_words(folder).get(FeatureId.parse(feature)) is None


def test_without_a_folder_nothing_is_known(tmp_path):
    assert open_words(tmp_path) is no_words
    assert no_words.get(FeatureId.parse("4/res/0")) is None
    assert no_words.site(Site.parse("4/res")) == []


def test_a_cut_file_is_named(folder):
    path = folder / "words" / "4.res.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadFile, match=r"4\.res\.jsonl\.gz"):
        open_words(folder).get(FeatureId.parse("4/res/0"))


@pytest.mark.parametrize("line", ["{", "[]", '{"tokens": []}', '{"label": "a", "contexts": [{}]}', "3"])
def test_a_line_that_holds_no_words_is_named(folder, line):
    path = folder / "words" / "4.res.jsonl.gz"
    path.write_bytes(gzip.compress(f"null\n{line}\n".encode()))
    words = open_words(folder)
    assert words.get(FeatureId.parse("4/res/0")) is None
    with pytest.raises(BadFile, match=r"4\.res\.jsonl\.gz: line 2 holds no words"):
        words.get(FeatureId.parse("4/res/1"))
