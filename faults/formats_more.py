"""Formats other than dictionaries and results: what is kept between runs, texts, exports and models."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

from fuzz import ROOT, Format

sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests" / "sources")) if path not in sys.path]


def more_formats(scratch: Path) -> list[Format]:
    """The formats; those whose `read` returns an answer have a checksum and may give no other answer."""
    return [
        Format("index of words", _index, _read_index),
        Format("kept judgements", _judgements, _read_judgements),
        Format("kept activations", _activations, _read_activations),
        Format("checkpoint", _checkpoint, _read_checkpoint),
        Format("training", _training, _read_training),
        Format("pointer to a hub", _pointer, _read_pointer),
        Format("exports", _exports, lambda place: _read_exports(place, scratch)),
        Format("texts", _texts, _read_texts),
        Format("recipe", _recipe, _read_recipe),
        Format("model", _model, _read_model),
    ]


def _index(place: Path) -> None:
    from saeflow.ids import Site
    from saeflow.labels.search import build_index
    from saeflow.labels.words import FeatureWords, write_words

    for layer in range(3):
        known = [FeatureWords(f"label {n} at {layer}", (" the", f"x{n}"), (), (), n / 40) for n in range(40)]
        write_words(place, Site.parse(f"{layer}/res"), known)
    build_index(place)


def _read_index(place: Path) -> object:
    from saeflow.labels.search import search

    return [repr(hit) for query in ("label 7", "x1", "the") for hit in search(place, query, 500)]


def _judgements(place: Path) -> None:
    from saeflow.llm.answers import Answers
    from saeflow.steering.judges.llm import marks_to_keep
    from saeflow.steering.judges.rubrics import Marks, one_subject

    for number in range(3):
        Answers(place).put(f"{number:064x}", marks_to_keep(Marks(number, (2,)), one_subject("Physics"), "judge"))


def _read_judgements(place: Path) -> None:
    from saeflow.llm.answers import Answers
    from saeflow.steering.judges.llm import kept_marks
    from saeflow.steering.judges.rubrics import Marks, one_subject

    for number in range(3):
        found = kept_marks(Answers(place).get(f"{number:064x}"), one_subject("Physics"))
        if found not in (None, Marks(number, (2,))):
            raise AssertionError(f"another judgement: {found}")


def _activations(place: Path) -> None:
    import numpy as np
    from safetensors.numpy import save

    from saeflow.files import add_sha256

    held = {
        "indptr": np.array([0, 2, 3], np.int32),
        "index": np.array([1, 4, 0], np.int32),
        "value": np.array([0.5, 1.0, 2.0], np.float32),
        "massive": np.array([1], np.int64),
    }
    (place / "000000.safetensors").write_bytes(add_sha256(save(held)))


def _read_activations(place: Path) -> object:
    from saeflow.matching.correlation import read_shard

    return {name: array.tolist() for name, array in read_shard(place / "000000.safetensors").items()}


def _checkpoint(place: Path) -> None:
    import torch

    from saeflow.training import checkpoint

    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4, dtype=torch.int64)}
    checkpoint.save(place, checkpoint.Checkpoint(3, tensors, {"rows": torch.ones(2, 2)}, {"seconds": 1.5}))


def _read_checkpoint(place: Path) -> object:
    from saeflow.training import checkpoint

    found = checkpoint.load(place)
    assert found is not None  # noqa: S101
    return found.step, dict(found.values), [(n, t.tolist()) for n, t in sorted(found.learners.items())]


def _training(place: Path) -> None:
    from saeflow.training import record

    names = sorted(record.Quality.__dataclass_fields__)
    quality = {"1/res": dict.fromkeys(names, 0.5) | {"dead": 0.0, "massive_in_training": 0}}
    told = {"model": "m", "finished": True, "seconds": 1.0, "quality": quality}
    (place / record.MANIFEST).write_text(json.dumps(told))
    record.add_metrics(place, [{"step": n, "site": "1/res", "fve": 0.1 * n} for n in range(4)])


def _read_training(place: Path) -> None:
    from saeflow.training import record

    record.finished(place, {"model": "m"})
    record.read_metrics(place)


def _pointer(place: Path) -> None:
    """Write a pointer as `write_pointer` does."""
    from dataclasses import asdict

    from saeflow.files import add_sha256
    from saeflow.sources.formats.remote_tensors import Segment
    from saeflow.sources.remote.hub_file import HubFile

    file = HubFile("a/b", "x.safetensors", "c" * 40, "e" * 64, 100)
    index = {"W_dec": asdict(Segment(60, 92, 0, (8,), "F32"))}
    told = {"saeflow-pointer": 1, "file": asdict(file), "index": index}
    (place / "x.safetensors").write_bytes(add_sha256(json.dumps(told).encode()))


def _read_pointer(place: Path) -> object:
    from saeflow.sources.formats.remote_tensors import open_tensors, read_pointer

    pointer = read_pointer(place / "x.safetensors")
    if pointer is None:
        return open_tensors(place / "x.safetensors")
    return repr(pointer)


def _exports(place: Path) -> None:
    root = place / "v1" / "m" / "0-res"
    explained = [
        {"modelId": "m", "index": str(n), "description": f"label {n}", "explanationModelName": "x"} for n in range(5)
    ]
    features = [{"modelId": "m", "index": str(n), "pos_str": [" a"], "frac_nonzero": 0.1} for n in range(5)]
    passages = [
        {"index": str(n), "tokens": ["a", "b"], "values": [0.0, 1.0], "maxValue": 1.0, "dataSource": "p"}
        for n in range(5)
    ]
    for kind, rows in (("explanations", explained), ("features", features), ("activations", passages)):
        (root / kind).mkdir(parents=True)
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (root / kind / "batch-0.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def _read_exports(place: Path, scratch: Path) -> None:
    from saeflow.ids import Site
    from saeflow.labels.exports import Bucket, ExportKind, fetch_words, plan_fetch
    from saeflow.labels.http import Fetcher
    from saeflow.labels.neuronpedia import sources_of

    sites = [Site.parse("0/res")]
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        bucket = Bucket(str(place), Path(out) / "kept", Fetcher(sleep=lambda _: None))
        plan = plan_fetch("mine", sources_of("mine", "m/{layer}-{part}"), sites, bucket, kinds=tuple(ExportKind))
        fetch_words(plan, bucket, Path(out) / "words")


def _texts(place: Path) -> None:
    (place / "a.txt").write_text("one text\n\nanother text")
    (place / "a.jsonl").write_text("".join(f"{json.dumps({'text': f'text {n}'})}\n" for n in range(4)))
    if importlib.util.find_spec("pyarrow"):
        pa, pq = (importlib.import_module(f"pyarrow{name}") for name in ("", ".parquet"))
        pq.write_table(pa.table({"text": [f"text {n}" for n in range(4)]}), place / "a.parquet")


def _read_texts(place: Path) -> None:
    from saeflow.experiments.sampling import open_dataset

    for path in sorted(place.iterdir()):
        list(open_dataset(str(path)).read(0))


def _recipe(place: Path) -> None:
    releases = ROOT / "src" / "saeflow" / "sources" / "releases"
    shutil.copy(releases / "gpt2-small-res-jb.toml", place / "mine.toml")


def _read_recipe(place: Path) -> None:
    from saeflow.sources.releases import read_release

    list(read_release(str(place / "mine.toml")).sites)


def _model(place: Path) -> None:
    from tiny_models import tiny_model

    made = tiny_model("gpt2")
    made.hf_model.save_pretrained(place)
    made.tokenizer.save_pretrained(place)


def _read_model(place: Path) -> None:
    from saeflow.sources.model import load_model

    model = load_model(place)
    model.tokenize(["w1 w2"])
