"""Certify a data set on Ray: workers take batches by number, and rows stream back."""

import logging
import math
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from popqorn_train.evaluation.batches import unpack_pair
from popqorn_train.evaluation.blocks import Blocks
from popqorn_train.evaluation.ray_table import rows_of
from popqorn_train.evaluation.ray_worker import Attempts, Job, Worker
from popqorn_train.evaluation.sample_rows import SampleRow

_SHARE = 0.9  # of the processors, for workers
_SECONDS = 10.0  # in which an address must answer


@dataclass(frozen=True)
class Workers:
    """How a job is spread.

    Attributes:
        count: of workers.
        address: ``host:port`` of a cluster, or ``"auto"``; None starts Ray on this machine, unless
            it is running in this process.
        num_cpus: of each worker; None takes 0.9, or what there is of this machine for each of
            them. Without something left Ray would wait for ever.
        num_gpus: of each worker.
    """

    count: int = 2
    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"`workers` must be at least 1, got {self.count!r}.")
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must not be negative, got {value!r}.")

    def cpus_of(self, there: float) -> float:
        """Of each worker, where so many processors are there."""
        if self.num_cpus is not None:
            return self.num_cpus
        fit = math.inf if self.address else there / self.count
        return _SHARE * min(1.0, fit)


def ray_of(workers: Workers) -> Any:
    """The package, connected.

    Raises:
        ImportError: it is not installed.
        ConnectionError: no cluster answers.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        needed = 'pip install "popqorn-train[ray]"'
        raise ImportError(f"the engine ray is not installed ({error}): {needed}.") from error
    if not ray.is_initialized():
        _check_answers(workers.address)
        try:
            ray.init(
                workers.address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ConnectionError(
                f"`address` {workers.address} must be that of a running cluster of Ray: {reason}."
            ) from error
    return ray


def _check_answers(address: str | None) -> None:
    """Find out in seconds, not minutes, that nothing listens there."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"`address` {address} does not answer ({error}): start Ray there by `ray start --head`."
        ) from error


def dataset_of(job: Job, workers: Workers, items: list[dict[str, Any]]) -> Any:
    """The rows of a job as a ``ray.data.Dataset``, computed when it is read.

    Args:
        job: what is asked.
        workers: how it is spread.
        items: of ``left_of``.
    """
    ray = ray_of(workers)
    _quiet(ray)
    attempts = ray.remote(Attempts).options(num_cpus=0).remote()
    asked = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
    return asked.map_batches(
        Worker,
        fn_constructor_args=(job, attempts, workers.count),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers.count),
        num_cpus=workers.cpus_of(ray.cluster_resources().get("CPU", 1.0)),
        num_gpus=workers.num_gpus,
    )


def _quiet(ray: Any) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def left_of(job: Job, known: Collection[int]) -> list[dict[str, Any]]:
    """What is left of every batch, without the batches of which nothing is.

    Args:
        job: what is asked.
        known: positions that are not asked about.
    """
    model = job.subject.opened_model()
    blocks = Blocks(job.subject.opened_data(model), unpack_pair)
    items = []
    for number, positions in enumerate(blocks.held(job.samples)):
        left = [position for position in positions if position not in known]
        if left:
            items.append({"block": number, "left": left})
    return items


def streamed(dataset: Any) -> Iterator[list[SampleRow]]:
    """Rows as they come, those of one batch at a time.

    Raises:
        ValueError: what a worker raised.
        RuntimeError: Ray gave up.
    """
    import ray

    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield rows_of(table)
    except ray.exceptions.RayError as error:
        raise _in_own_words(error) from error


def _in_own_words(error: BaseException) -> Exception:
    """What a worker raised itself, if it did; the first line of what Ray says otherwise."""
    inner: BaseException | None = error
    while inner is not None:
        cause = getattr(inner, "cause", None) or inner.__cause__
        if isinstance(inner, ValueError | MemoryError | OSError) and "ray." not in str(type(inner)):
            return ValueError(str(inner).splitlines()[0])
        inner = cause if isinstance(cause, BaseException) else None
    lines = [line for line in str(error).splitlines() if line.strip()]
    return RuntimeError(f"Ray gave up ({type(error).__name__}): {lines[-1].strip()}")
