"""A language model as judge: the rubrics of appendix B at any endpoint that speaks the chat API of OpenAI. No torch.

    texts -> messages -> answers in the cache | requests -> strict reading -> marks

The paper asks gpt-4o-mini. What was answered is kept on disk as it comes in, so a run that ends early, in whatever way,
resumes, and a rerun asks nothing. A kept answer holds marks and the names of model and subjects, neither texts nor
keys. The key is sent to the endpoint and goes nowhere else.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

from saeflow.errors import InvalidArgument
from saeflow.files import cache_folder
from saeflow.llm.answers import Answers
from saeflow.llm.endpoint import DEFAULT_MODEL, Endpoint, Messages, Pacing, Secret, is_address, place_of
from saeflow.records import Progress
from saeflow.steering.judges import Judged, Score
from saeflow.steering.judges.rubrics import BadAnswer, Marks, Rubric, rubric_for
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Theme

FORMAT: Final = "saeflow-answer"
VERSION: Final = 1


class LLMJudge:
    """Marks texts by asking a language model.

    Args:
        model: its name at the endpoint; empty: SAEFLOW_JUDGE_MODEL, else "gpt-4o-mini".
        base_url: where the chat API is, "http://localhost:8000/v1" for a local server; None: OPENAI_BASE_URL, else the
            API of OpenAI.
        key: of the endpoint; None: OPENAI_API_KEY. An endpoint at another base URL may need none.
        temperature: of the judge's answers; None leaves it to the endpoint, for models that allow no other.
        seed: sent where the endpoint knows it.
        reasks: how often a question is put again when its answer cannot be read. The model is then shown its answer
            and what is wrong with it; the first question is always the paper's.
        pacing: when requests go out.
        cache: folder of the answers; None: `judge` in saeflow's cache folder.

    Attributes:
        counts: since this judge was made, "asked": requests sent, retries and repeated questions among them; "cached":
            texts whose answer was in the cache; "retried": requests sent again because the endpoint was busy, broken
            or out of reach; "reasked": questions put again because the answer could not be read.

    Raises:
        InvalidArgument: for a value outside its range, an address that is none, or no key for OpenAI's own API.
    """

    def __init__(
        self,
        model: str = "",
        base_url: str | None = None,
        *,
        key: str | None = None,
        temperature: float | None = 0.0,
        seed: int = 0,
        reasks: int = 2,
        pacing: Pacing | None = None,
        cache: str | Path | None = None,
    ) -> None:
        """Read the settings; nothing is asked yet."""
        self.model = model or os.environ.get("SAEFLOW_JUDGE_MODEL") or DEFAULT_MODEL
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        if self._base_url is not None and not is_address(self._base_url):
            raise InvalidArgument(
                "the base URL of the judge is no http(s) address. Give one such as http://localhost:8000/v1, in "
                "OPENAI_BASE_URL or as base_url."
            )
        key = key or os.environ.get("OPENAI_API_KEY") or ""
        if not key and self._base_url is None:
            raise InvalidArgument(
                "there is no key for the OpenAI API. Set OPENAI_API_KEY, give --llm-url for a server of your own, or "
                "use the offline judge."
            )
        self._secret = Secret(key or "none")
        if reasks < 0 or (temperature is not None and not 0 <= temperature < math.inf):
            raise InvalidArgument(f"reasks = {reasks}, temperature = {temperature}: give 0 or more.")
        self._temperature, self._seed, self._reasks = temperature, seed, reasks
        self._pacing = pacing or Pacing()
        self._answers = Answers(Path(cache).expanduser() if cache else cache_folder() / "judge")
        self.counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        """The model and the endpoint."""
        return f"LLMJudge({self.model!r} at {place_of(self._base_url)})"

    @property
    def name(self) -> str:
        """The model, as named beside every number."""
        return f"{self.model} (rubrics of appendix B)"

    def score(
        self, theme: Theme, direction: SteeringDirection, texts: Sequence[Judged], *, progress: Progress | None = None
    ) -> list[Score]:
        """A score for each text, in order: the behavior mark is that of the theme's own subject.

        Raises:
            MissingExtra: when something has to be asked and the package openai is not installed.
            Unreachable: when the endpoint gives no answer, or refuses the key.
            InvalidArgument: when it does not know the model or the request.
            BadAnswer: when some answers cannot be read, after all others were asked for and kept.
        """
        own = rubric_for(theme, direction).own
        found = self.answers(theme, direction, texts, progress=progress)
        return [Score(float(answer.coherence), float(answer.behavioral[own])) for answer in found]

    def answers(
        self, theme: Theme, direction: SteeringDirection, texts: Sequence[Judged], *, progress: Progress | None = None
    ) -> list[Marks]:
        """The whole answer for each text, with the marks of all subjects in the order of `rubric_for`.

        Equal texts are asked about once. Each answer is kept as soon as it is there, and one that cannot be read stops
        no other.

        Raises:
            MissingExtra, Unreachable, InvalidArgument, BadAnswer: as `score`.
        """
        # 1. what is asked about each text, and what is known
        rubric = rubric_for(theme, direction)
        messages = [rubric.ask(text.text) for text in texts]
        keys = [
            self._answers.key(VERSION, self.model, rubric.system, message, self._temperature, self._seed)
            for message in messages
        ]
        questions = dict(zip(keys, messages, strict=True))
        known = {key: kept_marks(self._answers.get(key), rubric) for key in questions}
        found = {key: marks for key, marks in known.items() if marks is not None}
        missing = [key for key in questions if key not in found]
        self.counts["cached"] += len(found)
        if progress:
            progress(len(found), len(questions), f"texts judged by {self.model}")
        if not missing:
            return [found[key] for key in keys]

        # 2. the others, several at once
        unread: list[BadAnswer] = []

        def take(key: str, answer: Future[Marks]) -> None:
            try:
                found[key] = answer.result()
            except BadAnswer as error:
                unread.append(error)
            if progress:
                progress(len(found) + len(unread), len(questions), f"texts judged by {self.model}")

        with Endpoint(
            self.model,
            base_url=self._base_url,
            secret=self._secret,
            temperature=self._temperature,
            seed=self._seed,
            pacing=self._pacing,
        ) as endpoint:
            try:
                endpoint.ask_all(lambda key: self._ask(endpoint, rubric, key, questions[key]), missing, take)
            finally:
                self.counts.update({name: endpoint.counts[name] for name in ("asked", "retried", "reasked")})
        if unread:
            raise BadAnswer(
                f"{len(unread)} of {len(missing)} answers of {self.model} could not be read, each asked for "
                f"{self._reasks + 1} times. The first: {unread[0]} The others are kept. Run again with more reasks, or "
                "with a model that keeps to the format."
            )
        return [found[key] for key in keys]

    def _ask(self, endpoint: Endpoint, rubric: Rubric, key: str, message: str) -> Marks:
        """One answer, kept; the question is put again where it cannot be read."""
        first: Messages = [{"role": "system", "content": rubric.system}, {"role": "user", "content": message}]
        messages, wrong = first, ""
        for attempt in range(self._reasks + 1):
            if attempt:
                endpoint.count("reasked")
            said = endpoint.ask(messages, attempt=attempt)
            try:
                marks = rubric.read(said)
            except BadAnswer as error:
                wrong = self._secret.hide(str(error))
                again = f"That cannot be read: {wrong} Answer again, with the JSON object alone."
                messages = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": again}]
            else:
                self._answers.put(key, marks_to_keep(marks, rubric, self.model))
                return marks
        raise BadAnswer(wrong)


def marks_to_keep(marks: Marks, rubric: Rubric, model: str) -> dict[str, object]:
    """What is kept of an answer: marks, the rubric, and the names of model and subjects."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "rubric": rubric.name,
        "subjects": [subject.name for subject in rubric.subjects],
        "coherence": marks.coherence,
        "behavioral": marks.behavioral[0] if rubric.name == "B.2" else list(marks.behavioral),
    }


def kept_marks(kept: object, rubric: Rubric) -> Marks | None:
    """The marks of what `marks_to_keep` wrote; None where it is something else, or an answer to another rubric."""
    if not isinstance(kept, dict) or (kept.get("format"), kept.get("version")) != (FORMAT, VERSION):
        return None
    try:
        return rubric.read(json.dumps({name: kept[name] for name in ("coherence", "behavioral")}))
    except (KeyError, BadAnswer):
        return None
