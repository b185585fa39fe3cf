"""The format of a site's files: gzip, with arrays stored as byte planes, least significant byte first."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np


def packed(data: bytes) -> bytes:
    """Compress bytes for a site; the same input always gives the same output."""
    return gzip.compress(data, 6, mtime=0)


def json_bytes(value: object) -> bytes:
    """Encode a JSON value without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def packed_json(value: object) -> bytes:
    """Encode and compress a JSON value for a site."""
    return packed(json_bytes(value))


def packed_arrays(head: bytes, arrays: bytes) -> bytes:
    """Pack a JSON header and the arrays that it describes into one file."""
    return packed(struct.pack("<I", len(head)) + head + arrays)


def planes(values: np.ndarray) -> bytes:
    """The byte planes of an array: the least significant byte of every value, then the next, and so on."""
    flat = np.ascontiguousarray(values).reshape(-1)
    little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(len(flat), -1).T.tobytes()
