"""``report.html``: one certification on one page, in one file that opens anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.fragile import FragileSample
from popqorn_train.evaluation.sample_rows import Status, count_statuses
from popqorn_train.evaluation.summaries import (
    accuracy_rows,
    class_name,
    class_rows,
    facts,
    promise,
    statuses,
    unit,
)
from popqorn_train.plots.colors import RadiusScale, hexadecimal, ink_on
from popqorn_train.plots.html import Element, element, page, pairs, picture, table
from popqorn_train.plots.words import Sentence, sentence_element

SECTIONS = ("curves", "radii", "fragile", "samples", "settings", "promise")
_WRITTEN = 20  # frames up to which a cell has its number in it
_ERRORS = 5  # samples in error that are named
_NO_PICTURES = (
    'Pictures need matplotlib: pip install "popqorn-train[plots]", then run again with --resume.'
)


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        certification: of the samples.
        epsilons: where accuracy is given in numbers.
        fragile: samples with the least radii, by radius.
        classes: names of the classes.
        figures: SVGs by name, see report_pictures.py; empty without matplotlib.
        files: names of the files beside the report.
        rounding: the share of a radius that rounding takes, where that was measured.
    """

    certification: Certification
    epsilons: Sequence[float]
    fragile: Sequence[FragileSample] = ()
    classes: Sequence[str] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    files: Sequence[str] = ()
    rounding: float | None = None

    def html(self) -> str:
        """The page."""
        title = f"Certified robustness of {self.certification.settings['model']}"
        parts = [element("h1", title), element("p", self._lead(), class_="lead"), self._tiles()]
        return page(title, *parts, *[getattr(self, f"_{name}")() for name in self._sections()])

    def _sections(self) -> list[str]:
        """Those that have something to say."""
        silent = set() if self.fragile else {"fragile"}
        silent |= set() if self.certification.answered else {"curves", "radii"}
        return [name for name in SECTIONS if name not in silent]

    def _lead(self) -> str:
        settings, found = self.certification.settings, self.certification
        text = f"{len(found.rows)} samples of {settings['data']}: {statuses(found)}."
        return f"{text} Perturbations: {unit(settings)}; method {settings['method']}."

    def _tiles(self) -> Element:
        tiles = []
        if self.certification.answered:
            named = facts(self.certification).items()
            tiles = [
                element("div", element("b", value), element("span", name), class_="tile")
                for name, value in named
            ]
        return element("div", *tiles, class_="tiles")

    def _curves(self) -> Element:
        size = self.certification.measure.size
        parts = [element("h2", f"Accuracy against {size}")]
        parts += self._picture("curves", f"Certified accuracy against {size}")
        parts.append(table(accuracy_rows(self.certification, self.epsilons)))
        text = (
            "certified: percentage of the answered samples that are classified correctly and "
            f"proved up to that {size}; at 0, the clean accuracy."
        )
        if self.certification.empirical is not None:
            text += " attack failed: percentage that the attack did not break."
        return element("section", *parts, element("p", text, class_="note"), id="curves")

    def _radii(self) -> Element:
        many = self.certification.measure.many
        parts = [element("h2", many.capitalize())]
        parts += self._picture("radii", f"Histogram of certified {many}")
        parts += self._picture("classes", f"Certified {many} by class", needed=False)
        if self.certification.by_class():
            parts.append(table(class_rows(self.certification, self.classes)))
        return element("section", *parts, id="radii")

    def _picture(self, name: str, text: str, needed: bool = True) -> list[Element]:
        if name in self.figures:
            return [picture(self.figures[name], text)]
        missing = needed and not self.figures
        return [element("p", _NO_PICTURES, class_="note")] if missing else []

    def _fragile(self) -> Element:
        parts = [element("h2", "Most fragile samples")]
        scale = RadiusScale.of(radius for one in self.fragile for radius in one.radii)
        text = (
            f"The correctly classified samples with the smallest {self.certification.measure.many},"
            f" and how far each of their frames can be moved alone: {scale.ends()}. The most "
            "fragile frame is marked."
        )
        parts.append(element("p", text))
        parts += self._picture("rows", "The most fragile samples, row by row", needed=False)
        for one in self.fragile:
            parts += self._sample(one, scale)
        return element("section", *parts, id="fragile")

    def _sample(self, one: FragileSample, scale: RadiusScale) -> list[Element]:
        name = class_name(one.row.label, self.classes)
        measure, radius = self.certification.measure, one.row.radius
        said = "-" if radius is None else measure.said(radius)
        title = f"Sample {one.row.index}, {name}: {measure.name} {said}"
        if one.error:
            return [element("h3", title), element("p", f"No {measure.many} of frames: {one.error}")]
        if one.words:
            shown = sentence_element(Sentence(one.words, one.radii), scale)
        else:
            shown = _strip(one.radii, scale, measure.name)
        return [element("h3", title), shown]

    def _samples(self) -> Element:
        counts = [
            (str(status), str(n)) for status, n in count_statuses(self.certification.rows).items()
        ]
        parts = [element("h2", "Samples"), pairs(counts)]
        wrong = [row for row in self.certification.rows if row.status == Status.ERROR]
        if wrong:
            rows = [(f"sample {row.index}", row.error) for row in wrong[:_ERRORS]]
            parts += [element("p", f"The first of {len(wrong)} errors:"), pairs(rows)]
        if self.files:
            parts.append(element("p", "Every sample: ", element("code", ", ".join(self.files))))
        return element("section", *parts, id="samples")

    def _settings(self) -> Element:
        plain = dict(self.certification.settings)
        versions = plain.pop("versions", {})
        rows = [(name.replace("_", " "), _text(value)) for name, value in plain.items()]
        rows.append(("weight fingerprint", self.certification.weights))
        rows += [(f"version of {name}", str(value)) for name, value in versions.items()]
        rows.append(("seconds", f"{self.certification.seconds:.1f}"))
        return element("section", element("h2", "Settings"), pairs(rows), id="settings")

    def _promise(self) -> Element:
        text = promise(self.certification.settings, self.rounding)
        head = element("h2", "What is guaranteed, and what is not")
        return element("section", head, element("p", text), id="promise", class_="promise")


def _text(value: Any) -> str:
    if isinstance(value, list) and len(value) > 40:
        return f"{str(value[:10])[:-1]}, ... {len(value)} values]"
    return "none" if value is None else str(value)


def _strip(radii: Sequence[float], scale: RadiusScale, name: str) -> Element:
    """One cell a frame, in the colour of its radius or share."""
    proved = [at for at, radius in enumerate(radii) if radius > 0]
    least = min(proved, key=lambda at: radii[at], default=None)
    cells = []
    for at, radius in enumerate(radii):
        color = scale.color(radius)
        text = f"{radius:.2g}" if len(radii) <= _WRITTEN else ""
        cells.append(
            element(
                "span",
                text,
                class_="cell least" if at == least else "cell",
                style=f"background:{hexadecimal(color)};color:{ink_on(color)}",
                title=f"frame {at + 1}: {name} {radius:.4g}",
            )
        )
    return element("div", *cells, class_="strip")
