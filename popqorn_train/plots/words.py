"""Sentences whose words are coloured by the radius of each word alone, as picture and as HTML.

Dark is fragile, light is tolerant; the word with the least radius is underlined.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from popqorn_train.plots.colors import RadiusScale, hexadecimal, ink_on
from popqorn_train.plots.html import printable
from popqorn_train.plots.style import color_bar, new_figure

_WIDTH = 8.4  # inches of a picture
_SIZE = 12  # points of a word
_STYLE = (
    "display:inline-block;margin:2px;padding:3px 6px;border-radius:4px;text-align:center;"
    "line-height:1.25;"
)


class Sentence(NamedTuple):
    """Words and how far each can be moved alone.

    Attributes:
        words: in their order.
        radii: one per word, in the units of the embedding; 0 where nothing is proved.
        caption: what is said of the sentence, for example its class.
    """

    words: Sequence[str]
    radii: Sequence[float]
    caption: str = ""

    @property
    def least(self) -> int | None:
        """Position of the most fragile word; None where nothing is proved."""
        proved = [at for at, radius in enumerate(self.radii) if radius > 0]
        return min(proved, key=lambda at: self.radii[at], default=None)


def scale_of(sentences: Sequence[Sentence]) -> RadiusScale:
    """One scale for all words.

    Raises:
        ValueError: no sentence, one without words, or another number of radii.
    """
    if not sentences:
        raise ValueError("`sentences` must hold at least one sentence, got none.")
    for sentence in sentences:
        words, radii = len(sentence.words), len(sentence.radii)
        if words != radii or not words:
            raise ValueError(
                f"a sentence needs one radius per word: {radii} radii for {words} words."
            )
    return RadiusScale.of(radius for sentence in sentences for radius in sentence.radii)


def draw_sentences(
    sentences: Sequence[Sentence],
    *,
    unit: str = "certified radius of the word alone",
    title: str = "",
) -> tuple[Any, Any]:
    """Draw sentences below one another, with the radius under every word.

    Args:
        sentences: at least one.
        unit: name and unit of the radius.
        title: above them.

    Returns:
        Figure and axis.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: see ``scale_of``.
    """
    scale = scale_of(sentences)
    figure = new_figure(_WIDTH, 1.0)
    figure.set_layout_engine("none")
    writer = _Writer(figure, scale)
    for sentence in sentences:
        writer.write(sentence)
    ax = writer.finish(title)
    height = figure.get_figheight()
    place = figure.add_axes((0.25, 0.66 / height, 0.5, 0.12 / height))
    color_bar(figure, None, scale, unit, cax=place)
    return figure, ax


class _Writer:
    """Sets words from left to right, in inches, and lines from top to bottom."""

    def __init__(self, figure: Any, scale: RadiusScale) -> None:
        self.figure, self.scale = figure, scale
        self.ax = figure.add_axes((0, 0, 1, 1))
        self.ax.axis("off")
        self.x, self.y = 0.15, 0.0

    def write(self, sentence: Sentence) -> None:
        """Write the caption and the words."""
        if sentence.caption:
            self.y -= 0.12
            self._text(0.15, sentence.caption, size=10, color="#444444", va="top")
            self.y -= 0.26
        self.x = 0.15
        for at, (word, radius) in enumerate(zip(sentence.words, sentence.radii, strict=True)):
            self._word(_plain(word), radius, at == sentence.least)
        self.y -= 0.66

    def _word(self, word: str, radius: float, least: bool) -> None:
        color = self.scale.color(radius)
        text = self._text(0, word, size=_SIZE, color=ink_on(color), va="center", zorder=3)
        box = text.get_window_extent()
        width = max(box.width / self.figure.dpi, 0.3) + 0.16
        if self.x + width > _WIDTH - 0.15 and self.x > 0.15:
            self.x, self.y = 0.15, self.y - 0.62
        text.set_position((self.x + width / 2, self.y - 0.17))
        text.set_ha("center")
        self._box(width, hexadecimal(color))
        number = self._text(0, f"{radius:.2g}", size=9, color="#444444", va="top")
        number.set_position((self.x + width / 2, self.y - 0.39))
        number.set_ha("center")
        if least:
            line = [self.x + 0.04, self.x + width - 0.04]
            self.ax.plot(line, [self.y - 0.355] * 2, color="#D55E00", lw=2.6, zorder=4)
        self.x += width + 0.06

    def _box(self, width: float, color: str) -> None:
        from matplotlib.patches import FancyBboxPatch

        corner, round_ = (self.x, self.y - 0.33), "round,pad=0,rounding_size=0.05"
        box = FancyBboxPatch(corner, width, 0.32, boxstyle=round_, fc=color, ec="none", zorder=2)
        self.ax.add_patch(box)

    def _text(self, x: float, text: str, *, size: float, **style: Any) -> Any:
        return self.ax.text(x, self.y, text, fontsize=size, parse_math=False, **style)

    def finish(self, title: str) -> Any:
        """Cut the figure to its content, with room for the bar of colours below."""
        top, bottom = 0.42 if title else 0.08, self.y - 0.9
        self.ax.set(xlim=(0, _WIDTH), ylim=(bottom, top))
        self.figure.set_size_inches(_WIDTH, top - bottom)
        if title:
            self.ax.text(_WIDTH / 2, top - 0.08, title, ha="center", va="top", fontsize=12)
        return self.ax


def _plain(text: str) -> str:
    return printable(text).replace("\n", " ")


def sentence_element(sentence: Sentence, scale: RadiusScale) -> ElementTree.Element:
    """One sentence as an HTML element; text is escaped when the tree is written."""
    block = ElementTree.Element("div", {"class": "sentence"})
    if sentence.caption:
        ElementTree.SubElement(block, "div", {"class": "caption"}).text = _plain(sentence.caption)
    for at, (word, radius) in enumerate(zip(sentence.words, sentence.radii, strict=True)):
        color = scale.color(radius)
        style = f"{_STYLE}background:{hexadecimal(color)};color:{ink_on(color)};"
        least = at == sentence.least
        names = "word least" if least else "word"
        box = ElementTree.SubElement(block, "span", {"class": names, "style": style})
        line = "text-decoration:underline;font-weight:bold" if least else ""
        ElementTree.SubElement(box, "span", {"style": line}).text = _plain(word)
        ElementTree.SubElement(box, "br")
        small = ElementTree.SubElement(box, "small")
        small.text = f"{radius:.3g}" if math.isfinite(radius) else "none"
    return block


def sentences_html(
    sentences: Sequence[Sentence], *, unit: str = "certified radius of the word alone"
) -> str:
    """Sentences as a piece of HTML that needs nothing else and can be pasted into any page.

    Args:
        sentences: at least one.
        unit: name and unit of the radius.

    Raises:
        ValueError: see ``scale_of``.
    """
    scale = scale_of(sentences)
    block = ElementTree.Element("div", {"class": "sentences"})
    for sentence in sentences:
        block.append(sentence_element(sentence, scale))
    legend = ElementTree.SubElement(block, "p", {"class": "legend"})
    legend.text = f"{unit}: {scale.ends()}; underlined: the most fragile word of a sentence"
    return ElementTree.tostring(block, encoding="unicode", method="html")
