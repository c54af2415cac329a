"""Which method a monitor uses where its user has named none: decided once, so that curves compare.

Number of frames  methods, the tightest first
below 50          those of ``SHORT``
from 50 on        those of ``LONG``, whose cost grows more slowly with every one

Before training the first one is tried; at the first certification, when it is known how long an
epoch is, it is kept if a certification takes no longer than that, or else the next one is looked
at. To add a method, put its name where it belongs; all but the last of a row are tried.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from popqorn_train.bounds.methods import METHODS, Method, name_of
from popqorn_train.callbacks.lightning_packages import rank_zero_info
from popqorn_train.callbacks.session import Cost, frames_of, pre_flight, trial
from popqorn_train.certificates.bound_model import bound
from popqorn_train.evaluation.batches import Unpack
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.progress import duration

SHORT = ("popqorn-fast",)
LONG = ("popqorn-fast", "crown-ibp", "ibp")
_FRAMES = 50
_PATIENCE = 5.0  # seconds; what takes less is no reason for a looser method


class Choice:
    """What is asked about every sample, and by which method.

    Args:
        asked: the question; its method is used where none has to be chosen.
        open: whether the method is to be chosen.

    Attributes:
        asked: likewise.
        open: likewise.
        settled: whether the method stays.
        left: names of those that may be chosen.
        frames: for which it is chosen; 0 as long as they are not known.
    """

    def __init__(self, asked: Examination, *, open: bool) -> None:
        self.asked, self.open = asked, open
        self.restart()

    def restart(self) -> None:
        """Forget what was chosen: another training begins."""
        self.settled = not self.open
        self.left: Sequence[str] = SHORT
        self.frames = 0
        self._costs: dict[str, float] = {}  # seconds a sample

    @property
    def question(self) -> Examination:
        """The question, with the method as far as it is known."""
        return self._by(self.left[0]) if self.open else self.asked

    def _by(self, name: str) -> Examination:
        method: Method = METHODS[name]
        return replace(self.asked, method=method)

    def told(self) -> str:
        """The method in words."""
        name = name_of(self.question.method)
        return f"{name} (chosen for {self.frames} frames)" if self.open else name

    def look(self, model: nn.Module, root: nn.Module, unpack: Unpack, batch: Any) -> None:
        """Take notice of how many frames the samples of a batch have, the first time."""
        if not self.settled and self.frames == 0:
            bounded = bound(model)
            self.frames = frames_of(bounded, root, trial(bounded, root, unpack, batch))
            self.left = SHORT if self.frames < _FRAMES else LONG

    def try_on(self, model: nn.Module, root: nn.Module, unpack: Unpack, batch: Any) -> Cost:
        """Certify some samples of a batch by every method whose cost decides; what the first costs.

        Raises:
            ValueError, TypeError, UnsupportedModelError: what cannot be certified.
        """
        self.look(model, root, unpack, batch)
        cost = pre_flight(model, root, self.question, unpack, batch)
        self._costs = {self.left[0]: cost.later}
        for name in self.left[1:-1]:
            self._costs[name] = pre_flight(model, root, self._by(name), unpack, batch).later
        return cost

    def decides_by_cost(self) -> bool:
        """Whether methods have to be tried, and were not."""
        return len(self.left) > 1 and not self._costs

    def settle(self, samples: float, epoch: float) -> None:
        """Choose for good; say so where that is not the method that was named before training.

        Args:
            samples: certified at a time.
            epoch: seconds that one takes.
        """
        first = self.left[0]
        while len(self.left) > 1 and self._seconds(samples) > max(epoch, _PATIENCE):
            self.left = self.left[1:]
        self.settled = True
        if self.left[0] != first:
            rank_zero_info(
                f"CertifiedRadiusMonitor certifies by {self.left[0]}: a certification by {first} "
                f"would take about {duration(self._costs[first] * samples)}, and an epoch takes "
                f"{duration(epoch)}."
            )

    def _seconds(self, samples: float) -> float:
        return samples * self._costs.get(self.left[0], 0.0)

    def state(self) -> dict[str, Any]:
        """What a resumed fit goes on with, as plain values."""
        return {"left": list(self.left), "frames": self.frames, "settled": self.settled}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, unless the user has named a method."""
        if self.open:
            for name, value in state.items():
                setattr(self, name, value)
