"""How nonlinear nodes are enclosed: the slopes, and the domain of every product.

A product of x and y is enclosed on the box of their ranges, or on an octagon: bounds of

    (x - x_middle) / x_half +- (y - y_middle) / y_half

come from the same backward pass as the ranges, with slopes on two nodes at once.

B: batch, H: units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.node import Node
from popqorn_train.perturbations.region import Bounds, for_batch
from popqorn_train.relaxations.domain import Bands, Octagon, Rectangle, Scale
from popqorn_train.relaxations.extremum import largest
from popqorn_train.relaxations.planes import Planes, enclosing
from popqorn_train.relaxations.products import Product
from popqorn_train.relaxations.slopes import POLICIES

Rows = Sequence[tuple[Node, Tensor]]
LowerBound = Callable[[Rows], Tensor]
_ROUNDING = 16.0  # units in the last place by which a band is widened


@dataclass(frozen=True)
class Relaxation:
    """What to enclose products with.

    Attributes:
        slopes: a policy of slopes.py.
        octagons: the products that are enclosed on octagons, by name (products.py).
    """

    slopes: str = "lambda"
    octagons: tuple[str, ...] = ()


class Argument(NamedTuple):
    """An argument of a product, and its range; its sign is -1 where the product reads -node."""

    node: Node
    bounds: Bounds
    sign: float = 1.0

    def mirrored(self) -> "Argument":
        """Minus this argument."""
        return Argument(self.node, Bounds(-self.bounds.upper, -self.bounds.lower), -self.sign)


class Relaxer:
    """Encloses products.

    Args:
        settings: slopes and octagons.
        lower_bound: bounds sums of linear functions of nodes from below.
        unit: ``(B, M, H)``, one-hot: which units the ranges given belong to; None for all.
    """

    def __init__(
        self, settings: Relaxation, lower_bound: LowerBound, unit: Tensor | None = None
    ) -> None:
        self.settings, self.lower_bound, self.unit = settings, lower_bound, unit
        self.policy = POLICIES[settings.slopes]

    def planes(self, product: Product, x: Argument, y: Argument) -> Planes:
        """One plane below and one above every unit, ``(B, H)``."""
        box = Rectangle(*x.bounds, *y.bounds)
        if product.name not in self.settings.octagons:
            return enclosing(product, box, self.policy)
        unit = self.unit
        if unit is None:
            unit = torch.eye(x.node.shape[-1], dtype=box.lx.dtype, device=box.lx.device)
        terms = band_rows(box.scale(), x, y, unit)
        bands = bands_from(self.lower_bound(terms), box)
        return enclosing(product, Octagon(box, bands), self.policy)


class KnownDomains(Relaxer):
    """Encloses the products of several nodes at once, of which the domains are known.

    Args:
        settings: slopes and octagons.
        domains: of all products of every node, in the order in which it encloses them.
    """

    def __init__(self, settings: Relaxation, domains: Sequence[Sequence[Octagon]]) -> None:
        super().__init__(settings, _no_bounds)
        self._domains = iter([_joined(column) for column in zip(*domains, strict=True)])

    def planes(self, product: Product, x: Argument, y: Argument) -> Planes:
        """One plane below and one above every unit of all nodes, ``(B, H)``."""
        domain = next(self._domains)
        octagon = product.name in self.settings.octagons
        return enclosing(product, domain if octagon else domain.box, self.policy)


def _no_bounds(terms: Rows) -> Tensor:
    raise AssertionError("the domains of all products are known")


def _joined(domains: Sequence[Octagon]) -> Octagon:
    """One domain of many batches."""
    batch = max([domain.box.ly.shape[0] for domain in domains])
    columns = zip(*[(*domain.box, *domain.bands) for domain in domains], strict=True)
    ends = [torch.cat([for_batch(end, batch) for end in column]) for column in columns]
    return Octagon(Rectangle(*ends[:4]), Bands(*ends[4:]))


def band_rows(scale: Scale, x: Argument, y: Argument, unit: Tensor) -> Rows:
    """Rows for the sum, minus the sum, the difference and minus the difference.

    Args:
        scale: of the boxes, ``(B, M)``.
        x: first argument.
        y: second argument.
        unit: ``(M, H)`` or ``(B, M, H)``, one-hot: which unit each box belongs to.

    Returns:
        Slopes ``(B, 4 M, H)`` on both nodes.
    """
    in_x = (x.sign / scale.half_x)[..., None] * unit
    in_y = (y.sign / scale.half_y)[..., None] * unit
    rows_x = torch.cat([in_x, -in_x, in_x, -in_x], 1)
    rows_y = torch.cat([in_y, -in_y, -in_y, in_y], 1)
    return (x.node, rows_x), (y.node, rows_y)


def bands_from(lower: Tensor, box: Rectangle) -> Bands:
    """Bands from the lower bounds ``(B, 4 M)`` of ``band_rows``.

    They are measured from the middle of the box. Where that is far from 0 beside the half width,
    the difference cancels, so every band is widened by the rounding of its terms.
    """
    scale = box.scale()
    middle_x, middle_y = scale.x / scale.half_x, scale.y / scale.half_y
    low, minus_high, diff_low, minus_diff_high = lower.chunk(4, 1)
    size = largest(box.lx, box.ux) / scale.half_x + largest(box.ly, box.uy) / scale.half_y + 2
    wider = _ROUNDING * torch.finfo(lower.dtype).eps * size.detach()
    sums = _range(low - wider, -minus_high + wider, middle_x + middle_y)
    diffs = _range(diff_low - wider, -minus_diff_high + wider, middle_x - middle_y)
    return Bands(*sums, *diffs)


def _range(low: Tensor, high: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """A band from the middle, within the box; never crossed, and never NaN."""
    low, high = (low - middle).nan_to_num(-2), (high - middle).nan_to_num(2)
    low, high = low.clamp(-2, 2), high.clamp(-2, 2)
    return torch.minimum(low, high), torch.maximum(low, high)
