"""How epsilon and kappa change while a certified model trains, as pure functions of the step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearRamp:
    """Constant during a warm-up, then a straight line to the end value, then constant.

    Attributes:
        start: value during the warm-up.
        end: value after the ramp.
        warmup: share of training before the ramp, from 0 to 1.
        ramp: share of training that the ramp takes, from 0 to 1.

    Raises:
        ValueError: shares out of range.
    """

    start: float
    end: float
    warmup: float = 0.1
    ramp: float = 0.5

    def __post_init__(self) -> None:
        if not (self.warmup >= 0 and self.ramp >= 0 and self.warmup + self.ramp <= 1):
            raise ValueError(
                "`warmup` and `ramp` must be shares of training that sum to at most 1, got "
                f"{self.warmup} and {self.ramp}."
            )

    def at(self, progress: float) -> float:
        """Value when a share ``progress`` of the training, from 0 to 1, is done."""
        if progress < self.warmup:
            return self.start
        if progress >= self.warmup + self.ramp:
            return self.end
        return self.start + (self.end - self.start) * (progress - self.warmup) / self.ramp
