"""Check every page of the built site in a browser, wide and narrow, light and dark.

    mkdocs build --strict && python scripts/docs_look.py
    python scripts/docs_look.py --shots FOLDER               also save screenshots of the pages in SHOWN

Exits with 1 if a page requests anything from another address, logs an error to the console, misses a file, has an
image that does not load, or is wider than its window. Needs playwright and a Chromium or Chrome on the PATH.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

SITE: Final = Path(__file__).resolve().parent.parent / "build" / "site"
VIEWS: Final = ((1280, "light"), (1280, "dark"), (420, "light"))
SHOWN: Final = (
    "index.html",
    "concepts/sites.html",
    "concepts/matching.html",
    "concepts/flow.html",
    "concepts/origins.html",
    "concepts/deactivation.html",
    "concepts/steering.html",
    "howto/sweep.html",
    "reference/saeflow.html",
    "reference/cli.html",
)
_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without logging."""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Generator[str]:
    """Serve `folder` on this machine; yields the address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def look(page: Any, home: str, name: str, width: int) -> list[str]:
    """The problems found on a page."""
    wrong: list[str] = []

    def asked(request: Any) -> None:
        if not request.url.startswith((home, "data:", "blob:")):
            wrong.append(f"asks {request.url}")

    def answered(response: Any) -> None:
        if response.status >= 400:
            wrong.append(f"{response.status} for {response.url}")

    def said(message: Any) -> None:
        if message.type == "error":
            wrong.append(f"console: {message.text}")

    page.on("request", asked)
    page.on("response", answered)
    page.on("console", said)
    page.goto(home + name, wait_until="load")
    if (wider := page.evaluate(_WIDE)) > 0:
        wrong.append(f"{wider} px wider than {width}")
    wrong += [f"image {source} does not load" for source in page.evaluate(_BROKEN)]
    for event, handler in (("request", asked), ("response", answered), ("console", said)):
        page.remove_listener(event, handler)
    return wrong


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shots", type=Path, help="write screenshots into this folder")
    parser.add_argument("pages", nargs="*", help="these pages only, such as concepts/flow.html")
    asked = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    names = asked.pages or sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    found = 0
    with served(SITE) as home, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, scheme in VIEWS:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore
            for name in names:
                for what in look(page, home, name, width):
                    print(f"{name} at {width} {scheme}: {what}")
                    found += 1
                if asked.shots and name in SHOWN:
                    asked.shots.mkdir(parents=True, exist_ok=True)
                    shot = f"{name.removesuffix('.html').replace('/', '-')}-{width}-{scheme}.png"
                    page.screenshot(path=asked.shots / shot, full_page=width == 420)
            page.close()
        browser.close()
    print(f"{len(names)} pages in {len(VIEWS)} views: {found or 'nothing'} wrong")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
