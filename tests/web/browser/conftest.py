"""The explorer in a real browser: one server with the demo pack and its model, one browser, a page for each test."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PATIENCE = 15_000
"""Milliseconds until something that does not appear is missed: other processes may keep the cores busy."""
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 420, "height": 860}


@pytest.fixture(scope="package")
def browser():
    """A browser without a window."""
    if CHROMIUM is None:
        pytest.skip("no chromium or chrome on this machine's PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as starter:
        found = starter.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def expect(browser):
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    return expect


@pytest.fixture(scope="package")
def address(own_cache):
    """`saeflow serve demo` as a user starts it: the address it prints, with the token."""
    command = [sys.executable, "-c", "from saeflow.cli import main; main()", "serve", "demo", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.terminate()
        server.communicate(timeout=20)


@pytest.fixture
def visit(browser, address):
    """Opens pages: `visit(hash, viewport=…, color_scheme=…)`. None may complain, fail or ask another place."""
    with visiting(browser, address) as opener:
        yield opener


@contextmanager
def visiting(browser, address):
    base = address.partition("/?token=")[0]
    contexts, complaints = [], []

    def opener(where="", *, refused=False, **options):
        """A page at `where`; `refused` says that the server will refuse something, which a browser logs."""
        context = browser.new_context(viewport=options.pop("viewport", WIDE), **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)

        def said(message):
            expected = refused and "status of 4" in message.text
            if message.type in {"error", "warning"} and not expected:
                complaints.append(message.text)

        page.on("console", said)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if _foreign(request.url) else None)
        page.goto(f"{address}{where}")
        return page

    def _foreign(url):
        return not url.startswith((base, f"blob:{base}"))

    yield opener
    marks = [page.evaluate("document.documentElement.dataset.error") for c in contexts for page in c.pages]
    for context in contexts:
        context.close()
    assert complaints == []
    assert set(marks) <= {None}


def hash_of(page):
    """The part of the address after "#": the view, and its values."""
    view, _, said = page.evaluate("location.hash.slice(1)").partition("?")
    return view, json.loads(
        page.evaluate("text => JSON.stringify(Object.fromEntries(new URLSearchParams(text)))", said)
    )


def drawn(page):
    """The ids of the nodes on the screen."""
    return page.evaluate("Array.from(document.querySelectorAll('#frame .node'), g => g.dataset.id)")
