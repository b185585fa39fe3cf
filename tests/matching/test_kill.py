"""A build of an atlas that is killed goes on where it stopped, and ends in the same bytes."""

import os
import signal
import subprocess
import sys
import time

from saeflow.matching.atlas import open_atlas
from saeflow.sources.formats import save_release

from .planted import plant

SLOWLY = """
import sys, time
from saeflow.matching import build
from saeflow.sources.library import load_dictionaries

def progress(done, total, now):
    print(done, flush=True)
    time.sleep(0.02)

build.build_atlas(load_dictionaries(sys.argv[1]), out=sys.argv[2], k=3, progress=progress)
"""


def test_a_build_killed_by_the_system_loses_no_pair_and_repeats_none(tmp_path):
    release, whole, killed = tmp_path / "release", tmp_path / "whole", tmp_path / "killed"
    save_release(release, plant().dictionaries, name="planted", model="")
    command = [sys.executable, "-c", SLOWLY, str(release)]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    with subprocess.Popen([*command, str(killed)], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if int(line) == 7:
                os.kill(running.pid, signal.SIGKILL)
                break
    assert running.returncode == -signal.SIGKILL
    left = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.safetensors")}
    assert len(left) >= 14, "seven pairs were finished"
    assert not (killed / "atlas.json").exists(), "half an atlas is none"
    time.sleep(0.01)
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in killed.iterdir()}
    assert {name: (killed / name).stat().st_mtime_ns for name in left} == left, "no table was written twice"
    assert len(open_atlas(killed)) == len(open_atlas(whole)) > len(left)
