"""Labels written by a language model from passages a feature fires on, and how well they predict others. No torch.

    estimate(folder, chat.name, features)             # how many requests that will take
    explained = explain(folder, chat, features)       # asks; answers are kept, so nothing is asked twice
    write_explanations(folder, explained)             # into the words, with the model's name and the score

Half of a feature's passages are shown, with the tokens it fires on marked, and the model says what they share; the
other half is for `detection`. An answer that is not the requested JSON is requested again, `TRIES` times in all; after
that the feature keeps its old label. Passages are untrusted and may hold anything, so only the fields of that JSON are
ever read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, TypeVar, runtime_checkable

import numpy as np

from saeflow.errors import BadFile, InvalidArgument
from saeflow.files import cache_folder
from saeflow.ids import FeatureId, Site
from saeflow.labels.detection import Detection, DetectionTrial, Silence, make_trial
from saeflow.labels.questions import ask_fires, ask_label, marked, read_fires, read_label
from saeflow.labels.words import Context, FeatureWords, WordsFolder, write_words
from saeflow.llm.answers import Answers
from saeflow.llm.endpoint import Endpoint, Messages
from saeflow.plain_types import Progress

TRIES: Final = 3
"""Maximum times a question is asked until its answer can be read."""

T = TypeVar("T")

_AGAIN: Final = "That was not the JSON that was asked for ({why}). Answer with it alone."


@runtime_checkable
class Chat(Protocol):
    """Anything that answers conversations: a language model behind an address, or a stand-in."""

    @property
    def name(self) -> str:
        """The model's name: answers are kept under it, and labels signed with it."""
        ...

    def complete(self, conversations: Sequence[Messages]) -> Sequence[str]:
        """The answer to each conversation, in order; asks as many at once as it can.

        Raises:
            Unreachable: when an answer does not come.
        """
        ...


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result of asking about a feature.

    Attributes:
        feature: the feature.
        label: one line; empty if no answer could be used.
        by: the model's name.
        detection: how well the label predicted held-out passages; None if there were none or no answer could be used.
        problem: why there is no label or no score; empty if there are both.
    """

    feature: FeatureId
    label: str
    by: str
    detection: Detection | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RequestEstimate:
    """What explaining some features will take, before anything is asked.

    Attributes:
        requests: questions without a kept answer: one for each label, one for each score. An unreadable answer is
            requested again, which comes on top: up to `TRIES` requests per question in all.
        cached: questions with a kept answer.
        silent: features without passages, about which nothing is asked.
    """

    requests: int
    cached: int
    silent: int


def estimate(
    folder: Path,
    name: str,
    features: Iterable[FeatureId],
    *,
    shown: int = 10,
    held_out: int = 5,
    silent: int = 5,
    seed: int = 0,
    cache: Path | None = None,
) -> RequestEstimate:
    """How many requests `explain` will make with a chat of this name and the same other arguments; asks nothing.

    Raises:
        BadFile: when the words cannot be read.
    """
    asker = _Asker(name, cache)
    sites: dict[Site, Silence] = {}
    requests = kept = without = 0
    for feature in sorted(set(features)):
        case = _case(folder, sites, feature, shown, held_out, silent, seed)
        if not case.shown:
            without += 1
            continue
        label = asker.known(ask_label(case.shown), read_label)
        answers: list[object] = [label]
        if case.trial is not None:
            question = None if label is None else ask_fires(label, case.trial)
            read = read_fires(len(case.trial.examples))
            answers.append(None if question is None else asker.known(question, read))
        kept += sum(one is not None for one in answers)
        requests += sum(one is None for one in answers)
    return RequestEstimate(requests, kept, without)


def explain(
    folder: Path,
    chat: Chat,
    features: Iterable[FeatureId],
    *,
    shown: int = 10,
    held_out: int = 5,
    silent: int = 5,
    at_once: int = 32,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[Explanation]:
    """Ask for a label of each feature, then how well it tells passages apart.

    Passages alternate, strongest first: one is shown, the next held out, so that both sets are alike. A meaningful
    score needs words made with 20 contexts or more.

    Args:
        folder: a folder of words, with contexts.
        chat: the language model to ask.
        features: features to explain. One without passages comes back with a problem, and nothing is asked about it;
            one with a single passage gets no score.
        shown: maximum passages shown for the label.
        held_out: maximum firing passages shown for the score.
        silent: maximum silent passages shown for the score.
        at_once: features asked about together.
        seed: seed of the draw of silent passages and of the order of all passages.
        cache: folder of answers, named by the content of the question; in saeflow's cache when None.
        progress: called with (features done, features in all, feature).

    Raises:
        InvalidArgument: for a number below 1.
        BadFile: when the words cannot be read, or the chat gives another number of answers than questions.
        Unreachable: when an answer does not come; those of an `Endpoint` that came are kept.
    """
    for name, value in {"shown": shown, "held_out": held_out, "silent": silent, "at_once": at_once}.items():
        if value < 1:
            raise InvalidArgument(f"{name} = {value}. Give 1 or more.")
    asker = _Asker(chat.name, cache)
    asked = sorted(set(features))
    sites: dict[Site, Silence] = {}
    for start in range(0, len(asked), at_once):
        some = asked[start : start + at_once]
        if progress:
            progress(start, len(asked), str(some[0]))
        cases = [_case(folder, sites, feature, shown, held_out, silent, seed) for feature in some]
        yield from _explained(asker, chat, cases)


def write_explanations(folder: Path, explained: Iterable[Explanation]) -> int:
    """Write labels, who made them and their scores into a folder of words; returns the number of labels.

    Raises:
        BadFile: when the words cannot be read.
        OSError: when the folder cannot be written.
    """
    by_site: dict[Site, dict[int, Explanation]] = {}
    for one in explained:
        if one.label:
            by_site.setdefault(one.feature.site, {})[one.feature.index] = one
    for site, found in by_site.items():
        rows = list(WordsFolder(folder).site(site))
        for index, one in found.items():
            known = rows[index] if index < len(rows) else None
            if known is not None:
                score = None if one.detection is None else round(one.detection.score, 4)
                rows[index] = replace(known, label=one.label, by=one.by, score=score)
        write_words(folder, site, rows)
    return sum(map(len, by_site.values()))


@dataclass(frozen=True, slots=True)
class _Case:
    """A feature with the passages to show for it."""

    feature: FeatureId
    shown: tuple[Context, ...]
    trial: DetectionTrial | None


def _case(
    folder: Path, sites: dict[Site, Silence], feature: FeatureId, shown: int, held_out: int, silent: int, seed: int
) -> _Case:
    site = feature.site
    if site not in sites:
        rows = WordsFolder(folder).site(site)
        controls = folder / f"{site.layer}.{site.part.value}.controls.jsonl.gz"
        sites[site] = Silence.of(controls, site, rows)
    silence = sites[site]
    known: FeatureWords | None = silence.rows[feature.index] if feature.index < len(silence.rows) else None
    contexts = () if known is None else known.contexts
    digest = hashlib.sha256(f"{seed} {feature}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    return _Case(feature, contexts[0::2][:shown], make_trial(feature, contexts[1::2][:held_out], silence, silent, rng))


def _explained(asker: _Asker, chat: Chat, cases: Sequence[_Case]) -> Iterator[Explanation]:
    """Ask for the labels of some features, then for their scores: two rounds of questions."""
    possible = [case for case in cases if case.shown]
    labels = dict(
        zip(
            (c.feature for c in possible),
            asker.ask(chat, (ask_label(c.shown) for c in possible), read_label),
            strict=True,
        )
    )
    tried = [(case, case.trial, label) for case in possible if case.trial and (label := labels[case.feature])]
    questions = (ask_fires(label, trial) for _, trial, label in tried)
    lengths = [len(trial.examples) for _, trial, _ in tried]
    answers = asker.ask(chat, questions, *[read_fires(n) for n in lengths])
    scores = {case.feature: trial.scored(said) for (case, trial, _), said in zip(tried, answers, strict=True) if said}
    for case in cases:
        label, detection = labels.get(case.feature) or "", scores.get(case.feature)
        yield Explanation(case.feature, label, asker.name, detection, _problem(case, label, detection))


def _problem(case: _Case, label: str, detection: Detection | None) -> str:
    if not case.shown:
        return "it has no passages"
    if not label:
        return f"no answer of {TRIES} was a label"
    if case.trial is None:
        return "it has no held-out passages, or no silent ones"
    return "" if detection else f"no answer of {TRIES} said which passages it fires on"


class _Asker:
    """Asks until answers can be read, and keeps the readable ones."""

    def __init__(self, name: str, cache: Path | None) -> None:
        self.name = name
        self._answers = Answers(cache_folder() / "answers" if cache is None else cache)

    def ask(self, chat: Chat, questions: Iterable[Messages], *read: Callable[[str], T]) -> list[T | None]:
        """The answer to each question as read, None if none could be; `read` is one reader, or one per question."""
        asked = [list(question) for question in questions]
        keys = [self._key(question) for question in asked]
        readers = list(read) * len(asked) if len(read) == 1 else list(read)
        found: list[T | None] = [None] * len(asked)
        unread = set(range(len(asked)))

        def hear(place: int, said: str, *, new: bool = True) -> None:
            try:
                found[place] = readers[place](said)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                again = {"role": "user", "content": _AGAIN.format(why=str(error)[:200])}
                asked[place] = [*asked[place], {"role": "assistant", "content": said[:2000]}, again]
                return
            unread.discard(place)
            if new:
                self._answers.put(keys[place], {"model": self.name, "answer": said})

        for place, key in enumerate(keys):
            if (answer := self._kept(key)) is not None:
                hear(place, answer, new=False)
        for _ in range(TRIES):
            if places := sorted(unread):
                self._complete(chat, [asked[place] for place in places], lambda n, said, at=places: hear(at[n], said))
        return found

    def _complete(self, chat: Chat, conversations: Sequence[Messages], take: Callable[[int, str], None]) -> None:
        """Pass every answer to `take`; those of an endpoint as they come, so that they are kept if another fails."""
        if isinstance(chat, Endpoint):
            chat.complete(conversations, take)
            return
        given = list(chat.complete(conversations))
        if len(given) != len(conversations):
            raise BadFile(f"{self.name} gave {len(given)} answers to {len(conversations)} questions. Check the client.")
        for number, answer in enumerate(given):
            take(number, str(answer))

    def known(self, question: Messages, read: Callable[[str], T]) -> T | None:
        """The kept answer to a question, as read; None if there is none, or it cannot be read."""
        answer = self._kept(self._key(question))
        try:
            return None if answer is None else read(answer)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def _key(self, conversation: Messages) -> str:
        return self._answers.key(self.name, [dict(message) for message in conversation])

    def _kept(self, key: str) -> str | None:
        kept = self._answers.get(key)
        return str(kept["answer"]) if isinstance(kept, dict) and "answer" in kept else None


__all__ = ["TRIES", "Chat", "Explanation", "RequestEstimate", "estimate", "explain", "marked", "write_explanations"]
