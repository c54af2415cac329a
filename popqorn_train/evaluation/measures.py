"""What a search measures, and its words: the radius of a ball, the share of a box or of a peak."""

import math
from typing import NamedTuple


class Measure(NamedTuple):
    """Words and names of what is certified.

    Attributes:
        name: of one, ``"radius"``, ``"share"`` or ``"level"``.
        many: of several.
        size: of the perturbation, on an axis.
        within: what holds the inputs that a certificate is about.
        accuracy: what the names of logged accuracies begin with.
    """

    name: str
    many: str
    size: str
    within: str
    accuracy: str

    @property
    def certified(self) -> str:
        """What the names of logged sizes begin with."""
        return f"certified_{self.name}"

    @property
    def empirical(self) -> str:
        """The same of an attack."""
        return f"empirical_{self.name}"

    def said(self, size: float, form: str = ".4g") -> str:
        """A size as text; one that is a share of the peak in dB too."""
        text = format(size, form)
        if self != LEVEL or not 0 < size < math.inf:
            return text
        return f"{text} ({20 * math.log10(size):.1f} dB)"

    @property
    def bar(self) -> str:
        """Name in a progress bar."""
        return "cert_r" if self.name == "radius" else f"cert_{self.name}"


RADIUS = Measure("radius", "radii", "epsilon", "it", "certified_accuracy")
SHARE = Measure(
    "share", "shares", "share of the box", "that share of the box", "certified_accuracy_at_share"
)
LEVEL = Measure(
    "level", "levels", "share of the peak", "that share of its peak", "certified_accuracy_at_level"
)
MEASURES = {measure.name: measure for measure in (RADIUS, SHARE, LEVEL)}
