"""The simulation of docs/scale.md counts what it says, on clusters whose answer is known."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale():
    path = ROOT / "scripts" / "simulate_scale.py"
    sys.path.insert(0, str(path.parent))  # as where the script is run
    spec = importlib.util.spec_from_file_location("simulate_scale", path)
    module = sys.modules["simulate_scale"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(path.parent))
    del sys.modules["simulate_scale"], sys.modules["cluster"]


def costs(scale, **changes):
    told = {"flop": 0.0, "row_byte": 0.0, "hash_byte": 0.0, "send": 0.0, "write": 0.0, "write_byte": 0.0}
    return scale.Costs(**(told | changes))


def units(scale, n, seconds=1.0, pieces=()):
    return [scale.Unit(tuple(pieces), seconds, 0.0) for _ in range(n)]


def test_equal_units_take_as_many_rounds_as_there_are_to_a_slot(scale):
    for nodes, rounds in ((1, 10), (2, 5), (100, 1)):
        found = scale.simulate([units(scale, 160)], costs(scale), scale.Machine(), nodes)
        assert found.seconds == pytest.approx(rounds)
        assert found.busy == pytest.approx(160 / (rounds * nodes * scale.SLOTS))


def test_a_phase_begins_when_the_last_has_ended_and_the_longest_unit_bounds_it(scale):
    work = [units(scale, 1, 5.0) + units(scale, 30), units(scale, 3)]
    assert scale.simulate(work, costs(scale), scale.Machine(), 10).seconds == pytest.approx(6)


def test_the_driver_bounds_the_rate(scale):
    found = scale.simulate([units(scale, 2000, 0.01)], costs(scale, send=0.1, write=0.05), scale.Machine(), 100)
    assert found.seconds == pytest.approx(2000 * 0.15, rel=0.01)
    assert found.driver == pytest.approx(1, abs=0.01)


def test_shared_storage_is_shared_and_what_a_node_has_read_it_keeps(scale):
    machine = scale.Machine(storage=10.0, link=5.0, memory=1000.0)
    piece = scale.Piece("one", 100.0, 0.0)
    for nodes, seconds in ((1, 100 / 5), (4, 4 * 100 / 10)):
        found = scale.simulate([units(scale, 64 * nodes, 0.0, [piece])], costs(scale), machine, nodes)
        assert found.seconds == pytest.approx(seconds)
        assert found.storage * found.seconds == pytest.approx(nodes * 100 / 10)


def test_a_cache_that_is_too_small_reads_again(scale):
    pieces = [scale.Piece(str(n), 100.0, 0.0) for n in range(5)]
    work = [scale.Unit((piece,), 0.0, 0.0) for _ in range(20) for piece in pieces * 4]
    read = {
        memory: (found := scale.simulate([work], costs(scale), scale.Machine(10.0, 10.0, memory), 1)).storage
        * found.seconds
        * 10
        for memory in (500.0, 300.0)
    }
    assert read[500.0] == pytest.approx(500)
    assert read[300.0] > 500


def test_shards_do_the_work_of_whole_pairs(scale):
    price = costs(scale, flop=1e-11)
    names = ["gemma-scope-2b@width=16k"]
    [whole] = scale.phases(names, price, None)
    prints, shards = scale.phases(names, price, 4096)
    assert len(whole) == 77
    assert len(shards) == 16 * 77
    assert len(prints) == 78
    assert sum(u.seconds for u in shards) == pytest.approx(sum(u.seconds for u in whole))


def test_the_page_shows_what_was_measured(scale):
    page = (ROOT / "docs" / "scale.md").read_text()
    assert all(line in page for line in scale.unit_costs())
    assert set(json.loads(scale.COSTS.read_text())["costs"]) | {"send"} == set(scale.Costs.__annotations__)
