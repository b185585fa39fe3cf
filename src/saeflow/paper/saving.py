"""Figures as SVG, PNG or PDF: the same rows give the same bytes.

The SVG from matplotlib is cleaned for pages with a Content-Security-Policy: no style attributes, a style element only
in standalone files, no foreign namespaces, and only ids that something uses. Colours are presentation attributes, so
that any viewer shows them, with a class beside them (`f-g1`, `s-ink`) through which `stylesheet` turns them dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from saeflow.errors import InvalidArgument
from saeflow.files import write_atomic
from saeflow.paper.style import CAPTION, CLASSES, DARK_OF, PAGE, PAPER, house

FACE: Final = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
TIP: Final = "tip:"
"""Prefix of an artist's gid; the rest of the gid is its tooltip."""

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
# The style properties that become attributes; all others are dropped.
_KEPT: Final = frozenset(
    {
        "fill",
        "fill-opacity",
        "stroke",
        "stroke-opacity",
        "stroke-width",
        "stroke-dasharray",
        "stroke-dashoffset",
        "stroke-linecap",
        "stroke-linejoin",
        "opacity",
        "font-size",
        "font-weight",
        "font-style",
        "text-anchor",
    }
)
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FORMATS: Final = {".svg", ".png", ".pdf"}


def save(figure: Figure, path: Path, *, dpi: int | None = None) -> Path:
    """Write `figure` in the format given by the extension of `path`: svg, png or pdf.

    The bytes depend only on the figure and the version of matplotlib: no dates, no random ids. `dpi` matters for PNG
    only: dots per inch of 72 units; the default of 144 is twice the pixels of a page.

    Raises:
        InvalidArgument: for another extension.
        OSError: when the folder cannot be written.
    """
    ending = format_of(path)
    if ending == ".svg":
        text = svg_text(figure, alone=True)
        write_atomic(path, text.encode("utf-8", "replace"))
    elif ending == ".png":
        write_atomic(path, _printed(figure, "png", dpi=dpi or PAGE.dpi, metadata={"Software": None}))
    else:
        unsaid = {"Creator": None, "Producer": None, "CreationDate": None}
        write_atomic(path, _printed(figure, "pdf", metadata=unsaid))
    return path


def format_of(path: Path) -> str:
    """The extension of `path` in lower case, for commands that would draw only after long work.

    Raises:
        InvalidArgument: when it is not .svg, .png or .pdf.
    """
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        raise InvalidArgument(f"figures are not written as {ending!r} ({path.name}). End it in .svg, .png or .pdf.")
    return ending


def printed_svg(figure: Figure) -> bytes:
    """The SVG from matplotlib, of which `svg_text` can make several versions: printing is the slow part."""
    return _printed(figure, "svg", metadata={"Date": None, "Creator": None})


def svg_text(
    figure: Figure | bytes, *, alone: bool = False, prefix: str = "", label: str = "", captioned: bool = True
) -> str:
    """`figure` as an SVG element, or if `alone` as a document of its own that turns dark with its reader.

    `figure` may also be what `printed_svg` returned. `prefix` begins every id, so that several figures can share a
    page; `label` is read by screen readers. Without `captioned` the caption is cut off, for a page that says the same.
    """
    root = ET.fromstring(figure if isinstance(figure, bytes) else printed_svg(figure))  # noqa: S314 drawn here
    for child in list(root):
        if child.tag.endswith("metadata"):
            root.remove(child)
    _drop_styles(root)
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    if not captioned:
        height = _without_caption(root, height)
    # matplotlib's ids hash sizes, whose last digits vary between layouts: number them by first use instead
    ids = {name: f"{prefix}i{number}" for number, name in enumerate(dict.fromkeys(_uses(root)))}
    for element in root.iter():
        _clean(element, ids)
    _inherit(root)
    _collapse(root)
    kept = {"viewBox": f"0 0 {width:g} {height:.1f}", "width": f"{width:g}", "height": f"{height:.1f}"}
    root.attrib.clear()
    root.attrib.update({**kept, "class": "plot", "role": "img", "font-family": FACE})
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt"})
    if label:
        root.attrib["aria-label"] = label
    if alone:
        style = ET.Element(f"{_SVG}style")
        style.text = stylesheet()
        root.insert(0, style)
    ET.register_namespace("", "http://www.w3.org/2000/svg")
    text = ET.tostring(root, encoding="unicode")
    return f"{text}\n" if alone else text.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


def stylesheet() -> str:
    """CSS rules that turn a figure dark on screens where the reader prefers it; paper and print stay light."""
    rules = "".join(f".plot .f-{name}{{fill:{dark}}}.plot .s-{name}{{stroke:{dark}}}" for name, dark in DARK_OF.items())
    return f"@media screen and (prefers-color-scheme:dark){{{rules}}}"


def _printed(figure: Figure, ending: str, **how: Any) -> bytes:
    into = io.BytesIO()
    for axes in figure.axes:
        for artist in (*axes.lines, *axes.patches, *axes.collections):
            artist.set_in_layout(False)  # marks are within their panel: only text needs room
    with house(), warnings.catch_warnings():
        # A name may need glyphs that the font used for measuring lacks; the reader's own font has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # the layout solver varies in its last bits from run to run: rounding keeps the bytes the same
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
        for axes in figure.axes:
            x, y, width, height = (round(float(size), 6) for size in axes.get_position().bounds)
            axes.set_position((x, y, width, height))
        figure.set_layout_engine("none")
        figure.set_facecolor(PAPER)
        if ending == "svg":
            FigureCanvasSVG(figure).print_svg(into, **how)  # `savefig` draws once more, to find a layout
        else:
            figure.savefig(into, format=ending, **how)
    return into.getvalue()


def _without_caption(root: ET.Element, height: float) -> float:
    """Remove the caption and return the height of what is left."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.get("id", "").startswith(f"{CAPTION}-"):
                line = next(child.iter(f"{_SVG}text"))
                size = re.search(r"font-size: ([0-9.]+)", line.get("style", ""))
                height = min(height, float(line.get("y", height)) - 1.1 * float(size[1] if size else 0))
                parent.remove(child)
    return height


def _drop_styles(root: ET.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            styles_alone = child.tag == f"{_SVG}defs" and all(inner.tag == f"{_SVG}style" for inner in child)
            if child.tag == f"{_SVG}style" or styles_alone:
                parent.remove(child)


def _uses(root: ET.Element) -> Iterable[str]:
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == _LINK:
                yield value[1:]
            else:
                yield from re.findall(r"url\(#([^)]+)\)", value)


def _clean(element: ET.Element, ids: Mapping[str, str]) -> None:
    """Reduce attributes to what any page takes: used ids under new names, hrefs without a namespace, no styles.

    Tooltips become titles.
    """
    attributes = dict(element.attrib)
    element.attrib.clear()
    for key, value in attributes.items():
        if key == "id":
            if value in ids:
                element.set("id", ids[value])
            elif value.startswith(TIP):
                title = ET.Element(f"{_SVG}title")
                title.text = value.removeprefix(TIP)
                element.insert(0, title)
        elif key == _LINK:
            element.set("href", f"#{ids[value[1:]]}")
        elif key == "style":
            _unstyle(element, value)
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        elif key == "d":
            element.set("d", re.sub(r"\s*([MLCQz])\s*", r"\1", _short(value)).strip())
        elif key != "type":
            element.set(key, _short(re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{ids[found[1]]})", value)))
    if element.tag == f"{_SVG}text":
        element.tail = None


def _unstyle(element: ET.Element, style: str) -> None:
    classes: list[str] = []
    for item in style.split(";"):
        key, _, value = (part.strip() for part in item.partition(":"))
        if key not in _KEPT:
            continue
        element.set(key, _short(value).removesuffix("px"))
        if key in {"fill", "stroke"} and value in CLASSES:
            classes.append(f"{key[0]}-{CLASSES[value]}")
    if classes:
        element.set("class", " ".join(classes))


def _inherit(root: ET.Element) -> None:
    """Let marks that are drawn by reference take the colours of each reference.

    Their own colours would win, and since browsers do not apply the rules of a page inside a reference, they would stay
    light in the dark.
    """
    for defs in root.iter(f"{_SVG}defs"):
        for path in defs.iter(f"{_SVG}path"):
            for name in ("fill", "stroke", "class"):
                path.attrib.pop(name, None)


def _short(value: str) -> str:
    """Round numbers to two decimals, a hundredth of a pixel."""
    return _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)


def _collapse(parent: ET.Element) -> None:
    """Replace groups without attributes by their children, and drop shapes that show nothing."""
    flat: list[ET.Element] = []
    for child in list(parent):
        _collapse(child)
        child.tail = None
        titled = len(child) > 0 and child[0].tag == f"{_SVG}title"
        if child.tag == f"{_SVG}g" and not child.attrib and not titled:
            flat += list(child)
        elif child.get("fill") != "none" or child.get("stroke") is not None:  # a panel's empty background shows nothing
            flat.append(child)
    if parent.tag != f"{_SVG}text":
        parent.text = parent.text if parent.text and parent.text.strip() else None
    parent[:] = flat
