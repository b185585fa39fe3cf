"""Samples are a function of their seed and dataset, and of nothing else."""

import json
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch

from saeflow.demo.texts import DOMAINS, all_texts
from saeflow.errors import BadFile, InvalidArgument, MissingExtra, Unreachable
from saeflow.experiments.inputs import Inputs
from saeflow.experiments.sampling import (
    Dataset,
    Sample,
    draw,
    expand,
    generator,
    held_out,
    is_held_out,
    open_dataset,
    recipes,
)
from saeflow.experiments.settings import InputNames
from saeflow.ids import Part, Site
from saeflow.sources.activations import ReLU
from saeflow.sources.dictionary import Dictionary, Tap

from ..sources.tiny_models import D_MODEL, MASSIVE, massive_model, tiny_model

STORIES = open_dataset("demo:stories")


def encode(text):
    """A begin-of-text token and one token a word; 1 is special too."""
    return [0, *(1 if word == "the" else 2 + len(word) for word in text.split())]


def drawn(dataset=STORIES, n=20, tokens=3, seed=0, special=(0, 1)):
    return draw(dataset, encode, n_texts=n, n_tokens=tokens, seed=seed, special=special)


def test_the_same_seed_gives_the_same_samples_and_another_gives_others() -> None:
    assert drawn(seed=4) == drawn(seed=4)
    assert [s.content for s in drawn(seed=4)] != [s.content for s in drawn(seed=5)]


def test_more_texts_leave_the_first_ones_as_they_were() -> None:
    assert drawn(n=30)[:10] == drawn(n=10)


def test_another_dataset_in_between_moves_nothing() -> None:
    before = drawn()
    drawn(open_dataset("demo:maths"))
    generator(0, "texts", "demo:stories").random(5)
    assert drawn() == before


def test_positions_ascend_and_no_special_token_is_drawn() -> None:
    for sample in drawn(tokens=5):
        assert list(sample.positions) == sorted(set(sample.positions))
        ids = encode(sample.content)
        assert all(ids[position] not in (0, 1) for position in sample.positions)


def test_what_stands_beside_is_not_drawn_and_is_counted() -> None:
    beside = {sample.content: sample.positions[0] for sample in drawn(tokens=4)}
    again = draw(
        STORIES,
        encode,
        n_texts=20,
        n_tokens=4,
        special=(0, 1),
        beside=lambda text: [beside[text]] if text in beside else [],
    )
    known = [sample for sample in again if sample.content in beside]
    assert known
    for sample in known:
        assert beside[sample.content] not in sample.positions
        assert sample.left_out == 1
        assert Sample.of(json.loads(json.dumps(sample.to_row()))) == sample


def test_massive_positions_are_not_sampled_and_their_number_is_told(tmp_path) -> None:
    path = tmp_path / "texts.jsonl"
    texts = [f"w{i} {MASSIVE} w{i + 1} w{i + 2}" for i in range(6, 40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    site = Site(1, Part.RES)
    tensors = {"W_enc": torch.eye(D_MODEL), "b_enc": torch.zeros(D_MODEL)}
    tensors |= {"W_dec": torch.eye(D_MODEL), "b_dec": torch.zeros(D_MODEL)}
    made = {at: Dictionary(at, tap=Tap.RES, **tensors, activation=ReLU()) for at in (site, Site(0, Part.RES))}
    names = InputNames("planted", datasets=(str(path),))
    said: list[str] = []
    for model, left_out in ((massive_model(), 1), (tiny_model("llama"), 0)):
        inputs = Inputs(names, model, made, {(site, Site(0, Part.RES)): None}, [1])
        samples = inputs.samples(8, 3, 32, said.append)
        assert len(samples) == 8
        assert all(sample.left_out == left_out for sample in samples)
        if left_out:
            assert all(sample.positions == (1, 3, 4) for sample in samples)
    assert [line for line in said if "massive" in line] == [
        "8 positions of 8 texts are massive at a site (above 100 medians) and were not drawn"
    ]


def test_every_token_of_a_text_can_be_drawn() -> None:
    text = next(text for text in ("a bb ccc dddd", "e ff ggg hhhh", "i jj kkk llll") if not is_held_out(text))
    found = {
        position
        for seed in range(60)
        for sample in drawn(Dataset("one", lambda _: [text]), n=1, tokens=1, seed=seed)
        for position in sample.positions
    }
    assert found == {1, 2, 3, 4}


def test_a_text_with_too_few_tokens_is_passed_over_and_a_dataset_of_such_texts_refused() -> None:
    texts = [f"{'word ' * (n % 4)}end {n}" for n in range(40)]
    samples = drawn(Dataset("short", lambda _: texts), n=40, tokens=4)
    assert samples
    assert {len(sample.content.split()) for sample in samples} == {4, 5}
    with pytest.raises(InvalidArgument, match="fewer than 9 tokens"):
        drawn(Dataset("short", lambda _: (f"word {n}" for n in range(5000))), tokens=9)


def test_no_more_samples_come_than_there_are_texts_and_none_is_held_out() -> None:
    everything = drawn(n=10_000)
    assert len(everything) < len(all_texts("stories"))
    contents = {sample.content for sample in everything}
    kept = held_out([STORIES], 10_000)
    assert kept
    assert contents.isdisjoint(kept)
    assert contents | set(kept) == set(all_texts("stories"))


def test_held_out_texts_come_from_each_dataset_in_turn_whatever_the_samples() -> None:
    datasets = [STORIES, open_dataset("demo:maths")]
    texts = held_out(datasets, 5)
    assert len(texts) == 10
    assert set(texts[::2]) <= set(all_texts("stories"))
    assert set(texts[1::2]) <= set(all_texts("maths"))
    share = sum(map(is_held_out, all_texts("python"))) / len(all_texts("python"))
    assert 0.2 < share < 0.3


def test_a_sample_and_its_row_are_inverse_through_json() -> None:
    [sample] = drawn(n=1)
    assert Sample.of(json.loads(json.dumps(sample.to_row()))) == sample


@pytest.mark.parametrize(("tokens", "n"), [(0, 1), (1, 0)])
def test_no_texts_or_tokens_are_refused(tokens, n) -> None:
    with pytest.raises(InvalidArgument, match="no sample"):
        drawn(n=n, tokens=tokens)


def test_demo_stands_for_its_domains_once() -> None:
    assert expand(["demo", "demo:maths", "fineweb"]) == (*(f"demo:{domain}" for domain in DOMAINS), "fineweb")


FILES = {
    "texts.txt": "first text\nof two lines\n\n\nsecond\n\n",
    "stories.txt": "one\n\nstill one<|endoftext|>\ntwo\n",
    "texts.jsonl": '{"text": "first text\\nof two lines"}\n{"text": "second", "more": 1}\n',
}
EXPECTED = {
    "texts.txt": {"first text\nof two lines", "second"},
    "stories.txt": {"one\n\nstill one", "two"},
    "texts.jsonl": {"first text\nof two lines", "second"},
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_and_shuffled_by_the_seed(tmp_path, name) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    dataset = open_dataset(str(path))
    assert set(dataset.read(0)) == EXPECTED[name]
    assert {tuple(dataset.read(seed)) for seed in range(20)} == {
        tuple(sorted(EXPECTED[name])),
        tuple(sorted(EXPECTED[name], reverse=True)),
    }


def test_a_parquet_file_is_read_or_the_extra_is_named(tmp_path, monkeypatch) -> None:
    path = tmp_path / "texts.parquet"
    path.write_bytes(b"")
    parquet = ModuleType("pyarrow.parquet")
    batches = [{"text": [SimpleNamespace(as_py=lambda text=text: text)]} for text in "ab"]
    read = SimpleNamespace(iter_batches=lambda n, columns: batches if columns == ["text"] else None)
    parquet.ParquetFile = lambda file: nullcontext(read if file == path else None)
    package = ModuleType("pyarrow")
    package.parquet = parquet
    monkeypatch.setitem(sys.modules, "pyarrow", package)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    assert set(open_dataset(str(path)).read(0)) == {"a", "b"}
    monkeypatch.setattr("saeflow.experiments.sampling.TEXTS", 1)
    with pytest.raises(BadFile, match="its texts have more than 1 characters"):
        list(open_dataset(str(path)).read(0))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[data\]'"):
        list(open_dataset(str(path)).read(0))


def fake_hub(monkeypatch, rows):
    """The package `datasets`, with a stream that notes how it was asked for."""
    asked = []

    class Stream(list):
        def shuffle(self, seed, buffer_size):
            asked.append((seed, buffer_size))
            return self

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if isinstance(rows, Exception):
            raise rows
        return Stream(rows)

    hub = ModuleType("datasets")
    hub.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.setattr("saeflow.sources.remote.hub_file.reachable", lambda repo: repo)
    return asked


@pytest.mark.parametrize("name", recipes())
def test_a_named_dataset_is_streamed_as_its_recipe_says(monkeypatch, name) -> None:
    recipe = recipes()[name]
    asked = fake_hub(monkeypatch, [{recipe["column"]: f"text {n}", "other": n} for n in range(9)])
    texts = list(open_dataset(name).read(7))
    assert texts == [f"text {n}" for n in range(9)]
    options = {"split": recipe["split"], "streaming": True}
    assert asked == [((recipe["repo"], recipe["config"] or None), options), (7, 10_000)]


def test_a_dataset_of_the_hub_needs_its_extra_its_column_and_the_network(monkeypatch) -> None:
    fake_hub(monkeypatch, [{"content": "x"}])
    with pytest.raises(BadFile, match="no column 'text'"):
        list(open_dataset("someone/else").read(0))
    fake_hub(monkeypatch, ConnectionError("offline"))
    with pytest.raises(Unreachable, match="offline"):
        list(open_dataset("someone/else").read(0))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[data\]'"):
        list(open_dataset("fineweb").read(0))


@pytest.mark.parametrize("name", ["demo:nothing", "nothing", "missing.txt", "a/b/c"])
def test_what_is_no_dataset_is_refused_with_what_there_is(name) -> None:
    with pytest.raises(InvalidArgument, match=r"[Gg]ive"):
        open_dataset(name)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"no": 1}\n'), ("a.jsonl", "not json\n")])
def test_a_file_of_another_kind_is_bad(tmp_path, name, content) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadFile, match="field text"):
        list(open_dataset(str(tmp_path / name)).read(0))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(BadFile, match="UTF-8"):
        list(open_dataset(str(tmp_path / "b.txt")).read(0))
