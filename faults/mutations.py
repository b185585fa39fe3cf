"""Ways to spoil a file, each a function of (bytes, generator): the same seed spoils it the same way."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (
    "0",
    "-1",
    "1e999",
    "NaN",
    "1099511627776",
    "4611686018427387904",
    "2.5",
    '"8"',
    "null",
    "[]",
    "{}",
    "true",
)
"""What a number in a header becomes: nothing, below nothing, a terabyte, more than an integer holds, no number."""


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))] if data else data


def bits_flipped(data: bytes, rng: random.Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        if spoiled:
            spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def head_flipped(data: bytes, rng: random.Random) -> bytes:
    """The first bytes hold what a format is and how long its parts are."""
    return bits_flipped(data[:64], rng) + data[64:]


def tail_flipped(data: bytes, rng: random.Random) -> bytes:
    """The last bytes of a zip hold its directory."""
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
    """A number of a text, or of the JSON header of a safetensors file, whose length is told anew."""
    head, text, rest = _text_of(data)
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", text))
    if not numbers:
        return data
    found = rng.choice(numbers)
    text = text[: found.start()] + rng.choice(NUMBERS).encode() + text[found.end() :]
    return _together(head, text, rest)


def value_changed(data: bytes, rng: random.Random) -> bytes:
    """A value, or a key, of some JSON becomes something else."""
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
        holder[key] = rng.choice(
            (None, -1, 0, 1 << 62, 1e308, "", "../../x", "a" * 5000, [], {}, [[[]]], True)
        )
    return _together(head, json.dumps(told).encode(), rest)


def nested(data: bytes, rng: random.Random) -> bytes:
    """JSON deeper than any stack, where JSON stood."""
    head, text, rest = _text_of(data)
    depth = rng.choice((1000, 100_000))
    return _together(head, text[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}", rest)


def length_claimed(data: bytes, rng: random.Random) -> bytes:
    """A header that says it is a terabyte long."""
    return struct.pack("<Q", rng.choice((1 << 40, 1 << 63, (1 << 64) - 1, len(data), 0))) + data[8:]


MUTATIONS: tuple[Mutation, ...] = (
    truncated, bits_flipped, head_flipped, tail_flipped, inserted, removed, zeroed, twice, appended, emptied,
    random_bytes, number_changed, number_changed, value_changed, value_changed, nested, length_claimed,
)  # fmt: skip


def _text_of(data: bytes) -> tuple[bool, bytes, bytes]:
    """(whether a length stands before it, the JSON, what follows): a safetensors file, or a text."""
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
