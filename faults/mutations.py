"""Ways to corrupt a file, each a function of (bytes, generator): the same seed gives the same corruption."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

Mutation = Callable[[bytes, random.Random], bytes]
Placed = Callable[[Path, bytes, random.Random], object]
"""Puts something other than plain bytes at a path: a sparse file, or something that is not a file."""

NUMBERS = ("0", "-1", "1e999", "NaN", "1099511627776", "4611686018427387904", "2.5", '"8"', "null", "[]", "{}", "true")
"""Replacements for a number in a header: zero, negative, infinite, NaN, a terabyte, too large, or not a number."""


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))] if data else data


def bits_flipped(data: bytes, rng: random.Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        if spoiled:
            spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def head_flipped(data: bytes, rng: random.Random) -> bytes:
    """Flip bits in the first bytes, which hold the format and the lengths of its parts."""
    return bits_flipped(data[:64], rng) + data[64:]


def tail_flipped(data: bytes, rng: random.Random) -> bytes:
    """Flip bits in the last bytes, which hold the directory of a zip."""
    return data[:-200] + bits_flipped(data[-200:], rng)


def inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 7, 64))) + data[at:]


def removed(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 8, 100)) :]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    at, n = rng.randrange(len(data) + 1), rng.choice((4, 16, 256))
    return data[:at] + bytes(len(data[at : at + n])) + data[at + n :]


def twice(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at : at + 200] + data[at:]


def appended(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 1000)))


def emptied(data: bytes, rng: random.Random) -> bytes:
    return b""


def random_bytes(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(min(len(data), 4096))


def number_changed(data: bytes, rng: random.Random) -> bytes:
    """Replace a number in a text, or in the JSON header of a safetensors file (with an updated header length)."""
    head, text, rest = _text_of(data)
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", text))
    if not numbers:
        return data
    found = rng.choice(numbers)
    text = text[: found.start()] + rng.choice(NUMBERS).encode() + text[found.end() :]
    return _together(head, text, rest)


def value_changed(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or rename a value or key in some JSON."""
    head, text, rest = _text_of(data)
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return bits_flipped(data, rng)
    places: list[tuple[dict | list, str | int]] = []
    level = [told]
    while level:
        level = [value for holder in level for value in _inside(holder, places)]
    if not places:
        return data
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.3:
        value = holder.pop(key)
        if rng.random() < 0.5:
            holder[f"{key}x"] = value
    else:
        holder[key] = rng.choice((None, -1, 0, 1 << 62, 1e308, "", "../../x", "a" * 5000, [], {}, [[[]]], True))
    return _together(head, json.dumps(told).encode(), rest)


def nested(data: bytes, rng: random.Random) -> bytes:
    """Insert a JSON value nested deeper than any stack."""
    head, text, rest = _text_of(data)
    depth = rng.choice((1000, 100_000))
    return _together(head, text[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}", rest)


def length_claimed(data: bytes, rng: random.Random) -> bytes:
    """Claim a wrong header length, such as a terabyte."""
    return struct.pack("<Q", rng.choice((1 << 40, 1 << 63, (1 << 64) - 1, len(data), 0))) + data[8:]


def nested_otherwise(data: bytes, rng: random.Random) -> bytes:
    """Replace the file by deeply nested JSON or TOML: lists, objects, a JSON line, tables, or a key with many parts."""
    depth = rng.choice((200, 900, 50_000))
    deep = {
        "lists": b"[" * depth + b"]" * depth,
        "objects": b'{"a":' * depth + b"1" + b"}" * depth,
        "line": b'{"text": ' + b"[" * depth + b"]" * depth + b"}\n",
        "toml lists": b"a = " + b"[" * depth + b"]" * depth,
        "toml tables": b"a = " + b"{a = " * depth + b"1" + b"}" * depth,
        "toml key": b".".join([b"a"] * depth) + b" = 1",
    }
    made = deep[rng.choice(sorted(deep))]
    return gzip.compress(made, mtime=0) if data[:2] == b"\x1f\x8b" else made


def dated(data: bytes, rng: random.Random) -> bytes:
    """Replace a value in a TOML file by a date or time, a type that JSON lacks."""
    lines = list(re.finditer(rb"^([\w.-]+ *= *)([^\n\[{]+)$", data, re.MULTILINE))
    if not lines:
        return data
    found = rng.choice(lines)
    when = rng.choice((b"1979-05-27T07:32:00Z", b"1979-05-27", b"07:32:00"))
    return data[: found.end(1)] + when + data[found.end() :]


def packed_large(data: bytes, rng: random.Random) -> bytes:
    """A small gzip of 3 GB unpacked, one endless line or very many short ones; on its own or after the old contents."""
    head = data if data[:2] == b"\x1f\x8b" and rng.random() < 0.5 else b""
    return head + _bomb(rng.choice((b"[" + b" " * (1 << 20), b"null\n" * (1 << 18), b"\0" * (1 << 20))))


def many_members(data: bytes, rng: random.Random) -> bytes:
    """A zip archive with very many members."""
    return _archive(rng.choice((5_000, 60_000)))


def long_doubles(data: bytes, rng: random.Random) -> bytes:
    """Change one array of an .npz archive to a type that PyTorch lacks."""
    if data[:2] != b"PK":
        return bits_flipped(data, rng)
    import numpy as np

    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        try:
            arrays = {name: held[name] for name in held.files if isinstance(held[name], np.ndarray)}
        except ValueError:  # not a numpy archive
            return bits_flipped(data, rng)
    kind = rng.choice((np.longdouble, np.clongdouble, np.dtype("V8"), np.dtype("S4"), np.dtype("M8[s]")))
    target = rng.choice(sorted(arrays) or [""])
    arrays = {n: np.zeros(a.shape, kind) if n == target else a for n, a in arrays.items()}
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def sparse(path: Path, data: bytes, rng: random.Random) -> None:
    """A sparse file of 6 GB: the old contents or spaces, followed by zeros."""
    path.write_bytes(data if rng.random() < 0.5 else b" " * 4096)
    os.truncate(path, 6 << 30)


def header_of_gigabytes(path: Path, data: bytes, rng: random.Random) -> None:
    """A huge safetensors header or zip directory, in a file that really has the claimed length."""
    size = rng.choice((90 << 20, 4 << 30))
    if data[:2] == b"PK":
        path.write_bytes(b"")
        os.truncate(path, size)
        with path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            n = min(size, 0xFFFFFFFE)
            file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFE, 0xFFFE, n, 0, 0))
        return
    path.write_bytes(struct.pack("<Q", size) + b'{"__metadata__":{}')
    os.truncate(path, size + 4096)


def pipe(path: Path, data: bytes, rng: random.Random) -> None:
    """A FIFO without a writer."""
    os.mkfifo(path)


def device(path: Path, data: bytes, rng: random.Random) -> None:
    """A link to a device, which never ends."""
    path.symlink_to(rng.choice(("/dev/zero", "/dev/urandom", "/dev/full")))


def folder(path: Path, data: bytes, rng: random.Random) -> None:
    """A folder where a file should be."""
    path.mkdir()


MUTATIONS: tuple[Mutation, ...] = (
    truncated,
    bits_flipped,
    head_flipped,
    tail_flipped,
    inserted,
    removed,
    zeroed,
    twice,
    appended,
    emptied,
    random_bytes,
    number_changed,
    number_changed,
    value_changed,
    value_changed,
    nested,
    length_claimed,
    nested_otherwise,
    dated,
    packed_large,
    many_members,
    long_doubles,
)
PLACED: tuple[Placed, ...] = (sparse, header_of_gigabytes, pipe, device, folder)


@functools.cache
def _bomb(piece: bytes) -> bytes:
    """A gzip of about 3 MB that unpacks to 3 GB of repeated pieces."""
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=1, mtime=0) as file:
        for _ in range((96 << 20) // len(piece)):
            file.write(piece)
    return made.getvalue() * 32  # concatenated gzip members unpack to one text


@functools.cache
def _archive(n: int) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for number in range(n):
            archive.writestr(f"{number}.npy", b"")
    return made.getvalue()


def _text_of(data: bytes) -> tuple[bool, bytes, bytes]:
    """Split a safetensors file or a text into (whether a length precedes the JSON, the JSON, the rest)."""
    if len(data) > 9 and data[8:9] == b"{":
        (n,) = struct.unpack("<Q", data[:8])
        if n < len(data):
            return True, data[8 : 8 + n], data[8 + n :]
    return False, data, b""


def _together(counted: bool, text: bytes, rest: bytes) -> bytes:
    return (struct.pack("<Q", len(text)) if counted else b"") + text + rest


def _inside(holder: object, places: list) -> list:
    if isinstance(holder, dict):
        places += [(holder, key) for key in holder]
        return list(holder.values())
    if isinstance(holder, list):
        places += [(holder, i) for i in range(len(holder))]
        return list(holder)
    return []
