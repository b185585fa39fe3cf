"""What the README tells people to do works."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_of_python_run(tmp_path):
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert "s(R)" in done.stdout
    assert (tmp_path / "graph.html").stat().st_size > 10_000


def test_every_file_it_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_picture_is_that_of_the_command_under_it(tmp_path):
    words = re.search(r"<sub>`saeflow (graph demo .*?) --out", README)
    assert words is not None
    picture = tmp_path / "figure.svg"
    command = [sys.executable, "-c", "from saeflow.cli import main; main()", *words[1].split()]
    subprocess.run([*command, "--out", str(picture)], check=True, capture_output=True)
    shipped = ROOT / "docs" / "images" / "demo-graph.svg"
    assert picture.read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")
