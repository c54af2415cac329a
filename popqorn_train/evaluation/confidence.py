"""How far a share of some samples may be from the share of all."""

import math
from collections.abc import Sequence

_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


def confidence_interval(share: float, samples: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, JASA 1927), which holds also at 0 and 1.

    Args:
        share: from 0 to 1, seen in the samples.
        samples: how many, at least 1.
    """
    spread = _Z**2 / samples
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / samples + spread / (4 * samples))
    # The interval holds the share; at 0 and 1 rounding would put an end on the other side.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def widest(shares: Sequence[float], samples: int) -> str:
    """How far the least certain of some shares may be off, as a line below a table."""
    ends = [confidence_interval(share, samples) for share in shares]
    off = max(
        max(share - low, high - share) for share, (low, high) in zip(shares, ends, strict=True)
    )
    return (
        f"95 % confidence intervals (Wilson, {samples} samples): at most +-{100 * off:.1f} points"
    )
