"""A judge that needs no key, no network and no language model but the one that is steered.

    coherence   the unsteered model's loss, and repetition, against unsteered samples of the same prompt (`coherence`)
    behavior    a classifier of the theme's example texts against background texts (`topic`)

It is deterministic, and learns from example texts and unsteered text alone: no steered text is ever trained on, and
the mark of a text does not depend on the others. It is a cheap, blunt instrument: it knows the words of a theme, not
whether a sentence is about it. docs/offline-judge.md says how well it does; where a language model can be asked, ask
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from saeflow.demo.texts import DOMAINS, texts
from saeflow.errors import InvalidArgument
from saeflow.records import Progress
from saeflow.steering.judges.coherence import Usual, by_prompt
from saeflow.steering.judges.scores import Judged, Score
from saeflow.steering.judges.topic import WINDOW, Embedder, Topic, TopicReport, Windows, fit, held_out, windows_of
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Theme

AT_ONCE: Final = 256
"""Texts between two calls of `progress`."""


def demo_background(n: int = 60, seed: int = 0) -> list[str]:
    """`n` texts of each domain the demo model knows, as a background for its themes.

    Raises:
        InvalidArgument: for more than a domain has.
        BadFile: when the pack's texts cannot be read.
    """
    return [text for domain in DOMAINS for text in texts(domain, n, seed)]


class OfflineJudge:
    """Marks texts by the unsteered model's loss and a classifier of topics.

    A theme's classifier is fitted when it is first needed. Its background are the texts of `background` and the
    unsteered samples of the prompt it is activated on, where there are some: what the model writes there by itself.
    Samples of the prompt it is suppressed on are about the theme, and teach nothing; nor do those of other themes'
    prompts, so that a theme is judged alike whatever it is judged with.

    Args:
        background: texts about nothing in particular, of the kind the model writes; of any length. Give as many of
            each kind. Texts about the theme among them make it harder to tell.
        reference: unsteered samples, by prompt or as one sequence, with their losses. What is judged must continue one
            of these prompts; a prompt that asks for the theme may be missing, and is then compared with the
            samples of the theme's plain prompt.
        window: words of a window that is classified, as many as the texts to judge have.
        embedder: what makes vectors of texts, in place of TF-IDF.

    Raises:
        InvalidArgument: for a window below 4 words, or fewer than 4 unsteered samples of a prompt.
    """

    def __init__(
        self,
        background: Sequence[str],
        reference: Mapping[Any, Sequence[Judged]] | Iterable[Judged],
        *,
        window: int = WINDOW,
        embedder: Embedder | None = None,
    ) -> None:
        """Measure the unsteered samples."""
        if window < 4:
            raise InvalidArgument(f"window = {window} words show no topic. Give 4 or more, about 28.")
        self._background = tuple(background)
        self._samples = by_prompt(_flat(reference))
        self._usual = {prompt: Usual.of(samples) for prompt, samples in self._samples.items()}
        self._window, self._embedder = window, embedder
        self._topics: dict[tuple[tuple[str, ...], str | None], Topic] = {}

    @property
    def name(self) -> str:
        """What the judge reads, as named beside every number."""
        return f"offline (loss and {self._embedder.name if self._embedder else 'TF-IDF'})"

    def score(
        self, theme: Theme, direction: SteeringDirection, texts: Sequence[Judged], *, progress: Progress | None = None
    ) -> list[Score]:
        """A score for each text, in order. The behavior mark is the same in both directions.

        Raises:
            InvalidArgument: for a theme with fewer than 5 examples, a prompt without unsteered samples, or a text
                with tokens and no loss.
            MissingExtra: when scikit-learn is not installed.
        """
        topic = self.topic(theme)
        found: list[Score] = []
        for start in range(0, len(texts), AT_ONCE):
            if progress:
                progress(start, len(texts), f"texts judged {self.name}")
            part = texts[start : start + AT_ONCE]
            for judged, mark in zip(part, topic.marks([j.text for j in part]), strict=True):
                found.append(Score(self._usual_of(theme, direction, judged.prompt).coherence(judged), mark))
        if progress:
            progress(len(texts), len(texts), "done")
        return found

    def report(self, theme: Theme) -> TopicReport:
        """How well the classifier of a theme does on texts it has not seen; fits it some 30 times.

        Raises:
            InvalidArgument: for a theme with fewer than 5 examples.
            MissingExtra: when scikit-learn is not installed.
        """
        return held_out(theme.name, self._windows(theme), window=self._window, embedder=self._embedder)

    def topic(self, theme: Theme) -> Topic:
        """The theme's classifier, fitted once: a function of the theme's examples and of its plain prompt.

        Raises:
            InvalidArgument: for a theme with fewer than 5 examples, or fewer than 5 background texts.
            MissingExtra: when scikit-learn is not installed.
        """
        key = (theme.examples, _plain(theme))
        if key not in self._topics:
            self._topics[key] = fit(self._windows(theme), window=self._window, embedder=self._embedder)
        return self._topics[key]

    def _windows(self, theme: Theme) -> Windows:
        plain = _plain(theme)
        unsteered = [] if plain is None else [sample.text for sample in self._samples.get(plain, [])]
        try:
            return windows_of(theme.examples, [*self._background, *unsteered], self._window)
        except InvalidArgument as error:
            raise InvalidArgument(f"the theme {theme.name!r}: {error}") from None

    def _usual_of(self, theme: Theme, direction: SteeringDirection, prompt: str) -> Usual:
        task = theme.activate if direction is SteeringDirection.ACTIVATE else theme.suppress
        for known in (prompt, task.prompt if task and prompt == task.asked else prompt):
            if known in self._usual:
                return self._usual[known]
        raise InvalidArgument(
            f"there are no unsteered samples of the prompt {prompt!r} to compare with; there are some of "
            f"{', '.join(map(repr, self._usual)) or 'none'}. Give them in reference."
        )


def _plain(theme: Theme) -> str | None:
    """The prompt a theme is activated on, unless it is suppressed on the same: then its samples may be about it."""
    if theme.activate is None or (theme.suppress and theme.suppress.prompt == theme.activate.prompt):
        return None
    return theme.activate.prompt


def _flat(reference: Mapping[Any, Sequence[Judged]] | Iterable[Judged]) -> list[Judged]:
    if isinstance(reference, Mapping):
        groups = cast("Mapping[Any, Sequence[Judged]]", reference)
        return [sample for samples in groups.values() for sample in samples]
    return list(reference)
