"""How the files of a site are packed: with gzip, arrays as planes of their bytes, lowest first."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np


def packed(data: bytes) -> bytes:
    """Bytes as a site keeps them; the same bytes always give the same."""
    return gzip.compress(data, 6, mtime=0)


def json_bytes(value: object) -> bytes:
    """A JSON value without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def packed_json(value: object) -> bytes:
    """A JSON value as a site keeps it."""
    return packed(json_bytes(value))


def packed_arrays(head: bytes, arrays: bytes) -> bytes:
    """JSON and the arrays that it tells of, in one file."""
    return packed(struct.pack("<I", len(head)) + head + arrays)


def planes(values: np.ndarray) -> bytes:
    """An array as planes of its bytes, lowest first."""
    flat = np.ascontiguousarray(values).reshape(-1)
    little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(len(flat), -1).T.tobytes()
