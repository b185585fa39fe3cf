"""Search as one types: what comes first, what the index holds, and nothing typed is ever syntax."""

import errno
import os
import sqlite3
import sys
import tempfile
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import PACK
from saeflow.ids import FeatureId, Site
from saeflow.labels import FeatureWords, WordsFolder, write_words
from saeflow.labels import search as module
from saeflow.labels.search import CANDIDATES, INDEX, build_index, search, words_in

RES, MLP = Site.parse("4/res"), Site.parse("0/mlp")
LABELS = [
    "references to physics and its laws",
    "force",
    "physics",
    "forces in physics",
    "physics forces",
    None,
    "Éric's café",
    "don't AND won't",
    "the number 42",
    "",
    "mentions of forcefully stated opinions",
]


@pytest.fixture
def folder(tmp_path):
    rows = [None if label is None else FeatureWords(label, (" law", " Newton"), frequency=0.25) for label in LABELS]
    write_words(tmp_path / "words", RES, rows)
    write_words(
        tmp_path / "words",
        MLP,
        [FeatureWords("physical forces of nature", (" gravity",)), FeatureWords("", (" physics",))],
    )
    return tmp_path / "words"


def found(folder, query, limit=20, **more):
    return [str(hit.feature) for hit in search(folder, query, limit, **more)]


@pytest.mark.parametrize(
    ("query", "features"),
    [
        ("physics force", ["4/res/4", "4/res/3"]),  # as typed first; the last word is a beginning
        ("force", ["4/res/1", "4/res/3", "4/res/4", "0/mlp/0", "4/res/10"]),  # whole words, then how soon it comes
        ("forcef", ["4/res/10"]),
        ("PHYSICS", ["4/res/2", "4/res/4", "4/res/3", "4/res/0", "0/mlp/1"]),  # those in tokens alone last
        ("gravity", ["0/mlp/0"]),
        ("eric cafe", ["4/res/6"]),
        ("Éric CAFÉ", ["4/res/6"]),
        ("42", ["4/res/8"]),
    ],
)
def test_the_best_feature_comes_first(folder, query, features):
    assert found(folder, query) == features


def test_a_hit_holds_what_a_list_shows(folder):
    (hit,) = search(folder, "forcef")
    assert hit.label == LABELS[10]
    assert hit.tokens == (" law", " Newton")
    assert hit.frequency == 0.25
    assert hit.feature == FeatureId.parse("4/res/10")


def test_every_prefix_of_a_word_finds_it(folder):
    for end in range(1, len("forcefully") + 1):
        assert "4/res/10" in found(folder, "forcefully"[:end])


def test_where_no_feature_has_all_words_those_with_most_are_found(folder):
    assert found(folder, "gravity forces zebra")[0] == "0/mlp/0"
    assert found(folder, "zebra") == []


def test_only_some_sites(folder):
    assert found(folder, "forces", sites=[MLP]) == ["0/mlp/0"]
    assert found(folder, "forces", sites=[]) == []
    assert found(folder, "law nature", sites=[RES]) != []
    assert all(name.startswith("4/res") for name in found(folder, "law nature", sites=[RES]))


def test_a_site_that_is_rare_is_searched_whole(tmp_path):
    write_words(tmp_path, MLP, [FeatureWords("common")] * (3 * CANDIDATES))
    write_words(tmp_path, RES, [FeatureWords("a common word among others")])
    assert found(tmp_path, "common", sites=[RES]) == ["4/res/0"]


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "'",
        '"physics"',
        "physics AND force",
        "physics OR",
        "NOT",
        "NEAR(physics force)",
        "physics*",
        "*",
        "(",
        ")",
        "text:physics",
        "-physics",
        "^physics",
        "physics; DROP TABLE features",
        "a\x00b",
        "\ud800",
        "{physics}",
        "",
        " ",
        "%",
        "\ue000",
        "\ue0004res",
        "+",
        "physics\\",
        "x" * 10_000,
        "word " * 500,
    ],
)
def test_signs_and_keywords_are_no_syntax(folder, query):
    hits = search(folder, query)
    assert all(isinstance(hit.label, str) for hit in hits)
    if words_in(query) == ["physics"]:
        assert [str(hit.feature) for hit in hits] == found(folder, "physics")
    if not words_in(query):
        assert hits == []


def test_words_of_the_query_language_are_found_as_words(folder):
    assert found(folder, "AND won")[0] == "4/res/7"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(max_size=30), label=st.text(max_size=30))
def test_any_text_can_be_searched_for_and_any_label_is_found_by_itself(tmp_path, query, label):
    folder = tmp_path / f"{abs(hash((query, label)))}"
    write_words(folder, RES, [FeatureWords("something else"), FeatureWords(label)])
    search(folder, query)
    if words_in(label) and len(words_in(label)) <= module.MOST_WORDS:
        assert "4/res/1" in found(folder, label)


def test_the_index_lies_beside_the_words_and_is_built_once(folder):
    built = []
    assert found(folder, "force", progress=lambda done, total, what: built.append(what)) == found(folder, "force")
    assert built == ["0/mlp", "4/res"]
    before = (folder / INDEX).stat().st_mtime_ns
    assert build_index(folder) == folder / INDEX
    assert (folder / INDEX).stat().st_mtime_ns == before
    assert sorted(p.name for p in folder.iterdir()) == ["0.mlp.jsonl.gz", "4.res.jsonl.gz", INDEX]


def test_the_index_follows_the_words(folder):
    assert found(folder, "zebra") == []
    write_words(folder, MLP, [FeatureWords("a zebra")])
    assert found(folder, "zebra") == ["0/mlp/0"]
    (folder / "0.mlp.jsonl.gz").unlink()
    assert found(folder, "zebra") == []


@pytest.mark.parametrize("damage", [b"", b"not a database", "cut"])
def test_a_damaged_index_is_built_again(folder, damage):
    expected = found(folder, "force")
    path = folder / INDEX
    path.write_bytes(path.read_bytes()[:700] if damage == "cut" else damage)
    assert found(folder, "force") == expected


def test_an_index_of_another_version_is_built_again(folder, monkeypatch):
    expected = found(folder, "force")
    with sqlite3.connect(folder / INDEX) as database:
        database.execute("UPDATE about SET version = 0")
        database.execute("DELETE FROM features")
    database.close()
    assert found(folder, "force") == expected


def test_the_pack_is_searched_and_not_written_to(tmp_path):
    folder = PACK / "atlas" / "words"
    hits = search(folder, "replied")
    assert hits
    assert not (folder / INDEX).exists()
    assert list((tmp_path / "cache" / "search").glob("*.sqlite"))
    known = WordsFolder(folder).get(hits[0].feature)
    assert (known.label, known.tokens, known.frequency) == (hits[0].label, hits[0].tokens, hits[0].frequency)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="a folder that cannot be written")
def test_a_folder_that_cannot_be_written_is_searched_too(folder):
    folder.chmod(0o500)
    try:
        assert found(folder, "forcef") == ["4/res/10"]
    finally:
        folder.chmod(0o700)


def test_an_unwritable_folder_leaves_the_index_to_the_cache(folder, monkeypatch, tmp_path):
    real = module._build

    def build(place, path, *rest):
        if path.parent == folder:
            raise PermissionError
        real(place, path, *rest)

    monkeypatch.setattr(module, "_build", build)
    assert found(folder, "forcef") == ["4/res/10"]
    assert list((tmp_path / "cache" / "search").glob("*.sqlite"))


def test_bad_words_are_said_and_leave_no_index(folder):
    (folder / "4.res.jsonl.gz").write_bytes(b"x")
    with pytest.raises(BadFile, match=r"4\.res\.jsonl\.gz"):
        search(folder, "force")
    assert not (folder / INDEX).exists()


def test_a_folder_without_words_has_nothing(tmp_path):
    assert search(tmp_path, "force") == []


def test_a_limit_is_kept_and_checked(folder):
    assert len(search(folder, "force", 2)) == 2
    with pytest.raises(InvalidArgument, match="limit = 0"):
        search(folder, "force", 0)


def test_the_time_does_not_grow_with_the_matches(tmp_path):
    write_words(tmp_path, MLP, [FeatureWords(f"common label number {i % 50}", frequency=0.1) for i in range(30_000)])
    build_index(tmp_path)
    taken = []
    for _ in range(5):
        start = time.process_time()
        assert len(search(tmp_path, "common la")) == 20
        taken.append(time.process_time() - start)
    assert min(taken) < 0.05, "reading 30,000 labels takes several times longer"


def test_an_index_with_a_changed_byte_is_built_again(folder, monkeypatch):
    queries = ("physics", "force", "gravity", "42")
    before = [search(folder, query) for query in queries]
    path = folder / INDEX
    good, told = path.read_bytes(), path.stat()
    for at in range(40, len(good), len(good) // 23):
        path.write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
        os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
        monkeypatch.setattr(module, "_CHECKED", set())
        assert [search(folder, query) for query in queries] == before
    path.write_bytes(good[:-100])
    monkeypatch.setattr(module, "_CHECKED", set())
    assert [search(folder, query) for query in queries] == before


def test_a_folder_that_is_mounted_read_only_has_its_index_in_the_cache(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    real = tempfile.mkstemp

    def mounted(**told):
        if told["dir"] == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
        return real(**told)

    monkeypatch.setattr(tempfile, "mkstemp", mounted)
    assert found(folder, "gravity") == ["0/mlp/0"]
    assert not (folder / INDEX).exists()
    assert len(list((tmp_path / "cache").rglob("*.sqlite"))) == 1
