"""No setting of the machine that runs the tests reaches a judge."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "SAEFLOW_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
