"""Which colour a radius has, the same in pictures and in web pages.

Dark is fragile, light is tolerant. The colours are those of viridis (van der Walt and Smith), whose
lightness rises evenly, so that colour-blind readers and grey printers see the same order.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

# viridis from 0 to 0.95, evenly spaced.
ANCHORS = (
    (68, 1, 84),
    (71, 42, 122),
    (61, 78, 138),
    (46, 110, 142),
    (35, 138, 141),
    (34, 167, 133),
    (74, 193, 109),
    (142, 214, 69),
    (223, 227, 24),
)
UNPROVED = (200, 200, 200)  # radius 0: a wrong prediction, or nothing proved

_FEW = 5  # radii, of which none is taken for an outlier if there are fewer
_FAR = 4.0  # times the ninth decile: what lies beyond would squeeze all others into one colour
_LOGARITHMIC = 20.0  # ratio of the ends from which on the scale is logarithmic
_BRIGHT = 0.179  # relative luminance above which black text reads better than white (WCAG)


class RadiusScale(NamedTuple):
    """Maps positive radii to 0 (fragile) ... 1 (tolerant).

    Attributes:
        low: radius of the first colour.
        high: radius of the last colour.
        logarithmic: whether equal ratios, not equal differences, are equal steps.
        beyond: whether some radii lie above ``high`` and share the last colour.
    """

    low: float
    high: float
    logarithmic: bool
    beyond: bool

    @classmethod
    def of(cls, radii: Iterable[float]) -> "RadiusScale":
        """Fit the scale to radii; those that are 0 or not finite do not count."""
        known = sorted(radius for radius in radii if 0 < radius < math.inf)
        if not known:
            return cls(0.0, 1.0, False, False)
        rank = 0.9 * (len(known) - 1)
        usual = known[math.floor(rank) if len(known) >= _FEW else -1]
        beyond = known[-1] > _FAR * usual
        low, high = known[0], usual if beyond else known[-1]
        if high <= low * (1 + 1e-9):
            low = 0.0
        logarithmic = low > 0 and high / low > _LOGARITHMIC
        return cls(low, high, logarithmic, beyond)

    def share(self, radius: float) -> float:
        """Where a positive radius lies, from 0 to 1."""
        low, high, at = self.low, self.high, min(max(radius, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low)

    def color(self, radius: float) -> tuple[int, int, int]:
        """Red, green and blue from 0 to 255."""
        if not radius > 0:
            return UNPROVED
        place = self.share(radius) * (len(ANCHORS) - 1)
        first = min(int(place), len(ANCHORS) - 2)
        pairs = zip(ANCHORS[first], ANCHORS[first + 1], strict=True)
        red, green, blue = (round(a + (b - a) * (place - first)) for a, b in pairs)
        return red, green, blue

    def ends(self) -> str:
        """The ends in words, for a caption."""
        more = " and more" if self.beyond else ""
        kind = ", logarithmic" if self.logarithmic else ""
        return f"dark {self.low:.3g} (fragile) to light {self.high:.3g}{more} (tolerant){kind}"


def hexadecimal(color: tuple[int, int, int]) -> str:
    """As web pages and matplotlib write it."""
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"


def ink_on(color: tuple[int, int, int]) -> str:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = (_linear(value / 255) for value in color)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if luminance > _BRIGHT else "#ffffff"


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
