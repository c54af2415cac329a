"""Rows of functions of one argument, and of quotients, where they are defined; see rows.py."""

import operator

import torch
from torch.nn import functional

from tests.operations.rows import curve


def positive(function):
    """A function of what lies between 1 and 8, and close to 0."""
    return [
        *curve(lambda x: function(x + 4.5)),
        lambda m, a, b: function(torch.sigmoid(a - b)),
        lambda m, a, b: function(a.square() + m.c.abs()),
    ]


def away(function):
    """Quotients by what stays as it is, and by what is positive or negative."""
    return [
        lambda m, a, b: function(a, m.c),
        lambda m, a, b: function(a[:, :1], m.k),
        lambda m, a, b: function(a, -2.0),
        lambda m, a, b: function(a, b + 2),
        lambda m, a, b: function(a - 2 * b, m.c * (a + 2)),
        lambda m, a, b: function(m.c, b - 2),
        lambda m, a, b: function(m.k, 2 + b[..., :1]),
        lambda m, a, b: function(3.0, a + 1.5),
        lambda m, a, b: function(a, 2 - b[:, :1]),
        lambda m, a, b: function(a[..., :1], b.transpose(0, 1).transpose(0, 1) + 3),
    ]


def spreads(name):
    """Standard deviations or variances by their signatures."""
    return [
        lambda m, a, b: getattr((a - b)[:, :3], name)(1),
        lambda m, a, b: getattr(a, name)(dim=1, unbiased=False),
        lambda m, a, b: getattr(a * m.k, name)((1, 2), keepdim=True),
        lambda m, a, b: getattr(a.transpose(0, 1), name)(0, correction=2),
    ]


FUNCTION_ROWS = {
    "exp": curve(torch.exp),
    "exp2": curve(torch.exp2),
    "expm1": curve(torch.expm1),
    "log": positive(torch.log),
    "log2": positive(torch.log2),
    "log10": positive(torch.log10),
    "log1p": [*positive(torch.log1p), lambda m, a, b: torch.log1p(a)],
    "sqrt": [*positive(torch.sqrt), lambda m, a, b: a.square().sum(1).sqrt()],
    "rsqrt": positive(torch.rsqrt),
    "reciprocal": [*positive(torch.reciprocal), lambda m, a, b: (m.c * (a + 1.5)).reciprocal()],
    "square": [*curve(torch.square), lambda m, a, b: a * a],
    "erf": curve(torch.erf),
    "sin": [*curve(torch.sin), lambda m, a, b: torch.sin(9 * a - 20 * b)],
    "cos": [*curve(torch.cos), lambda m, a, b: torch.cos(9 * a - 20 * b)],
    "pow": [
        *curve(lambda x: x**2, {}),
        *[
            lambda m, a, b, n=n: (a + 1.5) ** n
            for n in (1, 3, 4, -1, -2, 0.5, -0.5, 1.5, -2.5, 2.0)
        ],
        lambda m, a, b: (a - b) ** 3,
        lambda m, a, b: 2**a,
        lambda m, a, b: torch.pow(0.3, b),
    ],
    "logsumexp": [
        lambda m, a, b: torch.logsumexp(3 * a, 1),
        lambda m, a, b: (a - 4 * b).logsumexp(dim=(1, 2), keepdim=True),
        lambda m, a, b: torch.logsumexp((a * m.k).transpose(0, 1), 0),
    ],
    "std": [*spreads("std"), lambda m, a, b: torch.std(a, 1)],
    "var": [*spreads("var"), lambda m, a, b: torch.var(a - b, -1, keepdim=True)],
    "norm": [
        lambda m, a, b: torch.norm(a, dim=1),
        lambda m, a, b: (a - b).norm(2, -1),
        lambda m, a, b: torch.norm(a * m.k, dim=(1, 2), keepdim=True),
    ],
    "linalg_norm": [lambda m, a, b: torch.linalg.norm(a - b, dim=1)],
    "linalg_vector_norm": [lambda m, a, b: torch.linalg.vector_norm(a, dim=(1, 2))],
    "normalize": [
        lambda m, a, b: functional.normalize(a + 1.5, dim=-1),
        lambda m, a, b: functional.normalize(a - b * m.k, eps=0.5),
    ],
    "div": [*away(torch.div), lambda m, a, b: a.div(other=m.k)],
    "divide": away(torch.divide),
    "true_divide": away(torch.true_divide),
    "truediv": away(operator.truediv),
}
