"""Build the demo pack: corpora -> tokenizer, model, SAEs, atlas, words, texts, measurement.

    python scripts/build_demo.py CORPORA --work build/demo
    python scripts/build_demo.py --passages            # only renews passages and histograms of the pack's words

CORPORA is a folder with the files that docs/reproduce.md lists. Needs the extra `build-demo`. Takes about
two hours on two cores. Seeds are fixed, progress is printed, and a killed build can be resumed: stages 1, 2
and 4 are skipped if their results exist, and the model and the SAEs resume from their last checkpoints.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from demo_build import card, corpus, model, pack, quality, saes, texts, words
from saeflow.sources.library import load_dictionaries

PACK = Path(__file__).parent.parent / "src" / "saeflow" / "demo" / "pack"
STEPS = 1400
SEED = 0


def build(corpora: Path, work: Path, out: Path) -> None:
    for folder in ("data", "model", "saes_first", "saes"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    data = work / "data"
    if not (data / "sizes.json").exists():
        print("1/7 tokenizer and tokens", flush=True)
        corpus.tokenize(corpora, corpus.train_tokenizer(corpora, data / "tokenizer.json"), data)
    if not (work / "model" / "final" / "config.json").exists():
        print("2/7 model", flush=True)
        model.train(data, work / "model", steps=STEPS, seed=SEED).save_pretrained(work / "model" / "final")
    # Measure what is shipped: from here on the model is the half-precision one.
    pack.write_model(work / "model" / "final", data / "tokenizer.json", out / "model")
    trained = LlamaForCausalLM.from_pretrained(out / "model", dtype=torch.float32).eval()
    print("3/7 SAEs", flush=True)  # finished runs are only loaded
    saes.train_all(out / "model", data, work / "saes_first", work / "saes", seed=SEED)
    if not texts.complete(out / "texts"):
        print("4/7 texts", flush=True)
        tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
        dropped = texts.write_texts(trained, tokenizer, corpora, out / "texts", SEED)
        (work / "dropped.json").write_text(json.dumps(dropped))
    print("5/7 dictionaries and atlas", flush=True)
    loaded = pack.open_model(out / "model")
    found = saes.collect(loaded, data, work / "saes", seed=SEED)
    dictionaries, atlas = pack.write_dictionaries(found, out)
    print("6/7 words", flush=True)
    words.write_counted(loaded, dictionaries, data, out / "atlas" / "words", SEED)
    words.add_passages(loaded, dictionaries, out / "atlas" / "words")
    print("7/7 measurement", flush=True)
    measured = {
        "model": {
            "parameters": sum(p.numel() for p in trained.parameters()),
            "training_tokens": STEPS * model.BATCH * model.CONTEXT,
            "domains": quality.model_quality(loaded, data),
        },
        "saes": quality.sae_quality(loaded, dictionaries, data),
        "flow": quality.flow_quality(dictionaries, atlas),
        "texts thrown away as copies": json.loads((work / "dropped.json").read_text()),
    }
    (out / "quality.json").write_text(json.dumps(measured, indent=1) + "\n")
    card.write_card(measured, saes.RECIPES, out / "CARD.md")
    print(f"the pack is {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, nargs="?", help="folder of the corpora")
    parser.add_argument(
        "--passages", action="store_true", help="renew the passages of the pack's words, without corpora"
    )
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder for what can be resumed")
    parser.add_argument("--out", type=Path, default=PACK, help="folder of the pack")
    parser.add_argument("--fresh", action="store_true", help="throw the work folder away first")
    arguments = parser.parse_args()
    if arguments.passages:
        pack_words = arguments.out / "atlas" / "words"
        words.add_passages(
            pack.open_model(arguments.out / "model"), load_dictionaries(arguments.out / "saes"), pack_words
        )
        return
    if arguments.corpora is None:
        parser.error("name the folder of the corpora")
    if arguments.fresh:
        shutil.rmtree(arguments.work, ignore_errors=True)
    build(arguments.corpora, arguments.work, arguments.out)


if __name__ == "__main__":
    main()
