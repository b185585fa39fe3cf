"""The lock of `make demo` and `make test`: it meets pyproject.toml, and every package has its hashes."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lock():
    spec = importlib.util.spec_from_file_location("lock", ROOT / "scripts" / "lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lock_meets_what_pyproject_asks_for(lock):
    assert lock.problems() == []


def test_a_lock_that_pins_too_old_a_version_is_a_problem(lock, monkeypatch):
    newer = lock.Requirement("numpy>=99")
    monkeypatch.setattr(lock, "needed", lambda extras: [newer])
    assert [problem.rpartition(" of ")[2] for problem in lock.problems()] == ["numpy>=99", "numpy>=99"]


@pytest.mark.parametrize("name", ["demo", "test", "torch", "cuda"])
def test_every_package_is_pinned_with_hashes_and_no_index_is_named(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]
    assert entries
    assert all(re.match(r"[\w.-]+==\S+", entry) and "--hash=sha256:" in entry for entry in entries)
    assert "://" not in text


def test_the_demo_installs_no_more_than_the_library_needs(lock):
    assert not lock.pins("demo").keys() & {"ray", "mkdocs", "playwright", "pytest", "fastapi", "schemathesis"}
    assert lock.pins("demo").keys() < lock.pins("test").keys()
