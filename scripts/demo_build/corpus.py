"""Texts -> documents -> tokens, for the five domains that the demo model is trained on.

`stories`, `novels`, `textbooks` and `maths` come from a folder of corpora given on the command line
(docs/reproduce.md lists its files and licences); `python` is the standard library of the interpreter
that runs the build. Every fiftieth document of a domain is held out from training.
"""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from saeflow.demo import DOMAINS

BOS = "<|endoftext|>"
VOCAB_SIZE = 4096
DOCUMENT_CHARACTERS = 4000
HELD_OUT_EVERY = 50

# Tests, and tables and data that are Python only by suffix.
SKIPPED_STDLIB = re.compile(
    r"(^|/)(test|tests|idle_test|site-packages|lib2to3|encodings|pydoc_data|turtledemo)/|__phello__"
)


def grouped(paragraphs: list[str], glue: str) -> Iterator[str]:
    """Join consecutive paragraphs into documents of about DOCUMENT_CHARACTERS."""
    held: list[str] = []
    size = 0
    for paragraph in paragraphs:
        held.append(paragraph)
        size += len(paragraph)
        if size >= DOCUMENT_CHARACTERS:
            yield glue.join(held)
            held, size = [], 0
    if held:
        yield glue.join(held)


def _gutenberg(text: str) -> list[str]:
    """Paragraphs of a Project Gutenberg plain text, with hard line breaks removed."""
    text = text.replace("\r\n", "\n").replace("_", "")
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
    return [p for p in paragraphs if len(p) > 40 and "Gutenberg" not in p]


def _textbook(text: str, seen: set[str]) -> list[str]:
    """Lines of a textbook, without short lines and repeated boilerplate."""
    kept = []
    for line in map(str.strip, text.splitlines()):
        if len(line) < 30 or line in seen:
            continue
        seen.add(line)
        kept.append(line)
    return kept


def _maths(line: str) -> str:
    row = json.loads(line)
    answer = re.sub(r"<<[^>]*>>", "", row["answer"]).replace("####", "The answer is")
    return f"Question: {row['question'].strip()}\nAnswer: {answer.strip()}"


def _stdlib() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if SKIPPED_STDLIB.search(name):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        yield from grouped(text.split("\n\n\n"), "\n\n\n")


def documents(corpora: Path, domain: str) -> list[str]:
    """Every document of a domain, in a fixed order."""
    if domain == "stories":
        tiny = (corpora / "tinystories.txt").read_text(encoding="utf-8").split(BOS)
        short = [" ".join(s.split()) if "\n" not in s.strip() else s.strip() for s in tiny]
        tales = _gutenberg((corpora / "gutenberg_childrens.txt").read_text(encoding="utf-8"))
        return [s for s in short if s] + list(grouped(tales, "\n"))
    if domain == "novels":
        return list(grouped(_gutenberg((corpora / "gutenberg_novels.txt").read_text(encoding="utf-8")), "\n"))
    if domain == "textbooks":
        seen: set[str] = set()
        found: list[str] = []
        for path in sorted(corpora.glob("openstax_*.txt")):
            found += grouped(_textbook(path.read_text(encoding="utf-8"), seen), "\n")
        return found
    if domain == "maths":
        rows = (corpora / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
        return [_maths(row) for row in rows if row.strip()]
    return list(_stdlib())


def split(found: list[str]) -> tuple[list[str], list[str]]:
    """(training documents, held-out documents)."""
    return [d for i, d in enumerate(found) if i % HELD_OUT_EVERY], found[::HELD_OUT_EVERY]


def train_tokenizer(corpora: Path, out: Path) -> Tokenizer:
    """Train a byte-level BPE of VOCAB_SIZE pieces on the training documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[BOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = (d for domain in DOMAINS for d in split(documents(corpora, domain))[0])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(out))
    return tokenizer


def tokenize(corpora: Path, tokenizer: Tokenizer, out: Path) -> None:
    """Write {domain}.{train,held_out}.npy (uint16, each document preceded by BOS) and sizes.json."""
    sizes: dict[str, dict[str, int]] = {}
    bos = tokenizer.token_to_id(BOS)
    for domain in DOMAINS:
        for name, docs in zip(("train", "held_out"), split(documents(corpora, domain)), strict=True):
            ids: list[int] = []
            for encoding in tokenizer.encode_batch(docs):
                ids += [bos, *encoding.ids]
            np.save(out / f"{domain}.{name}.npy", np.asarray(ids, dtype=np.uint16))
            sizes[f"{domain}.{name}"] = {"tokens": len(ids), "bytes": sum(len(d.encode()) for d in docs)}
            print(f"  {domain:10} {name:9} {len(docs):6} documents {len(ids):9,} tokens", flush=True)
    (out / "sizes.json").write_text(json.dumps(sizes, indent=1))


def load_windows(data: Path, domain: str, part: str, length: int) -> np.ndarray:
    """Windows of a domain's `train` or `held_out` tokens as `tokenize` wrote them: int64 [n_windows, length]."""
    return windows(np.load(data / f"{domain}.{part}.npy"), length, 0).astype(np.int64)


def windows(tokens: np.ndarray, length: int, bos: int) -> np.ndarray:
    """Consecutive windows of `length` tokens, each starting with BOS: [n_windows, length]."""
    body = tokens[: len(tokens) // (length - 1) * (length - 1)].reshape(-1, length - 1)
    return np.concatenate([np.full((len(body), 1), bos, dtype=tokens.dtype), body], axis=1)
