"""Convolutions and pooling over time as nodes.

B: batch, K: bounded rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from popqorn_train.bounds.affine import Linear, full
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.tape import Tape
from popqorn_train.operations.lift import Lifter, module, operation, unsupported
from popqorn_train.operations.reductions import largest_over
from popqorn_train.operations.shapes import affine_of
from popqorn_train.perturbations.region import Bounds, dot
from popqorn_train.tracing.steps import Step

Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class LinearMap(Node):
    """``apply(x, weight, bias)``, linear in x, and in the weight.

    Args:
        apply: takes ``(B, *x.shape)``, a weight and a bias or None.
        x: node.
        weight: of the layer.
        bias: likewise, or None.
        shape: of the result, without the batch.
        batch_axis: of the result.
    """

    def __init__(
        self,
        apply: Apply,
        x: Node,
        weight: Tensor,
        bias: Tensor | None,
        *,
        shape: tuple[int, ...],
        batch_axis: int,
    ) -> None:
        super().__init__([x], shape, batch_axis)
        self.apply, self.weight, self.bias = apply, weight, bias

    def range(self, *inputs: Bounds) -> Bounds:
        """Centre and radius through the weight."""
        (x,) = inputs
        center = self.apply((x.lower + x.upper) / 2, self.weight, self.bias)
        radius = self.apply((x.upper - x.lower) / 2, self.weight.abs(), None)
        return Bounds(center - radius, center + radius)

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Absolute weights."""
        bias = None if self.bias is None else self.bias.abs()
        return self.apply(inputs[0], self.weight.abs(), bias)

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> Tensor | None:
        """Transpose of the linear part; the constant is the image of 0."""
        slope, (x,) = full(slope, self.shape), self.inputs
        zeros = slope.new_zeros(slope.shape[0] * slope.shape[1], *x.shape)
        _, transpose, *_ = torch.func.vjp(lambda x: self.apply(x, self.weight, None), zeros)
        (part,) = transpose(slope.flatten(0, 1))
        tape.add(x, part.view(*slope.shape[:2], *x.shape))
        if self.bias is None:
            return None
        return dot(slope, self.apply(zeros[:1], self.weight, self.bias))


@module(nn.Conv1d)
def _conv_module(lifter: Lifter, step: Step, layer: nn.Conv1d, x: Node) -> Node:
    if layer.padding_mode != "zeros":
        raise unsupported(step, f"a convolution with padding_mode={layer.padding_mode!r}")
    weight, bias = (lifter.weight(step.target, name) for name in ("weight", "bias"))
    return _convolve(
        lifter, step, x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )


@operation("conv1d")
def _convolve(
    lifter: Lifter, step: Step, x: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any
) -> Node:
    apart = isinstance(x, Node) and len(x.shape) == 2 + step.merged
    if not apart or isinstance(weight, Node) or (x.batch_axis and not step.merged):
        raise unsupported(step, "a convolution of something else than (B, C, T)")

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = functional.conv1d(x.flatten(0, -3), weight, bias, *rest, **named)
        return rows.view(*x.shape[:-2], *rows.shape[1:])

    axis, shape = x.batch_axis, step.shape or ()
    shape = (*shape[:axis], *shape[axis + 1 :])
    return LinearMap(apply, x, weight, bias, shape=shape, batch_axis=axis)


def _one(value: Any) -> int:
    return int(value[0]) if isinstance(value, tuple | list) else int(value)


@operation("max_pool1d")
def _max_pool(
    lifter: Lifter,
    step: Step,
    x: Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Node:
    """Windows along the last axis, and the greatest entry of each."""
    if _one(padding) or _one(dilation) != 1 or ceil_mode or return_indices or x.batch_axis:
        raise unsupported(step, "a max_pool1d with padding, dilation, ceil_mode or indices")
    size, last = _one(kernel_size), len(x.shape)
    pace = _one(stride) if stride else size
    windows = (x.shape[-1] - size) // pace + 1
    stop = pace * (windows - 1) + 1

    def unfold(x: Tensor) -> Tensor:
        return torch.stack([x[..., at : at + stop : pace] for at in range(size)], -1)

    shape = (*x.shape[:-1], windows, size)
    unfolded = affine_of(unfold, (x,), {}, shape=shape, axis=0)
    return largest_over(step, unfolded, last + 1, keepdim=False)


@module(nn.MaxPool1d)
def _max_pool_module(lifter: Lifter, step: Step, layer: nn.MaxPool1d, x: Node) -> Node:
    kernel, stride = layer.kernel_size, layer.stride
    rest = layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices
    return _max_pool(lifter, step, x, kernel, stride, *rest)


@operation("adaptive_max_pool1d")
def _adaptive_max_pool(
    lifter: Lifter, step: Step, x: Node, output_size: Any, return_indices: bool = False
) -> Node:
    if _one(output_size) != 1 or return_indices:
        raise unsupported(step, "an adaptive_max_pool1d to more than one frame, or with indices")
    return _max_pool(lifter, step, x, x.shape[-1])


@module(nn.AdaptiveMaxPool1d)
def _adaptive_max_pool_module(
    lifter: Lifter, step: Step, layer: nn.AdaptiveMaxPool1d, x: Node
) -> Node:
    return _adaptive_max_pool(lifter, step, x, layer.output_size, layer.return_indices)


@operation("avg_pool1d", "adaptive_avg_pool1d")
def _average(lifter: Lifter, step: Step, x: Node, *args: Any, **kwargs: Any) -> Node:
    return _averaged(lifter, step, x, lambda x: step.target(x, *args, **kwargs))


def _averaged(lifter: Lifter, step: Step, x: Node, pool: Callable[[Tensor], Tensor]) -> Node:
    """A linear map of the last axis, whose weight is what the pool makes of unit vectors."""
    if x.batch_axis > len(x.shape) - 1:
        raise unsupported(step, "a pool over the batch")
    unit = torch.eye(x.shape[-1], dtype=lifter.dtype, device=lifter.device)
    return Linear(x, pool(unit[None])[0].T)


@module(nn.AvgPool1d, nn.AdaptiveAvgPool1d)
def _average_module(lifter: Lifter, step: Step, layer: nn.Module, x: Node) -> Node:
    return _averaged(lifter, step, x, layer.forward)
