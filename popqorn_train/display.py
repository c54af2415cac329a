"""Short texts and tables of results, for a prompt and for Jupyter."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 20  # rows of a table, at most


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> str:
    """A table of HTML with a line above it; everything in it is text."""

    def line(cells: Sequence[Any], tag: str) -> str:
        parts = (f"<{tag}>{html.escape(cell_text(cell))}</{tag}>" for cell in cells)
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    above = f"<caption>{html.escape(caption)}</caption>"
    return f"<table>{above}<thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def cell_text(value: Any) -> str:
    """A value as a table shows it: four digits, and nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
