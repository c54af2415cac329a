"""Sentences as a picture and as HTML: same colours, least radius underlined, text escaped."""

import re
from html.parser import HTMLParser

import pytest

from popqorn_train.plots import Sentence, draw_sentences, sentences_html
from popqorn_train.plots.colors import RadiusScale, hexadecimal

NASTY = "<script>alert('x')</script>"
QUESTION = Sentence(["what", "is", NASTY, "$x_2$", "&amp;"], [0.4, 0.3, 0.1, 0.2, 0.0], "a < b")
TITLE = Sentence(["one", "two"] * 14, [0.25, 0.5] * 14)


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.styles, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.styles.append(dict(attrs).get("style") or "")

    def handle_data(self, data):
        self.words.append(data)


def test_the_picture_has_every_word_in_its_colour_and_underlines_the_least():
    figure, ax = draw_sentences([QUESTION, TITLE], unit="radius (l_2)", title="Questions")
    texts = [text.get_text() for text in ax.texts]
    assert {"what", NASTY, "$x_2$", "a < b", "0.4", "Questions"} <= set(texts)
    scale = RadiusScale.of([*QUESTION.radii, *TITLE.radii])
    faces = [hexadecimal(tuple(round(255 * v) for v in p.get_facecolor()[:3])) for p in ax.patches]
    radii = [*QUESTION.radii, *TITLE.radii]
    assert faces == [hexadecimal(scale.color(radius)) for radius in radii]
    assert len(ax.lines) == 2  # one underline a sentence
    box = ax.patches[2]
    assert box.get_x() <= ax.lines[0].get_xdata()[0] <= box.get_x() + box.get_width()
    assert "radius (l_2)" in figure.axes[1].get_xlabel()


def test_words_stay_on_the_page_and_none_lies_on_another():
    figure, ax = draw_sentences([TITLE])
    boxes = [patch.get_bbox() for patch in ax.patches]
    assert max(box.x1 for box in boxes) <= figure.get_figwidth()
    assert len({round(box.y0, 3) for box in boxes}) > 1  # it was wrapped
    for at, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[at + 1 :])


def test_html_escapes_text_and_underlines_the_least():
    page = Page(sentences_html([QUESTION]))
    assert set(page.tags) <= {"div", "span", "br", "small", "p"}
    assert NASTY in page.words
    assert "a < b" in page.words
    assert "&amp;" in page.words
    underlined = re.findall(
        r'underline[^>"]*">([^<]*)<', sentences_html([TITLE._replace(words=["x"] * 28)])
    )
    assert underlined == ["x"]
    colors = [re.search(r"background:(#\w+)", style) for style in page.styles]
    scale = RadiusScale.of(QUESTION.radii)
    assert [found[1] for found in colors if found] == [
        hexadecimal(scale.color(radius)) for radius in QUESTION.radii
    ]


def test_characters_that_no_page_may_hold_are_replaced():
    text = sentences_html([Sentence(["a\x00b\x1b[31m"], [0.1])])
    assert "a\N{REPLACEMENT CHARACTER}b" in text


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ([], "at least one sentence"),
        ([Sentence(["a"], [0.1, 0.2])], "one radius per word"),
        ([Sentence([], [])], "one radius per word"),
    ],
)
def test_sentences_that_do_not_fit_are_refused(sentences, message):
    with pytest.raises(ValueError, match=message):
        sentences_html(sentences)
    with pytest.raises(ValueError, match=message):
        draw_sentences(sentences)


def test_nothing_proved_has_no_underline():
    assert Sentence(["a"], [0.0]).least is None
    assert "underline" not in sentences_html([Sentence(["a"], [0.0])]).split("<p")[0]
