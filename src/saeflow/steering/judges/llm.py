"""A language model as judge: the rubrics of appendix B at any endpoint with the chat API of OpenAI. No torch.

    texts -> messages -> cached answers | requests -> strict parsing -> marks

The paper uses gpt-4o-mini. Answers are cached on disk as they arrive, so an interrupted run can resume, and a rerun
sends no requests. A cached answer holds the marks and the names of rubric, model and subjects, but no texts or keys.
The key is only sent to the endpoint.
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
from saeflow.plain_types import Progress
from saeflow.steering.judges import Judged, Score
from saeflow.steering.judges.rubrics import BadAnswer, Marks, Rubric, rubric_for
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Theme

FORMAT: Final = "saeflow-answer"
VERSION: Final = 1


class LLMJudge:
    """Marks texts by asking a language model.

    Args:
        model: its name at the endpoint; if empty, SAEFLOW_JUDGE_MODEL, or else "gpt-4o-mini".
        base_url: the address of the chat API, such as "http://localhost:8000/v1" for a local server; if None,
            OPENAI_BASE_URL, or else the API of OpenAI.
        key: of the endpoint; if None, OPENAI_API_KEY. An endpoint at another base URL may need none.
        temperature: of the judge's answers; None leaves it to the endpoint, for models that allow only one.
        seed: sent to endpoints that support it.
        reasks: how often to ask again when an answer cannot be parsed. The model is then shown its answer and what is
            wrong with it; the first question is always the paper's.
        pacing: limits on the rate, time and retries of requests.
        cache: folder of the answers; if None, `judge` in saeflow's cache folder.

    Attributes:
        counts: since this judge was made, "asked": requests sent, including retries and repeated questions; "cached":
            different texts whose answer was in the cache; "retried": requests sent again because the endpoint was busy,
            broken or unreachable; "reasked": questions repeated because the answer could not be parsed.

    Raises:
        InvalidArgument: for a value outside its range, an invalid address, or a missing key for OpenAI's own API.
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
        """Read the settings; send no requests yet."""
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
        """The model and the rubrics, as shown next to every number."""
        return f"{self.model} (rubrics of appendix B)"

    def score(
        self, theme: Theme, direction: SteeringDirection, texts: Sequence[Judged], *, progress: Progress | None = None
    ) -> list[Score]:
        """A score for each text, in order; the behavior mark is that of the theme's own subject.

        Raises:
            MissingExtra: when a request is needed and the package openai is not installed.
            Unreachable: when the endpoint gives no answer, or refuses the key.
            InvalidArgument: when the endpoint does not know the model, or rejects the request.
            BadAnswer: when some answers cannot be parsed, after all others were requested and cached.
        """
        own = rubric_for(theme, direction).own
        found = self.answers(theme, direction, texts, progress=progress)
        return [Score(float(answer.coherence), float(answer.behavioral[own])) for answer in found]

    def answers(
        self, theme: Theme, direction: SteeringDirection, texts: Sequence[Judged], *, progress: Progress | None = None
    ) -> list[Marks]:
        """The whole answer for each text, with the marks of all subjects in the order of `rubric_for`.

        Equal texts are asked about once. Each answer is cached as soon as it arrives, and an answer that cannot be
        parsed does not stop the others.

        Raises:
            MissingExtra, Unreachable, InvalidArgument, BadAnswer: as `score`.
        """
        # 1. make the question about each text, and look its answer up in the cache
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

        # 2. ask about the others, several at a time
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
        """Ask for one answer and cache it; repeat the question while the answer cannot be parsed."""
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
    """What is cached of an answer: its marks, and the names of rubric, model and subjects."""
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
    """The marks in what `marks_to_keep` made; None if it is something else, or does not fit the rubric."""
    if not isinstance(kept, dict) or (kept.get("format"), kept.get("version")) != (FORMAT, VERSION):
        return None
    try:
        return rubric.read(json.dumps({name: kept[name] for name in ("coherence", "behavioral")}))
    except (KeyError, BadAnswer):
        return None
