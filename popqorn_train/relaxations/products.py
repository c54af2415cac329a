"""The two products of gated cells, sigmoid(x) tanh(y) and sigmoid(x) y, and their derivatives.

Both are odd in y, so that only upper sides are written.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.relaxations.domain import Rectangle
from popqorn_train.relaxations.extremum import argmax_tanh, clip, product_intercept
from popqorn_train.relaxations.lines import sigmoid_slope, tanh_secant, tanh_slope
from popqorn_train.relaxations.tanh_product import sigmoid_tanh_intercept

SIGMOID_BEND = 0.0963  # greatest |sigmoid''|
TANH_BEND = 0.7699  # greatest |tanh''|


class Product(NamedTuple):
    """``sigmoid(x) g(y)`` with g = tanh or the identity.

    Attributes:
        name: what users call it where they choose octagons, see ``PRODUCTS``.
        g: the second factor.
        slope: its derivative.
        secant: slope of its chord between two points.
        argmax: where ``weight * g(y) - slope * y`` is largest on an interval, given weight > 0.
        intercept: exact intercept over a box, see extremum.py.
        bend: greatest |g''|.
        curved: whether g is tanh, so that maxima inside a domain exist.
        share: weight of the lower end of g in the slope in x of the closed form.
    """

    name: str
    g: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    secant: Callable[[Tensor, Tensor], Tensor]
    argmax: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    intercept: Callable[..., Tensor]
    bend: float
    curved: bool
    share: float

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """The product."""
        return x.sigmoid() * self.g(y)


def _end(weight: Tensor, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Where ``weight * y - slope * y`` is largest: at an end."""
    return torch.where(weight > slope, upper, lower)


SIGMOID_TANH = Product(
    "sigmoid_tanh", torch.tanh, tanh_slope, tanh_secant, argmax_tanh, sigmoid_tanh_intercept,
    bend=TANH_BEND, curved=True, share=0.25,
)  # fmt: skip
MEMORY = Product(
    "memory", lambda y: y, torch.ones_like, lambda lower, _: torch.ones_like(lower), _end,
    product_intercept, bend=0.0, curved=False, share=0.0,
)  # fmt: skip
# In a GRU, which is tighter with another share (frontier.md 11).
CANDIDATE = SIGMOID_TANH._replace(share=0.1)
RESET, STATE = MEMORY._replace(name="reset"), MEMORY._replace(name="state")

PRODUCTS = {
    "sigmoid_tanh": "LSTM: i g and o c; GRU: (1 - z) n",
    "memory": "LSTM: f c",
    "reset": "GRU: r q",
    "state": "GRU: z h",
}


class Steepness(NamedTuple):
    """Ranges of the derivatives of a product over a box."""

    x_low: Tensor
    x_high: Tensor
    y_low: Tensor
    y_high: Tensor


def _range(slope: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
    """Range of an even derivative that falls away from 0."""
    peak = slope(clip(torch.zeros_like(lower), lower, upper))
    return torch.minimum(slope(lower), slope(upper)), peak


def steepness(product: Product, box: Rectangle) -> Steepness:
    """How steep a product can be on a box; the best planes are no steeper."""
    lx, ux, ly, uy = box
    least, most = _range(sigmoid_slope, lx, ux)
    flat, steep = _range(product.slope, ly, uy)
    low, high = product.g(ly), product.g(uy)
    return Steepness(
        torch.minimum(low * least, low * most),
        torch.maximum(high * least, high * most),
        lx.sigmoid() * flat,
        ux.sigmoid() * steep,
    )
