"""The planted dictionaries and their atlas, for all tests of flow."""

import pytest

from saeflow.matching.build import build_atlas

from ..matching.planted import plant


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def atlas(planted, tmp_path_factory):
    return build_atlas(planted.dictionaries, out=tmp_path_factory.mktemp("atlas"), k=5, release="planted")
