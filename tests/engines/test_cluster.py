"""On a cluster of several nodes the results are those of one process, also when a node is killed in the middle."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from saeflow.engines import Engine, open_engine
from saeflow.errors import BadFile, Unreachable
from saeflow.matching.build import build_atlas
from saeflow.sources.formats import save_release
from saeflow.sources.library import load_dictionaries

from ..matching.planted import plant
from .named import compare
from .work import UNITS, Fatal, refuse, square

pytest.importorskip("ray")

# Ray and its children announce their own future and leave their own sockets behind.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SMALL = {"object_store_memory": 80 << 20, "num_gpus": 0}


@dataclass
class Waits:
    """A work whose first unit on one node waits until that node is gone; the other nodes begin once it is there."""

    work: Callable[[Any], Any]
    folder: Path
    victim: str

    def __call__(self, unit):
        import ray

        (self.folder / f"unit.{time.monotonic_ns()}").touch()
        there = self.folder / "there"
        if ray.get_runtime_context().get_node_id() == self.victim:
            there.touch()
            time.sleep(300)
        while not there.exists():
            time.sleep(0.02)
        return self.work(unit)


class Disturbed(Engine):
    """An engine whose every work waits once."""

    def __init__(self, engine, folder, victim):
        self.engine, self.folder, self.victim = engine, folder, victim

    @property
    def workers(self):
        return self.engine.workers

    def run(self, work, units, *, name):
        return self.engine.run(Waits(work, self.folder, self.victim), units, name=name)


# one test, since a cluster takes seconds to start
def test_two_nodes_of_which_one_is_killed_give_what_one_process_gives_byte_for_byte(tmp_path):
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **SMALL})
    try:
        node = made.add_node(num_cpus=1, **SMALL)
        with open_engine("ray", address=made.address) as engine:
            assert engine.workers == 0, "nothing is joined before the first run"
            results_and_errors_come_through(engine)
            assert engine.workers == 2
            a_lost_worker_costs_its_unit(engine, tmp_path / "fatal")
            an_atlas_survives_the_loss_of_a_node(engine, made, node, tmp_path)
    finally:
        made.shutdown()


def results_and_errors_come_through(engine):
    found = sorted(engine.run(square, enumerate(UNITS), name="squares"))
    assert found == [(n, n**2) for n in range(12)]
    with pytest.raises(BadFile, match="unit 0 is bad") as raised:
        list(engine.run(refuse, enumerate(UNITS[:1]), name="refused"))
    assert "in refuse" in raised.value.__notes__[0]


def a_lost_worker_costs_its_unit(engine, folder):
    folder.mkdir()
    found = sorted(engine.run(Fatal(folder, deaths=1), enumerate(UNITS[4:7]), name="fatal"))
    assert found == [(0, 4), (1, 5), (2, 6)]
    assert sorted(path.name[0] for path in folder.iterdir()) == ["4", "5", "5", "6"]


def an_atlas_survives_the_loss_of_a_node(engine, cluster, node, folder):
    save_release(folder / "saes", plant().dictionaries, name="planted", model="")
    saes, begun = load_dictionaries(folder / "saes"), folder / "begun"
    begun.mkdir()

    def kill():
        while not (begun / "there").exists():
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        build_atlas(saes, out=folder / "ray", k=3, engine=Disturbed(engine, begun, node.node_id))
        build_atlas(saes, out=folder / "here", k=3)
    finally:
        torch.set_num_threads(threads)
    compare(folder / "here", folder / "ray")
    killer.join(60)
    assert not killer.is_alive(), "the node was killed in the middle"
    pairs = len(list((folder / "here").glob("*.safetensors"))) / 2
    assert len(list(begun.glob("unit.*"))) > pairs, "what the node was at was begun again"


def test_an_address_where_nothing_listens_is_said_at_once(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{free.getsockname()[1]}"
        for given in (address, f"ray://{address}"):
            with pytest.raises(Unreachable, match=rf"at '{given}' cannot be joined .*refused"):
                list(open_engine("ray", address=given).run(square, enumerate(UNITS), name="squares"))


def test_a_cluster_that_does_not_take_us_is_said(monkeypatch):
    import ray

    def unreachable(**_):
        raise ConnectionError("no answer")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", unreachable)
    with pytest.raises(Unreachable, match=r"at 'auto' cannot be joined \(no answer\)"):
        list(open_engine("ray", address="auto").run(square, enumerate(UNITS), name="squares"))
