"""Questions to a server that stands in for a language model, and the answers they get."""

from saeflow.llm.endpoint import Pacing
from saeflow.steering.judges import Judged, Score
from saeflow.steering.judges.llm import LLMJudge
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Theme

from .server import KEY, Asked, Reply, marks

THEME = Theme("numbers", "numbers and counting", "", ())
FAST = Pacing(concurrency=8, timeout=5.0, retries=3, backoff=0.01)


def texts(n):
    return [Judged(f"text {number}", "I think", 3.0) for number in range(n)]


def by_number(asked: Asked) -> Reply:
    """Marks that say which text was judged."""
    number = int(asked.text.split()[-1])
    return marks(number % 6, number // 6 % 6)


def expected(n):
    return [Score(number % 6, number // 6 % 6) for number in range(n)]


def judge(server, tmp_path, **changes):
    return LLMJudge("m", server.url, **({"key": KEY, "cache": tmp_path / "answers", "pacing": FAST} | changes))


def score(of, n=1, **options):
    return of.score(THEME, SteeringDirection.ACTIVATE, texts(n), **options)
