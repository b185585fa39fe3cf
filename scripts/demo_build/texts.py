"""Passages the demo model writes itself, from prompts of each domain: the text the pack may ship.

The standard library gives the fifth domain at run time. A passage that repeats a run of COPY_RUN
characters of the training texts is thrown away, so no sentence of the corpora enters the pack.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from .corpus import documents, split

PASSAGES = 160
TOKENS = 200
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


def _copied(text: str, runs: set[int]) -> bool:
    return any(hash(text[i : i + COPY_RUN]) in runs for i in range(len(text) - COPY_RUN))


def _runs(corpora: Path, domain: str) -> set[int]:
    """Hashes of the runs that start at even offsets: any copy one character longer than a run holds one."""
    found: set[int] = set()
    for text in split(documents(corpora, domain))[0]:
        found.update(hash(text[i : i + COPY_RUN]) for i in range(0, len(text) - COPY_RUN, 2))
    return found


@torch.no_grad()
def write_texts(
    model: LlamaForCausalLM, tokenizer: Tokenizer, corpora: Path, out: Path, seed: int
) -> dict[str, int]:
    """Write {domain}.json.gz, PASSAGES passages each; returns how many were thrown away as copies."""
    out.mkdir(parents=True, exist_ok=True)
    dropped: dict[str, int] = {}
    for domain, prompts in PROMPTS.items():
        runs = _runs(corpora, domain)
        kept: list[str] = []
        dropped[domain] = 0
        torch.manual_seed(seed)
        while len(kept) < PASSAGES:
            for prompt in prompts:
                ids = torch.tensor([[0, *tokenizer.encode(prompt).ids]]).repeat(20, 1)
                made = model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.8, top_p=0.9,
                    max_new_tokens=TOKENS, pad_token_id=0, eos_token_id=0,
                )  # fmt: skip
                for row in made.tolist():
                    body = row[1:]
                    text = tokenizer.decode(body[: body.index(0)] if 0 in body else body).strip()
                    if len(text) < 120:
                        continue
                    if _copied(text, runs):
                        dropped[domain] += 1
                    elif len(kept) < PASSAGES:
                        kept.append(text)
            print(f"texts {domain}: {len(kept)} kept, {dropped[domain]} thrown away as copies", flush=True)
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed)).tolist()
        data = json.dumps([kept[i] for i in order], ensure_ascii=False).encode()
        (out / f"{domain}.json.gz").write_bytes(gzip.compress(data, mtime=0))
    return dropped
