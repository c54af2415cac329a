"""How the numbers of an objective change while a model trains, as pure functions of progress."""

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
        return self.start + (self.end - self.start) * self._share(
            (progress - self.warmup) / self.ramp
        )

    def _share(self, done: float) -> float:
        """How far the value is from start to end when a share ``done`` of the ramp is."""
        return done


@dataclass(frozen=True)
class SmoothRamp(LinearRamp):
    """Flat at first: a power of what is done up to ``middle``, then a straight line, smoothly.

    Attributes:
        middle: share of the ramp where the line begins, strictly between 0 and 1.
        power: at least 1; 1 is a ``LinearRamp``.

    Source:
        The smoothed schedule of Xu et al., "Automatic perturbation analysis for scalable
        certified robustness and beyond" (auto_LiRPA), NeurIPS 2020.
    """

    middle: float = 0.25
    power: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.middle < 1:
            raise ValueError(f"`middle` must lie between 0 and 1, got {self.middle}.")
        if not 1 <= self.power < float("inf"):
            raise ValueError(f"`power` must be at least 1, got {self.power}.")

    def _share(self, done: float) -> float:
        # a u^k up to m, then with the slope a k m^(k-1) on to 1; u is measured in m.
        slope = self.power / (self.middle + self.power * (1 - self.middle))
        if done < self.middle:
            return slope * self.middle / self.power * (done / self.middle) ** self.power
        return 1 - slope * (1 - done)


@dataclass
class RampClock:
    """Counts the steps of a ramp, which may run slower than training.

    Attributes:
        steps: of the ramp so far.
        speed: steps of the ramp for each of training.
        seen: steps of training so far.
    """

    steps: float = 0.0
    speed: float = 1.0
    seen: int = 0

    def tell(self, step: int) -> float:
        """Go on to a step of training, and return the steps of the ramp."""
        self.steps += self.speed * (step - self.seen)
        self.seen = step
        return self.steps
