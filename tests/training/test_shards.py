"""Runs in shards leave what one run leaves, whatever is killed on the way; folders are bound to their run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saeflow.engines import InProcess, open_engine
from saeflow.engines.worker import pack
from saeflow.errors import BadFile, InvalidArgument, WorkerLost
from saeflow.ids import Site
from saeflow.sources.architectures import Tap
from saeflow.sources.library import load_dictionaries
from saeflow.training import TrainingTarget, shards, train_in_shards
from saeflow.training.sparse_trainer import SparseTrainer

from ..sources.tiny_models import tiny_model
from .learning import TARGETS, settings
from .sharded import Ends, Stopped, named_model, text_run

TOLD = settings(steps=12, checkpoint_every=192, metrics_every=256)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Bit for bit holds for as many threads; a worker of the pool has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return named_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What one run leaves."""
    out = tmp_path_factory.mktemp("whole") / "r"
    done = text_run(model, TOLD).train(out)
    return left(out, done)


def left(out: Path, done):
    """Every file, without the seconds; and what was told."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name, data = str(path.relative_to(out)), path.read_bytes()
        if name == "metrics.jsonl":
            data = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in data.splitlines()]
        if name == "training.json":
            data = [(k, v) for k, v in json.loads(data).items() if k != "seconds"]
        found[name] = data
    assert done.folder == out
    return found, list(done.quality.items()), list(done.dead.items())


def steps(folder: Path, name: str) -> list[int]:
    return [int(line) for line in (folder / name).read_text().split()]


def stopped_after(n, real):
    """A function that is called `n` times and then stops the driver."""
    calls = iter(range(n))

    def limited(*arguments, **options):
        if next(calls, None) is None:
            raise Stopped
        return real(*arguments, **options)

    return limited


class Refuses(SparseTrainer):
    def step(self, batch):
        raise AssertionError("trained again")


def test_a_shard_killed_in_a_pool_goes_on_anywhere_and_all_is_as_of_one_run(model, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("saeflow.engines.pool.TRIES", 1)  # a second worker would take seconds to start
    run = text_run(model, TOLD, Ends(tmp_path / "steps", "1.res", 7, kill=True))
    told = []
    with (
        open_engine("pool", workers=1) as engine,
        pytest.raises(WorkerLost, match=r"at the unit \{'shard': '01', 'sites': \['1/res'\]\} \(exit code -9"),
    ):
        train_in_shards(run, tmp_path / "r", shards=2, engine=engine, progress=lambda *now: told.append(now))
    done = train_in_shards(run, tmp_path / "r", progress=lambda *now: told.append(now))
    assert left(tmp_path / "r", done) == whole
    assert len(whole[0]) == 2 * len(TARGETS) + 2
    assert steps(tmp_path / "steps", "0.att") == list(range(12)), "what the pool had done stays"
    assert steps(tmp_path / "steps", "1.res") == [*range(8), *range(6, 12)], "from its checkpoint"
    assert [(done, of) for done, of, _ in told] == [(0, 2), (1, 2), (1, 2), (2, 2)]
    assert told[-1][2].startswith("fve ")


def test_what_shards_keep_on_the_way_is_that_of_one_run(model, tmp_path):
    run = text_run(model, replace(TOLD, keep_every=320))
    run.train(tmp_path / "whole")
    train_in_shards(run, tmp_path / "r", shards=2)
    kept, whole = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "r-steps", tmp_path / "whole-steps")
    )
    assert len(whole) == 2 * 2 * len(TARGETS)
    assert kept == whole


def test_a_driver_that_is_stopped_goes_on_with_the_shards_it_began_with(model, whole, tmp_path):
    ends = Ends(tmp_path / "steps", "1.mlp", 4, kill=False)
    with pytest.raises(Stopped):
        train_in_shards(text_run(model, TOLD, ends), tmp_path / "r", shards=3)
    done = train_in_shards(text_run(model, TOLD, ends), tmp_path / "r", shards=1)
    assert left(tmp_path / "r", done) == whole
    assert steps(tmp_path / "steps", "0.att") == list(range(12)), "what is done stays"
    assert steps(tmp_path / "steps", "1.mlp") == [*range(5), *range(3, 12)]
    assert steps(tmp_path / "steps", "1.res") == list(range(12))


def test_a_join_stopped_at_any_step_goes_on_and_a_finished_run_is_told(model, whole, tmp_path, monkeypatch):
    run, out = text_run(model, TOLD), tmp_path / "r"
    again = replace(run, trainer=Refuses)

    # first after one dictionary, then after two, then before the metrics, before the end, before the last removal
    for number, (place, name, after) in enumerate(
        [
            (shards, "_move", 1),
            (shards, "_move", 2),
            (shards, "_measured", 0),
            (shards.record, "ended", 0),
            (shards.shutil, "rmtree", 0),
        ]
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, stopped_after(after, getattr(place, name)))
            with pytest.raises(Stopped):
                train_in_shards(again if number else run, out, shards=2)
        assert (out / "shards").is_dir()
    done = train_in_shards(again, out, shards=2)
    assert left(out, done) == whole
    assert left(out, train_in_shards(again, out)) == whole
    assert left(out, again.train(out)) == whole, "in one piece it is finished too"


def test_another_run_in_the_folder_is_refused_and_so_is_the_same_in_one_piece(model, tmp_path):
    ends = Ends(tmp_path / "steps", "0.att", 4, kill=False)
    with pytest.raises(Stopped):
        train_in_shards(text_run(model, TOLD, ends), tmp_path / "r", shards=2)
    with pytest.raises(BadFile, match=r"holds another run: settings .* Give another --out"):
        train_in_shards(text_run(model, settings(steps=13)), tmp_path / "r", shards=2)
    with pytest.raises(BadFile, match="targets"):
        train_in_shards(text_run(model, TOLD, targets=TARGETS[:1]), tmp_path / "r", shards=2)
    with pytest.raises(BadFile, match=r"in shards, and they are not finished. Go on with --shards"):
        text_run(model, TOLD).train(tmp_path / "r")
    for damage, said in (("{", "cannot be read"), ("[1]", "cannot be read"), ('{"00": ["0/att"]}', "the sites")):
        (tmp_path / "r" / "shards" / shards.PLAN).write_text(damage)
        with pytest.raises(BadFile, match=said):
            train_in_shards(text_run(model, TOLD), tmp_path / "r")
    shutil.rmtree(tmp_path / "steps")
    with pytest.raises(Stopped):
        text_run(model, TOLD, ends).train(tmp_path / "one")
    with pytest.raises(BadFile, match="in one piece, and it is not finished"):
        train_in_shards(text_run(model, TOLD), tmp_path / "one", shards=2)


def test_shards_that_lost_their_dictionaries_or_metrics_are_told(model, tmp_path, monkeypatch):
    run = text_run(model, settings(steps=2))
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_move", stopped_after(0, None))
        with pytest.raises(Stopped):
            train_in_shards(run, tmp_path, shards=2)
    shard = tmp_path / "shards" / "01"
    (shard / "metrics.jsonl").write_text('{"step": 2}\n')
    with pytest.raises(BadFile, match=r"01.metrics.jsonl is not as it was written .* Remove .*01 to train"):
        train_in_shards(run, tmp_path, shards=2)
    shutil.rmtree(tmp_path / "1.res")
    with pytest.raises(BadFile, match=r"1.res is missing from a shard that was finished"):
        train_in_shards(run, tmp_path, shards=2)
    shutil.rmtree(shard)
    train_in_shards(run, tmp_path, shards=2)
    assert len(load_dictionaries(tmp_path)) == 3


def test_groups_are_neighbouring_layers_of_about_as_many_features():
    def named(targets, n):
        return [" ".join(str(t.site) for t in group) for group in shards.grouped(targets, n)]

    assert named(TARGETS[::-1], 2) == ["0/att 1/mlp", "1/res"]
    assert named(TARGETS, 1) == ["0/att 1/mlp 1/res"]
    assert named(TARGETS, 9) == ["0/att", "1/mlp", "1/res"]
    wide = [TrainingTarget(Site.parse(f"{layer}/res"), Tap.RES, 900 if layer == 1 else 100) for layer in range(4)]
    assert named(wide, 2) == ["0/res 1/res", "2/res 3/res"]
    even = [TrainingTarget(Site.parse(f"{layer}/res"), Tap.RES, 16384) for layer in range(26)]
    assert sorted(len(group) for group in shards.grouped(even, 4)) == [6, 6, 7, 7]


def test_what_is_sent_to_workers_is_names_and_who_does_not_see_the_folder_says_so(model, tmp_path):
    run = text_run(model, TOLD, start=load_dictionaries("demo"))
    work = shards._TrainShard(run, tmp_path / "shards")
    assert len(pack(work, "shards").data) < 5000
    with pytest.raises(InvalidArgument, match=r"does not see .*shards.json. Give an --out on storage"):
        work({"shard": "00", "sites": ["0/att"]})
    with pytest.raises(InvalidArgument, match="built in memory"):
        pack(shards._TrainShard(text_run(tiny_model("gemma2"), TOLD), tmp_path), "shards")
    with pytest.raises(InvalidArgument, match="0 shards of a training run"):
        train_in_shards(run, tmp_path, shards=0)


def test_as_many_shards_as_workers_are_made_and_a_cluster_is_joined_to_count_them(model, tmp_path):
    class Joined(InProcess):
        """Has no workers before its first unit, as a cluster."""

        ran = 0

        @property
        def workers(self):
            return 3 if self.ran else 0

        def run(self, work, units, *, name):
            self.ran += 1
            yield from super().run(work, units, name=name)

    ends = Ends(tmp_path / "steps", "0.att", 1, kill=False)
    with pytest.raises(Stopped):
        train_in_shards(text_run(model, TOLD, ends), tmp_path / "r", engine=Joined())
    plan = json.loads((tmp_path / "r" / "shards" / shards.PLAN).read_text())
    assert plan == {"00": ["0/att"], "01": ["1/mlp"], "02": ["1/res"]}


@pytest.mark.filterwarnings("ignore")
def test_the_command_trains_in_shards(saeflow, tmp_path):
    small = (
        "train",
        "demo",
        "--texts",
        "words.txt",
        "--layers",
        "1-2",
        "--sites",
        "att",
        "--width",
        "20",
        "--tokens",
        512,
        "--batch",
        128,
        "--buffer",
        256,
        "--windows",
        4,
        "--max-length",
        32,
        "--n-eval-texts",
        1,
    )
    (tmp_path / "words.txt").write_text("\n\n".join(f"The fox {n} ran to the river." for n in range(200)))
    for out, more in (("whole", ()), ("shards", ("--shards", 2))):
        code, _, err = saeflow(*small, "--out", out, *more)
        assert code == 0, err
    for name in ("1.att", "2.att"):
        for file in ("cfg.json", "sae_weights.safetensors"):
            one, other = ((tmp_path / out / name / file).read_bytes() for out in ("whole", "shards"))
            assert one == other
    code, out, _ = saeflow(*small, "--out", "r", "--shards", 2, "--dry-run", "--json")
    told = json.loads(out)
    assert (told["dictionaries"], told["shards"]) == (2, 2)
    assert told["bytes"]["buffer"] == 256 * 192 * 4, "of one shard"
    code, _, err = saeflow(*small, "--out", "r", "--engine", "here", "--workers", 2)
    assert code == 2
    assert "Take pool" in err
