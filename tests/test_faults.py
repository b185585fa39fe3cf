"""The campaigns of faults/ find what they look for, and a short one finds nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent.parent / "faults"


def test_a_short_campaign_of_spoiled_files_finds_nothing():
    ran = subprocess.run(
        [sys.executable, str(FAULTS / "fuzz.py"), "--files", "81", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert sum(sum(counts.values()) for counts in told["counts"].values()) == 81
    assert len(told["counts"]) == 27


READERS = {
    "raises": "def read(place): raise IndexError('whatever')",
    "unpickles": "import pickle\ndef read(place): pickle.loads(b'cos\\ngetcwd\\n(tR.')",
    "runs a program": "import subprocess\ndef read(place): subprocess.run(['true'])",
    "writes": "def read(place): (place / 'more.txt').write_text('x')",
    "takes a terabyte": "import torch\ndef read(place): torch.zeros(1 << 38)",
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_bad_reader_is_found(reader, tmp_path):
    """Each of these is let go as long as the file is whole, and must be seen when it is spoiled."""
    code = f"""
import sys; sys.path.insert(0, {str(FAULTS)!r})
from pathlib import Path
import fuzz
{reader}
def only_spoiled(place):
    if (place / "a.txt").read_bytes() != b"whole":
        read(place)
bad = fuzz.Format("bad", lambda place: (place / "a.txt").write_text("whole"), only_spoiled)
counts, findings, _ = fuzz.fuzz([bad], Path({str(tmp_path)!r}), 20, 0)
assert len(findings) >= 15, (counts, findings)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


BAD_JOBS = {
    "goes on from half": (
        "kill.campaign(job, root, 4, 0).differs",
        "for _ in range(40): open(out / 'a.txt', 'a').write('x'); time.sleep(0.01)",
    ),
    "leaves its own behind": (
        "kill.campaign(job, root, 1, 0).differs",
        "(out / f'.a.{time.time_ns()}').touch(); (out / 'a.txt').write_text('x')",
    ),
    "says nothing of a full disk": (
        "[one for found in disk.campaign(job, root, ['limit'], 0, 0) for one in found.findings]",
        "try: (out / 'a.txt').write_text('x' * 99999)\n    except OSError: pass",
    ),
    "ends in a traceback": (
        "[one for found in disk.campaign(job, root, ['limit'], 0, 0) for one in found.findings]",
        "try: (out / 'a.txt').write_text('x' * 99999)\n    except OSError: raise RuntimeError('whatever')",
    ),
    "cannot be done by two": (
        "[one for found in disk.campaign(job, root, ['together'], 0, 0) for one in found.findings]",
        "(out / 'work').mkdir(); time.sleep(0.4); (out / 'work').rmdir(); (out / 'a.txt').write_text('x')",
    ),
    "believes what it finds": (
        "[one for found in disk.campaign(job, root, ['spoiled'], 4, 0) for one in found.findings]",
        (
            "kept = out / 'kept.txt'\n    kept.exists() or kept.write_text('x' * 99)\n    time.sleep(0.2)\n"
            "    (out / 'a.txt').write_bytes(kept.read_bytes())"
        ),
    ),
}


@pytest.mark.parametrize(("findings", "work"), BAD_JOBS.values(), ids=BAD_JOBS)
def test_a_bad_job_is_found(findings, work, tmp_path):
    """Each of these ends well when it is left alone."""
    code = f"""
import os, sys, time; sys.path.insert(0, {str(FAULTS)!r})
from pathlib import Path
import disk, kill
from jobs import Job
root = Path({str(tmp_path)!r})
os.environ["SAEFLOW_CACHE"] = str(root / "cache")
def command(out):
    out.mkdir(parents=True, exist_ok=True)
    {work}
    return ["--version"]
job = Job("bad", command)
found = {findings}
print(found)
assert found and "left alone" not in str(found), found
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]


def test_a_short_campaign_of_disks_finds_nothing():
    ran = subprocess.run(
        [sys.executable, str(FAULTS / "disk.py"), "--job", "labels fetch", "--fault", "limit,together", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    faults = {told["fault"]: told for told in json.loads(ran.stdout)}
    assert set(faults) == {"limit", "together"}
    assert faults["limit"]["refused"] == 1
