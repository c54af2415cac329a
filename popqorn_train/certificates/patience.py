"""What somebody who waits for radii is told, once: how far they are, and what would be faster."""

import logging
import time

from torch import Tensor

from popqorn_train.bounds.methods import Method

_LONG = 20.0  # seconds
_FAST = ("ibp", "crown-ibp", "popqorn-fast")
_LOG = logging.getLogger("popqorn_train")


class Patience:
    """Is told how many samples of a search are decided; speaks once, where it takes long.

    Args:
        target: labels of the samples.
        method: as the caller named it.
    """

    def __init__(self, target: Tensor, method: str | Method) -> None:
        self._target, self._method = target, method
        self._since, self._said = time.monotonic(), False

    def __call__(self, decided: float) -> None:
        """Say how far the search is, if it has taken long and could take less."""
        seconds = time.monotonic() - self._since
        if self._said or seconds < _LONG or self._method in _FAST:
            return
        self._said = True
        _LOG.warning(
            "certified_radius: %d of %d samples decided after %.0f s. method='popqorn-fast' takes "
            "a fraction of the time, most of all on long sequences; certify_loader shows progress.",
            int(decided),
            len(self._target),
            seconds,
        )
