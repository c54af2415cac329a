"""Web pages of one file: elements whose text is escaped when the page is written.

Nothing is loaded from anywhere: the style is in the page, pictures are in it as data.
"""

import base64
from collections.abc import Sequence
from xml.etree import ElementTree

Element = ElementTree.Element

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: #1c2430; line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .5rem 0; }
section { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: 1.25rem;
  margin: 1rem 0; overflow-x: auto; }
.lead { font-size: 1.05rem; }
.note { color: #55606e; font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; }
.tile { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.4rem; line-height: 1.2; }
.tile span { color: #55606e; font-size: .85rem; }
img { width: 100%; max-width: 40rem; height: auto; display: block; margin: .5rem 0; }
.scroll { overflow-x: auto; background: linear-gradient(90deg, #fff 30%, #fff0) left / 2.5rem,
  linear-gradient(270deg, #fff 30%, #fff0) right / 2.5rem,
  linear-gradient(90deg, #1c243040, #1c243000) left / .8rem,
  linear-gradient(270deg, #1c243040, #1c243000) right / .8rem;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid #e7eaee; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.pairs td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
table.pairs td:first-child { white-space: nowrap; overflow-wrap: normal; color: #55606e; }
.strip { display: flex; width: 100%; max-width: 56rem; margin: .25rem 0 .5rem; }
.cell { flex: 1 1 0; min-width: 3px; height: 2rem; font-size: .7rem; text-align: center;
  line-height: 2rem; overflow: hidden; border-right: 1px solid #fff; }
.cell.least { outline: 3px solid #d55e00; outline-offset: -3px; font-weight: bold; }
.promise { border-left: 5px solid #0072b2; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .85rem;
  overflow-wrap: anywhere; }
@media (max-width: 40rem) { section { padding: .9rem; } main { padding: 1rem .6rem 2rem; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def element(tag: str, *content: "Element | str", **attributes: str) -> Element:
    """An element with text and elements in it; ``class_`` stands for ``class``."""
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    made = ElementTree.Element(tag, {name: printable(value) for name, value in names.items()})
    for item in content:
        if isinstance(item, str):
            _append_text(made, printable(item))
        else:
            made.append(item)
    return made


def _append_text(parent: Element, text: str) -> None:
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text


def printable(text: str) -> str:
    """Without control characters, which no page may hold."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def table(rows: Sequence[Sequence[str]]) -> Element:
    """A table whose first row is its head."""
    head, *body = rows
    made = element(
        "table",
        element("thead", element("tr", *[element("th", cell) for cell in head])),
        element("tbody", *[element("tr", *[element("td", c) for c in row]) for row in body]),
    )
    return element("div", made, class_="scroll", tabindex="0")


def pairs(rows: Sequence[tuple[str, str]]) -> Element:
    """A table of names and values."""
    cells = [element("tr", element("td", name), element("td", value)) for name, value in rows]
    return element("table", element("tbody", *cells), class_="pairs")


def picture(svg: bytes, text: str) -> Element:
    """A picture that lies in the page itself, and what it shows in words."""
    data = base64.b64encode(svg).decode()
    return element("img", src=f"data:image/svg+xml;base64,{data}", alt=text)


def page(title: str, *content: Element) -> str:
    """A whole page as text."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", _STYLE),
    )
    whole = element("html", head, element("body", element("main", *content)), lang="en")
    return "<!DOCTYPE html>\n" + ElementTree.tostring(whole, encoding="unicode", method="html")
