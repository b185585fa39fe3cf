"""A Gemma Scope release of one site on a hub of this machine, for the tests of byte ranges."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub, forget_session, point_at, recipe, serving
from layouts import Arrays, arrays, write_gemma_scope

from saeflow.errors import Unreachable
from saeflow.ids import Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.remote import ranges, transport
from saeflow.sources.remote.transport import Patience

SITE = Site.parse("24/res")
N, D = 3000, 32
DECODER = N * D * 4
NPZ = "layer_24/width_16k/average_l0_73/params.npz"
NPZ_RECIPE = f"""
[[files]]
part = "res"
repo = "google/gemma-scope-2b-pt-res"
paths = ["{NPZ}"]
layers = [24]
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    monkeypatch.setattr(ranges, "_CHECKED", set())
    monkeypatch.setattr(Patience, "wait", _no_waiting)
    with serving() as served:
        point_at(served, tmp_path / "cache", monkeypatch)
        yield served
    forget_session()


def _no_waiting(self: Patience, file: object, failed: int, cut: transport.Cut) -> None:
    if failed >= self.attempts or (cut.wait or 0) > self.longest:
        raise Unreachable(f"{file}: {cut}, {failed} times")


@pytest.fixture
def planted() -> Arrays:
    return arrays(n_features=N, d_in=D)


@pytest.fixture
def release(hub: Hub, planted: Arrays, tmp_path: Path) -> Callable[[], DictionarySet]:
    """A Gemma Scope release of one site; each call is a process that has opened nothing."""
    write_gemma_scope(tmp_path / "made", planted)
    hub.put("google/gemma-scope-2b-pt-res", tmp_path / "made" / "gemma-scope-2b-pt-res")
    name = recipe(tmp_path / "mine.toml", NPZ_RECIPE, layers=26)
    return lambda: load_dictionaries(name)


def size_of(hub: Hub) -> int:
    return max(map(len, hub.files.values()))


def same(dictionary: Dictionary, planted: Arrays) -> None:
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_array_equal(getattr(dictionary, name).numpy(), getattr(planted, name), err_msg=name)
    np.testing.assert_array_equal(dictionary.activation.threshold.numpy(), planted.threshold)
