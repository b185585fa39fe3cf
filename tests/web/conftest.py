"""One server for the tests of a module."""

import pytest

from .serving import Typist, serving


@pytest.fixture(scope="package", autouse=True)
def own_cache(tmp_path_factory):
    """The index of the pack's words is written here, not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEFLOW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def served(own_cache):
    """The demo pack with a made-up model."""
    with serving(worker=Typist()) as server:
        yield server


@pytest.fixture(scope="module")
def client(served):
    with served.client() as client:
        yield client
