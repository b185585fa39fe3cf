"""What is read from outside is bounded: by kind of file, size, depth, lines and members. The command says so."""

import gzip
import io
import os
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from saeflow import reading
from saeflow.errors import BadFile, CorruptAtlas, SaeflowError
from saeflow.experiments.sampling import open_dataset
from saeflow.ids import Site
from saeflow.labels.search import build_index, search
from saeflow.labels.words import FeatureWords, WordsFolder, write_words
from saeflow.matching.rows import checked
from saeflow.sources.formats import load
from saeflow.sources.formats.configs import read_json
from saeflow.sources.releases import read_release
from saeflow.steering import load_plan, load_theme

READERS = {
    "config": read_json,
    "manifest": lambda path: load(path.parent),
    "plan": load_plan,
    "recipe": lambda path: read_release(str(path)),
    "texts": lambda path: list(open_dataset(str(path)).read(0)),
    "theme": lambda path: load_theme(str(path), "demo"),
    "words": lambda path: list(WordsFolder(path.parent).site(SITE)),
}
NAMES = {
    "config": "cfg.json",
    "manifest": "release.json",
    "plan": "plan.json",
    "recipe": "mine.toml",
    "texts": "a.jsonl",
    "theme": "mine.toml",
    "words": "1.res.jsonl.gz",
}


SITE = Site.parse("1/res")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["holes", "pipe", "device", "folder"])
def test_gigabytes_of_holes_a_pipe_a_device_or_a_folder_are_refused_at_once(reader, kind, tmp_path: Path):
    path = tmp_path / NAMES[reader]
    if kind == "holes":
        path.write_bytes(b"")
        os.truncate(path, 6 << 30)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    began = time.monotonic()
    with pytest.raises(SaeflowError):
        READERS[reader](path)
    assert time.monotonic() - began < 5


DEEP = {
    "config": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "manifest": b'{"format": ' + b"[" * 300 + b"]" * 300 + b"}",
    "plan": b"[" * 100_000 + b"]" * 100_000,
    "recipe": b"a = " + b"[" * 5000 + b"]" * 5000,
    "texts": b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}\n",
    "theme": b".".join([b"a"] * 300_000) + b" = 1",
    "words": gzip.compress(b'{"label": ' + b"[" * 5000 + b"]" * 5000 + b"}\n"),
}


@pytest.mark.parametrize("reader", DEEP)
def test_what_is_nested_deeper_than_any_use_is_refused(reader, tmp_path: Path):
    (tmp_path / NAMES[reader]).write_bytes(DEEP[reader])
    began = time.monotonic()
    with pytest.raises(SaeflowError, match="deep"):
        READERS[reader](tmp_path / NAMES[reader])
    assert time.monotonic() - began < 5


def test_a_hundred_levels_are_read_and_one_more_is_not(tmp_path: Path):
    for depth in (reading.DEPTH, reading.DEPTH + 1):
        (tmp_path / f"{depth}.json").write_text("[" * depth + "]" * depth)
    assert reading.read_json(tmp_path / "100.json") != []
    with pytest.raises(ValueError, match="more than 100 deep"):
        reading.read_json(tmp_path / "101.json")


@pytest.mark.parametrize("when", ["1979-05-27T07:32:00Z", "1979-05-27", "07:32:00"])
@pytest.mark.parametrize("reader", ["recipe", "theme"])
def test_a_date_in_toml_is_refused_by_name(reader, when, tmp_path: Path):
    (tmp_path / "mine.toml").write_text(f"model = {when}\n")
    with pytest.raises(BadFile, match="holds the date"):
        READERS[reader](tmp_path / "mine.toml")


def test_a_text_is_read_up_to_its_last_byte_and_its_line_ends_are_plain(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("ä\r\nb\rc".encode())
    assert reading.read_text(tmp_path / "a.txt", 7) == "ä\nb\nc"
    with pytest.raises(ValueError, match="it has 7 bytes, and at most 6 are read"):
        reading.read_text(tmp_path / "a.txt", 6)
    with pytest.raises(ValueError, match="has more"):
        reading.read_bytes(Path("/proc/self/status"))


@pytest.mark.parametrize(
    ("limit", "lines"), [("LINE", ["x" * 2000]), ("LINES", [""] * 200), ("UNPACKED", ["x" * 99] * 100)]
)
def test_a_small_gzip_does_not_unpack_without_end(limit, lines, tmp_path: Path, monkeypatch):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    assert list(reading.gzip_lines(path)) == lines
    monkeypatch.setattr(reading, limit, 100)
    monkeypatch.setattr(reading, "RATIO", 10)
    with pytest.raises(ValueError, match="it unpacks to"):
        list(reading.gzip_lines(path))
    with pytest.raises(ValueError, match="unpack to more than 50"):
        reading.unpacked(path.read_bytes(), 50)


def test_zeros_behind_a_gzip_are_passed_over_when_few_and_refused_when_many(tmp_path: Path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a\nb") + bytes(100))
    assert list(reading.gzip_lines(path)) == ["a", "b"]
    os.truncate(path, 6 << 30)
    with pytest.raises(ValueError, match="no part of what is packed"):
        list(reading.gzip_lines(path))


def _npz(path: Path, arrays: dict[str, np.ndarray], *, packed: bool = False) -> Path:
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def test_an_archive_of_long_doubles_very_many_members_or_zeros_is_refused(tmp_path: Path, monkeypatch):
    a = np.ones((4, 3), np.float32)
    good = {"W_enc": a.T, "W_dec": a, "b_enc": a[:, 0], "b_dec": a[0], "threshold": a[:, 0]}
    path = tmp_path / "params.npz"
    _npz(path, good | {"W_dec": a.astype(np.longdouble)})
    with pytest.raises(BadFile, match="expected floating-point numbers"):
        _ = load(path, SITE).W_dec
    _npz(path, good, packed=True)
    monkeypatch.setattr("saeflow.sources.formats.tensors.UNPACKED", 1)
    monkeypatch.setattr("saeflow.sources.formats.tensors.RATIO", 1)
    with pytest.raises(BadFile, match="more than 1 times that"):
        load(path, SITE)
    _npz(path, good)
    monkeypatch.setattr(reading, "MEMBERS", 4)
    with pytest.raises(BadFile, match="it has 5 members, and at most 4"):
        load(path, SITE)
    monkeypatch.setattr(reading, "DIRECTORY", 100)
    with pytest.raises(BadFile, match=r"its directory has .* and at most 100 are read"):
        load(path, SITE)


def test_a_zip_that_claims_a_directory_of_gigabytes_takes_no_memory(tmp_path: Path):
    path = tmp_path / "a.npz"
    path.touch()
    os.truncate(path, 3 << 30)
    with path.open("r+b") as file:
        file.seek(0, io.SEEK_END)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 3 << 30, 0, 0))
    with pytest.raises(ValueError, match="its directory"), reading.opened_zip(path):
        pass
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("a", b"b")
    with reading.opened_zip(tmp_path / "good.zip") as archive:
        assert archive.read("a") == b"b"


def test_an_index_of_words_and_a_table_longer_than_they_say_are_not_read_whole(tmp_path: Path):
    write_words(tmp_path, SITE, [FeatureWords("a label")])
    index = build_index(tmp_path)
    os.truncate(index, 6 << 30)
    table = tmp_path / "0.res-1.res.safetensors"
    table.write_bytes(struct.pack("<Q", 2) + b"{}")
    os.truncate(table, 6 << 30)
    began = time.monotonic()
    assert [hit.label for hit in search(tmp_path, "label")] == ["a label"]
    with pytest.raises(CorruptAtlas, match="cannot be read"):
        checked(table, "0" * 64)
    assert time.monotonic() - began < 5


def test_a_header_of_safetensors_is_bounded(tmp_path: Path):
    path = tmp_path / "sae.safetensors"
    path.write_bytes(struct.pack("<Q", 90 << 20) + b"{}")
    os.truncate(path, 100 << 20)
    with pytest.raises(ValueError, match="its header has 94,371,840 bytes"):
        reading.safetensors(path)


def test_the_command_says_it_in_one_line_and_ends_with_2(tmp_path: Path):
    (tmp_path / "release.json").write_text('{"format": ' + "[" * 99_999 + "]" * 99_999 + "}")
    ran = subprocess.run(
        [sys.executable, "-c", "from saeflow.cli import main; main()", "info", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert "more than 100 deep inside each other" in ran.stderr


def test_a_message_that_repeats_a_file_is_cut():
    told = str(BadFile(f"a.json: entry is {'x' * 9999}, expected another. Write it again."))
    assert len(told) < 4100
    assert told.startswith("a.json: entry is xxx")
    assert told.endswith("Write it again.")
