"""What a radius search asks: the margins of some samples at some epsilons.

B: batch, T: frames.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import Method
from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.margins import (
    Witness,
    check_target,
    chunked_margins,
    least,
    margins_of,
)
from popqorn_train.certificates.pgd import margin_of
from popqorn_train.certificates.unread import fitted, unread_frames
from popqorn_train.perturbations.box import Box, Perturbation
from popqorn_train.perturbations.region import Region
from popqorn_train.tracing.process_settings import without_cudnn

_UNCLIPPED = 10.0  # largest radius tried without a domain, in norms of the input


@dataclass(frozen=True)
class Query:
    """What a search evaluates: margins of some samples at some epsilons.

    Attributes:
        instance: the whole batch.
        target: ``(B,)`` labels on its device.
        against: ``(B,)`` the one other class that counts; None takes them all.
        ball: what may move; its size, epsilon or the share of a box, is asked for.
        method: how to bound.
        chunks: how many samples fit into memory.
        witness: is shown every graph that is bounded.
    """

    instance: Instance
    target: Tensor
    against: Tensor | None
    ball: Perturbation
    method: Method
    chunks: Chunks
    witness: Witness | None = None

    def margin(self, chosen: Tensor, epsilon: Tensor) -> Tensor:
        """Certified margins ``(b,)`` of the chosen samples at their epsilons."""
        every = epsilon.new_zeros(len(self.target))
        every[chosen] = epsilon
        ball = self.ball.sized(every)
        margins = chunked_margins(
            self.instance, self.target, ball, self.method, self.chunks, chosen, self.witness
        )
        return self._decisive(margins, chosen).double()

    @property
    def deciding(self) -> "Query":
        """The same for a search, to which the size of what is proved matters little."""
        return replace(self, method=self.method.deciding)

    @property
    def scout(self) -> "Query | None":
        """The same for a cheaper method, where there is one."""
        cheaper = self.method.cheaper
        return None if cheaper is None else replace(self, method=cheaper, witness=None)

    def frames_alone(self, first: int, stop: int) -> "Query":
        """The same for every sample and each of these frames, moving alone; sample by sample."""
        batch, time, _ = self.instance.center.shape
        rows = torch.arange(batch, device=self.target.device).repeat_interleave(stop - first)
        alone = torch.eye(time, dtype=torch.bool, device=rows.device)[first:stop].repeat(batch, 1)
        return replace(
            self,
            instance=self.instance.pick(rows),
            target=self.target[rows],
            ball=replace(self.ball.pick(rows, batch), frames=alone),
            witness=None,
        )

    def margin_with_gradient(self, chosen: Tensor, epsilon: Tensor) -> Tensor:
        """The same, differentiable in weights, inputs and epsilon; all samples at once."""
        ball = self.ball.pick(chosen, len(self.target)).sized(epsilon)
        instance = self.instance.pick(chosen)
        margins = margins_of(instance.graph(ball), self.target[chosen], self.method, instance.value)
        return self._decisive(margins, chosen)

    def _decisive(self, margins: Tensor, chosen: Tensor) -> Tensor:
        if self.against is None:
            return least(margins)
        return margins.gather(1, self.against[chosen][:, None])[:, 0]

    def clean(self) -> tuple[Tensor, Tensor]:
        """Clean margins, and how fast they can fall at first."""
        with torch.enable_grad(), without_cudnn():
            x = self.instance.center.detach().requires_grad_()
            logits = self.instance.logits(x)
            if self.against is None:
                margin = margin_of(logits, self.target)
            else:
                pair = torch.stack([self.target, self.against], 1)
                margin = logits.gather(1, pair) @ logits.new_tensor([1.0, -1.0])
            (gradient,) = torch.autograd.grad(margin.sum(), x)
        region = self.instance.in_own_units(self.ball.sized(1.0))
        return margin.detach().double(), self.ball.first_fall(gradient, region).double()


def make_query(
    layer: BoundModel,
    inputs: Inputs,
    target: Tensor,
    *,
    against: Tensor | None,
    ball: Perturbation,
    method: Method,
    chunks: Chunks,
) -> Query:
    """Prepare a batch.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``search_radius``.
    """
    instance = fitted(layer.instance(inputs), ball)
    device = instance.center.device
    instance.placed(ball)
    check_target(target, len(instance.center), instance.plan.classes)
    if against is not None:
        check_target(against, len(instance.center), instance.plan.classes, "against")
        if (against == target).any():
            raise ValueError("`against` must name another class than `target` for every sample.")
        against = against.long().to(device)
    return Query(instance, target.long().to(device), against, ball, method, chunks)


def largest_tried(
    instance: Instance, ball: Perturbation, max_radius: float | Tensor | None
) -> Tensor:
    """Largest radius tried, ``(B,)``: what was asked, the width of the domain, or 10 inputs.

    Frames that are never read do not count. Of a box it is all of it, a share of 1.
    """
    center = instance.center
    if isinstance(max_radius, Tensor):
        return max_radius
    if max_radius is not None:
        return center.new_full((len(center),), max_radius, dtype=torch.float64)
    if isinstance(ball, Box):
        return center.new_ones(len(center), dtype=torch.float64)
    region = instance.in_own_units(ball)
    if ball.low is not None and ball.high is not None:
        low, high = (torch.as_tensor(edge, device=center.device) for edge in (ball.low, ball.high))
        return _norms((high - low).to(center).expand_as(center), region)
    read = center.masked_fill(unread_frames(instance)[..., None], 0)
    return _UNCLIPPED * _norms(read, region).clamp(min=0.1)


def largest_alone(query: Query, max_radius: float | None) -> Tensor:
    """Largest radius tried for every frame alone, ``(B, T)``.

    For one that is never read it is the largest one of its sample.
    """
    instance, time = query.instance, query.instance.center.shape[1]
    unread = unread_frames(instance)
    still = instance._replace(center=instance.center.masked_fill(unread[..., None], 0))
    alone = replace(query, instance=still).frames_alone(0, time)
    caps = largest_tried(alone.instance, alone.ball, max_radius).view(-1, time)
    return torch.where(unread, caps.amax(1, keepdim=True), caps)


def _norms(x: Tensor, region: Region) -> Tensor:
    """Greatest p-norm of a moved frame, or of the moved sequence, ``(B,)``."""
    x = (x * region.coordinates).double()
    x = x.flatten(1)[:, None] if region.scope == "sequence" else x
    return torch.linalg.vector_norm(x, region.p, dim=-1).amax(1)
