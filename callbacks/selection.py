"""Which samples are certified in a pass: drawn once, all of them or a part in turn."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from popqorn_train.callbacks.gather import all_values
from popqorn_train.callbacks.lightning_packages import Trainer
from popqorn_train.callbacks.reading_order import Order
from popqorn_train.callbacks.subset import choose, divided
from popqorn_train.callbacks.watched import watched_loader
from popqorn_train.evaluation.batches import Unpack
from popqorn_train.evaluation.loader_pass import OnError


class Options(NamedTuple):
    """Arguments of the monitor that say what is watched; see there."""

    samples: int
    seed: int
    dataloader: int
    model: str | None
    unpack: Unpack
    on_error: OnError
    epsilons: Sequence[float]
    name: str
    spread: int


class Wanted(NamedTuple):
    """The samples of a pass.

    Attributes:
        order: how this process reads them.
        positions: of the samples.
        part: which part of all that were drawn; None for all.
    """

    order: Order
    positions: Sequence[int]
    part: int | None


class Selection:
    """The samples of one loader, the same every time.

    Args:
        options: what is watched.

    Attributes:
        order: how this process reads the loader of the stage, once that was asked.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.order: Order | None = None
        self._stage = "fit"
        self._chosen: dict[str, dict[str, Any]] = {}  # by stage: positions, and of what
        self._turns = 0  # certifications of parts so far

    def begin(self, stage: str) -> None:
        """Another stage: ``"fit"``, ``"validate"`` or ``"test"``."""
        self._stage, self.order = stage, None

    def restart(self) -> None:
        """Another training begins: with the first part."""
        self._turns = 0

    def state(self) -> dict[str, Any]:
        """What a resumed fit goes on from, as plain values."""
        return {"chosen": dict(self._chosen), "turns": self._turns}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._chosen, self._turns = dict(state["chosen"]), state["turns"]

    def check_order(self, trainer: Trainer) -> Order:
        """How this process reads the watched loader; every process must ask at once.

        Raises:
            ValueError: it does not read the same samples every time, or there is no such loader.
        """
        at, testing = self.options.dataloader, self._stage == "test"
        loader = watched_loader(trainer, at, testing=testing)
        batches = trainer.num_test_batches if testing else trainer.num_val_batches
        gather = partial(all_values, trainer)
        self.order = Order.of(loader, batches[at], trainer.global_rank, gather)
        return self.order

    def wanted(self, trainer: Trainer, *, whole: bool, again: bool) -> Wanted:
        """The samples of a pass, drawn now or before.

        Args:
            trainer: of the pass.
            whole: whether it is all of them.
            again: whether the part of the last pass counts as not certified.

        Raises:
            ValueError, TypeError: a loader or batches that cannot be watched.
        """
        order, options = self.check_order(trainer), self.options
        total, *which = order.identity
        of = [total, options.samples, options.seed, *which]
        if self._chosen.get(self._stage, {"of": []})["of"] != of:
            positions = choose(order, options.samples, options.seed, options.unpack)
            self._chosen[self._stage] = {"of": of, "positions": positions}
        if whole or options.spread == 1:
            return Wanted(order, self.positions, None)
        self._turns += not again
        parts = divided(self.positions, options.spread, options.seed)
        part = (self._turns - 1) % len(parts)
        return Wanted(order, parts[part], part)

    @property
    def positions(self) -> Sequence[int]:
        """All samples that were drawn in this stage; as many as asked for, where none were."""
        return self._chosen.get(self._stage, {"positions": range(self.options.samples)})[
            "positions"
        ]
