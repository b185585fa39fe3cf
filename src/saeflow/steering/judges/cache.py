"""Answers of language models on disk, by what was asked: a rerun, or a run after a kill, asks only the rest. No torch.

An answer is one small JSON file, named by the SHA-256 of the model, the rubric, the message, the temperature and the
seed. The endpoint is no part of it: the same model elsewhere gives the same answers. Files hold scores and the names of
model and subjects, neither texts nor keys. A file that cannot be read counts as missing, and is asked for again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from saeflow.files import add_sha256, check_sha256, write_atomic
from saeflow.reading import parse_json, read_bytes
from saeflow.steering.judges.rubrics import BadAnswer, Marks, Rubric

FORMAT: Final = "saeflow-answer"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class AnswerCache:
    """Answers in a folder, which is made at the first one."""

    folder: Path

    def key(self, model: str, rubric: Rubric, message: str, temperature: float | None, seed: int) -> str:
        """The name of an answer: a function of all that decides it."""
        asked = json.dumps([VERSION, model, rubric.system, message, temperature, seed])
        return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()

    def get(self, key: str, rubric: Rubric) -> Marks | None:
        """The answer of a key, None where there is none that can be read."""
        try:
            told = parse_json(check_sha256(read_bytes(self._path(key))))
            if (told["format"], told["version"]) != (FORMAT, VERSION):
                return None
            return rubric.read(json.dumps({name: told[name] for name in ("coherence", "behavioral")}))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, BadAnswer):
            return None

    def put(self, key: str, model: str, rubric: Rubric, answer: Marks) -> None:
        """Keep an answer, whole or not at all.

        Raises:
            OSError: when the folder cannot be written.
        """
        marks = list(answer.behavioral)
        told = {
            "format": FORMAT,
            "version": VERSION,
            "model": model,
            "rubric": rubric.name,
            "subjects": [subject.name for subject in rubric.subjects],
            "coherence": answer.coherence,
            "behavioral": marks[0] if rubric.name == "B.2" else marks,
        }
        write_atomic(self._path(key), add_sha256(json.dumps(told).encode()))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
