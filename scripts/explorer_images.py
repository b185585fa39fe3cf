"""Take the screenshots of docs/explorer.md and docs/publish.md from a running explorer, as PNG.

    saeflow serve demo --no-browser --port 8765          (prints an address with a token)
    python scripts/explorer_images.py 'http://127.0.0.1:8765/?token=…'
    python scripts/explorer_images.py http://localhost:8000/ --only site          (a published site: docs/publish.md)
    python scripts/explorer_images.py ADDRESS --only long --hash '#flow?feature=25/res/100&t_res=0'

Needs playwright, pillow (comes with matplotlib) and a Chromium or Chrome on the PATH. A palette of 256 colours that
covers rare ones too keeps each picture small.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

FEATURE = "3/res/541"
IMAGES = Path(__file__).parent.parent / "docs" / "images"


@dataclass(frozen=True)
class View:
    """A page to photograph, and what to do on it first."""

    where: str
    act: Callable[[Page], Any]
    width: int = 1280
    height: int = 800
    scheme: str = "light"


def seen(page: Page) -> None:
    """Wait until the panel shows its feature."""
    page.locator("#panel h2").wait_for()


def hovered(page: Page) -> None:
    """Hover over a node so that its path lights up."""
    seen(page)
    page.locator('.node[data-id="4/res/285"]').hover()


def steered(page: Page) -> None:
    """Run the plan and wait until its samples are written and scored."""
    page.locator("table.plan").wait_for(timeout=60_000)
    page.locator("#run").click()
    page.locator("#run-status", has_text="Done in").wait_for(timeout=120_000)


def read(page: Page) -> None:
    """Read the text and select a cell."""
    page.get_by_role("button", name="Read").click()
    page.locator("table.cells").wait_for(timeout=60_000)
    page.locator('button.cell[data-row="2"][data-column="3"]').click()


def fitted(page: Page) -> None:
    """Zoom out to fit the whole graph."""
    seen(page)
    page.locator("#figure").get_by_label("Fit the whole graph").click()


GRAPH = f"feature={FEATURE}&node={FEATURE}"
VIEWS = {
    "flow": View(f"#flow?{GRAPH}", hovered),
    "compare": View(f"#flow?{GRAPH}&b=3/res/450&t_res=0.35", seen),
    "steer": View(
        f"#steer?{GRAPH}&theme=physics&p_grow=yes&plan=2/res/412,{FEATURE}&prompt=I+think&tokens=36", steered
    ),
    "text": View("#text?text=The+force+on+the+object+is+equal+to+its+mass+times+its+acceleration.", read),
    "narrow": View(f"#flow?{GRAPH}", seen, 420, 860, "dark"),
    "long": View(f"#flow?{GRAPH}", fitted),
    "site": View("", seen),
}


def main() -> None:
    """Write the requested pictures; by default all except `long` and `site`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="what `saeflow serve` printed")
    parser.add_argument(
        "--only", choices=VIEWS, nargs="+", default=[name for name in VIEWS if name not in ("long", "site")]
    )
    parser.add_argument("--hash", default="", help="the part after # in place of the picture's own")
    parser.add_argument("--out", type=Path, default=IMAGES)
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as starter:
        names = ("chromium", "chromium-browser", "google-chrome", "chrome")
        browser = starter.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, names))), args=["--no-sandbox"]
        )
        for name in asked.only:
            view = VIEWS[name]
            size: Any = {"width": view.width, "height": view.height}
            page = browser.new_page(viewport=size, color_scheme=view.scheme)  # pyright: ignore[reportArgumentType]
            page.goto(asked.address + (asked.hash or view.where))
            view.act(page)
            page.wait_for_timeout(800)
            path = asked.out / f"explorer-{name}.png"
            with Image.open(io.BytesIO(page.screenshot())) as image:
                small = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
                small.save(path, optimize=True)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
