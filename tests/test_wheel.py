"""The wheel holds what the package needs: it is built, installed without the source tree, and used."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "saeflow"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    ran = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode and "hatchling" in ran.stderr:
        pytest.skip("the build backend (hatchling) cannot be fetched from here")
    assert not ran.returncode, ran.stderr
    return next(folder.glob("saeflow-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel alone, and how to run Python on it."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)

    def run(code, cwd):
        environment = {**os.environ, "PYTHONPATH": str(target)}
        return subprocess.run(
            [sys.executable, "-P", "-c", code], check=False, capture_output=True, text=True, cwd=cwd, env=environment
        )

    return target, run


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    there = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("saeflow/")}
    files = (path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {f"saeflow/{path.relative_to(SOURCE).as_posix()}" for path in files} == there


def test_the_installed_package_is_the_one_that_runs_and_does_the_main_job(installed, tmp_path):
    target, run = installed
    ran = run(
        "import sys, saeflow; print(saeflow.__file__); sys.argv = ['saeflow', 'demo', '-o', 'flow.html'];"
        "from saeflow.cli import main; main()",
        tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(target))
    assert (tmp_path / "flow.html").is_file()


def test_data_files_are_found(installed, tmp_path):
    _, run = installed
    ran = run(
        "from saeflow.sources.releases import read_release; from saeflow.steering import themes, load_theme;"
        "from saeflow.web.app import assets;"
        "print(len(read_release('gemma-scope-2b').sites), len(themes('demo')), 'index.html' in assets())",
        tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["78", "8", "True"]
