"""Planes that enclose the two products of a gated cell on a box or an octagon.

For every (x, y) of the domain:
    lower.x * x + lower.y * y + lower.intercept <= f(x, y)
    upper.x * x + upper.y * y + upper.intercept >= f(x, y)

with f(x, y) = sigmoid(x) tanh(y) or sigmoid(x) y. Ko et al., "POPQORN", ICML 2019, sections 3.2
and appendix A.4, fit such planes by gradient descent; here any slopes are sound (slopes.py has
the policies), because the intercept is the exact extremum (extremum.py, octagon.py).

Both functions are odd in y, so the lower plane is the mirrored upper plane of the mirrored
domain. B: batch, H: units.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.kernels import enclosing as compiled
from popqorn_train.kernels.closed_form import planes_with_gradient
from popqorn_train.kernels.octagons import octagon_planes
from popqorn_train.relaxations.domain import Domain, Octagon
from popqorn_train.relaxations.octagon import octagon_intercept
from popqorn_train.relaxations.products import Product
from popqorn_train.relaxations.slopes import REFERENCE, Policy, closed_form, tilted, tilted_steps


class Plane(NamedTuple):
    """``x * first + y * second + intercept``; every field is ``(B, H)``."""

    x: Tensor
    y: Tensor
    intercept: Tensor


class Planes(NamedTuple):
    """One plane below and one above each unit."""

    lower: Plane
    upper: Plane


def intercept(
    product: Product, a: Tensor, b: Tensor, domain: Domain, top: Tensor | None = None
) -> Tensor:
    """``max over the domain of f(x, y) - a x - b y``, raised by the rounding; of any shape."""
    over_box = product.intercept(a, b, *domain.box) if top is None else top
    if not isinstance(domain, Octagon):
        return over_box
    # The allowance on the diagonals of a wide octagon may outweigh what its cut corners save.
    return torch.minimum(over_box, octagon_intercept(product, a, b, domain))


def enclosing(product: Product, domain: Domain, policy: Policy = closed_form) -> Planes:
    """Enclose a product.

    Args:
        product: the function.
        domain: where, ``(B, H)``.
        policy: how to choose slopes.
    """
    known = _compiled(product, domain, policy)
    if known is not None:
        return known
    both = domain.with_mirror()
    a, b, over_box = policy(product, both)
    top = intercept(product, a, b, both, over_box)
    parts = (part.expand_as(top).unbind() for part in (a, b, top))
    upper, mirrored = (Plane(*plane) for plane in zip(*parts, strict=True))
    # f(x, -y) = -f(x, y)
    return Planes(Plane(-mirrored.x, mirrored.y, -mirrored.intercept), upper)


def _compiled(product: Product, domain: Domain, policy: Policy) -> Planes | None:
    """The same by one compiled loop, where there is one."""
    if policy not in (closed_form, tilted):
        return None
    found: Tensor | Sequence[Tensor] | None
    options: dict[str, Any] = {"curved": product.curved, "share": product.share}
    if policy is tilted:
        options |= {"shift": REFERENCE, "steps": tilted_steps(product, domain)}
    if isinstance(domain, Octagon):
        found = octagon_planes((*domain.box, *domain.bands), **options)
    elif policy is tilted or not (torch.is_grad_enabled() and any(e.requires_grad for e in domain)):
        found = compiled.planes(domain, **options)
    else:
        found = planes_with_gradient(domain, **options)
    return None if found is None else Planes(Plane(*found[:3]), Plane(*found[3:]))
