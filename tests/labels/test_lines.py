"""One line is read out of many, from a file that any reader of gzip understands."""

import gzip

import pytest

from saeflow.errors import BadFile
from saeflow.labels import lines as module
from saeflow.labels.lines import BLOCK, read_line, read_lines, write_lines


def texts(n):
    return [f'{{"row":{i},"text":"{"é" * (i % 7)}"}}' for i in range(n)]


@pytest.mark.parametrize("n", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
def test_every_line_is_what_was_written(tmp_path, n):
    path = tmp_path / "4.res.jsonl.gz"
    assert write_lines(path, iter(texts(n))) == n
    assert list(read_lines(path)) == texts(n)
    assert gzip.decompress(path.read_bytes()).decode() == "".join(f"{line}\n" for line in texts(n))
    rows = [*range(0, n, 37), *range(max(0, n - 3), n)]
    assert [read_line(path, row) for row in rows] == [texts(n)[row] for row in rows]
    assert read_line(path, n) is None
    assert read_line(path, -1) is None


def test_a_plain_file_is_read_too(tmp_path):
    path = tmp_path / "plain.gz"
    path.write_bytes(gzip.compress(b"a\n\nb"))
    assert [read_line(path, row) for row in range(4)] == ["a", "", "b", None]


def test_one_line_unpacks_one_block(tmp_path, monkeypatch):
    path = tmp_path / "many.gz"
    write_lines(path, texts(4 * BLOCK))
    unpacked = []
    real = module.unpacked
    monkeypatch.setattr(module, "unpacked", lambda data: unpacked.append(len(data)) or real(data))
    assert read_line(path, 3 * BLOCK + 1) == texts(4 * BLOCK)[3 * BLOCK + 1]
    assert read_line(path, 3 * BLOCK + 2) == texts(4 * BLOCK)[3 * BLOCK + 2]
    assert len(unpacked) == 1, "the second line was in memory"
    assert unpacked[0] < path.stat().st_size / 3


def test_the_same_lines_give_the_same_bytes(tmp_path):
    for name in "ab":
        write_lines(tmp_path / name, texts(700))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_written_again_is_read_again(tmp_path):
    path = tmp_path / "x.gz"
    write_lines(path, ["one"])
    assert read_line(path, 0) == "one"
    write_lines(path, ["another one"])
    assert read_line(path, 0) == "another one"


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_line(tmp_path / "none.gz", 0) is None
    assert list(read_lines(tmp_path / "none.gz")) == []


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-40], lambda d: d[: len(d) // 2], lambda d: b"x" * len(d), lambda d: d[100:]]
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "4.res.jsonl.gz"
    write_lines(path, texts(3 * BLOCK))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadFile, match=r"4\.res\.jsonl\.gz"):
        read_line(path, 2 * BLOCK)


def test_a_flipped_bit_in_a_block_is_noticed(tmp_path):
    path = tmp_path / "4.res.jsonl.gz"
    write_lines(path, texts(3 * BLOCK))
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(BadFile, match=r"4\.res\.jsonl\.gz"):
        read_line(path, 0)
    assert read_line(path, 2 * BLOCK + 1) == texts(3 * BLOCK)[2 * BLOCK + 1]


def test_a_writing_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.gz"
    write_lines(path, ["before"])

    def broken():
        yield "after"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_lines(path, broken())
    assert read_line(path, 0) == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["x.gz"]


def test_a_file_is_whole_only_with_every_byte_that_was_written(tmp_path):
    path = tmp_path / "4.res.jsonl.gz"
    assert not module.is_whole(path)
    write_lines(path, texts(3 * BLOCK))
    assert module.is_whole(path)
    good = path.read_bytes()
    for spoiled in (good[: len(good) // 2], good[:-60], good[:-1], b"", _flipped(good, len(good) // 2)):
        path.write_bytes(spoiled)
        assert not module.is_whole(path)


def test_a_file_of_no_bytes_was_cut_and_holds_no_lines(tmp_path):
    path = tmp_path / "4.res.jsonl.gz"
    path.touch()
    with pytest.raises(BadFile, match="the file is empty"):
        list(read_lines(path))
    with pytest.raises(BadFile, match="the file is empty"):
        read_line(path, 0)


def _flipped(data, at):
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
