"""Ctrl-C is one line and exit code 130, whatever was being done when it came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

KILL = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
MOMENTS = {
    "the first import": f"sys.meta_path.insert(0, type('', (), {{'find_spec': lambda *_: exec({KILL!r})}}))",
    "an import that swallows it": "def now():\n    import late\n",
    "a command": f"def now():\n    {KILL}\n",
    "an error made of it": (
        "def now():\n"
        "    try:\n"
        f"        {KILL}\n"
        "    except KeyboardInterrupt:\n"
        "        pass\n"
        "    raise ModuleNotFoundError('could not import')\n"
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_is_one_line_and_130(tmp_path, moment):
    (tmp_path / "late.py").write_text(f"try:\n    {KILL}\nexcept BaseException:\n    pass\n")
    added = "from saeflow.cli.app import app\napp.command(now)" if "def now" in MOMENTS[moment] else ""
    code = (
        f"import sys\nfrom saeflow.cli import main\n{MOMENTS[moment]}\n{added}\nsys.argv = ['saeflow', 'now']\nmain()"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "saeflow: interrupted\n")
