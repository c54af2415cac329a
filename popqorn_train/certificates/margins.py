"""Certified margins: how far the label's logit stays above the others, as one linear function each.

    margin_j = lower bound of f_y - f_j over the perturbation set
    certified  if  min over j of margin_j > 0          (false for NaN)

B: batch, C: classes.
"""

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure
from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import Method
from popqorn_train.bounds.node import Logits, Node
from popqorn_train.certificates.instance import Instance
from popqorn_train.perturbations.box import Perturbation
from popqorn_train.perturbations.substitutions import Substitutions

Witness = Callable[[Tensor, Node, Enclosure], None]
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_target(target: Tensor, batch: int, classes: int, name: str = "target") -> None:
    """Refuse labels that do not fit.

    Args:
        target: labels.
        batch: number of samples.
        classes: number of logits.
        name: what the caller calls them.

    Raises:
        TypeError: not an integer tensor.
        ValueError: wrong shape, or a label outside 0 .. classes - 1.
    """
    whole = isinstance(target, Tensor) and target.dtype in _WHOLE
    if not whole:
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(
            f"`{name}` must be a tensor of integer labels, got {kind}. Use .long(), or .argmax(1) "
            "for one-hot labels."
        )
    if target.shape != (batch,):
        shape = tuple(target.shape)
        raise ValueError(f"`{name}` must hold one label per sample, ({batch},), got shape {shape}.")
    least, most = int(target.min()), int(target.max())
    if least < 0 or most >= classes:
        raise ValueError(
            f"`{name}` must lie in 0..{classes - 1} for {classes} logits, got labels from {least} "
            f"to {most}."
        )


def other_classes(target: Tensor, classes: int) -> Tensor:
    """All classes but the label, ``(B, C - 1)``."""
    return (target[:, None] + torch.arange(1, classes, device=target.device)) % classes


def margin_rows(target: Tensor, classes: int, like: Tensor, others: Tensor) -> Tensor:
    """Rows that take the logits of other classes ``(B, K)`` from the label's: ``(B, K, C)``."""
    unit = torch.eye(classes, dtype=like.dtype, device=like.device)
    return unit[target][:, None] - unit[others]


def with_own(margins: Tensor, others: Tensor, own: float) -> Tensor:
    """Margins ``(B, C)`` from those against other classes ``(B, C - 1)``, and one for the label."""
    whole = margins.new_full((len(margins), margins.shape[1] + 1), own)
    return whole.scatter(1, others, margins)


def margins_of(output: Logits, target: Tensor, method: Method, like: Tensor) -> Tensor:
    """Lower bounds of the margins ``(B, C)``; see ``enclosed_margins``."""
    return enclosed_margins(output, target, method, like)[0]


def enclosed_margins(
    output: Logits, target: Tensor, method: Method, like: Tensor
) -> tuple[Tensor, Enclosure]:
    """Lower bounds of the margins, with gradients, and the ranges that they come from.

    Args:
        output: logits as a node.
        target: ``(B,)`` labels.
        method: how to bound.
        like: any tensor with the batch first, for its size, precision and device.

    Returns:
        Margins ``(B, C)``, ``+inf`` at the label, and ranges and relaxations.
    """
    classes = output.shape[0]
    check_target(target, len(like), classes)
    target = target.long().to(like.device)
    others = other_classes(target, classes)
    if method.shares_rows:
        margins, found = bounded_margins(output, target, method, like)
    else:
        margins, found = method.margins(output, margin_rows(target, classes, like, others))
    return with_own(margins, others, math.inf), found


def bounded_margins(
    output: Node, target: Tensor, method: Method, like: Tensor
) -> tuple[Tensor, Enclosure]:
    """Bound the margins against ``other_classes``.

    Returns:
        ``(B, C - 1)``, and the ranges that they come from.
    """
    classes = output.shape[0]
    if not method.shares_rows or classes > len(target):
        rows = margin_rows(target, classes, like, other_classes(target, classes))
        return method.bounded(output, rows)
    every = torch.arange(classes, device=target.device)
    rows = margin_rows(every, classes, like, other_classes(every, classes))
    bounds, found = method.bounded(output, rows.flatten(0, 1)[None])
    samples = torch.arange(len(target), device=target.device)
    return bounds.view(-1, classes, classes - 1)[samples, target], found


def chunked_margins(
    instance: Instance,
    target: Tensor,
    ball: Perturbation | Substitutions,
    method: Method,
    chunks: Chunks,
    chosen: Tensor,
    witness: Witness | None = None,
) -> Tensor:
    """Margins ``(b, C)`` of some samples, without gradients, as many at once as fit.

    Args:
        instance: the whole batch.
        target: ``(B,)`` labels on its device.
        ball: of the whole batch.
        method: how to bound.
        chunks: how many fit.
        chosen: ``(b,)`` at least one sample.
        witness: is shown the samples, graph and ranges of every chunk.
    """

    def run(some: Tensor) -> Tensor:
        part = instance.pick(some)
        output = part.graph(ball.pick(some, len(target)))
        # Operations on tensors that can never be differentiated take a tenth less time.
        quick = not method.differentiates(output)
        with torch.inference_mode() if quick else contextlib.nullcontext():
            margins, found = enclosed_margins(output, target[some], method, part.value)
        if witness is not None:
            witness(some, output, found)
        return margins

    if chunks.dtype != instance.value.dtype:
        one = chosen[:1]
        alone = instance.pick(one).graph(ball.pick(one, len(target)))
        chunks.fit(method.bytes_a_sample(alone, instance.value), instance.value)
    return chunks.map(run, chosen)


def clean_margins(instance: Instance, target: Tensor) -> Tensor:
    """Margins ``(B, C)`` at the inputs, and ``+inf`` at the label.

    Every perturbation set holds the inputs. Where two logits are equal there, rounding of a bound
    must not decide.
    """
    logits, own = instance.logits(instance.center), target.long()[:, None]
    return (logits.gather(1, own) - logits).scatter(1, own, math.inf)


def least(margins: Tensor) -> Tensor:
    """The margin ``(B,)`` that decides; NaN if any is NaN."""
    return margins.amin(1)


def proved(margin: Tensor) -> Tensor:
    """Whether a margin proves the class; NaN and overflow never do."""
    return (margin > 0) & margin.isfinite()
