"""Every certificate is probed: does the user's module, as it is, do what was proved of its graph?

At some points of the perturbation set three things are computed: what the module returns, with its
hooks and whatever else belongs to it; what the recorded operations give; and what every node of the
graph is worth. The first two must agree but for rounding, every node must lie inside the range and
between the relaxations that the method used, and no margin may be below what was proved. Probes
expose faults; they do not prove that there are none.

B: batch, T: frames, N: features, C: classes, P: points.
"""

from typing import NoReturn

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure, ancestors
from popqorn_train.bounds.node import Node, Root
from popqorn_train.bounds.witness import contradiction, sizes_of, values_at
from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.fidelity import agree, scale_of
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.module_probe import Claim, ModuleProbe
from popqorn_train.certificates.pgd import margin_of
from popqorn_train.certificates.probe_points import changed, changes_in, choices_in
from popqorn_train.certificates.stand_in import StandIn
from popqorn_train.errors import ContradictionError, is_out_of_memory
from popqorn_train.perturbations.box import Perturbation
from popqorn_train.perturbations.region import Region
from popqorn_train.perturbations.substitutions import Choices, Substitutions
from popqorn_train.tracing.process_settings import without_cudnn
from popqorn_train.tracing.steps import called_name

PROBES = 8  # points at which a certificate is probed, if nobody asks for more or fewer
_INSIDE = 2  # of these, points at which every node is looked at
_TERMS = 100  # units of rounding of its terms by which a logit may be off
_MASKING = 1e6  # a logit beyond stands for minus infinity


def check_probes(probes: int) -> None:
    """Refuse a number of probes that is none.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 0:
        raise ValueError(f"`probes` must be a non-negative integer, got {probes!r}.")


class Probes:
    """Looks at one batch of a model.

    Args:
        layer: the model.
        instance: the batch.
        target: ``(B,)`` labels; None where none are asked about.
        count: points, the clean one first; 0 looks nowhere.
    """

    def __init__(
        self, layer: BoundModel, instance: Instance, target: Tensor | None, count: int
    ) -> None:
        self._layer, self._instance = layer, instance
        self._target, self.count = target, count
        self._gradient: Tensor | None = None
        self._terms: Tensor | None = None  # (1, C), see `sizes_of`
        self._seen = torch.zeros(len(instance.center), dtype=torch.bool)

    def nodes(self, chosen: Tensor, output: Node, found: Enclosure) -> None:
        """Look at every node of a graph, once for every sample.

        Args:
            chosen: ``(b,)`` samples that the graph is of.
            output: its last node.
            found: what the method found of it.

        Raises:
            ContradictionError: a node that is not where it was said to be.
        """
        if self.count == 0 or bool(self._seen[chosen.cpu()].all()):
            return
        self._seen[chosen.cpu()] = True
        roots = [node for node in ancestors(output) if isinstance(node, Root)]
        part = self._instance.pick(chosen)
        with torch.no_grad():
            for value in self._roots(roots[0].region, chosen) if roots else []:
                values = values_at(output, value)
                sizes = sizes_of(values)
                where = contradiction(found, values, sizes)
                if where is not None:
                    self._refuse(f"contradicts its bounds inside the set ({where})")
                traced = part.logits(part.unread(value.to(part.value)))
                terms = self._add_up(sizes[output])
                differs = _differing(values[output], traced, _coarsest(part), terms)
                if differs.any():
                    row, number = (int(index) for index in differs.nonzero()[0])
                    where = f"sample {int(chosen[row])}, class {number}"
                    self._refuse(
                        f"has a graph that differs from its trace inside the set ({where})"
                    )

    def _add_up(self, terms: Tensor) -> Tensor:
        """Size of the terms of logits, but for those that mask; the largest of all are kept."""
        terms = torch.where(terms < _MASKING, terms, 0)
        own = terms.amax(0, keepdim=True).double()
        self._terms = own if self._terms is None else self._terms.maximum(own)
        return terms

    def _roots(self, region: Region | Choices, chosen: Tensor) -> list[Tensor]:
        """Values of the root inside the set, ``(b, T, N)``."""
        count = min(self.count, _INSIDE + 1)
        if isinstance(region, Choices):
            return [changed(region, picked) for picked in choices_in(region, count)[1:]]
        gradient = self.gradient.to(region.value)[chosen]
        changes = changes_in(region, gradient, 5)[[1, 4][: count - 1]]
        scale = 1.0 if region.scale is None else region.scale
        return [region.value + change * scale for change in changes]

    @property
    def gradient(self) -> Tensor:
        """Of the clean margin in what moves, ``(B, T, N)``."""
        if self._gradient is None:
            try:
                self._gradient = self._worked_out()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._gradient = torch.ones_like(self._instance.center)  # one corner of many
        return self._gradient

    def _worked_out(self) -> Tensor:
        with torch.enable_grad(), without_cudnn():
            x = self._instance.center.detach().requires_grad_()
            logits = self._instance.logits(x)
            target = logits.argmax(1) if self._target is None else self._target.long()
            margin = margin_of(logits, target).sum()
            known = margin.requires_grad  # not behind a detach
            found = torch.autograd.grad(margin, x)[0] if known else torch.ones_like(x)
        return found.detach().nan_to_num(0, 0, 0)

    def certificate(self, ball: Perturbation | Substitutions, claim: Claim) -> None:
        """Look at what was proved over a perturbation set.

        Raises:
            ContradictionError: the module does otherwise somewhere.
        """
        if self.count == 0:
            return
        stand_in = StandIn(self._layer, self._instance)
        if not stand_in.possible:
            return
        look = ModuleProbe(self._instance, stand_in, claim, self._target, self.count, self._terms)
        with torch.no_grad():
            if isinstance(ball, Substitutions):
                where = look.at_words(ball)
            else:
                where = look.at_points(self._instance.in_own_units(ball), self.gradient)
        if where is not None:
            self._refuse(where)

    def _refuse(self, what: str) -> NoReturn:
        """Say that nothing is certified."""
        raise ContradictionError(
            f"{type(self._layer.model).__name__} {what}, so its graph is not the model and nothing "
            "is certified. Something in forward, in a hook or in a replaced method is not traced; "
            "remove it. If there is nothing of the kind, please report this."
        )


def _differing(ours: Tensor, traced: Tensor, cast: float, terms: Tensor) -> Tensor:
    """Where logits differ by more than the rounding of the coarser of two precisions, ``(b, C)``.

    Args:
        ours: ``(b, C)`` of the graph.
        traced: of the recorded operations.
        cast: unit of rounding of the coarsest precision that forward casts to.
        terms: ``(b, C)`` size of the numbers that each logit was added up from, see ``sizes_of``.
    """
    eps = max(torch.finfo(ours.dtype).eps, torch.finfo(traced.dtype).eps)
    scale = scale_of(traced)
    # A logit may be next to 0 by cancellation: then its terms have the size of other classes'
    # logits, of which huge ones, which mask a class, do not count.
    typical = torch.where(scale < _MASKING, scale, 0).median(1, keepdim=True).values
    near = (1e4 * eps + 100 * cast) * scale.maximum(typical)
    near = near.maximum(_TERMS * eps * terms.to(near))
    # Where a class is masked by a huge number, the graph holds another huge one.
    known = traced.isfinite() & (traced.abs() < 1e30) & ~ours.isnan()  # NaN certifies nothing
    return ~agree(ours, traced.to(ours.dtype), near.to(ours.dtype)) & known


def _coarsest(instance: Instance) -> float:
    """The unit of rounding of casts in forward, which the graph leaves out; 0 without any."""
    names = {called_name(step.target) for step in instance.plan.trace.steps}
    if names & {"half", "bfloat16"}:
        return torch.finfo(torch.bfloat16).eps
    return torch.finfo(torch.float32).eps if names & {"float", "to", "type", "type_as"} else 0.0
