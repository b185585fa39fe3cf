"""Runs: killed anywhere they go on to the same weights, bit for bit; folders are bound to their run; clear errors."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.ids import Site
from saeflow.sources.architectures import Tap
from saeflow.sources.library import load_dictionaries
from saeflow.training import Evaluation, TrainingTarget, read_metrics
from saeflow.training import checkpoint as checkpoints
from saeflow.training import run as running
from saeflow.training.record import missed_by
from saeflow.training.sparse_trainer import SparseTrainer

from ..sources.tiny_models import tiny_model
from .learning import TARGETS, files, run, settings, tokens, windows

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    """Bit for bit holds for as many threads as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killed(Exception):
    """Stands for a kill between two steps."""


def killed_at(step):
    def progress(done, _total, _now):
        if done == 64 * step:
            raise Killed

    return progress


def killed_process(out: Path, kind: str, objective: str, limit: float = 120) -> int:
    """Start a run in a process of its own, kill it with SIGKILL after a checkpoint; the step of the last one."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.learning", str(out), kind, objective]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), *sys.path])}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    began = time.monotonic()
    while not (out / checkpoints.POINTER).exists() or len(list(out.glob("checkpoint-*"))) < 1:
        assert child.poll() is None, child.stderr.read().decode()
        assert time.monotonic() - began < limit, "no checkpoint was written"
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stderr.close()
    return json.loads((out / checkpoints.POINTER).read_text())["step"]


def test_a_run_killed_with_sigkill_goes_on_to_the_same_weights(tmp_path):
    told = settings(steps=48, checkpoint_every=192, metrics_every=1024)
    step = killed_process(tmp_path / "killed", "sparse", "jumprelu-l0")
    assert 0 < step < 48
    run(tmp_path / "killed", told)
    run(tmp_path / "whole", told)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    rows, whole = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(tmp_path / name)]
        for name in ("killed", "whole")
    )
    assert rows == whole
    assert len(rows) == 3 * 3
    assert not list((tmp_path / "killed").glob("checkpoint*"))


@pytest.mark.parametrize("step", [3, 4, 7, 11])
def test_a_run_stopped_at_any_step_goes_on_to_the_same_weights(tmp_path, step):
    told = settings(steps=12, checkpoint_every=192, metrics_every=256)
    with pytest.raises(Killed):
        run(tmp_path / "stopped", told, progress=killed_at(step))
    run(tmp_path / "stopped", told)
    run(tmp_path / "whole", told)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_dictionaries_are_kept_on_the_way_and_are_those_of_the_moment(tmp_path):
    told = settings(steps=12, checkpoint_every=192, keep_every=256)
    with pytest.raises(Killed):
        run(tmp_path / "r", told, progress=killed_at(6))
    run(tmp_path / "r", told)
    run(tmp_path / "plain", settings(steps=12))
    assert files(tmp_path / "r") == files(tmp_path / "plain"), "what is kept changes nothing"
    steps = sorted((tmp_path / "r-steps").iterdir())
    assert [step.name for step in steps] == ["000000000256", "000000000512"]
    site = TARGETS[0].site
    rows = [load_dictionaries(folder)[site].W_dec for folder in (*steps, tmp_path / "r")]
    assert len({row.numpy().tobytes() for row in rows}) == 3
    config = json.loads((steps[0] / TARGETS[0].name / "cfg.json").read_text())
    assert config["metadata"]["training_tokens"] == 256


class Clock:
    """Stands for `time`: every look at it is a second later, and every checkpoint takes some more."""

    def __init__(self, of_a_checkpoint=0):
        self.now, self.of_a_checkpoint = 0, of_a_checkpoint

    def monotonic(self):
        self.now += 1
        return self.now


def checkpoints_by_the_clock(monkeypatch, out, clock):
    """The steps of the checkpoints of a run of 48 steps, one due every half minute."""
    steps, save = [], checkpoints.save

    def saved(folder, state):
        clock.now += clock.of_a_checkpoint
        steps.append(state.step)
        save(folder, state)

    monkeypatch.setattr(running, "time", clock)
    monkeypatch.setattr(checkpoints, "save", saved)
    run(out, settings(steps=48, checkpoint_minutes=0.5, metrics_every=1024))
    return steps


def test_checkpoints_are_written_by_the_clock_too_and_a_run_goes_on_from_one(tmp_path, monkeypatch):
    steps = checkpoints_by_the_clock(monkeypatch, tmp_path / "whole", Clock())
    assert 2 <= len(steps) <= 5
    told = settings(steps=48, checkpoint_minutes=0.5, metrics_every=1024)
    with pytest.raises(Killed):
        run(tmp_path / "stopped", told, progress=killed_at(steps[0] + 2))
    assert json.loads((tmp_path / "stopped" / checkpoints.POINTER).read_text())["step"] == steps[0]
    run(tmp_path / "stopped", settings(steps=48, metrics_every=1024))  # how often may change
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_checkpoints_by_the_clock_cost_a_twentieth_of_a_run_at_most(tmp_path, monkeypatch):
    assert len(checkpoints_by_the_clock(monkeypatch, tmp_path, Clock(of_a_checkpoint=10))) == 1


def test_an_l0_that_misses_its_target_is_told(tmp_path):
    done = run(tmp_path, settings(steps=6, l0=4))
    told = json.loads((tmp_path / "training.json").read_text())["quality"]
    for site, quality in done.quality.items():
        assert told[str(site)]["l0_asked"] == 4
        assert told[str(site)]["l0_missed_by"] == pytest.approx(quality.l0 / 4 - 1)
    assert [missed_by(l0, asked) for l0, asked in ((10.9, 10), (9.1, 10), (5, 0))] == [None, None, None]
    assert missed_by(24, 17) == pytest.approx(0.41, abs=0.01)
    assert missed_by(5, 10) == -0.5


def test_a_checkpoint_that_was_half_written_is_passed_over(tmp_path, monkeypatch):
    told = settings(steps=12, checkpoint_every=192)
    with pytest.raises(Killed):
        run(tmp_path / "a", told, progress=killed_at(5))
    # the next checkpoint has its folder and not its pointer
    half = tmp_path / "a" / "checkpoint-6"
    half.mkdir()
    (half / "learners.safetensors").write_bytes(b"half")
    run(tmp_path / "a", told)
    run(tmp_path / "whole", told)
    assert files(tmp_path / "a") == files(tmp_path / "whole")


def test_what_is_written_is_a_release_in_the_units_of_raw_activations(tmp_path):
    done = run(tmp_path / "r", settings(steps=10), texts="words", model_name="google/gemma-2-tiny")
    opened = load_dictionaries(done.folder)
    assert [(str(s), opened[s].tap) for s in opened.sites] == [
        ("0/att", Tap.Z),
        ("1/mlp", Tap.MLP_IN),
        ("1/res", Tap.RES),
    ]
    again = Evaluation(tiny_model("gemma2"), [tokens(windows(6, seed=99))], TARGETS).measure(opened)
    for site, quality in done.quality.items():
        assert again[site].fve == pytest.approx(quality.fve, abs=1e-6)
        assert again[site].l0 == quality.l0
    last = [row for row in read_metrics(done.folder) if row["last"]]
    assert {row["site"]: row["fve"] for row in last} == {str(s): q.fve for s, q in done.quality.items()}
    told = json.loads((done.folder / "0.att" / "cfg.json").read_text())["metadata"]
    assert told["hf_hook_name"] == "model.layers.0.self_attn.o_proj.input"
    assert (told["model_name"], told["dataset_path"]) == ("google/gemma-2-tiny", "words")


def test_learning_lowers_the_error(tmp_path):
    rows = [
        r for r in read_metrics(run(tmp_path, settings(steps=60, metrics_every=640)).folder) if r["site"] == "1/res"
    ]
    assert rows[-1]["fve"] > rows[0]["fve"] + 0.1


@pytest.mark.parametrize("centre", [True, False])
def test_more_sites_do_not_change_what_one_is_trained_on(tmp_path, centre):
    told = settings(steps=10, centre=centre)
    run(tmp_path / "all", told)
    run(tmp_path / "one", told, targets=TARGETS[2:])
    name = "1.res/sae_weights.safetensors"
    assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_logger_is_called_with_the_rows_of_metrics_jsonl(tmp_path):
    told = []
    run(tmp_path, settings(steps=6), log=told.extend)
    assert json.loads(json.dumps(told)) == read_metrics(tmp_path)
    assert {row["site"] for row in told} == {str(target.site) for target in TARGETS}


def test_a_finished_run_is_told_and_not_trained_again(tmp_path):
    told = settings(steps=6)
    first = run(tmp_path, told)
    weights = files(tmp_path)

    class Refuses(SparseTrainer):
        def step(self, batch):
            raise AssertionError("trained again")

    second = run(tmp_path, told, trainer=Refuses)
    assert second.quality == first.quality
    assert second.dead == first.dead
    assert files(tmp_path) == weights


def test_training_goes_on_from_dictionaries(tmp_path):
    first = run(tmp_path / "first", settings(steps=15))
    start = load_dictionaries(first.folder)
    started = run(tmp_path / "more", settings(steps=1, lr=1e-9), start=start)
    for site in start:
        # the first filling is the same, so nothing moved but rounding
        torch.testing.assert_close(
            load_dictionaries(started.folder)[site].W_enc, start[site].W_enc, rtol=1e-4, atol=1e-5
        )
    fresh = run(tmp_path / "fresh", settings(steps=1, lr=1e-9))
    assert fresh.quality[Site.parse("1/res")].fve < started.quality[Site.parse("1/res")].fve


def test_another_run_in_the_folder_is_refused(tmp_path):
    told = settings(steps=12, checkpoint_every=192)
    with pytest.raises(Killed):
        run(tmp_path, told, progress=killed_at(5))
    with pytest.raises(BadFile, match=r"holds another run: settings .* Give another --out"):
        run(tmp_path, settings(steps=13, checkpoint_every=192))
    with pytest.raises(BadFile, match="targets"):
        run(tmp_path, told, targets=TARGETS[:1])
    with pytest.raises(BadFile, match="model_digest"):
        run(tmp_path, told, model=tiny_model("gemma2", seed=3))
    # how often it reports may change
    run(tmp_path, settings(steps=12, checkpoint_every=64, metrics_every=64))


@pytest.mark.parametrize("victim", ["learners.safetensors", "buffer.safetensors"])
def test_a_damaged_checkpoint_is_told(tmp_path, victim):
    told = settings(steps=12, checkpoint_every=192)
    with pytest.raises(Killed):
        run(tmp_path, told, progress=killed_at(5))
    path = next(tmp_path.glob(f"checkpoint-*/{victim}"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadFile, match=r"checkpoint.json cannot be read .* Remove the folder to begin again"):
        run(tmp_path, told)


def test_a_checkpoint_of_another_version_is_told(tmp_path):
    (tmp_path / checkpoints.POINTER).write_text('{"version": 99}')
    with pytest.raises(BadFile, match="of version 99, and this saeflow writes 1"):
        checkpoints.load(tmp_path)


def test_a_full_disk_is_told_before_training_begins(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"two checkpoints, one replacing the other, takes? .* GB left") as full:
        run(tmp_path, settings(steps=12, checkpoint_every=64))
    assert full.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_is_told_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    told = settings(steps=12, checkpoint_every=192)
    with pytest.raises(Killed):
        run(tmp_path, told, progress=killed_at(4))
    kept = (tmp_path / checkpoints.POINTER).read_text()

    def full(tensors, path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(OSError, match=r"learners.safetensors cannot be written: no space left on device") as error:
            run(tmp_path, told)
    assert error.value.errno == errno.ENOSPC
    assert (tmp_path / checkpoints.POINTER).read_text() == kept
    run(tmp_path, told)
    run(tmp_path / "whole", told)
    assert (
        files(tmp_path)["1.res/sae_weights.safetensors"] == files(tmp_path / "whole")["1.res/sae_weights.safetensors"]
    )


def test_targets_that_share_a_site_and_layers_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match=r"targets at 1/res, 1/res. Give one a site"):
        run(tmp_path, settings(), targets=(TARGETS[2], TARGETS[2]))
    with pytest.raises(InvalidArgument, match="targets at no site"):
        run(tmp_path, settings(), targets=())
    with pytest.raises(InvalidArgument, match="L0 50 of a dictionary of 30 features at 0/att"):
        run(tmp_path, settings("topk", l0=50))
    with pytest.raises(InvalidArgument, match="a transcoder with topk at 1/mlp has no architecture in sae-lens"):
        run(tmp_path, settings("topk"))
    with pytest.raises(UnknownSite, match="no layer 9"):
        run(tmp_path, settings(), targets=(TrainingTarget(Site.parse("9/res"), Tap.RES, 8),))


def test_training_that_diverges_is_told(tmp_path):
    class Diverging(SparseTrainer):
        def step(self, batch):
            super().step(batch)
            self.state()[0]["1.res/W_enc"][0, 0] = float("nan")

    with pytest.raises(InvalidArgument, match=r"weights at 1/res are not finite, .*Give a lower --lr"):
        run(tmp_path, settings(), trainer=Diverging)


def test_a_last_line_cut_by_a_kill_is_left_out_and_a_damaged_one_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1}]
    path.write_text('{"st\n{"step": 1}\n')
    with pytest.raises(BadFile, match="line 1 is no JSON"):
        read_metrics(tmp_path)
    path.unlink()
    with pytest.raises(BadFile, match="Give the folder of a training run"):
        read_metrics(tmp_path)


def test_massive_rows_are_left_out_of_training_at_their_site_alone_and_counted(tmp_path):
    """A tenth of the rows of one site, and none of the others, are massive by the ratio given."""
    model = tiny_model("gemma2")
    h = model.capture(tokens(windows()), [t.read for t in TARGETS])
    squares = h[TARGETS[2].read][:, 1:].flatten(0, 1).square().sum(1)
    ratio = float(squares.quantile(0.9) / squares.median())
    done = run(tmp_path / "all", settings(steps=10, massive=ratio), targets=TARGETS[1:])
    assert 0.05 * 640 < done.massive[TARGETS[2].site] < 0.15 * 640
    told = json.loads((tmp_path / "all" / "training.json").read_text())
    assert told["quality"]["1/res"]["massive_in_training"] == done.massive[TARGETS[2].site]
    assert told["quality"]["1/res"]["massive"] > 0
    assert told["settings"]["massive"] == ratio
    run(tmp_path / "one", settings(steps=10, massive=ratio), targets=TARGETS[2:])
    name = "1.res/sae_weights.safetensors"
    assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    told = settings(steps=10, massive=ratio, checkpoint_every=192)
    with pytest.raises(Killed):
        run(tmp_path / "stopped", told, targets=TARGETS[1:], progress=killed_at(5))
    again = run(tmp_path / "stopped", told, targets=TARGETS[1:])
    assert again.massive == done.massive
    assert files(tmp_path / "stopped") == files(tmp_path / "all")
    assert run(tmp_path / "stopped", told, targets=TARGETS[1:]).massive == done.massive


def test_the_models_loss_is_measured_at_the_end_or_each_time(tmp_path):
    for each in (False, True):
        done = run(tmp_path / str(each), settings(steps=12, metrics_every=256, loss_every_time=each))
        rows = read_metrics(done.folder)
        assert [row["loss_added"] is not None for row in rows] == [each or row["last"] for row in rows]
