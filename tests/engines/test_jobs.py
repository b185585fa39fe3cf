"""Every long job through a pool writes the bytes that one process writes."""

from dataclasses import replace

import pytest
import torch

from saeflow.engines import open_engine
from saeflow.experiments.deactivation import run_deactivation
from saeflow.experiments.methods import top_k
from saeflow.experiments.origins import run_origins
from saeflow.experiments.results import RunRequest
from saeflow.experiments.settings import DeactivationSize, TransitionSize
from saeflow.experiments.transition.run import run_transition
from saeflow.matching.build import build_atlas
from saeflow.steering.sweep.run import run_sweep

from ..experiments import transition_world
from ..experiments.killed_run import SAMPLES
from ..experiments.planted import LAYER, plant
from ..experiments.planted_tables import cosine
from ..steering import sweep_world
from .named import Named, compare


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    planted = plant()
    return Named(tmp_path_factory.mktemp("planted"), planted.model, planted.dictionaries)


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    world = transition_world.plant()
    return Named(tmp_path_factory.mktemp("still"), world.model, world.dictionaries)


@pytest.fixture(scope="module")
def pool():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker's
    with open_engine("pool", workers=1) as engine:
        yield engine
    torch.set_num_threads(before)


def request(name, **arguments):
    return RunRequest(name, "planted", "planted", 0, ("planted",), {}, arguments)


def origins(named, out, engine):
    told = request("origins", layers=[0, LAYER, 2], max_length=64)
    methods = [top_k("cosine", cosine(plant()))]
    run_origins(named.model, named.dictionaries, methods, lambda: SAMPLES, request=told, out=out, engine=engine)


def deactivation(named, out, engine):
    strategies = [top_k("top-1", cosine(plant()))]
    run_deactivation(
        named.model,
        named.dictionaries,
        strategies,
        lambda: SAMPLES[:4],
        DeactivationSize(),
        request=request("deactivation", layers=[LAYER]),
        out=out,
        engine=engine,
    )


def sweep(named, out, engine):
    inputs = replace(sweep_world.inputs(), model=named.model, dictionaries=named.dictionaries)
    run_sweep(inputs, sweep_world.design(), lambda _: sweep_world.WordJudge(), out=out, engine=engine)


def atlas(named, out, engine):
    build_atlas(named.dictionaries, out=out, k=3, engine=engine)


@pytest.mark.parametrize("job", [origins, deactivation, sweep, atlas])
def test_a_pool_writes_the_bytes_of_one_process(named, pool, tmp_path, job):
    job(named, tmp_path / "here", None)
    job(named, tmp_path / "pool", pool)
    compare(tmp_path / "here", tmp_path / "pool")


def test_so_does_a_transition_whose_workers_read_the_fits_from_the_folder(still, pool, tmp_path):
    protocol = TransitionSize(((transition_world.A, transition_world.B),), k=(1, None), loss_texts=1)
    for name, engine in (("here", None), ("pool", pool)):
        run_transition(
            still.model,
            still.dictionaries,
            protocol,
            transition_world.texts,
            request=request("transition"),
            out=tmp_path / name,
            engine=engine,
        )
    compare(tmp_path / "here", tmp_path / "pool")
