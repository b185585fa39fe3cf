"""The pool gives what one process gives, loses one unit with a worker, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from saeflow.engines import ENGINES, InProcess, device_of_worker, open_engine
from saeflow.engines.worker import Slot, holds, pack, run_unit
from saeflow.errors import BadFile, InvalidArgument, MissingExtra, WorkerLost
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import load_model

from ..matching.planted import plant
from ..sources.tiny_models import tiny_model
from .work import UNITS, Fatal, odd, refuse, rows, square, start

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool():
    with open_engine("pool", workers=2) as engine:
        yield engine


def numbered(units=UNITS):
    return enumerate(units)


def test_every_engine_is_opened_by_its_name_and_imports_nothing_heavy():
    code = "import sys, saeflow.engines; print('torch' in sys.modules, 'ray' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == ["False", "False"]
    assert isinstance(open_engine(), InProcess)
    assert ENGINES[0] == "here"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "slurm"}, "no engine 'slurm'"),
        ({"name": "here", "workers": 3}, "this one process"),
        ({"name": "pool", "workers": 0}, "workers = 0"),
        ({"name": "pool", "cpus": 0}, "cpus = 0"),
        ({"name": "pool", "gpus": 1}, "hands out no GPUs"),
        ({"name": "here", "address": "auto"}, "takes no address"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(arguments, words):
    with pytest.raises(InvalidArgument, match=words):
        open_engine(**arguments)


def test_ray_without_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[ray\]'"):
        open_engine("ray")


def test_a_pool_gives_what_one_process_gives_and_takes_no_more_than_it_has_places_for(pool):
    drawn, ended, most = 0, [], 0

    def units():
        nonlocal drawn
        for found in numbered():
            drawn += 1
            yield found

    for number, result in pool.run(square, units(), name="squares"):
        most = max(most, drawn - len(ended))
        ended.append((number, result))
    assert sorted(ended) == list(InProcess().run(square, numbered(), name="squares"))
    assert most == pool.workers == 2


def test_rows_of_a_results_folder_are_the_same_bytes(pool, tmp_path):
    told = []
    start(tmp_path / "here").run(rows)
    start(tmp_path / "pool").run(rows, lambda *now: told.append(now), engine=pool)
    files = {path.name: path.read_bytes() for path in (tmp_path / "here" / "rows").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "pool" / "rows").iterdir()}
    assert len(files) == len(UNITS)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert (told[0][0], told[-1]) == (0, (12, 12, "done"))


def test_a_lost_worker_costs_its_unit_and_no_other(pool, tmp_path):
    found = sorted(pool.run(Fatal(tmp_path, deaths=2), numbered(), name="fatal"))
    assert found == [(n, n) for n in range(12)]
    begun = [path.name.split(".")[0] for path in tmp_path.iterdir()]
    assert {n: begun.count(str(n)) for n in range(12)} == {n: 3 if n == 5 else 1 for n in range(12)}


def test_a_unit_that_ends_every_worker_is_named_and_given_up(pool, tmp_path):
    with pytest.raises(WorkerLost, match=r"fatal: 4 workers .* unit \{.*'n': 5\}.*exit code -9"):
        list(pool.run(Fatal(tmp_path, deaths=99), numbered(), name="fatal"))
    assert len(list(tmp_path.glob("5.*"))) == 4
    assert len(list(pool.run(square, numbered(), name="squares"))) == 12, "the pool goes on"


def test_what_a_unit_raises_comes_through_as_itself_with_its_place_and_is_not_tried_again(pool):
    with pytest.raises(BadFile, match=r"unit 0 is bad") as raised:
        list(pool.run(refuse, numbered(UNITS[:1]), name="refused"))
    assert "in a worker on" in raised.value.__notes__[0]
    assert "in refuse" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Odd: this and that"):
        list(pool.run(odd, numbered(UNITS[:1]), name="odd"))


def test_work_that_cannot_be_sent_is_refused_before_a_process_starts():
    with open_engine("pool", workers=1) as engine:
        for work in (lambda unit: unit, load_model):
            unsent = work if work is not load_model else _Holds(torch.zeros(2, 2))
            with pytest.raises(InvalidArgument, match="opened by name"):
                list(engine.run(unsent, numbered(), name="unsent"))
        with pytest.raises(InvalidArgument, match="built in memory"):
            list(engine.run(_Holds(tiny_model("llama")), numbered(), name="unsent"))
        held = plant().dictionaries
        in_memory = DictionarySet("planted", "", dict.fromkeys(held, lambda: None))
        with pytest.raises(InvalidArgument, match="'planted' were put together in memory"):
            list(engine.run(_Holds(in_memory), numbered(), name="unsent"))
        assert not engine._processes


class _Holds:
    def __init__(self, thing):
        self.thing = thing

    def __call__(self, unit):
        return str(self.thing)


def test_a_worker_opens_by_name_what_it_is_sent_and_keeps_one_work(monkeypatch):
    monkeypatch.setattr("saeflow.engines.worker._held", {})
    monkeypatch.setattr("saeflow.engines.worker._slot", Slot())  # what it is at the end is put back
    threads = torch.get_num_threads()
    some = load_dictionaries("demo").only_sites(list(load_dictionaries("demo"))[:3])
    sent, other = pack(_Holds(some), "set"), pack(square, "squares")
    assert len(sent.data) < 2000
    try:
        assert run_unit(sent.key, lambda: sent, None, Slot()).result() == repr(some)
        assert run_unit(sent.key, pytest.fail, None, Slot()).result() == repr(some)
        assert run_unit(other.key, lambda: other, {"n": 3}, Slot()).result() == 9
        assert not holds(sent.key)
        assert torch.get_num_threads() == 1
        assert device_of_worker("cpu") == "cpu"
        run_unit("again", lambda: other, {"n": 3}, Slot(gpus=1))
        assert device_of_worker("cpu") == "cuda"
    finally:
        torch.set_num_threads(threads)


def test_another_version_of_saeflow_in_a_worker_is_refused(monkeypatch):
    sent = pack(square, "squares")
    monkeypatch.setattr("saeflow.engines.worker.__version__", "9.9")
    with pytest.raises(InvalidArgument, match=r"has saeflow 9\.9, and saeflow .* sent it"):
        run_unit("new", lambda: sent, {"n": 1}, Slot()).result()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_driver_that_ends_takes_its_workers_along_and_the_run_goes_on(tmp_path, how):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, "-m", "tests.engines.work", str(tmp_path)]
    driver = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    rows_there = tmp_path / "results" / "rows"
    until(lambda: (tmp_path / "waiting").exists() and len(list(rows_there.glob("0*"))) == 11, driver)
    workers = [int(path.suffix[1:]) for path in tmp_path.glob("worker.*")]
    if how is signal.SIGINT:
        os.killpg(driver.pid, how)
    else:
        driver.kill()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode != 0
    assert said.count("Traceback") == (how is signal.SIGINT), "the driver's own, and none of a worker"
    until(lambda: not any(is_running(worker) for worker in workers))
    again = start(tmp_path / "results")
    assert (again.done, again.record.finished) == (11, None)
    again.run(rows)
    start(tmp_path / "whole").run(rows)
    for path in (tmp_path / "whole" / "rows").iterdir():
        assert path.read_bytes() == (rows_there / path.name).read_bytes()


def until(holds_now, driver=None):
    give_up = time.monotonic() + 120
    while not holds_now():
        assert driver is None or driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.02)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
