"""How norms, standard deviations and log-sum-exps act on nodes."""

import math
from typing import Any

import torch
from torch import nn

from popqorn_train.bounds.activation import Activation
from popqorn_train.bounds.affine import Scale
from popqorn_train.bounds.bilinear import Quotient
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.reductions import LogSumExp, Norm
from popqorn_train.bounds.total import Total
from popqorn_train.operations.arithmetic import subtract
from popqorn_train.operations.attention import axis_of_layer
from popqorn_train.operations.contractions import along
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.reductions import axes_of, reduced_over
from popqorn_train.operations.registry import module, operation, unsupported
from popqorn_train.operations.shapes import broadcast
from popqorn_train.relaxations.curves import CURVES, clamp
from popqorn_train.tracing.steps import Step, called_name


@operation("logsumexp")
def _log_sum_exp(lifter: Lifter, step: Step, x: Node, dim: Any, keepdim: bool = False) -> Node:
    return reduced_over(x, axes_of(step, x, dim), LogSumExp, keepdim=keepdim)


@operation("log_softmax")
def _log_softmax(
    lifter: Lifter, step: Step, x: Node, dim: int | None = None, *_: Any, **__: Any
) -> Node:
    """``x - logsumexp(x)`` along an axis."""
    if dim is None:
        raise unsupported(step, "a log-softmax without an axis", "Name it: log_softmax(x, dim=1).")
    total = reduced_over(x, axes_of(step, x, dim), LogSumExp, keepdim=True)
    return subtract(lifter, step, x, total)


@module(nn.LogSoftmax)
def _log_softmax_module(lifter: Lifter, step: Step, layer: nn.LogSoftmax, x: Node) -> Node:
    return _log_softmax(lifter, step, x, axis_of_layer(step, layer, x))


@operation("std", "var")
def _spread(
    lifter: Lifter,
    step: Step,
    x: Node,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: Any = None,
    axis: Any = None,
) -> Node:
    """Of what the mean is taken off."""
    if isinstance(dim, bool):  # x.std(False)
        dim, unbiased = None, dim
    dims = axes_of(step, x, dim if axis is None else axis)
    count = math.prod(x.shape[at - (at > x.batch_axis)] for at in dims)
    rest = count - (int(unbiased) if correction is None else correction)
    if rest <= 0:
        raise unsupported(step, "a std or var of too few entries for its correction")

    def reduce(rows: Node) -> Node:
        centred = along(lifter, step, rows, 1, torch.eye(count, dtype=torch.float64) - 1 / count)
        if called_name(step.target) == "var":
            return Total(Activation(CURVES["square"](), centred), [0], 1 / rest, keepdim=False)
        return _times(lifter, Norm(centred), rest**-0.5)

    return reduced_over(x, dims, reduce, keepdim=keepdim)


def _times(lifter: Lifter, x: Node, factor: float) -> Node:
    one = torch.ones(1, *x.shape, dtype=lifter.dtype, device=lifter.device)
    return Scale(x, factor * one, 0 * one)


@operation("norm", "linalg_vector_norm")
def _norm(
    lifter: Lifter,
    step: Step,
    input: Node,
    p: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    out: None = None,
    dtype: Any = None,
    *,
    ord: Any = 2,
) -> Node:
    """Of vectors, along one axis or several."""
    if p not in (2, "fro", None) or ord != 2:
        way_out = "Use the norm of order 2; x.abs().sum(dim) is that of order 1."
        raise unsupported(step, f"a norm of order {p if ord == 2 else ord!r}", way_out)
    return reduced_over(input, axes_of(step, input, dim), Norm, keepdim=keepdim)


@operation("linalg_norm")
def _linalg_norm(
    lifter: Lifter, step: Step, A: Node, ord: Any = None, dim: Any = None, *rest: Any, **named: Any
) -> Node:
    """Of vectors; of order 2 along two axes it is one of matrices."""
    if ord is not None and not isinstance(dim, int):
        way_out = "Name one axis, or no order."
        raise unsupported(step, f"a matrix norm of order {ord!r}", way_out)
    return _norm(lifter, step, A, 2 if ord is None else ord, dim, *rest, **named)


@operation("normalize")
def _normalize(
    lifter: Lifter,
    step: Step,
    input: Node,
    p: float = 2.0,
    dim: Any = 1,
    eps: float = 1e-12,
    out: None = None,
) -> Node:
    """Divided by the norm, which is at least eps."""
    if p != 2:
        raise unsupported(step, f"a normalize of order {p!r}", "Use that of order 2.")
    length = reduced_over(input, axes_of(step, input, dim), Norm, keepdim=True)
    return Quotient(input, broadcast(lifter, step, Activation(clamp(eps), length)))
