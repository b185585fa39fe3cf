"""Files appear whole or not at all; what disks refuse is said in a sentence; what has changed is not believed."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile

import pytest

from saeflow import files
from saeflow.errors import NoSpace, NotWritable
from saeflow.files import add_check, add_sha256, agrees_with_check, atomic_file, check_sha256, file_lock, write_atomic


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail():
        with atomic_file(path) as part:
            part.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path, monkeypatch):
    code = (
        "import os, pathlib, sys\n"
        "from saeflow.files import atomic_file\n"
        "with atomic_file(pathlib.Path(sys.argv[1]) / 'shard.gz') as part:\n"
        "    part.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".shard.gz.")
    another_machine = tmp_path / left.name.replace(files._here(), "0" * 8)
    another_machine.touch()
    (tmp_path / ".own.txt").touch()
    with atomic_file(tmp_path / "other") as live:
        monkeypatch.setattr(files, "_SWEPT", set())
        write_atomic(tmp_path / "file", b"x")
        assert live.exists()
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == sorted([another_machine.name, ".own.txt", "file", "other"])


@pytest.mark.parametrize(
    ("number", "error", "says"),
    [
        (errno.ENOSPC, NoSpace, "no space left on device. Nothing that was there is lost. Free some space"),
        (errno.EDQUOT, NoSpace, "quota exceeded"),
        (errno.EROFS, NotWritable, "read-only file system. Give a folder that you may write to"),
        (errno.EACCES, NotWritable, "permission denied"),
    ],
)
def test_what_the_disk_refuses_is_said_in_a_sentence(tmp_path, monkeypatch, number, error, says):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def refused(**told):
        raise OSError(number, os.strerror(number), f"{told['dir']}/.file.1")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with pytest.raises(error, match=f"file cannot be written: .*{says}") as raised:
        write_atomic(path, b"new")
    assert raised.value.errno == number
    assert path.read_bytes() == b"old"


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(NoSpace, match="file too large"):
            write_atomic(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_an_error_of_another_file_is_left_as_it_is(tmp_path):
    def reads():
        with atomic_file(tmp_path / "out" / "file"):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "in" / "file"))

    with pytest.raises(PermissionError) as raised:
        reads()
    assert not isinstance(raised.value, NotWritable)


def test_libraries_that_tell_of_the_disk_in_a_text_are_understood(tmp_path):
    def writes(text):
        with atomic_file(tmp_path / "file"):
            raise RuntimeError(text)

    with pytest.raises(NoSpace, match="no space left"):
        writes('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })')
    with pytest.raises(NoSpace, match="no space left"):
        writes("database or disk is full")
    with pytest.raises(RuntimeError, match="another"):
        writes("another")


def test_every_change_of_sealed_bytes_is_found_or_left_to_their_reader():
    data = json.dumps({"answer": 5}).encode()
    whole = add_sha256(data)
    assert check_sha256(whole) == data
    assert check_sha256(data) == data  # never sealed
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        try:
            found = check_sha256(bytes(changed))
        except ValueError:
            continue
        with pytest.raises(ValueError, match="Extra data"):
            json.loads(found)


def test_values_with_a_checksum():
    told = add_check({"k": 3, "name": "ä", "check": "of before"})
    assert agrees_with_check(json.loads(json.dumps(told, indent=1)))
    assert not agrees_with_check({**told, "k": 4})
    assert agrees_with_check({"k": 4})


def test_only_one_process_is_inside_at_a_time(tmp_path):
    code = """
import pathlib, sys, time
from saeflow.files import file_lock
path = pathlib.Path(sys.argv[1]) / "file"
for _ in range(20):
    with file_lock(path):
        (path.parent / "inside").mkdir()  # fails where another is
        time.sleep(0.001)
        (path.parent / "inside").rmdir()
"""
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    with file_lock(tmp_path / "file") as waited:
        assert not waited
    assert list(tmp_path.iterdir()) == []
