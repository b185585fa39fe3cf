"""A real server on a free port, in a thread, with a model that is made up or none."""

import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory

import httpx

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.matching.atlas import open_atlas
from saeflow.prompt_graph import Pruning
from saeflow.web.app import create_app
from saeflow.web.model_thread import ModelThread
from saeflow.web.responses import ActiveFeature, DeactivateResponse, Removal, TextResponse, TokenInfo
from saeflow.web.search import Finder
from saeflow.web.server import bound, exploring, server_of

from ..prompt_graph.small import small_graph

TOKEN = "test-token-of-a-server"  # noqa: S105 - of a server that lives for a test


@dataclass
class Served:
    """A running server."""

    base: str
    explorer: object
    server: object

    def client(self, **headers):
        headers = {"authorization": f"Bearer {TOKEN}"} | headers
        return httpx.Client(base_url=self.base, headers=headers, timeout=20)

    @property
    def port(self):
        return int(self.base.rpartition(":")[2])


class Typist:
    """A worker that writes a word at a time, as a model would.

    `words` and `stopped` tell what it did, `gate` holds it.
    """

    def __init__(self, pause=0.0):
        self.pause = pause
        self.gate = threading.Event()
        self.gate.set()
        self.words = 0
        self.stopped = 0
        self.asked = []

    def lend(self, use):
        return use({}, None)

    def text(self, asked, sites, words):
        tokens = [TokenInfo(text=word, id=n) for n, word in enumerate(asked.text.split())]
        active = {
            str(site): [[ActiveFeature(index=0, value=1.0, share=0.5, label="")] for _ in tokens] for site in sites
        }
        return TextResponse(tokens=tokens, active=active, took_ms=0.0)

    def deactivate(self, asked, matches):
        if asked.token >= len(asked.text.split()):
            raise InvalidArgument(f"there is no token {asked.token}")
        some = Removal(
            removed="RES", features=["3/res/1"], after=0.5, change=0.75, control=["3/res/2"], control_change=None
        )
        return DeactivateResponse(before=2.0, removals=[some], took_ms=0.0)

    def trace(self, asked, matches):
        assert matches.has(Site("4/res"), Site("3/res"))
        return small_graph().prune(Pruning(asked.effect))

    def steer(self, asked, plan, theme, others, put):
        self.asked.append(asked)
        try:
            put({"type": "state", "model": "ready"})
            for _ in range(asked.new_tokens):
                assert self.gate.wait(20)
                for side in ("steered", "plain"):
                    put({"type": "token", "sample": 0, "side": side, "text": " word"})
                self.words += 1
                time.sleep(self.pause)
            put({"type": "done", "took_s": 0.0})
        except BaseException:
            self.stopped += 1
            raise


@contextmanager
def serving(atlas="demo", *, worker=None, limits=None, results=(), searching=False):
    """A server over an atlas; `worker` is what its thread loads, None for no model; words are indexed where asked."""
    with exploring(open_atlas(atlas), results=results) as explorer, TemporaryDirectory() as some:
        # words of two sites: the index of all takes seconds under the checks of a test
        for name in ("3.res.jsonl.gz", "3.att.jsonl.gz"):
            shutil.copy(explorer.atlas.folder / "words" / name, some)
        explorer.finder = Finder(Path(some) if searching else None, explorer.words, explorer.sizes)
        if explorer.model is not None:
            explorer.model.close()
        explorer.picks.look = lambda: None  # a thousand graphs, slow under the checks of a test
        explorer.model = None if worker is None else ModelThread(lambda: worker)
        with running(explorer, limits) as served:
            yield served


@contextmanager
def running(explorer, limits=None):
    with bound(0) as own:
        addresses = Queue()
        server = server_of(explorer, create_app(explorer), own, TOKEN, addresses.put, limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [own]}, daemon=True)
        thread.start()
        base, _, token = addresses.get(timeout=20).partition("/?token=")
        assert token == TOKEN
        yield Served(base, explorer, server)
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


def until(check, seconds=10.0):
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def get(client, path, **parameters):
    """The answer as JSON; a status other than 200 fails the test."""
    found = client.get(path, params=parameters)
    assert found.status_code == 200, found.text
    return found.json()


def refused(client, path, **parameters):
    """What is said of a request that is not understood."""
    found = client.get(path, params=parameters)
    assert found.status_code == 422, found.text
    return found.json()["error"] + " " + found.json()["what_to_do"]
