"""Pages of one file: everything escaped, nothing loaded."""

from html.parser import HTMLParser

from popqorn_train.plots.html import element, page, pairs, picture, table

NASTY = "<script>alert(\"x\")</script> & 'y'"


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.values, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [value for _, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_text_and_attributes_are_escaped_everywhere():
    parts = [
        element("h1", NASTY, title=NASTY),
        table([[NASTY, "b"], ["c", NASTY]]),
        pairs([(NASTY, NASTY)]),
        picture(b"png", NASTY),
    ]
    reader = Reader(page(NASTY, *parts))
    assert "script" not in reader.tags
    assert reader.text.count(NASTY) == 6
    assert reader.values.count(NASTY) == 2
    assert reader.open == []


def test_text_between_elements_stays_where_it_is():
    made = element("p", "a", element("b", "c"), "d", element("i", "e"), "f")
    assert "".join(made.itertext()) == "acdef"


def test_a_picture_is_in_the_page():
    [source] = [v for v in Reader(page("t", picture(b"<svg/>", "a"))).values if "data:" in v]
    assert source == "data:image/svg+xml;base64,PHN2Zy8+"


def test_control_characters_are_replaced():
    assert "a\N{REPLACEMENT CHARACTER}b" in page("t", element("p", "a\x00b"))
