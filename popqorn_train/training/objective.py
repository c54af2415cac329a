"""What every training objective is: terms of a loss, worked out on one batch from one trace.

B: batch, C: classes.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.backward import Enclosure, check_defined
from popqorn_train.bounds.node import Node
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.inputs import Inputs, as_tuple
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.margins import check_target
from popqorn_train.certificates.module_probe import Claim
from popqorn_train.certificates.probes import PROBES, Probes
from popqorn_train.perturbations.box import Perturbation
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.tracing.selection import selected
from popqorn_train.tracing.wrappers import as_written
from popqorn_train.training.running_statistics import may_move, moves_buffers

CHECK_EVERY = 100  # calls between two traces, each compared with the model and probed


class LossParts(NamedTuple):
    """Scalars for logging; a term with weight 0 is not computed and reads 0.

    Attributes:
        total: the loss.
        clean: cross entropy on the model's logits.
        bound: cross entropy on the worst-case logits.
        attack: cross entropy on logits under attack.
        certified: share of the batch with a positive certified margin.
        signal: how far the intervals of states drown what the states tell apart.
    """

    total: Tensor
    clean: Tensor
    bound: Tensor
    attack: Tensor
    certified: Tensor
    signal: Tensor


class Prepared:
    """A batch that an objective works on; what is asked for is worked out once.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        check: trace the model anew and compare, see ``BoundModel.instance``.
        probes: points at which its bounds are probed then.

    Attributes:
        inputs: as given.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, target: Tensor, *, check: bool, probes: int = PROBES
    ) -> None:
        self._given, self.inputs = model, inputs
        self._target, self._check, self._probes = target, check, probes

    @functools.cached_property
    def _layer(self) -> BoundModel:
        return bound(self._given)

    @property
    def model(self) -> nn.Module:
        """The module that is bounded, without wrappers."""
        return self._layer.model

    @property
    def is_checked(self) -> bool:
        """Whether it is this batch's turn to be compared with the model, and probed."""
        return self._check

    @functools.cached_property
    def instance(self) -> Instance:
        """The inputs, ready to be bounded or attacked."""
        instance = self._layer.instance(self.inputs, check=self._check)
        check_target(self._target, len(instance.center), instance.plan.classes)
        return instance

    @functools.cached_property
    def logits(self) -> Tensor:
        """Logits ``(B, C)`` of the model as it is called, in the mode it is in."""
        logits = self.run()
        if logits.ndim != 2 or logits.shape[1] == 1:
            logits = self.instance.as_logits(logits)
        check_target(self._target, *logits.shape)
        # The model may run in half precision.
        return logits if logits.dtype == torch.float64 else logits.float()

    def run(self) -> Tensor:
        """The logits of the model as it was given: in its mode, with its wrapper."""
        given = self._given.model if isinstance(self._given, BoundModel) else self._given
        found: Tensor = selected(given(*as_tuple(self.inputs)), self._layer.select)
        return found

    def eval_logits(self) -> Tensor:
        """Logits ``(B, C)`` without a gradient; the model is called in eval mode, if at all."""
        if "logits" in vars(self):
            return self.logits.detach()
        with torch.no_grad(), undisturbed(self.model):
            return self.instance.logits(self.instance.center)

    @property
    def target(self) -> Tensor:
        """``(B,)`` labels."""
        return self._target.long()

    def probe(
        self,
        instance: Instance,
        ball: Perturbation | Substitutions,
        claim: Claim,
        graph: Node | None = None,
        found: Enclosure | None = None,
    ) -> None:
        """Look at a bound where it is this batch's turn; call it inside ``undisturbed``.

        Args:
            instance: what was bounded: the batch, or points near it.
            ball: around it, or the words that may be replaced.
            claim: what was proved.
            graph: of its logits.
            found: ranges and relaxations of the graph.

        Raises:
            ContradictionError: see ``Probes``.
            ValueError: see ``check_defined``.
        """
        if found is not None:
            check_defined(found)
        if self._check:
            probes = Probes(self._layer, instance, self.target, self._probes)
            if graph is not None and found is not None:
                probes.nodes(torch.arange(len(instance.center)), graph, found)
            probes.certificate(ball, claim)

    def zero(self) -> Tensor:
        """A scalar for a term that is not computed."""
        return torch.zeros((), device=self._target.device)


Observer = Callable[[Prepared, LossParts, Enclosure | None], None]


class Objective(nn.Module):
    """A loss for training, of a model, its inputs and their labels.

    Attributes:
        ramped: plain attributes that may change while a model trains, by hand or by
            ``EpsilonSchedule``; they are not in the state dict.
        observer: called with every batch, the parts of its loss, and the ranges that the bound
            comes from, if any.
        probes: points at which the bound is probed, see ``certify``, at every ``CHECK_EVERY``-th
            call.
    """

    ramped: ClassVar[tuple[str, ...]] = ()
    observer: Observer | None = None
    probes: int = PROBES

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0
        self._moves: bool | None = None  # whether forward moves buffers of the model

    def forward(self, model: nn.Module, inputs: Inputs, target: Tensor) -> Tensor:
        """The loss, a scalar with gradients to every weight.

        Args:
            model: a classifier, or ``bound(model)``.
            inputs: what its forward takes.
            target: ``(B,)`` integer labels.

        Raises:
            ValueError, TypeError, UnsupportedModelError: as ``certify``.
        """
        return self.parts(model, inputs, target).total

    @as_written
    def parts(self, model: nn.Module, inputs: Inputs, target: Tensor) -> LossParts:
        """The loss with its terms; see ``forward``.

        Clean and attack terms run in the model's mode, the attack is searched and the bounds are
        computed in eval mode. In training mode running statistics, and other buffers that forward
        moves, move once, by the clean batch, as under cross entropy.
        """
        check = self._calls % CHECK_EVERY == 0
        batch = Prepared(model, inputs, target, check=check, probes=self.probes)
        self._move_buffers(batch, check=check)
        if self._calls == 0:
            _ = batch.instance  # what cannot be bounded is refused before a ramp comes to it
        self._calls += 1
        return self.terms(batch)

    def _move_buffers(self, batch: Prepared, *, check: bool) -> None:
        """Call the model on the clean batch before anything is bounded, if that moves its state."""
        if not may_move(batch.model):
            return
        if self.has_clean_term:
            _ = batch.logits
            return
        if check or self._moves is None:
            self._moves = moves_buffers(batch.model, batch.run)
        if self._moves:
            with torch.no_grad():
                batch.run()

    @property
    def has_clean_term(self) -> bool:
        """Whether its terms call the model on the clean batch."""
        raise NotImplementedError

    def terms(self, batch: Prepared) -> LossParts:
        """The loss with its terms, of a batch that several objectives may share."""
        raise NotImplementedError


def check_share(name: str, share: float) -> None:
    """Refuse a weight that is not between 0 and 1.

    Raises:
        ValueError: naming it.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`{name}` must lie between 0 and 1, got {share}.")


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight that is negative or not finite.

    Raises:
        ValueError: naming it.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"`{name}` must not be negative, got {weight}.")
