"""How the files of a site are packed: with gzip, arrays as planes of their bytes, lowest first."""

from __future__ import annotations

import gzip
import json

import numpy as np


def packed(data: bytes) -> bytes:
    """Bytes as a site keeps them; the same bytes always give the same."""
    return gzip.compress(data, 6, mtime=0)


def packed_json(value: object) -> bytes:
    """A JSON value as a site keeps it."""
    return packed(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())


def planes(values: np.ndarray) -> bytes:
    """An array as planes of its bytes, lowest first."""
    flat = np.ascontiguousarray(values).reshape(-1)
    little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(len(flat), -1).T.tobytes()
