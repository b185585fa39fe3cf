"""A published site is written whole, in the place of another site alone, and holds what it says."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import saeflow as sf
from saeflow.comparison.results import Comparison
from saeflow.errors import InvalidArgument
from saeflow.experiments.results import SummaryTable
from saeflow.ids import Site
from saeflow.labels import FeatureWords, write_words
from saeflow.matching.atlas import Atlas, flow_pairs, save_manifest, table_entry, table_file
from saeflow.matching.table import MatchTable
from saeflow.publishing import site as writing
from saeflow.publishing.counterparts import counterparts
from saeflow.publishing.finding import MOST, WordIndex

WIDTH, K = 300, 7


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Two layers of random tables with more matches than a site keeps, and words for some rows."""
    folder = tmp_path_factory.mktemp("atlas")
    rng = np.random.default_rng(0)
    files = {}
    for back in flow_pairs([Site("0/res"), Site("1/res"), Site("1/mlp")]):
        for source, target in (back, back[::-1]):
            score = np.sort(rng.uniform(0, 1, (WIDTH, K)).astype(np.float32), axis=1)[:, ::-1].copy()
            index = rng.integers(0, WIDTH, (WIDTH, K), dtype=np.int32)
            MatchTable(source, target, "cosine", WIDTH, index, score).save(folder / table_file(source, target))
            files[source, target] = table_entry(folder, source, target)
    write_words(folder / "words", Site("1/res"), [FeatureWords(f"word {i % 7}", (" the",)) for i in range(WIDTH)])
    save_manifest(Atlas(folder, "tiny", "tiny", K, "a test", files))
    return folder


def block(folder, name):
    return gzip.decompress((folder / "data" / f"{name}.bin").read_bytes())


def test_a_site_says_what_it_holds_and_imports_no_torch(atlas, tmp_path):
    code = (
        "import sys, saeflow as sf\n"
        f"made = sf.publish({str(atlas)!r}, {str(tmp_path / 'site')!r})\n"
        "assert 'torch' not in sys.modules; print(made.n_features, made.n_files, made.n_bytes)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert [int(n) for n in told] == [3 * WIDTH, len(files), sum(path.stat().st_size for path in files)]
    about = json.loads((tmp_path / "site" / "site.json").read_text())
    assert about["sizes"] == {"0/res": WIDTH, "1/mlp": WIDTH, "1/res": WIDTH}
    assert (about["k"], about["info"]["k"], about["info"]["model_state"]) == (5, 5, "none")


class Arrays:
    """Reads arrays that lie one behind the other as planes of their bytes."""

    def __init__(self, data):
        self.data, self.at = np.frombuffer(data, np.uint8), 0

    def take(self, kind, *shape):
        size, width = int(np.prod(shape)), np.dtype(kind).itemsize
        some = self.data[self.at : self.at + size * width].reshape(width, size)
        self.at += size * width
        return some.T.copy().view(kind).reshape(shape)


def check_matches(arrays, opened, about, site, rows, blocks):
    """The arrays of a block's rows are those of the tables."""
    n = len(rows)
    for target in (table["to"] for table in about["tables"][site]):
        table, other = opened[site, target], opened[target, site]
        best = table.index[rows, :5]
        assert np.array_equal(arrays.take("<f4", 5, n).T, table.score[rows, :5])
        assert np.array_equal(arrays.take("<u2", 5, n).T, best)
        if target in blocks:
            assert np.array_equal(arrays.take("<u2", 5, n).T, blocks[target][best])
        back = np.unpackbits(arrays.take("u1", n)[:, None], axis=1, bitorder="little")[:, :5]
        assert np.array_equal(back, other.index[best, 0] == np.asarray(rows)[:, None])


def test_the_blocks_hold_the_best_five_matches_of_every_table(atlas, tmp_path):
    site = sf.publish(str(atlas), tmp_path / "site").folder
    about, opened = json.loads((site / "site.json").read_text()), sf.open_atlas(atlas)
    blocks = {f"{layer}/res": Arrays(block(site, f"{layer}.res/flows")).take("<u2", WIDTH) for layer in (0, 1)}
    seen = set()
    for number in range(-(-2 * WIDTH // 256)):
        data = block(site, f"flows/{number}")
        size = int.from_bytes(data[:4], "little")
        head, arrays = json.loads(data[4 : 4 + size]), Arrays(data[4 + size :])
        for name, rows in head["rows"].items():
            assert (blocks[name][rows] == number).all()
            seen |= {(name, row) for row in rows}
            check_matches(arrays, opened, about, name, rows, blocks)
        assert arrays.at == len(arrays.data)
        ids = [f"{name}/{row}" for name, rows in head["rows"].items() for row in rows]
        said = [words and words[0] for words in head["words"]]
        assert said == [f"word {int(i.split('/')[2]) % 7}" if i.startswith("1/res") else None for i in ids]
        table = opened["1/res", "1/mlp"]
        rows = head["rows"].get("1/res", [])
        assert set(head["modules"]) == {f"1/mlp/{i}" for i in table.index[rows, 0][table.score[rows, 0] >= 0.15]}
    assert len(seen) == 2 * WIDTH
    arrays = Arrays(block(site, "1.mlp/matches-1"))
    check_matches(arrays, opened, about, "1/mlp", range(256, WIDTH), blocks)
    assert arrays.at == len(arrays.data)
    assert json.loads(block(site, "1.res/words-1"))[-1][0] == "word 5"
    assert json.loads(block(site, "1.res/cards-2"))[0]["feature"] == "1/res/256"


def test_counterparts_are_those_of_the_same_decoder_at_the_same_site():
    columns = "of, in, feature, best, cosine, p, partner, partner cosine, kind, words of the best"
    rows = [
        ("mine", "other", "4/res/0", "4/res/7", 0.9, 0.001, "4/res/8", 0.8, "shared", "seven"),
        ("mine", "other", "4/res/1", None, None, None, None, None, "no direction", ""),
        ("other", "mine", "4/res/7", "4/res/0", 0.9, 0.001, None, None, "related", "zero"),
    ]
    features = SummaryTable.of("features", "Features", "", "", columns, rows)
    sides = [
        {"name": name, "site": "4/res", "decoder sha256": digest} for name, digest in (("mine", "aa"), ("other", "bb"))
    ]
    found = Comparison({}, tuple(sides), {"features": features})

    def of(site, digest):
        return counterparts(Atlas(Path(), "tiny", "tiny", 5, "a test", {}, weights={Site(site): digest}), [found], 2)

    expected = {"in": "other", "kind": "shared", "feature": "4/res/7", "label": "seven", "score": 0.9, "p": 0.001}
    expected |= {"result": "3", "partner": "4/res/8", "partner_score": 0.8}
    assert of("4/res", "aa") == {"4/res/0": [expected]}
    assert list(of("4/res", "bb")) == ["4/res/7"]
    assert of("4/res", "cc") == of("5/res", "aa") == {}


def test_the_same_atlas_is_the_same_site(atlas, tmp_path):
    one, other = (sf.publish(str(atlas), tmp_path / name).folder for name in ("one", "other"))
    for path in one.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


def test_only_a_published_site_is_replaced(atlas, tmp_path):
    place = tmp_path / "site"
    place.mkdir()
    sf.publish(str(atlas), place)
    (place / "left over").write_text("x")
    sf.publish(str(atlas), place)
    assert not (place / "left over").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all of it")
    with pytest.raises(InvalidArgument, match="no published site"):
        sf.publish(str(atlas), mine)
    assert (mine / "thesis.tex").read_text() == "all of it"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidArgument, match="no published site"):
        sf.publish(str(atlas), tmp_path / "file")


def test_what_fails_midway_leaves_the_site_that_was_there(atlas, tmp_path, monkeypatch):
    place = sf.publish(str(atlas), tmp_path / "site").folder
    before = (place / "site.json").read_bytes()

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.MatchBlocks, "of_flows", broken)
    with pytest.raises(sf.SaeflowError, match="space"):
        sf.publish(str(atlas), place)
    assert (place / "site.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_progress_is_told_site_by_site(atlas, tmp_path):
    seen = []
    sf.publish(str(atlas), tmp_path / "site", progress=lambda *told: seen.append(told))
    assert seen == [
        (0, 6, "0/res"),
        (1, 6, "1/mlp"),
        (2, 6, "1/res"),
        (3, 6, "flows"),
        (4, 6, "the index of words"),
        (5, 6, "features worth a look"),
        (6, 6, "done"),
    ]


def test_the_index_keeps_the_best_of_a_word_and_sorts_as_javascript_does():
    index = WordIndex()
    index.add(1, "a force", (" the",))
    index.add(2, "force", (" Force", " other"))
    index.add(3, "\U00010400 \uff5a force field", ())
    for number in range(10, 10 + MOST):
        index.add(number, "much", ())
    files = {name: gzip.decompress(data) for name, data in index.shards()}
    data = files["0"]
    head = json.loads(data[4 : 4 + int.from_bytes(data[:4], "little")])
    assert head["words"] == sorted(head["words"], key=lambda word: word.encode("utf-16-be"))
    counts = dict(zip(head["words"], head["counts"], strict=True))
    assert (counts["force"], counts["the"], counts["fo*"], counts["much"], counts["m*"]) == (3, 1, 3, MOST, MOST)
    n, rest = sum(head["counts"]), data[4 + int.from_bytes(data[:4], "little") :]
    numbers = np.frombuffer(rest[: 4 * n], np.uint8).reshape(4, n).T.copy().view("<u4").reshape(-1)
    start = sum(head["counts"][: head["words"].index("force")])
    assert numbers[start : start + 3].tolist() == [2, 1, 3]
