"""Every example runs to its end."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path):
    subprocess.run([sys.executable, str(example)], check=True, cwd=tmp_path, capture_output=True)


def test_there_are_examples():
    assert EXAMPLES
