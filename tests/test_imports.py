"""What is imported when: counted, since counts do not depend on the machine and seconds do."""

import subprocess
import sys

HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "scipy",
    "matplotlib",
    "networkx",
    "safetensors",
    "huggingface_hub",
    "fastapi",
    "rich",
}
COUNT = """
import sys
before = set(sys.modules)
{use}
new = set(sys.modules) - before
print(len(new), *sorted({{name.partition(".")[0] for name in new}}))
"""
HELP = """
import contextlib, io
from saeflow.cli import main
sys.argv = ["saeflow", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
"""


def imported(use):
    """(how many modules `use` imports, the packages they are of) in a fresh interpreter."""
    ran = subprocess.run([sys.executable, "-c", COUNT.format(use=use)], check=True, capture_output=True, text=True)
    count, *packages = ran.stdout.split()
    return int(count), set(packages)


def test_the_library_imports_little_and_nothing_heavy():
    count, packages = imported("import saeflow")
    assert count <= 45
    assert not packages & HEAVY


def test_help_imports_the_command_line_and_nothing_heavy_but_what_draws_help():
    count, packages = imported(HELP)
    assert count <= 270
    assert packages & HEAVY == {"rich"}
    assert "cyclopts" in packages


def test_graphs_labels_and_the_explorer_import_no_pandas():
    _, packages = imported(
        "import saeflow.flow, saeflow.labels.exports, saeflow.labels.search, saeflow.web.app, saeflow.web.results"
    )
    assert "saeflow" in packages
    assert "pandas" not in packages


def test_a_search_by_words_imports_neither_torch_nor_scipy():
    _, packages = imported("import saeflow.steering.starts, saeflow.labels.search")
    assert "saeflow" in packages
    assert not packages & {"torch", "scipy", "pandas"}
