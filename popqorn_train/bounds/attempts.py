"""Attempts to prove margins of single pairs of a sample and a row, as many at once as fit.

B: batch, of pairs.
"""

import math

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure, ancestors
from popqorn_train.bounds.contradiction import refute
from popqorn_train.bounds.joint import Jointly, JointRegion, refute_jointly
from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.node import Logits, Node, Nonlinear, Root
from popqorn_train.bounds.picking import twins
from popqorn_train.bounds.quadratics import is_supported
from popqorn_train.bounds.rebound import BadRegion, Budget, picked_enclosure, threshold_of
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.perturbations.region import Bounds

_CPU_BYTES = 2**25  # of joint bounds at once: more do not fit a cache, and wait for each other
_MOST = 3000  # symbols of a joint bound: one of more takes tens of seconds
_MATRICES = 8  # square ones in float64 that live at once


def _symbols_of(output: Node) -> tuple[int, int]:
    """How many symbols a joint bound has, and how many arguments, from above."""
    nodes = ancestors(output)
    nonlinear = [node for node in nodes if isinstance(node, Nonlinear)]
    errors = sum(math.prod(node.shape) for node in nonlinear)
    inputs = sum(math.prod(node.shape) for node in nodes if isinstance(node, Root))
    return inputs + errors, sum(math.prod(x.shape) for node in nonlinear for x in node.inputs)


def bytes_of_pair(output: Node) -> int:
    """Estimate of what the joint bound of one pair takes, from above; 0 where it is not tried."""
    symbols, arguments = _symbols_of(output)
    if symbols > _MOST or not is_supported(output):
        return 0
    return 8 * symbols * (_MATRICES * symbols + 9 * arguments)


class Pairs:
    """Some pairs of a batch.

    Args:
        output: logits of all samples.
        found: ranges and relaxations that hold on the whole ball.
        samples: ``(B,)`` indices, which may repeat.
        row: ``(B, C)`` the margins.
    """

    def __init__(self, output: Logits, found: Enclosure, samples: Tensor, row: Tensor) -> None:
        self._output, self._found, self._samples, self._row = output, found, samples, row

    def raised(self, known: Bounds, budget: Budget | Jointly, relaxation: Relaxation) -> Tensor:
        """Lower bounds ``(B,)``, at least those known, which hold on the whole ball."""
        if isinstance(budget, Jointly):
            return self._jointly(known, budget, relaxation)
        region = BadRegion.of(self._output, self._found, self._samples, self._row, known)
        return refute(region, known.lower, relaxation=relaxation, budget=budget)

    def _jointly(self, known: Bounds, budget: Jointly, relaxation: Relaxation) -> Tensor:
        """By bounds of all gaps at once."""
        needed = bytes_of_pair(self._output)
        if not needed:
            return known.lower

        def run(some: Tensor) -> Tensor:
            samples, bounds = self._samples[some], Bounds(*(end[some] for end in known))
            output = self._output.pick(samples)
            new = twins(self._output, output)
            region = JointRegion(
                output,
                self._row[some],
                picked_enclosure(self._found, samples, new),
                threshold=threshold_of(bounds),
                relaxation=relaxation,
                trials=budget.trials,
            )
            return refute_jointly(region, bounds.lower, rounds=budget.rounds)

        chunks = Chunks(None if self._row.is_cuda else _CPU_BYTES)
        chunks.fit(needed, self._row)
        return chunks.map(run, torch.arange(len(self._samples), device=self._row.device))
