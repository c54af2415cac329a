"""The user's module beside its trace and beside what was proved, at points of a perturbation set.

B: batch, T: frames, N: features, C: classes, P: points.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popqorn_train.certificates.fidelity import agree, as_rows, noise_of, rounding_of
from popqorn_train.certificates.instance import Instance
from popqorn_train.certificates.pgd import margin_of, shrunk, sizes, steepest
from popqorn_train.certificates.probe_points import changed, changes_in, choices_in
from popqorn_train.certificates.stand_in import StandIn
from popqorn_train.errors import is_out_of_memory
from popqorn_train.perturbations.region import Region
from popqorn_train.perturbations.substitutions import Substitutions

_ROWS, _ENTRIES = 4096, 2**23  # samples, and their entries, that the module is run on at once
_TERMS = 10  # units of rounding of its terms by which a logit may be off
_STEPS = 2  # of descent on the module itself, from the corner that the gradient points to


@dataclass(frozen=True)
class Claim:
    """What is said of every sample over the whole perturbation set.

    Attributes:
        certified: ``(B,)`` samples whose class does not change.
        margins: ``(B, C)`` lower bounds of the label's logit minus each other one, if any.
        against: ``(B,)`` the one other class that is meant; None for all.
        lower: ``(B, C)`` bounds of the logits, if any.
        upper: likewise.
    """

    certified: Tensor | None = None
    margins: Tensor | None = None
    against: Tensor | None = None
    lower: Tensor | None = None
    upper: Tensor | None = None


class ModuleProbe:
    """Compares a module with its trace, and with a claim.

    Args:
        instance: the batch, in any precision.
        stand_in: runs the module.
        claim: what was proved.
        target: ``(B,)`` labels, if any.
        count: points.
        terms: ``(1, C)`` size of the numbers that logits are added up from, if known.
    """

    def __init__(
        self,
        instance: Instance,
        stand_in: StandIn,
        claim: Claim,
        target: Tensor | None,
        count: int,
        terms: Tensor | None = None,
    ) -> None:
        self._instance, self._exact = instance, instance.to(torch.float64)
        self._stand_in, self._claim, self._count = stand_in, claim, count
        self._terms = terms
        self._target = None if target is None else target.long().to(instance.center.device)

    def at_points(self, region: Region, gradient: Tensor) -> str | None:
        """Look at points of a ball or a box.

        Args:
            region: around the inputs.
            gradient: ``(B, T, N)`` of the margin in what moves.

        Returns:
            What is wrong, in words; None if nothing is.
        """
        changes = changes_in(region, gradient.to(region.value), self._count)
        # What the module reads is rounded to its precision: so is what the trace reads.
        moved = (self._instance.center + changes).to(self._stand_in.dtype).double().flatten(0, 1)
        samples, near, done = self._samples(len(changes)), None, 0
        size = max(1, min(_ROWS, _ENTRIES // moved[0].numel()))
        while done < len(moved):
            some = slice(done, done + size)
            try:
                real = self._stand_in.outputs(moved[some], samples[some])
                wrong, near = self._compared(real, moved[some], samples[some], done)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                size = -(-size // 2)
                continue
            if wrong is not None:
                return wrong
            done += size
        return self._descend(region, changes[min(1, len(changes) - 1)], near)

    def at_words(self, words: Substitutions) -> str | None:
        """Look at sentences with words replaced; see ``at_points``."""
        plan, lifter = self._exact.plan, self._exact.lifter
        reads = lifter.steps[plan.source.refs[0]]
        if reads.kind != "input":
            return None  # worked out from tokens by the model itself: they cannot be replaced
        axis = plan.source.batch_axis or 0
        tokens = lifter.value(reads.name).movedim(axis, 0)
        choices, candidates = self._exact.choices(words), words.of(tokens)
        samples = self._samples(1)
        for point, row in enumerate(choices_in(choices, self._count)):
            moved = self._exact.unread(changed(choices, row))
            if words.share == 1:
                there = torch.where(row < 0, tokens, _of(candidates, row)).movedim(0, axis)
                real = self._stand_in.tokens(there, reads.target, samples)
            else:  # no sentence has these embeddings
                moved = moved.to(self._stand_in.dtype).double()
                real = self._stand_in.outputs(moved, samples)
            wrong, _ = self._compared(real, moved, samples, point * len(samples))
            if wrong is not None:
                return wrong
        return None

    def _samples(self, points: int) -> Tensor:
        batch = len(self._instance.center)
        return torch.arange(batch, device=self._instance.center.device).repeat(points)

    def _compared(
        self, real: Any, moved: Tensor, samples: Tensor, done: int
    ) -> tuple[str | None, Tensor]:
        """Module against trace and claim, ``done`` rows after the first point.

        Returns:
            What is wrong, in words, and what rounding may change.
        """
        ours = self._exact.pick(samples).logits(moved, whole=True)
        own, few = self._stand_in.dtype, 2 * len(self._instance.center)
        part = self._instance.pick(samples[:few])
        near = rounding_of(ours, noise_of(part, ours[:few], moved[:few], own), own)
        near = near.maximum(self._rounded(near, torch.finfo(own).eps))
        theirs = as_rows(real, ours)
        if theirs is None:
            return "returns something of another shape inside the set", near
        differs = ~(agree(theirs, ours, near) | ~ours.isfinite())
        if differs.any():
            where = self._place(differs, samples, done)
            return f"does not compute what was traced everywhere in the set ({where})", near
        return self._claimed(theirs, samples, near, done), near

    def _rounded(self, near: Tensor, eps: float) -> Tensor:
        """What rounding the terms of logits comes to, in the shape of ``near``."""
        if self._terms is None or not self._undone():
            return torch.zeros_like(near)
        terms = self._terms[:, 1:] if self._instance.plan.meaning.single else self._terms
        fits = terms.numel() == near.numel()
        return _TERMS * eps * terms.reshape(near.shape).to(near) if fits else torch.zeros_like(near)

    def _place(self, wrong: Tensor, samples: Tensor, done: int | None) -> str:
        """The first sample and class at which something is wrong, and the point if it is listed."""
        row, number = (int(index) for index in wrong.nonzero()[0])
        named = f"sample {int(samples[row])}, class {number}"
        if done is None:
            return f"{named}, a point found by descent"
        return f"{named}, point {(done + row) // len(self._instance.center)} of {self._count}"

    def _claimed(self, real: Tensor, samples: Tensor, near: Tensor, done: int | None) -> str | None:
        """Whether the module stays where it was proved to stay; ``done`` as for ``_place``."""
        plan, claim = self._instance.plan, self._claim
        logits = self._exact.as_logits(real)
        near = torch.full_like(near, 1e-5) if plan.meaning.squashed else near
        near = near.reshape(1, -1)
        near = near.expand(-1, logits.shape[1]) if plan.meaning.single else near
        if claim.lower is not None and claim.upper is not None and self._undone():
            below, above = claim.lower[samples] - near, claim.upper[samples] + near
            outside = (logits < below) | (logits > above)
            if outside.any():
                where = self._place(outside, samples, done)
                return f"leaves the bounds of its logits inside the set ({where})"
        if self._target is None:
            return None
        own = self._target[samples][:, None]
        gap = logits.gather(1, own) - logits
        slack = near + near.expand(len(own), -1).gather(1, own)
        others = torch.ones_like(gap, dtype=torch.bool).scatter(1, own, False)
        if claim.against is not None:
            others = torch.zeros_like(others).scatter(1, claim.against[samples][:, None], True)
        if claim.certified is not None:
            lost = claim.certified[samples][:, None] & others & ~(gap >= -slack)
            if lost.any():
                where = self._place(lost, samples, done)
                return f"leaves the class that was certified inside the set ({where})"
        if claim.margins is not None and self._undone():
            least = claim.margins.to(gap)[samples]
            below = others & (gap < least - slack)
            if below.any():
                where = self._place(below, samples, done)
                return f"has margins below what was proved inside the set ({where})"
        return None

    def _undone(self) -> bool:
        """Whether the module returns the very logits that are bounded."""
        plan = self._instance.plan
        return plan.output == plan.trace.output

    def _descend(self, region: Region, change: Tensor, near: Tensor | None) -> str | None:
        """A few steps of projected gradient descent on the margin of the module itself."""
        if self._target is None or near is None or self._count < 2:
            return None
        samples, center = self._samples(1), self._instance.center
        size = sizes(region)[..., None] if region.scope == "frame" else region.epsilon[..., None]
        for step in range(_STEPS + 1):
            with torch.set_grad_enabled(step < _STEPS):
                x = (center + change).to(self._stand_in.dtype).requires_grad_(step < _STEPS)
                real = self._stand_in.outputs(x, samples).reshape(len(x), -1)
                margin = margin_of(self._exact.as_logits(real), self._target).sum()
            wrong = self._claimed(real.detach().double(), samples, near, None)
            if wrong is not None or not margin.requires_grad:
                return wrong
            try:
                (gradient,) = torch.autograd.grad(margin, x, allow_unused=True)
            except RuntimeError as error:
                if "inplace" not in str(error):
                    raise
                return wrong  # the module overwrites what its own gradient needs
            if gradient is None:
                return wrong  # the module detaches what moves
            downhill = steepest(gradient.to(center).nan_to_num(0, 0, 0), region)
            change = shrunk(change + 0.5**step * size * downhill, region)
        return None


def _of(candidates: Tensor, row: Tensor) -> Tensor:
    """The candidates that a row ``(B, T)`` picks."""
    return candidates.gather(2, row.clamp(min=0)[..., None])[..., 0]
