"""Does every output of an affine function read a single coordinate, and the same in all samples?

Only then are the ends of a range the images of the ends, whatever the signs of the coefficients.
For numbers g that all differ, and the coefficients a of one output,

    (sum a) (sum a g^2) - (sum a g)^2  =  sum over pairs i < j of a[i] a[j] (g[i] - g[j])^2

is 0 where there is one coefficient. Where there are more, it is not 0 if they share a sign or are
two; else only if g is unlucky. Four evaluations tell, without a matrix of coefficients. If one it
is, a and a g say which, and two samples where they are equal have the same.

B: batch.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_GOLDEN = (math.sqrt(5) - 1) / 2  # the fractional parts of its multiples all differ
_ROUNDING = 64.0  # units in the last place


@torch.no_grad()
def reads_single(
    function: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]], like: Tensor
) -> bool:
    """Whether every output of an affine function reads one coordinate at most.

    Args:
        function: takes one tensor ``(B, *shape)`` for each of the shapes.
        shapes: of one sample.
        like: any tensor ``(B, ...)`` on the same device.
    """
    numbers = _numbers(shapes, like)
    constant = function(*[torch.zeros_like(g) for g in numbers])
    images = [function(*[g**power for g in numbers]) for power in range(3)]
    # An infinite constant stays what it is, and is no coefficient.
    one, two, three = (torch.where(x == constant, 0, x - constant) for x in images)
    most = torch.maximum(torch.maximum(one.abs(), two.abs()), three.abs())
    rounding = _ROUNDING * torch.finfo(most.dtype).eps * (constant.abs() + most) * most
    return not bool(((one * three - two.square()).abs() > rounding).any())


def _numbers(shapes: Sequence[tuple[int, ...]], like: Tensor) -> list[Tensor]:
    """Numbers between 1/2 and 3/2, of which no two are equal."""
    batch = len(like)
    counts = [batch * math.prod(shape) for shape in shapes]
    places = torch.arange(sum(counts), dtype=torch.float64, device=like.device)
    parts = torch.split(0.5 + (places * _GOLDEN).frac(), counts)
    return [part.view(batch, *shape) for part, shape in zip(parts, shapes, strict=True)]


@torch.no_grad()
def same_for_all(
    function: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]], like: Tensor
) -> bool:
    """Whether an affine function that reads single coordinates has one linear part for all samples.

    Args:
        function: see ``reads_single``.
        shapes: likewise.
        like: ``(B, ...)`` of the precision that the function computes in.
    """
    batch, zeros = len(like), [like.new_zeros(len(like), *shape) for shape in shapes]
    numbers = [g.to(like.dtype).expand(batch, *g.shape[1:]) for g in _numbers(shapes, like[:1])]
    for tangents in ([torch.ones_like(g) for g in numbers], numbers):
        try:
            image = torch.func.jvp(function, tuple(zeros), tuple(tangents))[1]
        except (RuntimeError, NotImplementedError):  # it has no forward rule
            return False
        if len(image) != batch or not torch.equal(image, image[:1].expand_as(image)):
            return False
    return True
