"""The report: one file, every section, everything escaped, opens in a browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from popqorn_train import SampleRow, Status
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.fragile import FragileSample
from popqorn_train.plots.report import SECTIONS, Report
from popqorn_train.plots.report_pictures import report_figures

NASTY = "<script>alert('x')</script>"
SETTINGS = {
    "model": f"m:{NASTY}",
    "checkpoint": f"{NASTY}.ckpt",
    "data": f"{NASTY}.npz",
    "p": "2.0",
    "scope": "frame",
    "low": 0.0,
    "high": 1.0,
    "frames": [True] * 50,
    "method": "popqorn",
    "confirm": "float64",
    "versions": {"torch": "9.9", "python": "3.11"},
    "command": f"popqorn-train certify {NASTY}",
}
ROWS = (
    SampleRow(0, 0, Status.CERTIFIED, 0, 0.25, empirical=0.5),
    SampleRow(1, 1, Status.CERTIFIED, 1, 0.125, empirical=0.5),
    SampleRow(2, 1, Status.NOT_CERTIFIED, 0, 0.0, empirical=0.0),
    SampleRow(3, 0, Status.ERROR, error=f"ValueError: {NASTY}"),
    SampleRow(4, 0, Status.NOT_ATTEMPTED),
)
FRAGILE = (
    FragileSample(ROWS[1], (0.2, 0.125, 0.3), torch.rand(3, 4), ("what", NASTY, "&amp;")),
    FragileSample(ROWS[0], (0.25, 0.5, 0.75), torch.rand(3, 4)),
    FragileSample(ROWS[0], (), torch.rand(3, 4), error=f"RuntimeError: {NASTY}"),
)


def report(rows=ROWS, fragile=FRAGILE, figures=True, **settings):
    certification = Certification(
        0, 0, rows, 2.5, settings={**SETTINGS, **settings}, weights="feedbeef"
    )
    classes = ("cat", NASTY)
    drawn = report_figures(certification, fragile, classes=classes, image=None) if figures else {}
    return Report(certification, [0.1, 0.2], fragile, classes, drawn, ("samples.csv",)).html()


@pytest.fixture(scope="module")
def text():
    return report()


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects what is loaded and said."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.text = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        self.links += [named[name] for name in ("src", "href", "srcset", "data") if name in named]
        self.ids += [named["id"]] if "id" in named else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_well_formed_and_has_every_section(text):
    reader = Reader(text)
    assert text.startswith("<!DOCTYPE html>")
    assert reader.ids == list(SECTIONS)
    assert reader.tags.count("img") == 4  # curves, histogram, classes, rows


def test_nothing_is_loaded_from_anywhere(text):
    reader = Reader(text)
    assert all(link.startswith("data:image/svg+xml;base64,") for link in reader.links)
    assert not {"link", "script", "iframe", "object", "embed"} & set(reader.tags)
    assert not re.search(r"url\(|@import|https?:", text)


def test_text_from_data_is_escaped_wherever_it_appears(text):
    assert NASTY not in text
    said = "".join(Reader(text).text)
    places = 3 + 1 + 1 + 1 + 2 + 2 + 1 + 1  # settings, title, heading, lead, words, errors, class
    assert said.count(NASTY) >= places - 2
    assert "&amp;amp;" in text


def test_what_was_found_is_said(text):
    said = " ".join(Reader(text).text)
    for part in (
        "2 certified, 1 not certified (1 wrong predictions), 1 error, 1 not attempted",
        "l_2, a ball for every frame (chosen frames move), inputs in [0, 1]",
        "66.7 %",
        "feedbeef",
        "version of torch 9.9",
        "50 values]",
        "Sample 1,",
        "radius 0.125",
        "tested against, but not proved for, the deployed kernel at float32",
        "samples.csv",
    ):
        assert part in said, part


def test_the_most_fragile_frame_and_word_are_marked(text):
    [cell] = re.findall(r'class="cell least"[^>]*title="([^"]*)"', text)
    assert cell == "frame 1: radius 0.25"
    [word] = re.findall(r'class="word least".*?underline[^>]*>(.*?)</span>', text)
    assert "script" in word


def test_without_pictures_or_answers_the_page_still_says_what_is_known():
    said = " ".join(Reader(report(figures=False)).text)
    assert "Pictures need matplotlib" in said
    assert "0.2" in said
    said = " ".join(Reader(report(ROWS[4:], (), figures=False)).text)
    assert "1 not attempted" in said
    assert "Most fragile" not in said
    assert "Accuracy against" not in said
    assert "NOT confirmed" in " ".join(Reader(report(figures=False, confirm=None)).text)


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


@pytest.mark.one_in(2)
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1100, 500])
def test_a_browser_shows_the_whole_page_without_running_anything(text, tmp_path, width):
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    measured = (
        "<img src='x' alt='' onerror=\"document.title=[document.documentElement.scrollWidth,"
        "document.querySelectorAll('section').length,"
        "[...document.images].filter(i=>i.naturalWidth>100).length].join(' ')\">"
    )
    page.write_text(text.replace("</main>", f"</main>{measured}"))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *FLAGS, profile, f"--window-size={width},2400"]
    url = page.as_uri()
    dump = subprocess.run(
        [*command, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    wide, sections, images = re.search(r"<title>(\d+) (\d+) (\d+)</title>", dump).groups()
    assert int(wide) <= width  # nothing sticks out
    assert (int(sections), int(images)) == (len(SECTIONS), 4)
    shot_flag = f"--screenshot={shot}"
    subprocess.run([*command, shot_flag, url], capture_output=True, timeout=120, check=True)
    assert shot.stat().st_size > 50_000
