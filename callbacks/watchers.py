"""Who watches what a monitor logs, and needs each value in the epoch that it belongs to."""

from collections.abc import Iterator
from typing import Any

from popqorn_train.callbacks.lightning_packages import Trainer
from popqorn_train.evaluation.measures import MEASURES

_SIZES = [name for of in MEASURES.values() for name in (of.certified, of.empirical, of.bar)]
_LOGGED = (*_SIZES, "certified_accuracy", "certification/")
_FRESH, _PART = "fresh/", "part/"


def check_watchers(trainer: Trainer, prefix: str, why: str) -> None:
    """Refuse callbacks and schedulers that watch a monitor.

    Args:
        trainer: of a fit whose schedulers are configured.
        prefix: before every key of the monitor.
        why: what they need of it, as the end of a sentence.

    Raises:
        ValueError: there is one.
    """
    for who, key in _watched(trainer):
        named = key.removeprefix(_FRESH)
        own = named.removeprefix(prefix).removeprefix(_PART)
        if named.startswith(prefix) and own.startswith(_LOGGED):
            raise ValueError(f"{who}(monitor={key!r}) {why}")


def _watched(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """What is watched, and by whom."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        key = getattr(callback, "monitor", None)
        if isinstance(key, str):
            yield type(callback).__name__, key
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor is not None:
            yield type(config.scheduler).__name__, config.monitor
