"""Certify and attack a test set: the numbers that every recipe ends with.

S: samples, A: attacked samples, R: epsilons.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from popqorn_train import certify_loader
from popqorn_train.certificates.inputs import as_tuple
from popqorn_train.certificates.pgd import attack
from popqorn_train.evaluation.progress import shown
from popqorn_train.recipes.evaluation import Evaluation, EvaluationSettings

Loader = DataLoader[Any]
_CHUNK = 50  # samples certified at once; more would not fit the cache


def evaluate(net: nn.Module, loader: Loader, settings: EvaluationSettings) -> list[Evaluation]:
    """Find certified radii, and attack at every epsilon.

    Args:
        net: returns logits.
        loader: the test set in order, batches ``(inputs, labels)``.
        settings: see there.

    Returns:
        The evaluation by ``settings.method`` with the attack; before it, if that takes only a part
        of the samples, one of all samples with intervals, and one with intervals and the method
        where they leave ``undecided_at`` undecided.
    """
    every = _drawn(range(len(loader.dataset)), settings.samples)  # type: ignore[arg-type]
    drawn, found = _drawn(every, settings.method_samples), []
    if len(drawn) < len(every):
        found.append(_certified(net, loader, "ibp", every, settings))
        if settings.undecided_at is not None:
            found.append(_decided(net, loader, found[0], settings, settings.undecided_at))
    strongest = _certified(net, loader, settings.method, drawn, settings)
    return [*found, _attacked(net, loader, strongest, settings)]


def _drawn(positions: Sequence[int], count: int | None) -> Sequence[int]:
    """Some of the positions, drawn by the seed 0; None takes them all, in order."""
    if count is None or count >= len(positions):
        return positions
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    return [positions[at] for at in order[:count].tolist()]


def seconds_used(device: torch.device) -> float:
    """A clock: seconds of this process on its CPUs, or of the wall for a GPU."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _part(loader: Loader, positions: Sequence[int]) -> Loader:
    """Some samples, in this order."""
    part = Subset(loader.dataset, positions)
    return DataLoader(part, _CHUNK, collate_fn=loader.collate_fn)


def _by_length(loader: Loader, positions: Sequence[int]) -> list[int]:
    """The same positions, short sequences first, so that little is spent on padding."""
    return sorted(positions, key=lambda position: len(loader.dataset[position][0]))


def _decided(
    net: nn.Module, loader: Loader, intervals: Evaluation, settings: EvaluationSettings, at: float
) -> Evaluation:
    """Radii by intervals, and by the method where they fall short of an epsilon."""
    right = intervals.predictions == intervals.labels
    left = right & (intervals.radii < at)
    name = f"ibp, {settings.method}"
    if not left.any():
        return intervals._replace(method=name)
    positions = intervals.positions[left].tolist()
    cap = at * (1 + settings.rtol)  # rounding must not leave a radius just below
    more = _certified(net, loader, settings.method, positions, settings, max_radius=cap)
    radii = intervals.radii.clone()
    radii[left] = torch.maximum(radii[left], more.radii)
    seconds = intervals.certify_seconds + more.certify_seconds
    return intervals._replace(method=name, radii=radii, certify_seconds=seconds)


def _certified(
    net: nn.Module,
    loader: Loader,
    method: str,
    positions: Sequence[int],
    settings: EvaluationSettings,
    *,
    max_radius: float | None = None,
) -> Evaluation:
    started, ordered = seconds_used(_device(net)), _by_length(loader, positions)
    rows = certify_loader(
        net,
        _part(loader, ordered),
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
    )
    found = dict(zip(ordered, rows, strict=True))
    columns = [
        (row.label, row.prediction, row.radius, row.capped)
        for row in (found[position] for position in positions)
    ]
    labels, predictions, radii, capped = map(torch.tensor, zip(*columns, strict=True))
    return Evaluation(
        method,
        torch.tensor(positions),
        labels,
        predictions,
        radii.double(),
        capped,
        settings.epsilons,
        torch.zeros(len(settings.epsilons), 0, dtype=torch.bool),
        seconds_used(_device(net)) - started,
    )


def _attacked(
    net: nn.Module, loader: Loader, found: Evaluation, settings: EvaluationSettings
) -> Evaluation:
    """The same evaluation with its attack."""
    device = _device(net)
    started, chosen = seconds_used(device), found.positions[: settings.attack_samples]
    bar = shown("attacking", len(chosen))
    balls = [settings.ball(epsilon) for epsilon in settings.epsilons]
    standing = []
    for batch in _part(loader, chosen.tolist()):
        inputs, labels = tuple(x.to(device) for x in as_tuple(batch[0])), batch[1].to(device)
        margins = [
            attack(
                net,
                inputs,
                labels,
                ball,
                steps=settings.attack_steps,
                restarts=settings.attack_restarts,
            ).margin
            for ball in balls
        ]
        standing.append(torch.stack(margins) > 0)
        bar.advance(len(labels))
    bar.close()
    seconds = seconds_used(device) - started
    return found._replace(standing=torch.cat(standing, 1).cpu(), attack_seconds=seconds)
