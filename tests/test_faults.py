"""The campaigns of faults/ find what they look for, and a short one finds nothing here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent.parent / "faults"


def test_a_short_campaign_of_spoiled_files_finds_nothing():
    ran = subprocess.run(
        [sys.executable, str(FAULTS / "fuzz.py"), "--files", "170", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert sum(sum(counts.values()) for counts in told["counts"].values()) == 170
    assert len(told["counts"]) == 17


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
