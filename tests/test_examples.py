"""Every example runs to its end: the script, and the notebooks with a kernel of their own."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS, NOTEBOOKS = sorted(EXAMPLES.glob("*.py")), sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("example", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(example, tmp_path):
    subprocess.run([sys.executable, str(example)], check=True, cwd=tmp_path, capture_output=True)


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own machinery; the notebook runs in another process
@pytest.mark.parametrize("example", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_every_cell_that_shows_something_shows_it(example, tmp_path):
    notebook = nbformat.read(example, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shows = [cell for cell in cells if "print(" in cell.source or "display(" in cell.source]
    assert all(cell.outputs for cell in shows)


@pytest.mark.parametrize("example", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(example):
    cells = nbformat.read(example, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_there_are_examples_of_each_kind():
    assert len(SCRIPTS) >= 1
    assert len(NOTEBOOKS) >= 5
