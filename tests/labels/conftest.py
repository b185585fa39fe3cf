import pytest

from .service import serving


@pytest.fixture
def service():
    with serving() as made:
        yield made


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    """Nothing of this machine's cache, key or settings is used or changed."""
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    for name in ("NEURONPEDIA_API_KEY", "SAEFLOW_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
