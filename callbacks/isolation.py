"""Look at a training without moving its random generators."""

import contextlib
from collections.abc import Iterator

from popqorn_train.callbacks.lightning_packages import isolate_rng


@contextlib.contextmanager
def isolated_random() -> Iterator[None]:
    """Put every random generator back, whatever happens inside."""
    failure: BaseException | None = None
    with isolate_rng():
        try:
            yield
        except BaseException as error:  # isolate_rng would leave the generators moved
            failure = error
    if failure is not None:
        raise failure
