"""The policies that choose the slopes of a plane above a product; every slope is sound.

    lambda     closed form, from the ends of the box; differentiable, for training
    tilted     lowest at a reference point off the centre; searched, without gradient
    constant   0: a constant, the cheapest bound of Ko et al.
    line       0 in x: a line in y, their second cheapest

"POPQORN", ICML 2019, appendix A.4 takes the plane of least volume, which is the lowest at the
centre. Of the planes with about that volume, the one with the small slope in y gives the larger
certificate; it is the lowest at a point with smaller x and greater y (planes.md 0, fact 2).

B: batch, H: units; a leading axis of 2 stacks a domain and its mirror.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.relaxations.domain import Domain, Rectangle
from popqorn_train.relaxations.extremum import product_edges
from popqorn_train.relaxations.lines import sigmoid_secant
from popqorn_train.relaxations.memory_planes import plane_above
from popqorn_train.relaxations.products import MEMORY, Product, steepness
from popqorn_train.relaxations.simplex import lowest_plane


class Slopes(NamedTuple):
    """Slopes of a plane.

    Attributes:
        a: slope in x.
        b: slope in y.
        top: the intercept over the smallest box around the domain, where it is known.
    """

    a: Tensor
    b: Tensor
    top: Tensor | None = None


Policy = Callable[[Product, Domain], Slopes]
REFERENCE = (-0.1, 0.25)  # where a tilted plane is lowest, in half widths off the centre


def _mix(lower: Tensor, upper: Tensor, share: float) -> Tensor:
    return torch.lerp(upper, lower, share)


def closed_form(product: Product, domain: Domain) -> Slopes:
    """Chords of both factors, weighted by the ends of the other one."""
    box = domain.box
    a = _mix(product.g(box.ly), product.g(box.uy), product.share) * sigmoid_secant(box.lx, box.ux)
    if not product.curved:
        return Slopes(a, *plane_above(a, *box))
    gate = _mix(box.ux.sigmoid(), box.lx.sigmoid(), product.share)
    # The chord of an odd function is as steep on the mirror image.
    return Slopes(a, gate * product.secant(box.ly[:1], box.uy[:1]))


def constant(product: Product, domain: Domain) -> Slopes:
    """No slopes."""
    zero = torch.zeros_like(domain.box.lx)
    return Slopes(zero, zero)


def line(product: Product, domain: Domain) -> Slopes:
    """A line in y alone: the chord of g between the ends, for a gate in the middle of its range."""
    lx, ux, ly, uy = domain.box
    gate = (lx.sigmoid() + ux.sigmoid()) / 2
    return Slopes(torch.zeros_like(lx), gate * product.secant(ly, uy))


def tilted(
    product: Product,
    domain: Domain,
    *,
    reference: tuple[float, float] = REFERENCE,
    steps: int | None = None,
) -> Slopes:
    """The plane that is lowest at a reference point, without gradient.

    Args:
        product: the function enclosed.
        domain: where.
        reference: off the centre, in half widths of x and y.
        steps: of the search, see ``tilted_steps``, unless given.
    """
    steps = tilted_steps(product, domain) if steps is None else steps
    with torch.no_grad():
        if isinstance(domain, Rectangle) and not product.curved:
            return _bisected(domain, reference, steps)
        if isinstance(domain, Rectangle):
            domain = domain.expanded()
        return Slopes(*lowest_plane(product, domain, reference, steps))


def tilted_steps(product: Product, domain: Domain) -> int:
    """8 bisections on a box for sigmoid(x) y, else 3 pivots of a simplex."""
    return 8 if isinstance(domain, Rectangle) and not product.curved else 3


def _bisected(box: Rectangle, reference: tuple[float, float], steps: int) -> Slopes:
    """Slopes over sigmoid(x) y: the height at the reference is convex in a.

    Its derivative is 2 x_reference - (1 - r1) x_low(a) - (1 + r1) x_high(a), with the maximising
    x of the edges at the ends of y, and r1 the reference in y.
    """
    limits = steepness(MEMORY, box)
    low, high = limits.x_low, limits.x_high
    goal = box.lx + box.ux + reference[0] * (box.ux - box.lx)
    for _ in range(steps):
        a = (low + high) / 2
        x_low, x_high = product_edges(a, *box)
        steeper = (1 - reference[1]) * x_low + (1 + reference[1]) * x_high > goal
        low, high = torch.where(steeper, a, low), torch.where(steeper, high, a)
    a = (low + high) / 2
    return Slopes(a, *plane_above(a, *box))


POLICIES: dict[str, Policy] = {
    "lambda": closed_form,
    "tilted": tilted,
    "constant": constant,
    "line": line,
}
