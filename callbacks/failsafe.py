"""Views of the truth must not stop training: loggers, figures, files on a full disk."""

import contextlib
from collections.abc import Iterator

from popqorn_train.callbacks.lightning_packages import rank_zero_warn


class Failsafe:
    """Catches what goes wrong inside it, warns once for every kind of view, and counts.

    Attributes:
        failures: how often something went wrong.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._warned: set[str] = set()

    @contextlib.contextmanager
    def catching(self, view: str) -> Iterator[None]:
        """Run a block whose failure costs a view and nothing else.

        Args:
            view: what is lost when it fails, for the warning.
        """
        try:
            yield
        except Exception as error:
            self.failures += 1
            if view not in self._warned:
                self._warned.add(view)
                rank_zero_warn(
                    f"CertifiedRadiusMonitor could not write to {view}, training goes on: "
                    f"{type(error).__name__}: {error}"
                )
