"""Loss fusion: the cross entropy itself bounded by one backward row, instead of every margin.

    cross entropy = log(1 + sum over j of exp(-m_j)),    m_j = f_y - f_j,    l_j <= m_j <= u_j

exp(-m) is convex, so on [l, u] it lies below its chord exp(-l) - w (m - l), of which

    sum over j of exp(-m_j)  <=  sum over j of (exp(-l_j) + w_j l_j)  -  min of sum_j w_j m_j

is a sum of constants and one linear function of the logits. Where intervals alone bound the sum
more closely, theirs counts. All exponentials are taken relative to the largest one, or to the 1.

Source: Xu et al., "Automatic perturbation analysis for scalable certified robustness and
beyond", NeurIPS 2020.

B: batch, C: classes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure, minimum
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.certificates.margins import margin_rows, other_classes, proved
from popqorn_train.perturbations.region import Bounds

_NEAR = 1e-2  # width below which a series is more exact than the quotient
_SURE = math.log(2) * (1 - 1e-5)  # a cross entropy below which the label wins, rounding or not


class Fused(NamedTuple):
    """Upper bounds on the cross entropy of every sample, and what they prove.

    Attributes:
        linear: ``(B,)`` from one backward row, or from intervals where these are better.
        interval: ``(B,)`` from intervals.
        certified: ``(B,)`` whether either proves that the label wins.
        found: ranges and relaxations.
    """

    linear: Tensor
    interval: Tensor
    certified: Tensor
    found: Enclosure


def fused_cross_entropy(output: Node, target: Tensor, like: Tensor) -> Fused:
    """Bound the cross entropy of every sample from above.

    Args:
        output: logits, a node of shape ``(C,)``.
        target: ``(B,)`` labels.
        like: any tensor with the batch first, for its precision and device.
    """
    found = enclose(output, relax=Relaxation())
    others = other_classes(target, output.shape[0])
    lower, upper = _interval_margins(output, target, like, found)
    shift = (-lower.detach()).amax(1, keepdim=True).clamp(min=0)
    most, width = (-lower - shift).exp(), upper - lower
    weight = most * _mean_decay(width)
    row = weight.new_zeros(len(weight), output.shape[0]).scatter(1, others, -weight)
    row = row.scatter(1, target[:, None], weight.sum(1, keepdim=True))
    worst = minimum(output, row[:, None], found)[:, 0]
    interval = most.sum(1)
    # What the sum is at least, and by rounding: no difference may fall to 0 or below.
    floor = (most * (-width).exp()).sum(1) + 8 * torch.finfo(worst.dtype).eps * interval
    linear = torch.maximum((most + weight * lower).sum(1) - worst, floor)
    one, shift = (-shift[:, 0]).exp(), shift[:, 0]
    linear = shift + (one + torch.minimum(linear, interval)).log()
    certified = proved(lower.detach().amin(1)) | (linear.detach() < _SURE)
    return Fused(linear, shift + (one + interval).log(), certified, found)


def _interval_margins(output: Node, target: Tensor, like: Tensor, found: Enclosure) -> Bounds:
    """Ranges of the margins against ``other_classes``, ``(B, C - 1)``; the upper end not below."""
    classes = output.shape[0]
    others = other_classes(target, classes)
    if classes > len(target):
        rows = margin_rows(target, classes, like, others)
        ends = minimum(output, torch.cat([rows, -rows], 1), found, intervals=True)
        lower, minus_upper = ends.chunk(2, 1)
    else:  # the same rows for all samples cost next to nothing
        unit = torch.eye(classes, dtype=like.dtype, device=like.device)
        rows = (unit[:, None] - unit).flatten(0, 1)[None]
        pairs = minimum(output, rows, found, intervals=True).view(-1, classes, classes)
        sample = torch.arange(len(target), device=target.device)[:, None]
        own = target[:, None]
        lower, minus_upper = pairs[sample, own, others], pairs[sample, others, own]
    return Bounds(lower, torch.maximum(-minus_upper, lower))


def _mean_decay(width: Tensor) -> Tensor:
    """``(1 - exp(-width)) / width`` for a width >= 0, smooth at 0."""
    near, far = width.clamp(max=_NEAR), width.clamp(min=_NEAR)
    series = 1 - near / 2 * (1 - near / 3 * (1 - near / 4 * (1 - near / 5)))
    return torch.where(width < _NEAR, series, -torch.expm1(-far) / far)
