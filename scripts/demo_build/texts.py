"""Passages that the demo model writes from prompts of each domain: text that the pack may ship.

The fifth domain, python, comes from the standard library at run time. A passage that repeats a run of COPY_RUN + 1
characters of the training texts is discarded, so no sentence of the corpora enters the pack.

The passages of a domain come from one random sequence, so the first FIRST passages equal those of a build that made
only these. This holds on one processor only, because sampling differs between processors.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from saeflow.demo import DOMAINS
from saeflow.files import write_atomic

from .corpus import documents, split

PASSAGES = 400
# The pack was first shipped with this many, and the contexts of its words quote them. They are kept in order and were
# compared only with the training text of their own domain; later passages are compared with that of all domains.
FIRST = 160
BATCH = 20
TOKENS = 200
SHORTEST = 120
COPY_RUN = 48
PROMPTS = {
    "stories": [
        "Once upon a time, there was a",
        "One day, a little girl named",
        "Tom and Lily were",
        "The king had a daughter who",
        "There was once a poor boy who",
        "A small bird sat in the",
        "Mum and Ben went to the",
        "In the middle of the forest there",
    ],
    "novels": [
        "The prince looked at her and",
        '"My dear sir," said the',
        "It was late in the evening when",
        "The captain stood on the deck and",
        "Mr. Holmes, who had been sitting",
        "She had never before felt so",
        "The whole army was",
        '"I do not understand you," he said',
    ],
    "textbooks": [
        "The force acting on an object",
        "In economics, the price of a good",
        "A random variable is",
        "Culture is a system of",
        "The energy of the system",
        "When the demand for a product increases,",
        "The standard deviation of the sample",
        "The kinetic energy of a",
    ],
    "maths": [
        "Question: Tom has",
        "Question: A shop sells",
        "Question: Anna is twice as old as",
        "Question: There are",
        "Question: A train travels",
        "Question: Maria bought",
        "Question: Each week, John",
        "Question: In a class of",
    ],
}


def copied(text: str, runs: set[int]) -> bool:
    """Whether a text contains one of the `runs`, as any text with COPY_RUN + 1 copied characters does."""
    return any(hash(text[i : i + COPY_RUN]) in runs for i in range(len(text) - COPY_RUN + 1))


def runs_of(corpora: Path, domain: str) -> set[int]:
    """Hashes of the runs at even offsets of the training texts; any copy of COPY_RUN + 1 characters contains one."""
    found: set[int] = set()
    for text in split(documents(corpora, domain))[0]:
        found.update(hash(text[i : i + COPY_RUN]) for i in range(0, len(text) - COPY_RUN + 1, 2))
    return found


def _written(model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: list[str]) -> Iterator[str]:
    """Yield passages endlessly, BATCH from each prompt in turn."""
    for prompt in itertools.cycle(prompts):
        ids = torch.tensor([[0, *tokenizer.encode(prompt).ids]]).repeat(BATCH, 1)
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=0.8,
            top_p=0.9,
            max_new_tokens=TOKENS,
            pad_token_id=0,
            eos_token_id=0,
        )
        for row in made.tolist():
            body = row[1:]
            yield tokenizer.decode(body[: body.index(0)] if 0 in body else body).strip()


def _chosen(written: Iterator[str], domain: str, runs: Mapping[str, set[int]], seed: int) -> tuple[list[str], int]:
    """PASSAGES different passages, shuffled within the first FIRST and the rest; and the number discarded as copies."""
    kept: list[str] = []
    dropped = 0
    while len(kept) < PASSAGES:
        text = next(written)
        if len(text) < SHORTEST or text in kept:
            continue
        compared = [domain] if len(kept) < FIRST else list(runs)
        if any(copied(text, runs[name]) for name in compared):
            dropped += 1
            continue
        kept.append(text)
        if len(kept) % 40 == 0:
            print(f"texts {domain}: {len(kept)} kept, {dropped} thrown away as copies", flush=True)
    parts = kept[:FIRST], kept[FIRST:]
    return [text for part in parts for text in _shuffled(part, seed)], dropped


def _shuffled(texts: list[str], seed: int) -> list[str]:
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    return [texts[i] for i in order.tolist()]


def write_domain(out: Path, domain: str, found: list[str]) -> None:
    data = json.dumps(found, ensure_ascii=False).encode()
    write_atomic(out / f"{domain}.json.gz", gzip.compress(data, mtime=0))


def complete(out: Path) -> bool:
    """Whether `write_texts` has written PASSAGES passages of every domain."""
    files = [out / f"{domain}.json.gz" for domain in PROMPTS]
    return all(f.exists() and len(json.loads(gzip.decompress(f.read_bytes()))) == PASSAGES for f in files)


def write_texts(model: LlamaForCausalLM, tokenizer: Tokenizer, corpora: Path, out: Path, seed: int) -> dict[str, int]:
    """Write {domain}.json.gz with PASSAGES passages each; returns how many were discarded as copies."""
    runs = {domain: runs_of(corpora, domain) for domain in DOMAINS}
    dropped: dict[str, int] = {}
    for domain, prompts in PROMPTS.items():
        torch.manual_seed(seed)
        found, dropped[domain] = _chosen(_written(model, tokenizer, prompts), domain, runs, seed)
        write_domain(out, domain, found)
    return dropped
