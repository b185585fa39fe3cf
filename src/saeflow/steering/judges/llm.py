"""A language model as judge: the rubrics of appendix B at any endpoint that speaks the chat API of OpenAI. No torch.

    texts -> messages -> answers in the cache | requests -> strict reading -> marks

The paper asks gpt-4o-mini. What was answered is kept on disk as it comes in, so a run that ends early, in whatever way,
resumes, and a rerun asks nothing. The key is sent to the endpoint and goes nowhere else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from saeflow.errors import InvalidArgument
from saeflow.files import cache_folder
from saeflow.records import Progress
from saeflow.steering.judges.cache import AnswerCache
from saeflow.steering.judges.endpoint import Endpoint, Messages, Secret, is_address, place_of
from saeflow.steering.judges.pacing import Pacing
from saeflow.steering.judges.rubrics import BadAnswer, Marks, Rubric, rubric_for
from saeflow.steering.judges.scores import Judged, Score
from saeflow.steering.plan import Direction
from saeflow.steering.theme import Theme

MODEL: Final = "gpt-4o-mini"
"""The judge of the paper (B.1)."""

CHARACTERS_A_TOKEN: Final = 4
"""English text in the tokenizers of today's models, roughly; for `LLMJudge.estimate`."""

ANSWER_TOKENS: Final = 24
"""Length of an answer to these rubrics, roughly."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a judge has done so far.

    Attributes:
        asked: requests sent, retries and repeated questions among them.
        cached: texts whose answer was in the cache.
        retried: requests sent again because the endpoint was busy, broken or out of reach.
        reasked: questions put again because the answer could not be read.
    """

    asked: int = 0
    cached: int = 0
    retried: int = 0
    reasked: int = 0


@dataclass(frozen=True, slots=True)
class RequestCount:
    """What judging some texts will take, before anything is asked.

    Attributes:
        requests: questions that are not in the cache; equal texts count once.
        cached: questions that are.
        input_tokens: of all requests, at 4 characters a token.
        output_tokens: of all answers, roughly.
    """

    requests: int
    cached: int
    input_tokens: int
    output_tokens: int


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
        json_mode: ask for a JSON object by `response_format` too, where the endpoint knows it.
        with_prompt: judge prompt and text together. The rubrics speak of "a text that was generated", so the default
            is the text alone; a prompt on the subject would earn its mark for every text.

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
        json_mode: bool = True,
        with_prompt: bool = False,
    ) -> None:
        """Read the settings; nothing is asked yet."""
        self.model = model or os.environ.get("SAEFLOW_JUDGE_MODEL") or MODEL
        self._base_url = _address(base_url or os.environ.get("OPENAI_BASE_URL") or None)
        self._secret = _secret(key or os.environ.get("OPENAI_API_KEY") or "", self._base_url)
        if reasks < 0 or (temperature is not None and not 0 <= temperature < math.inf):
            raise InvalidArgument(f"reasks = {reasks}, temperature = {temperature}: give 0 or more.")
        self._temperature, self._seed, self._reasks = temperature, seed, reasks
        self._pacing = pacing or Pacing()
        self._cache = AnswerCache(Path(cache).expanduser() if cache else cache_folder() / "judge")
        self._json_mode, self._with_prompt = json_mode, with_prompt
        self._counts = Counts()

    def __repr__(self) -> str:
        """The model and the endpoint."""
        return f"LLMJudge({self.model!r} at {place_of(self._base_url)})"

    @property
    def name(self) -> str:
        """The model, as named beside every number."""
        return f"{self.model} (rubrics of appendix B)"

    @property
    def counts(self) -> Counts:
        """What was asked and what the cache knew, since this judge was made."""
        return self._counts

    def score(
        self, theme: Theme, direction: Direction, texts: Sequence[Judged], *, progress: Progress | None = None
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
        self, theme: Theme, direction: Direction, texts: Sequence[Judged], *, progress: Progress | None = None
    ) -> list[Marks]:
        """The whole answer for each text, with the marks of all subjects in the order of `rubric_for`.

        Raises:
            MissingExtra, Unreachable, InvalidArgument, BadAnswer: as `score`.
        """
        rubric = rubric_for(theme, direction)
        keys, questions = self._questions(rubric, texts)
        known = {key: self._cache.get(key, rubric) for key in questions}
        found = {key: answer for key, answer in known.items() if answer is not None}
        self._add(Counts(cached=len(found)))
        if progress:
            progress(len(found), len(questions), f"texts judged by {self.model}")
        missing = {key: message for key, message in questions.items() if key not in found}
        if missing:
            found |= self._ask_all(rubric, missing, len(questions), progress)
        return [found[key] for key in keys]

    def estimate(self, theme: Theme, direction: Direction, texts: Sequence[Judged]) -> RequestCount:
        """What judging these texts will take; asks nothing and needs no package."""
        rubric = rubric_for(theme, direction)
        _, questions = self._questions(rubric, texts)
        new = [message for key, message in questions.items() if self._cache.get(key, rubric) is None]
        size = sum(len(rubric.system) + len(message) for message in new)
        return RequestCount(
            requests=len(new),
            cached=len(questions) - len(new),
            input_tokens=math.ceil(size / CHARACTERS_A_TOKEN),
            output_tokens=ANSWER_TOKENS * len(new),
        )

    def _questions(self, rubric: Rubric, texts: Sequence[Judged]) -> tuple[list[str], dict[str, str]]:
        """The key of each text, and the message of each key."""
        messages = [rubric.ask(t.prompt + t.text if self._with_prompt else t.text) for t in texts]
        keys = [self._cache.key(self.model, rubric, m, self._temperature, self._seed) for m in messages]
        return keys, dict(zip(keys, messages, strict=True))

    def _ask_all(
        self, rubric: Rubric, missing: Mapping[str, str], total: int, progress: Progress | None
    ) -> dict[str, Marks]:
        """Answers to all questions, each kept as soon as it is there; one that cannot be read stops no other."""
        found, unread = dict[str, Marks](), list[BadAnswer]()
        endpoint = Endpoint(
            self.model,
            base_url=self._base_url,
            secret=self._secret,
            temperature=self._temperature,
            pacing=self._pacing,
            json_mode=self._json_mode,
        )
        with endpoint, ThreadPoolExecutor(min(self._pacing.concurrency, len(missing))) as pool:
            asked = {pool.submit(self._ask, endpoint, rubric, *item): item[0] for item in missing.items()}
            try:
                for future in as_completed(asked):
                    try:
                        found[asked[future]] = future.result()
                    except BadAnswer as error:
                        unread.append(error)
                    if progress:
                        done = total - len(missing) + len(found) + len(unread)
                        progress(done, total, f"texts judged by {self.model}")
            except BaseException:
                endpoint.gate.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            finally:
                told = endpoint.counts
                self._add(Counts(asked=told["asked"], retried=told["retried"], reasked=told["reasked"]))
        if unread:
            raise BadAnswer(
                f"{len(unread)} of {len(missing)} answers of {self.model} could not be read, each asked for "
                f"{self._reasks + 1} times. The first: {unread[0]} The others are kept. Run again with more reasks, or "
                "with a model that keeps to the format."
            )
        return found

    def _ask(self, endpoint: Endpoint, rubric: Rubric, key: str, message: str) -> Marks:
        """One answer, put into the cache; the question is put again where it cannot be read."""
        first: Messages = [{"role": "system", "content": rubric.system}, {"role": "user", "content": message}]
        messages, wrong = first, ""
        for attempt in range(self._reasks + 1):
            if attempt:
                endpoint.count("reasked")
            said = endpoint.ask(messages, seed=self._seed + attempt)
            try:
                answer = rubric.read(said)
            except BadAnswer as error:
                wrong = self._secret.hide(str(error))
                again = f"That cannot be read: {wrong} Answer again, with the JSON object alone."
                messages = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": again}]
            else:
                self._cache.put(key, self.model, rubric, answer)
                return answer
        raise BadAnswer(wrong)

    def _add(self, more: Counts) -> None:
        old = self._counts
        self._counts = Counts(
            old.asked + more.asked, old.cached + more.cached, old.retried + more.retried, old.reasked + more.reasked
        )


def _address(base_url: str | None) -> str | None:
    """A base URL that can be asked."""
    if base_url is None:
        return None
    if not is_address(base_url):
        raise InvalidArgument(
            "the base URL of the judge is no http(s) address. Give one such as http://localhost:8000/v1, in "
            "OPENAI_BASE_URL or as base_url."
        )
    return base_url


def _secret(key: str, base_url: str | None) -> Secret:
    if not key and base_url is None:
        raise InvalidArgument(
            "there is no key for the OpenAI API. Set OPENAI_API_KEY, give base_url for a server of your own, or use "
            "the offline judge."
        )
    return Secret(key or "none")
