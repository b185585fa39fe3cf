"""Measure how well the offline judge of steered text works on the demo pack.

    python scripts/offline_judge.py          writes docs/offline-judge.md and prints it

The classifier of each theme of the pack is tested on held-out example texts, against the background and against the
examples of other themes. For each prompt, the coherence mark of unsteered samples is compared with that of the same
samples after damage of known kinds. Seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from demo_build.markdown import table
from saeflow.experiments.sampling import generator
from saeflow.sources.model import LanguageModel, load_model
from saeflow.steering.generate import Request, Sampling, generate
from saeflow.steering.judges import Judged
from saeflow.steering.judges.offline import OfflineJudge, Usual, pack_background
from saeflow.steering.judges.topic import TopicReport
from saeflow.steering.metrics import losses
from saeflow.steering.theme import Theme, themes

OUT = Path(__file__).parent.parent / "docs" / "offline-judge.md"
SAMPLES = 100
INTRODUCTION = """\
# The offline judge

Steered text gets two marks from 0 to 5, coherence and behavior (section 4.2). The paper asks gpt-4o-mini for both.
`OfflineJudge` gives marks with the same names, without a key, a network or a second language model:

- **coherence** is 5 x probability x variety x length, where each factor is at most 1. Probability is e to the power of
  (m - loss): the loss is that of the unsteered model on the text given its prompt, and m is the upper quartile of the
  losses of unsteered samples of that prompt. Variety penalises repetition: it is the lowest of distinct-1, -2 and -3,
  each relative to its 10 % quantile over unsteered samples. Length lowers the mark of texts that stop before a quarter
  of the usual length.
- **behavior** is 5 times the probability that the text is one of the theme's example texts rather than one of the
  background, by a logistic regression on TF-IDF of words and pieces of words. Both classes have equal weight; the
  probability is calibrated on held-out folds.

The judge is deterministic. It learns from example texts, background texts and unsteered samples, and marks those
samples with classifiers that have not seen them. It never learns from steered text.

## What it is not

It does not read. A text that names the sea, ships and sails counts as being about sailing, whether or not it makes
sense; a text about sailing in words that no example uses does not. Its coherence depends on what the unsteered model
expects: marks for two models cannot be compared, a text that the model itself would write gets full marks even if it
makes no sense, and a rare topic loses marks because its words are less expected. Its marks have not been compared with
those of people or of a large language model. Use it to compare settings of one model and one theme, and look at the
samples. Where a language model is available, use that instead: `LLMJudge` has the paper's rubrics.
"""
BEHAVIOR = """\
## Behavior

Written by `python scripts/offline_judge.py`, on the themes of the demo pack. The background consists of {texts} texts
from the pack's five domains and {n} unsteered samples of the theme's plain prompt. Each window of a text is
judged by a classifier that has not seen the text (five folds). AUC is the probability that a window of an example gets
a higher mark than a window of the background (0.5 is chance); Brier is the mean squared error of the probability (0.25
for an uninformed judge, with equal class weights); calibration is the mean distance between predicted and observed
shares over fifths. "AUC, other themes" is the AUC of held-out examples against the examples of all other themes, which
are not part of the background: it would expose a judge that recognises who wrote the examples rather than what they are
about. A theme that is also a domain of the pack, such as python, is harder to tell from its background, because part of
the background is about it.

The remaining columns are mean marks, 0 to 5: of held-out examples, of the background, of other themes' examples, and of
fresh unsteered samples of the plain prompt and of the prompt on which the theme is suppressed.
"""
CALIBRATION = """\
Are the probabilities calibrated? All held-out windows of all themes, by fifths of the predicted probability. Both
classes of a theme have equal weight.
"""
COHERENCE = """\
## Coherence

Half of the {n} unsteered samples of each prompt are the reference. The others are judged unchanged, and after damage:
tokens replaced by random ones, words put in random order, the first tokens repeated until the end. Loss is in nats per
token, the mark is from 0 to 5, and AUC is the probability that an unchanged sample gets a higher mark. The first three
columns are for the prompt "I think", with 36 tokens; the others are means over the {themes} other prompts, those on
which themes are suppressed, with 48 tokens.
"""
PLAIN = "I think"


@dataclass(frozen=True)
class Sample:
    """A text of the unsteered model, or a damaged version of one."""

    ids: tuple[int, ...]
    judged: Judged


def sampled(model: LanguageModel, prompt: str, n: int, length: int, first_seed: int = 0) -> list[Sample]:
    requests = [Request(prompt, first_seed + number) for number in range(n)]
    made = generate(model, None, requests, Sampling(max_new_tokens=length))
    return judged_of(model, prompt, [generation.ids for generation in made])


def judged_of(model: LanguageModel, prompt: str, texts: Sequence[Sequence[int]]) -> list[Sample]:
    nats = losses(model, prompt, texts)
    told = [model.spelling.text(ids, skip_special_tokens=True) for ids in texts]
    return [
        Sample(tuple(ids), Judged(text, prompt, loss, tuple(ids)))
        for ids, text, loss in zip(texts, told, nats, strict=True)
        if text.strip()
    ]


def worse(model: LanguageModel) -> dict[str, Callable[[Sequence[int], np.random.Generator], list[int]]]:
    """Functions that damage a text, by name."""
    special = set(model.tokenizer.all_special_ids)
    known = [token for token in range(len(model.tokenizer)) if token not in special]

    def replaced(share: float) -> Callable[[Sequence[int], np.random.Generator], list[int]]:
        def spoil(ids: Sequence[int], draw: np.random.Generator) -> list[int]:
            lost = draw.random(len(ids)) < share
            return [int(draw.choice(known)) if gone else token for token, gone in zip(ids, lost, strict=True)]

        return spoil

    def shuffled(ids: Sequence[int], draw: np.random.Generator) -> list[int]:
        words = str(model.tokenizer.decode(list(ids))).split(" ")
        text = " ".join(words[at] for at in draw.permutation(len(words)))
        return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def looped(period: int) -> Callable[[Sequence[int], np.random.Generator], list[int]]:
        return lambda ids, _: [ids[at % period] for at in range(len(ids))]

    found = {f"{share:.0%} of the tokens replaced": replaced(share) for share in (0.1, 0.3, 0.5)}
    found["words in random order"] = shuffled
    return found | {f"first {n} tokens repeated" if n > 1 else "first token repeated": looped(n) for n in (18, 6, 1)}


def auc(better: Sequence[float], poorer: Sequence[float]) -> float:
    truth = [1] * len(better) + [0] * len(poorer)
    return float(roc_auc_score(truth, [*better, *poorer]))


def coherence_of(model: LanguageModel, prompt: str, samples: Sequence[Sample]) -> dict[str, tuple[float, ...]]:
    """(Mean loss, mean mark, AUC) for each kind of damage to the samples."""
    usual = Usual.of([sample.judged for sample in samples[::2]])
    fresh = [sample for sample in samples[1::2] if len(sample.ids) > 1]
    untouched = [usual.coherence(sample.judged) for sample in fresh]
    found = {"as it is": (float(np.mean([s.judged.loss for s in fresh])), float(np.mean(untouched)), 0.5)}
    for name, spoil in worse(model).items():
        draw = generator(0, "spoil", name, prompt)
        poor = judged_of(model, prompt, [spoil(sample.ids, draw) for sample in fresh])
        marks = [usual.coherence(sample.judged) for sample in poor]
        mean = float(np.mean([sample.judged.loss for sample in poor]))
        found[name] = (mean, float(np.mean(marks)), auc(untouched, marks))
    return found


def behavior_row(
    judge: OfflineJudge, theme: Theme, others: Sequence[Theme], report: TopicReport, fresh: dict[str, list[str]]
) -> list[str]:
    topic = judge.topic(theme)
    own = topic.marks(theme.examples)
    foreign = topic.marks([text for other in others for text in other.examples])
    plain = topic.marks(fresh[theme.task("activate").prompt])
    about = topic.marks(fresh[theme.task("suppress").prompt])
    marks = [report.on_topic, report.off_topic, *(float(np.mean(m)) for m in (foreign, plain, about))]
    measured = [report.auc, report.brier, report.error, auc(own, foreign)]
    return [theme.name, str(report.examples), *(f"{x:.3f}" for x in measured), *(f"{x:.2f}" for x in marks)]


def behavior(judge: OfflineJudge, known: Sequence[Theme], fresh: dict[str, list[str]]) -> str:
    reports = {theme.name: judge.report(theme) for theme in known}
    rows = [
        [
            "theme",
            "examples",
            "AUC",
            "Brier",
            "calibration",
            "AUC, other themes",
            "mark of examples",
            "background",
            "other themes",
            "plain prompt",
            "prompt on the theme",
        ]
    ]
    for theme in known:
        others = [other for other in known if other is not theme]
        rows.append(behavior_row(judge, theme, others, reports[theme.name], fresh))
    return "\n".join(
        [
            BEHAVIOR.format(n=SAMPLES, texts=len(pack_background("demo"))),
            table(rows),
            CALIBRATION,
            calibration(list(reports.values())),
        ]
    )


def calibration(reports: Sequence[TopicReport]) -> str:
    """A table by fifths of the predicted probability over all themes, weighted by the weights of the bins."""
    rows = [["predicted", "mean predicted", "observed share", "windows"]]
    for fifth in range(5):
        bins = [b for report in reports for b in report.bins if min(int(b.predicted * 5), 4) == fifth]
        weights = [b.weight for b in bins]
        if bins:
            predicted = np.average([b.predicted for b in bins], weights=weights)
            observed = np.average([b.observed for b in bins], weights=weights)
            told = [f"{predicted:.2f}", f"{observed:.2f}", str(sum(b.n for b in bins))]
            rows.append([f"{fifth / 5:.1f} to {(fifth + 1) / 5:.1f}", *told])
    return table(rows)


def coherence(model: LanguageModel, samples: dict[str, list[Sample]]) -> str:
    told = {prompt: coherence_of(model, prompt, found) for prompt, found in samples.items()}
    others = [found for prompt, found in told.items() if prompt != PLAIN]
    rows = [["text", "loss", "mark", "AUC", "loss, other prompts", "mark", "AUC"]]
    for name, here in told[PLAIN].items():
        there = np.mean([found[name] for found in others], axis=0)
        rows.append([name, *(f"{x:.2f}" for x in (*here, *there.tolist()))])
    return COHERENCE.format(n=2 * SAMPLES, themes=len(others)) + "\n" + table(rows)


def main() -> None:
    model, known = load_model("demo"), themes("demo")
    tasks: dict[str, Any] = {
        task.prompt: task.max_new_tokens for theme in known for task in (theme.activate, theme.suppress) if task
    }
    samples = {prompt: sampled(model, prompt, 2 * SAMPLES, length) for prompt, length in tasks.items()}
    reference = [s.judged for found in samples.values() for s in found[:SAMPLES]]
    fresh = {prompt: [s.judged.text for s in found[SAMPLES:]] for prompt, found in samples.items()}
    judge = OfflineJudge(pack_background("demo"), reference)
    page = "\n".join([INTRODUCTION, behavior(judge, known, fresh), coherence(model, samples)])
    OUT.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
