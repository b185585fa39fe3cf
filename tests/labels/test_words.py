"""Words are read from their folder, a site at a time, and a cut file is a clear error."""

import gzip
import json

import pytest

from saeflow.errors import BadFile
from saeflow.ids import FeatureId, Site
from saeflow.labels import (
    ActivationHistogram,
    Context,
    FeatureWords,
    Merged,
    WordsFolder,
    no_words,
    open_words,
    words_folder,
    words_folders,
    words_for,
    write_words,
)
from saeflow.labels.words import AFTER, BEFORE, from_json, label_of, sentence_span, to_json, words_sites

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


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"tokens": []}',
        '{"label": "a", "contexts": [{}]}',
        "3",
        '{"label": 3}',
        '{"label": "a", "tokens": "abc"}',
        '{"label": "a", "tokens": [3]}',
        '{"label": "a", "frequency": NaN}',
        '{"label": "a", "contexts": [{"tokens": ["x"], "values": ["1"]}]}',
        '{"label": "a", "contexts": [{"tokens": ["x", "y"], "values": [1, true]}]}',
        '{"label": "a", "contexts": [{"tokens": ["x", "y"], "values": [0.5, NaN]}]}',
        '{"label": "a", "contexts": [{"tokens": ["x", "y"], "values": [1, -1e999]}]}',
    ],
)
def test_a_line_that_holds_no_words_is_named(folder, line):
    path = folder / "words" / "4.res.jsonl.gz"
    path.write_bytes(gzip.compress(f"null\n{line}\n".encode()))
    words = open_words(folder)
    assert words.get(FeatureId.parse("4/res/0")) is None
    with pytest.raises(BadFile, match=r"4\.res\.jsonl\.gz: line 2 holds no words"):
        words.get(FeatureId.parse("4/res/1"))


KNOWN = FeatureWords(
    "king\u2028, queen",
    (" king", "\n"),
    (" throne",),
    (Context(("the", " king"), (0.0, 2.5), "novels"),),
    0.01,
    "gpt",
    0.75,
    (" mud",),
    (Context((" a", " king"), (0.0, 1.5), "novels", 0.4),),
    ActivationHistogram(0.5, (0, 0, 3, 1)),
    ((12, 0.71), (3, -0.2)),
)
SITE = Site.parse("4/res")


def test_a_line_is_read_back_as_it_was_written_and_holds_no_line_break():
    for words in (None, KNOWN, FeatureWords("")):
        line = to_json(words)
        assert from_json(line, "here") == words
        assert len(line.splitlines()) == 1


def test_a_line_of_an_older_version_says_nothing_of_what_it_does_not_hold():
    known = from_json('{"label": "a", "contexts": [{"tokens": ["x"], "values": [1]}]}', "here")
    assert (known.contexts[0].quantile, known.histogram, known.spread, known.near) == (None, None, (), ())


def test_values_are_finite_one_by_one_whatever_they_add_up_to():
    known = from_json('{"label": "a", "contexts": [{"tokens": ["x", "y"], "values": [1e308, 1e308]}]}', "here")
    assert known.contexts[0].values == (1e308, 1e308)


def test_a_passage_is_a_sentence_within_bounds():
    tokens = [
        "He",
        " left",
        ".",
        *["\u201c"],
        *[f" w{i}" for i in range(12)],
        ".\u201d",
        " Then",
        " x",
        "\n",
        *["y"] * 60,
    ]
    assert tokens[sentence_span(tokens, 14)] == tokens[3:19], (
        "from the end of a sentence on, and 4 more tokens at least"
    )
    assert tokens[sentence_span(tokens, 4)] == tokens[:17], "what is before a sentence that has just begun"
    top = len(tokens) - 30
    assert sentence_span(tokens, top) == slice(top - BEFORE, top + AFTER + 1)
    assert sentence_span(["a"], 0) == slice(0, 1)


def test_words_are_written_as_a_folder_and_read_from_it(tmp_path):
    assert write_words(tmp_path, SITE, iter([None, KNOWN])) == 2
    assert WordsFolder(tmp_path).site(SITE) == [None, KNOWN]
    assert WordsFolder(tmp_path).get(FeatureId(SITE, 1)) == KNOWN
    (tmp_path / "4.res.controls.jsonl.gz").write_bytes(b"")
    assert words_sites(tmp_path) == WordsFolder(tmp_path).sites == (SITE,)


def test_what_one_place_does_not_know_is_taken_from_the_next():
    mine = FeatureWords("a name", by="gpt", score=0.9)
    theirs = FeatureWords("x, y", ("x",), ("z",), KNOWN.contexts, 0.5)
    assert mine.filled(theirs) == FeatureWords("a name", ("x",), ("z",), KNOWN.contexts, 0.5, "gpt", 0.9)
    assert FeatureWords("").filled(mine) == mine
    assert FeatureWords("", frequency=0.0).filled(theirs).frequency == 0.0


def test_merged_words_cover_the_rows_of_all_places(tmp_path):
    write_words(tmp_path / "a", SITE, [FeatureWords("label"), None])
    write_words(tmp_path / "b", SITE, [KNOWN, KNOWN, None])
    merged = Merged((WordsFolder(tmp_path / "a"), WordsFolder(tmp_path / "b")))
    rows = merged.site(SITE)
    assert [None if row is None else row.label for row in rows] == ["label", KNOWN.label, None]
    assert rows == [merged.get(FeatureId(SITE, index)) for index in range(3)]
    assert rows[0].contexts == KNOWN.contexts


def test_words_of_a_release_are_found_beside_its_atlas_and_in_the_cache(tmp_path):
    assert words_for("gemma-scope-2b") is no_words
    write_words(words_folder("gemma-scope-2b", "local"), SITE, [FeatureWords("", frequency=0.5)])
    write_words(words_folder("gemma-scope-2b", "neuronpedia"), SITE, [FeatureWords("kings", by="gpt")])
    write_words(tmp_path / "atlas" / "words", SITE, [FeatureWords("beside")])
    feature = FeatureId(SITE, 0)
    assert words_for("gemma-scope-2b").get(feature) == FeatureWords("kings", by="gpt", frequency=0.5)
    assert words_for("gemma-scope-2b", beside=tmp_path / "atlas").get(feature).label == "beside"
    assert words_folders("gemma-scope-9b") == ()
    assert words_for("demo").get(FeatureId.parse("4/res/72")).label


def test_folders_of_one_name_have_words_of_their_own(tmp_path):
    one, two = tmp_path / "1" / "saes", tmp_path / "2" / "saes"
    for folder in (one, two):
        folder.mkdir(parents=True)
    assert words_folder(one, "local") != words_folder(two, "local")


@pytest.mark.parametrize(
    ("tokens", "label"),
    [
        ((" king", " King", " queen"), "king, queen"),
        (("\n", "\ufffd", "a\nb"), "\\n, a b"),
        (("a", "b", "c", "d", "e"), "a, b, c, d"),
        ((), ""),
    ],
)
def test_a_label_is_made_of_the_first_tokens_that_differ(tokens, label):
    assert label_of(tokens) == label
