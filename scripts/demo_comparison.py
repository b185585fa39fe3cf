"""Compare seeds, widths, checkpoints and a fine-tuned model on the demo model, using only files of the repository.

    python scripts/demo_comparison.py [--work FOLDER]          writes docs/demo-comparison.md

1. Train SAEs at one site: two seeds, one of double width, and four checkpoints of one of them (`saeflow train`).
2. Fine-tune the demo model on C++, the headers that come with PyTorch (BSD-3-Clause). Its SAE is initialised from the
   demo's, as is an SAE of the base model on the same texts: features new in both come from the texts, not the model.
3. Make words for features that fire, transfer labels to an SAE without any, and compare (`saeflow compare`).

Takes about 15 minutes on one core. Seeds are fixed; a killed run resumes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file
from scipy.optimize import linear_sum_assignment

import saeflow as sf
from demo_build.markdown import table

DOCS = Path(__file__).parent.parent / "docs"
SITE = "3/res"
COMMON = f"--sites {SITE} --l0 6 --batch 2048 --buffer 32768 --uses 2 --n-eval-texts 8 --metrics-every 200000"
TUNED_ON, CONTEXT, ROWS, STEPS, LR = 3_000_000, 256, 8, 60, 1e-3
HEAD = """\
# Comparisons on the demo model

Written by `python scripts/demo_comparison.py`: SAEs of {site} of the demo model, trained with the commands shown.
[Comparing dictionaries](compare.md) says what the numbers are. The model has 3.4 million parameters and the SAEs were
trained for seconds: this shows the method, and says nothing about large models.
"""


def run(*words: object) -> None:
    """Run a saeflow command and print it as the page shows it."""
    print("$ saeflow", *words, flush=True)
    subprocess.run([sys.executable, "-c", "from saeflow.cli import main; main()", *map(str, words)], check=True)


def headers(path: Path) -> None:
    """Write passages of C++ of up to a thousand characters, as lines of JSON."""
    root = Path(torch.__file__).parent / "include"
    texts: list[str] = []
    for file in sorted([*root.glob("c10/**/*.h"), *root.glob("torch/csrc/**/*.h")]):
        code = file.read_text("utf-8", "replace")
        texts += [code[start : start + 1000] for start in range(0, len(code), 1000)]
    kept = [text for text in texts if len(text) > 300]
    np.random.default_rng(0).shuffle(kept)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in kept[: TUNED_ON // 1000]))


def tune(texts: Path, out: Path) -> None:
    """Fine-tune the demo model on the given texts only."""
    torch.manual_seed(0)
    demo = sf.load_model("demo")
    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    whole = np.concatenate([[0, *demo.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in lines])
    rows = torch.from_numpy(whole[: len(whole) // CONTEXT * CONTEXT].astype(np.int64)).view(-1, CONTEXT)
    rows, kept = rows[ROWS:], rows[:ROWS]
    model = demo.hf_model
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95))

    def loss(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    with torch.no_grad():
        before = loss(kept).item()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 5, (STEPS - step) / 20)
        now = loss(rows[step * ROWS : (step + 1) * ROWS])
        now.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        print(f"tuning {step + 1}/{STEPS}: {now.item():.3f}", flush=True)
    with torch.no_grad():
        after = loss(kept).item()
    model.save_pretrained(out)
    demo.tokenizer.save_pretrained(out)
    told = {"before": before, "after": after, "tokens": STEPS * ROWS * CONTEXT}
    (out / "tuned.json").write_text(json.dumps(told))


def trained(work: Path) -> None:
    """Train every model and SAE and make the words, unless they exist already."""
    work.mkdir(parents=True, exist_ok=True)
    options = [*COMMON.split(), "--lr", "3e-3", "--tokens", 400_000, "--texts", "demo"]
    run("train", "demo", *options, "--width", 768, "--keep-every", 100_000, "--out", work / "seed-0")
    run("train", "demo", *options, "--width", 768, "--seed", 1, "--out", work / "seed-1")
    run("train", "demo", *options, "--width", 1536, "--seed", 2, "--out", work / "wide")
    cpp = work / "cpp.jsonl"
    if not cpp.exists():
        headers(cpp)
    if not (work / "tuned" / "tuned.json").exists():
        tune(cpp, work / "tuned")
    options = [*COMMON.split(), "--lr", "1e-3", "--tokens", 200_000, "--texts", f"demo,{cpp}", "--init", "demo"]
    for model, out in (("demo", "base-refined"), (work / "tuned", "tuned-refined")):
        run("train", model, *options, "--width", 768, "--out", work / out)
    words = [("demo", "seed-0", "demo"), ("demo", "wide", "demo")]
    words += [("demo", "base-refined", f"demo,{cpp}"), (work / "tuned", "tuned-refined", f"demo,{cpp}")]
    for model, name, texts in words:
        if not (out := work / name / "words").is_dir():
            run("labels", "make", work / name, "--model", model, "--texts", texts, "--tokens", 100_000, "--out", out)
    run("labels", "transfer", "demo", work / "seed-1", "--min", 0.9, "--out", work / "seed-1" / "words")


def independent(one: Path, other: Path) -> dict[str, float]:
    """PW-MCC and mean maximum cosines computed from the files with numpy and scipy only."""
    a, b = (load_file(folder / "3.res" / "sae_weights.safetensors")["W_dec"].astype(float) for folder in (one, other))
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    cosine = a @ b.T
    by_size, signed = linear_sum_assignment(-np.abs(cosine)), linear_sum_assignment(-cosine)
    found = {"pw_mcc": np.abs(cosine)[by_size].mean(), "signed": cosine[signed].mean()}
    found |= {"a in b": cosine.max(axis=1).mean(), "b in a": cosine.max(axis=0).mean()}
    return {name: float(value) for name, value in found.items()}


def told(rows: Iterable[Any], columns: Sequence[str]) -> str:
    """Rows of a DataFrame as a Markdown table: three decimals, with pipes escaped and line ends removed."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.0f}" if value.is_integer() and value > 1 else f"{value:.3f}"
        return " ".join(str(value if value is not None else "").replace("|", "\\|").split())

    return table([list(columns), *([cell(row[column]) for column in columns] for row in rows)])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")


def compared(work: Path, name: str, *releases: object, names: str) -> sf.Comparison:
    out = work / "compared" / name
    if not (out / "comparison.json").exists():
        run("compare", *releases, "--sites", SITE, "--names", names, "--out", out, "--limit", 5)
    return sf.open_comparison(out)


def seeds(work: Path) -> list[str]:
    """The section that compares two seeds, and a narrow SAE with a wide one."""
    found = compared(work, "seeds", work / "seed-0", work / "seed-1", names="seed-0,seed-1")
    wide = compared(work, "widths", work / "seed-0", work / "wide", names="narrow,wide")
    rows: list[dict[str, Any]] = []
    for made, other in ((found, "seed-1"), (wide, "wide")):
        row = records(made.to_pandas())[0]
        by_hand = independent(work / "seed-0", work / other)
        furthest = max(abs(row[key] - value) for key, value in by_hand.items())
        rows.append(row | {"furthest from numpy and scipy": f"{furthest:.1e}"})
    pairs = ["a", "b", "pw_mcc", "rotated", "signed", "a in b", "b in a", "mutual", "shared"]
    parts = ["## Two seeds, and twice the width\n", told(rows, [*pairs, "furthest from numpy and scipy"])]
    kinds = pd.concat([made.table("compare_kinds") for made in (found, wide)])
    parts.append(told(records(kinds), ["a", "b", "n", "shared", "related", "only"]))
    splits = wide.table("splits")
    splits = splits[splits["of"].str.startswith("narrow")]
    parts.append(f"Features of the narrow one that several of the wide one share: {len(splits)}. The first ten:\n")
    shown = ["feature", "words", "parts", "cosines", "best", "span", "chance", "words of the parts"]
    parts.append(told(records(splits.head(10)), shown))
    labels = json.loads((work / "seed-1" / "words" / "about.json").read_text())["sites"][SITE]
    parts.append(
        f"`saeflow labels transfer demo seed-1 --min 0.9` carried {labels['labelled']} labels of the demo's {SITE} "
        f"over to the {labels['features']} features of seed-1, which had none.\n"
    )
    return parts


def chain(work: Path) -> list[str]:
    """The section on checkpoints of one training run."""
    steps = [*sorted((work / "seed-0-steps").iterdir()), work / "seed-0"]
    found = compared(work, "chain", *steps, names="100k,200k,300k,400k")
    shown = ["name", "features", "carried", "born", "lost", "drift", "pw_mcc", "pw_mcc last", "there"]
    parts = ["## Checkpoints of one training\n", told(records(found.table("compare_steps")), shown)]
    turned = found.table("lineages")
    turned = turned[turned["born"] == 0].sort_values("turned", ascending=False).head(5)
    parts.append("Features that were there from the first step and turned most:\n")
    parts.append(told(records(turned), ["feature", "turned", "path", "words"]))
    return parts


def tuned(work: Path) -> list[str]:
    """The section on fine-tuning: features that neither the demo nor the base model on the same texts has."""
    base, control, refined = "demo", work / "base-refined", work / "tuned-refined"
    chained = compared(work, "tuned", base, control, refined, names="demo,base-refined,tuned-refined")
    over = compared(work, "tuned-against-demo", refined, base, names="tuned-refined,demo")
    against = compared(work, "tuned-against-base", refined, control, names="tuned-refined,base-refined")
    said = json.loads((work / "tuned" / "tuned.json").read_text())
    parts = [
        "## A tuned model\n",
        (
            f"The demo model after {said['tokens']:,} tokens of C++, the headers of PyTorch: its loss on such text "
            f"fell from {said['before']:.2f} to {said['after']:.2f} nats a token. Both SAEs start from the demo's "
            f"{SITE} and see 200,000 tokens, a sixth of the texts C++.\n"
        ),
        told(records(chained.to_pandas()), ["a", "b", "pw_mcc", "a in b", "b in a", "mutual", "shared"]),
    ]
    # new: no feature of the demo's SAE, nor of the base model's on the same texts, has a cosine of 0.7
    frames = [made.table("features") for made in (over, against)]
    mine = [one[one["of"].str.startswith("tuned")].set_index("feature") for one in frames]
    new, alone = (one["cosine"] < 0.7 for one in mine)
    parts.append(
        f"Of {len(new)} features {int(new.sum())} have no match of 0.7 in the demo's SAE, and "
        f"{int((new & alone).sum())} none in that of the base model on the same texts either. Those that are farthest "
        "from the demo's are below, with the nearest feature there and its words. An SAE that starts from the base's "
        "keeps most of its directions: what tuning brings shows in the words before it shows in the cosines.\n"
    )
    rows = mine[0].assign(**{"in demo": mine[0]["cosine"], "in base-refined": mine[1]["cosine"]})
    rows = rows.rename(columns={"best": "nearest in demo", "words of the best": "its words"})
    turned = rows.sort_values("in demo").head(20).reset_index()
    shown = ["feature", "in demo", "in base-refined", "density", "words", "nearest in demo", "its words"]
    parts.append(told(records(turned), shown))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/comparison"), help="folder for what can be resumed")
    work = parser.parse_args().work
    trained(work)
    page = "\n".join([HEAD.format(site=SITE), *seeds(work), *chain(work), *tuned(work)])
    (DOCS / "demo-comparison.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
