"""Build the pack of SmolLM2-135M: corpora -> SAEs -> 8-bit rows -> atlas, texts, words, measurement, card.

    saeflow models get smollm2-135m
    python scripts/build_smollm2.py CORPORA --work build/smollm2

CORPORA is a folder with the files that docs/reproduce.md lists. Takes about 90 minutes on two cores, nearly all of it
for training, which resumes from its last checkpoint; the corpus and the texts are not made again if they exist.
Atlas, words and quality are computed from the 8-bit rows, so that what is measured is what is shipped.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from demo_build import corpus
from demo_build.card import section
from demo_build.quality import flow_quality
from demo_build.texts import copied, runs_of, write_domain
from saeflow.demo.texts import all_texts, domains
from saeflow.labels.from_texts import Passage, make_words
from saeflow.matching.build import build_atlas
from saeflow.matching.calibration import calibrate
from saeflow.sources.activity import special_tokens
from saeflow.sources.dictionary import TrainingInfo
from saeflow.sources.formats import save_release
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.massive import norm_limit
from saeflow.sources.model import LanguageModel, load_model
from saeflow.training.metrics import Evaluation
from saeflow.training.settings import targets_of
from saeflow.training.texts import evaluation_texts

NAME = "smollm2-135m"
PACK = Path(__file__).parent.parent / "packs" / NAME
LAYERS, WIDTH, L0, TOKENS, CONTEXT = "6-13", 2304, 17, 2_200_000, 256
# Left out to stay under 60 MB: modules of the first layer, whose residual features lack a predecessor below anyway.
LEFT_OUT = ("6/att", "6/mlp")
MEASURED_TEXTS = 12

# Beginnings that the model continues; only texts made this way are shipped.
PROMPTS = {
    "stories": [
        "Once upon a time, in a village by the sea,",
        "The old wizard looked at the girl and",
        "On the night of the storm, Captain Reed",
        "There was a fox who lived",
    ],
    "science": [
        "Photosynthesis is the process by which",
        "When two black holes merge,",
        "The human heart is divided into",
        "Water boils at a lower temperature on a mountain because",
    ],
    "history": [
        "The Roman Empire began to decline when",
        "In 1789, the people of Paris",
        "The invention of the printing press",
        "During the Second World War, factories",
    ],
    "economics": [
        "Inflation is a general rise in",
        "When a company sells shares to the public,",
        "The central bank decided to raise interest rates because",
        "A budget helps a family to",
    ],
    "cooking": [
        "To make a simple tomato soup, start by",
        "Preheat the oven to 180 degrees and",
        "A good bread dough needs",
        "My grandmother's recipe for apple pie",
    ],
    "health": [
        "Regular exercise helps to",
        "Vitamin D is important because",
        "A doctor who examines a patient with a fever",
        "Getting enough sleep is",
    ],
    "travel": [
        "Lisbon is a city of hills, and visitors",
        "The train from Zurich to Milan",
        "If you hike in the mountains in winter,",
        "The island has long beaches and",
    ],
    "law": [
        "A contract is an agreement between",
        "The court ruled that the company",
        "Under the new law, every citizen",
        "The witness told the jury that",
    ],
    "sport": [
        "In the final minutes of the match, the goalkeeper",
        "A marathon runner must",
        "The tennis player won the tournament after",
        "The coach told the team that",
    ],
    "music": [
        "The orchestra began to play",
        "Jazz developed in New Orleans when",
        "A guitar has six strings, which",
        "The singer wrote the song after",
    ],
    "letters": [
        "Dear Anna,\n\nThank you for your letter.",
        "Dear Sir or Madam,\n\nI am writing to complain about",
        "Hi Tom,\n\nI hope you are well.",
        "Dear Professor Lee,\n\nI would like to ask",
    ],
    "maths": [
        "A train travels 120 miles in 2 hours.",
        "To solve the equation 2x + 6 = 14,",
        "The area of a circle is",
        "If a shop sells 12 apples for 6 dollars,",
    ],
}
PASSAGES, EACH, WRITTEN = 20, 8, 150
SHOWN = 120
"""Maximum number of texts per domain used for words: python has thousands."""


def write_corpus(corpora: Path, out: Path) -> None:
    """Write the documents of the demo's five domains and of WikiText-2 in one shuffled order."""
    found = [text for domain in corpus.DOMAINS for text in corpus.documents(corpora, domain)]
    lines = [line.strip() for line in (corpora / "wikitext2_valid.txt").read_text(encoding="utf-8").splitlines()]
    found += corpus.grouped([line for line in lines if len(line) > 100], "\n")
    random.Random(0).shuffle(found)
    out.write_text("".join(json.dumps({"text": text}) + "\n" for text in found), encoding="utf-8")


def train(texts: Path, out: Path) -> None:
    """Run `saeflow train` as a user would."""
    options = {
        "--texts": texts,
        "--out": out,
        "--sites": "res,mlp,att",
        "--layers": LAYERS,
        "--width": WIDTH,
        "--l0": L0,
        "--tokens": TOKENS,
        "--batch": 1024,
        "--lr": 6e-3,
        "--lr-warm-up": 0.03,
        "--lr-decay": 0.4,
        "--penalty-warm-up": 0.1,
        "--uses": 2,
        "--n-eval-texts": 12,
        "--metrics-every": 500_000,
        "--checkpoint-minutes": 10,
    }
    told = [str(word) for pair in options.items() for word in pair]
    command = [Path(sys.executable).with_name("saeflow"), "train", NAME, "--no-unit-decoder", "--half", *told]
    subprocess.run(command, check=True)


def written(model: LanguageModel, prompts: list[str]) -> Iterator[str]:
    """Yield texts endlessly, EACH per prompt at a time, with the prompt and cut after the last full sentence."""
    hf, tokenizer = model.hf_model, model.tokenizer
    rows: list[list[int]] = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts * EACH]
    width = max(map(len, rows))
    ids = torch.tensor([[model.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    while True:
        made: Any = hf.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=0.8,
            top_k=50,
            repetition_penalty=1.05,
            max_new_tokens=WRITTEN,
            pad_token_id=model.pad_id,
        )
        for row in made:
            text = tokenizer.decode(row, skip_special_tokens=True).strip()
            yield text[: max(text.rfind(mark) for mark in ".!?") + 1]


def write_texts(model: LanguageModel, corpora: Path, out: Path) -> dict[str, int]:
    """Write PASSAGES texts for each domain; returns how many were discarded as copies of the corpora."""
    runs = set[int]().union(*(runs_of(corpora, domain) for domain in corpus.DOMAINS))
    dropped: dict[str, int] = {}
    for domain, prompts in PROMPTS.items():
        torch.manual_seed(0)
        kept: list[str] = []
        dropped[domain] = 0
        for text in written(model, prompts):
            if copied(text, runs):
                dropped[domain] += 1
            elif len(text) > 200 and text not in kept:
                kept.append(text)
            if len(kept) == PASSAGES:
                break
        write_domain(out, domain, kept)
        print(f"texts {domain}: {len(kept)} kept, {dropped[domain]} thrown away as copies", flush=True)
    return dropped


def sae_quality(model: LanguageModel, dictionaries: DictionarySet, texts: Path) -> dict[str, Any]:
    """FVE with and without massive positions, L0, silent features and loss of every SAE, on held-out texts."""
    lines = texts.read_text(encoding="utf-8").splitlines()
    kept = evaluation_texts(lambda _pass: (json.loads(line)["text"] for line in lines), MEASURED_TEXTS)
    tokens = [model.tokenize(kept[i : i + 4], max_length=CONTEXT) for i in range(0, len(kept), 4)]
    sites = sorted(dictionaries)
    targets = [targets_of([s.part.value], [s.layer], [dictionaries[s].n_features])[0] for s in sites]
    points = [target.written for target in targets]
    captured = [(model.capture(batch, points), ~special_tokens(model, batch)) for batch in tokens]
    limits = {p: norm_limit(torch.cat([h[p][real] for h, real in captured])) for p in points}
    measured = Evaluation(model, tokens, targets, limits).measure(dict(dictionaries), loss=True)
    rows: dict[str, Any] = {}
    for site in sites:
        told = asdict(measured[site])
        row = {"features": dictionaries[site].n_features, "fve": told["fve"], "fve with massive": told["fve_all"]}
        row |= {"l0": told["l0"], "dead": told["silent"], "loss recovered": told["loss_recovered"]}
        row |= {"loss added": told["loss_added"], "massive": told["massive"], "tokens": told["tokens"]}
        rows[str(site)] = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
    return rows


def build(corpora: Path, work: Path, out: Path) -> None:
    """Run every stage in turn; see the module docstring."""
    work.mkdir(parents=True, exist_ok=True)
    texts, trained, model = work / "mix.jsonl", work / "saes", load_model(NAME)
    if not texts.exists():
        write_corpus(corpora, texts)
    train(texts, trained)  # returns at once if it has already finished
    told = TrainingInfo(prepend_bos=model.prepend_bos, context_size=CONTEXT)
    found = load_dictionaries(trained)
    whole = {site: one.with_training(told) for site, one in found.items() if str(site) not in LEFT_OUT}
    save_release(out / "saes", whole, name=NAME, model=NAME, dtype=torch.int8)
    dictionaries = load_dictionaries(out / "saes")
    atlas = build_atlas(dictionaries, out=out / "atlas", k=5, release=NAME, model=NAME)
    atlas = calibrate(dictionaries, atlas)
    if not (work / "dropped.json").exists():
        (out / "texts").mkdir(parents=True, exist_ok=True)
        (work / "dropped.json").write_text(json.dumps(write_texts(model, corpora, out / "texts")))
    measured = {
        "saes": sae_quality(model, dictionaries, texts),
        "flow": flow_quality(dictionaries, atlas),
        "texts thrown away as copies": json.loads((work / "dropped.json").read_text()),
    }
    (out / "quality.json").write_text(json.dumps(measured, indent=1) + "\n")  # this file makes the pack known by name
    shown = [Passage(text, domain) for domain in domains(NAME) for text in all_texts(domain, NAME)[:SHOWN]]
    make_words(model, dictionaries, shown, out / "atlas" / "words", contexts=3, release=NAME)
    (out / "CARD.md").write_text(card(measured))
    sizes = {part.name: sum(f.stat().st_size for f in part.rglob("*") if f.is_file()) / 1e6 for part in out.iterdir()}
    print(", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()))


def card(measured: dict[str, Any]) -> str:
    """The text of CARD.md: what the pack is, how it was made, and all measurements."""
    head = (Path(__file__).parent / "smollm2_card.md").read_text(encoding="utf-8")
    dropped = sum(measured["texts thrown away as copies"].values())
    page = head.format(
        tokens=f"{TOKENS:,}", width=f"{WIDTH:,}", l0=L0, layers=LAYERS, passages=PASSAGES, dropped=dropped
    )
    for title, first, key in (("The SAEs on held-out text", "site", "saes"), ("Best cosines", "match", "flow")):
        page += section(title, first, measured[key])
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="folder of the corpora")
    parser.add_argument("--work", type=Path, default=Path("build/smollm2"), help="folder for what can be resumed")
    parser.add_argument("--out", type=Path, default=PACK, help="folder of the pack")
    arguments = parser.parse_args()
    build(arguments.corpora, arguments.work, arguments.out)


if __name__ == "__main__":
    main()
