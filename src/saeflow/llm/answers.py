"""Answers of language models on disk, named by what was asked: a rerun, or a run after a kill, asks only the rest.

An answer is one small JSON file with its own checksum. The endpoint is not part of its name: the same model elsewhere
gives the same answers. A file that cannot be read counts as missing, and the question is asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.reading import parse_json, read_bytes


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers in a folder, which is created for the first one."""

    folder: Path

    @staticmethod
    def key(*question: object) -> str:
        """The name of an answer: the SHA-256, over JSON, of everything that determines it."""
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Any:
        """What was kept under a key; None if there is nothing readable."""
        try:
            return parse_json(check_sha256(read_bytes(self.folder / key[:2] / f"{key}.json")))
        except (OSError, ValueError, RecursionError):
            return None

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer, whole or not at all.

        Raises:
            OSError: when the folder cannot be written.
        """
        write_atomic(self.folder / key[:2] / f"{key}.json", add_sha256(json.dumps(answer).encode()))
