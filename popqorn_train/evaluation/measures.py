"""What a search measures, and its words: the radius of a ball, or the share of a box."""

from typing import NamedTuple


class Measure(NamedTuple):
    """Words and names of what is certified.

    Attributes:
        name: of one, ``"radius"`` or ``"share"``.
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

    @property
    def bar(self) -> str:
        """Name in a progress bar."""
        return "cert_r" if self.name == "radius" else f"cert_{self.name}"


RADIUS = Measure("radius", "radii", "epsilon", "it", "certified_accuracy")
SHARE = Measure(
    "share", "shares", "share of the box", "that share of the box", "certified_accuracy_at_share"
)
MEASURES = {measure.name: measure for measure in (RADIUS, SHARE)}
