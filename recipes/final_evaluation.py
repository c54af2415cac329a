"""Certify and attack a test set: the numbers that every recipe ends with.

S: samples, A: attacked samples, R: epsilons.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from popqorn_train import certify_loader
from popqorn_train.certificates.inputs import as_tuple
from popqorn_train.certificates.pgd import attack
from popqorn_train.evaluation.batches import unpack_pair
from popqorn_train.evaluation.blocks import Blocks, Shard
from popqorn_train.evaluation.progress import Silent, shown
from popqorn_train.recipes.evaluation import Evaluation, EvaluationSettings
from popqorn_train.recipes.levels import greatest_proved, sizes_up_to
from popqorn_train.recipes.together import shared

Loader = DataLoader[Any]
_CHUNK = 50  # samples certified at once; more would not fit the cache
# Label, prediction, radius, whether it is the largest that was tried.
_Row = tuple[int | None, int | None, float | None, bool]


def evaluate(
    net: nn.Module, loader: Loader, settings: EvaluationSettings, *, processes: int = 1
) -> list[Evaluation]:
    """Find certified radii, and attack at every epsilon.

    Args:
        net: returns logits.
        loader: the test set in order, batches ``(inputs, labels)``.
        settings: see there.
        processes: of ``torch.distributed`` that call this with the same network; each does a part,
            and all return the whole. Seconds are added up.

    Returns:
        The evaluation by ``settings.method`` with the attack; before it, if that takes only a part
        of the samples, one of all samples with intervals, and one with intervals and the method
        where they leave ``undecided_at`` undecided.
    """
    every = drawn(range(len(loader.dataset)), settings.samples)  # type: ignore[arg-type]
    some, found = drawn(every, settings.method_samples), []
    test = _Test(net, loader, settings, processes)
    if len(some) < len(every):
        found.append(test.certified("ibp", every))
        if settings.undecided_at is not None:
            found.append(test.decided(found[0], settings.undecided_at))
    return [*found, test.attacked(test.certified(settings.method, some))]


def drawn(positions: Sequence[int], count: int | None) -> Sequence[int]:
    """Some of the positions, drawn by the seed 0; None takes them all, in order."""
    if count is None or count >= len(positions):
        return positions
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    return [positions[at] for at in order[:count].tolist()]


def seconds_used(device: torch.device) -> float:
    """A clock: seconds of this process on its CPUs, or of the wall for a GPU."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


@dataclass(frozen=True)
class _Test:
    """A network on its test set.

    Attributes:
        net: returns logits.
        loader: the test set in order.
        settings: see there.
        processes: that share the work.
    """

    net: nn.Module
    loader: Loader
    settings: EvaluationSettings
    processes: int

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    def _part(self, positions: Sequence[int]) -> Loader:
        """Some samples, in this order, in batches of which every process has some."""
        size = min(_CHUNK, math.ceil(len(positions) / self.processes))
        part = Subset(self.loader.dataset, positions)
        return DataLoader(part, size, collate_fn=self.loader.collate_fn)

    def _by_length(self, positions: Sequence[int]) -> list[int]:
        """The same positions, short sequences first, so that little is spent on padding."""
        return sorted(positions, key=lambda position: len(self.loader.dataset[position][0]))

    def certified(
        self, method: str, positions: Sequence[int], *, max_radius: float | None = None
    ) -> Evaluation:
        """Radii of some samples."""
        ordered = self._by_length(positions)
        ask = self._searched if self.settings.radii else self._tried

        def work(shard: str | None) -> tuple[dict[int, _Row], float]:
            started = seconds_used(self._device)
            rows = ask(method, ordered, max_radius, shard)
            return rows, seconds_used(self._device) - started

        parts = shared(work, self.processes)
        found = {ordered[at]: row for rows, _ in parts for at, row in rows.items()}
        columns = [found[position] for position in positions]
        labels, predictions, radii, capped = zip(*columns, strict=True)
        epsilons = self.settings.epsilons
        return Evaluation(
            method,
            torch.tensor(positions),
            torch.tensor(labels),
            torch.tensor(predictions),
            torch.tensor(radii, dtype=torch.float64),
            torch.tensor(capped),
            epsilons,
            torch.zeros(len(epsilons), 0, dtype=torch.bool),
            sum(seconds for _, seconds in parts),
            decibels=self.settings.decibels is not None,
        )

    def _searched(
        self, method: str, positions: Sequence[int], max_radius: float | None, shard: str | None
    ) -> dict[int, _Row]:
        """Rows by place among the positions."""
        settings = self.settings
        rows = certify_loader(
            self.net,
            self._part(positions),
            p=settings.p,
            frames=settings.frames,
            features=settings.features,
            low=settings.low,
            high=settings.high,
            method=method,
            max_radius=max_radius,
            rtol=settings.rtol,
            epsilons=settings.epsilons,
            on_error="raise",
            shard=shard,
            progress=_shows(shard),
        )
        return {row.index: (row.label, row.prediction, row.radius, row.capped) for row in rows}

    def _tried(
        self, method: str, positions: Sequence[int], max_radius: float | None, shard: str | None
    ) -> dict[int, _Row]:
        """The same, where radii are epsilons up to a greatest one."""
        settings, largest = self.settings, sizes_up_to(self.settings, max_radius)[-1:]

        def ask(batch: Any) -> Tensor:
            inputs, labels = self._moved(batch)
            return greatest_proved(
                self.net, inputs, labels, settings, method=method, most=max_radius
            )

        blocks = self._blocks(f"certifying by {method}", positions, shard, ask)
        return {
            first + at: (int(label), int(prediction), radius, radius in largest)
            for first, block in blocks.items()
            for at, (label, prediction, radius) in enumerate(block.tolist())
        }

    def _moved(self, batch: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        return tuple(x.to(self._device) for x in as_tuple(batch[0])), batch[1].to(self._device)

    def decided(self, intervals: Evaluation, at: float) -> Evaluation:
        """Radii by intervals, and by the method where they fall short of an epsilon."""
        settings = self.settings
        sizes = [] if settings.radii else sizes_up_to(settings, at)
        right = intervals.predictions == intervals.labels
        left = right & (intervals.radii < max(sizes, default=at))
        name = f"ibp, {settings.method}"
        if not left.any():
            return intervals._replace(method=name)
        positions = intervals.positions[left].tolist()
        cap = at * (1 + settings.rtol)  # rounding must not leave a radius just below
        more = self.certified(settings.method, positions, max_radius=cap)
        radii = intervals.radii.clone()
        radii[left] = torch.maximum(radii[left], more.radii)
        seconds = intervals.certify_seconds + more.certify_seconds
        return intervals._replace(method=name, radii=radii, certify_seconds=seconds)

    def attacked(self, found: Evaluation) -> Evaluation:
        """The same evaluation with its attack."""
        chosen = found.positions[: self.settings.attack_samples].tolist()

        def work(shard: str | None) -> tuple[dict[int, Tensor], float]:
            started = seconds_used(self._device)
            standing = self._blocks("attacking", chosen, shard, self._withstood)
            return standing, seconds_used(self._device) - started

        parts = shared(work, self.processes)
        blocks = {first: block for standing, _ in parts for first, block in standing.items()}
        standing = torch.cat([blocks[first] for first in sorted(blocks)], 1)
        seconds = sum(seconds for _, seconds in parts)
        return found._replace(standing=standing, attack_seconds=seconds)

    def _blocks(
        self, doing: str, positions: Sequence[int], shard: str | None, ask: Callable[[Any], Tensor]
    ) -> dict[int, Tensor]:
        """What is found of each batch of the shard, by the place of its first sample."""
        owns = None if shard is None else Shard.of(shard).owns
        blocks = Blocks(self._part(positions), unpack_pair)
        count = len(blocks.positions(owns, math.inf) or ())
        bar = shown(doing, count) if _shows(shard) and count else Silent()
        found = {}
        for block in blocks.chosen(owns, math.inf):
            found[block.first] = ask(block.batch)
            bar.advance(len(block.batch[1]))
        bar.close()
        return found

    def _withstood(self, batch: Any) -> Tensor:
        """Whether the attack fails, ``(R, B)``."""
        settings = self.settings
        inputs, labels = self._moved(batch)
        margins = [
            attack(
                self.net,
                inputs,
                labels,
                settings.ball(epsilon),
                steps=settings.attack_steps,
                restarts=settings.attack_restarts,
            ).margin
            for epsilon in settings.epsilons
        ]
        return (torch.stack(margins) > 0).cpu()


def _shows(shard: str | None) -> bool:
    """Whether this process shows progress."""
    return shard is None or shard.startswith("1/")
