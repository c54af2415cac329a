"""Normalisation layers as nodes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from popqorn_train.bounds.affine import Linear, Scale
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.normal import normalised
from popqorn_train.operations.cast_modules import eps_of
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.registry import module, unsupported
from popqorn_train.operations.shapes import affine_of
from popqorn_train.tracing.steps import Step


def _scaled(
    lifter: Lifter, step: Step, x: Node, weight: Tensor | None, bias: Tensor | None
) -> Node:
    """A weight and a bias for every feature."""
    if weight is None and bias is None:
        return x

    unit = torch.ones((), dtype=lifter.dtype, device=lifter.device)
    weight, bias = (unit if weight is None else weight), (0 * unit if bias is None else bias)
    whole = [*x.shape[: x.batch_axis], 1, *x.shape[x.batch_axis :]]
    factors = [part.expand(whole).movedim(x.batch_axis, 0) for part in (weight, bias)]
    return Scale(x, *factors)


@module(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm_module(
    lifter: Lifter, step: Step, layer: nn.modules.batchnorm._NormBase, x: Node
) -> Node:
    """In eval mode a scale and a shift for every feature, which are axis 1."""
    mean, var = (lifter.weight(step.target, name) for name in ("running_mean", "running_var"))
    weight, bias = (lifter.weight(step.target, name) for name in ("weight", "bias"))
    return batch_normed(lifter, step, x, mean, var, weight, bias, layer.eps)


def batch_normed(
    lifter: Lifter,
    step: Step,
    x: Node,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Node:
    """A scale and a shift for every feature, from running statistics."""
    if mean is None or var is None:
        raise unsupported(step, "a batch norm without running statistics", "Track them.")
    if x.batch_axis and not step.merged:
        raise unsupported(step, "a batch norm with the batch elsewhere than on axis 0")
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    ones = [1] * (len(x.shape) - 1 - step.merged)
    return _scaled(lifter, step, x, scale.view(-1, *ones), shift.view(-1, *ones))


@module(nn.LayerNorm, nn.RMSNorm)
def _layer_norm_module(
    lifter: Lifter, step: Step, layer: nn.LayerNorm | nn.RMSNorm, x: Node
) -> Node:
    weight, bias = (lifter.weight(step.target, name) for name in ("weight", "bias"))
    centred = isinstance(layer, nn.LayerNorm)
    return layer_normed(
        lifter, step, x, layer.normalized_shape, weight, bias, layer.eps, centred=centred
    )


def layer_normed(
    lifter: Lifter,
    step: Step,
    x: Node,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    *,
    centred: bool,
) -> Node:
    """Normalise the last axis, minus its mean or as it is."""
    if len(shape) != 1 or x.batch_axis > len(x.shape) - 1:
        raise unsupported(step, "a normalisation over something else than the last axis")
    x = _centred(lifter, x) if centred else x
    eps = eps_of(lifter.model, lifter.dtype) if eps is None else eps
    return _scaled(lifter, step, normalised(x, eps), weight, bias)


@module(nn.GroupNorm)
def _group_norm_module(lifter: Lifter, step: Step, layer: nn.GroupNorm, x: Node) -> Node:
    weight, bias = (lifter.weight(step.target, name) for name in ("weight", "bias"))
    return group_normed(lifter, step, x, layer.num_groups, weight, bias, layer.eps)


@module(nn.InstanceNorm1d, nn.InstanceNorm2d)
def _instance_norm_module(
    lifter: Lifter, step: Step, layer: nn.modules.batchnorm._NormBase, x: Node
) -> Node:
    """Over time or pixels, channel by channel; with running statistics as a batch norm."""
    if layer.running_mean is not None:
        return _batch_norm_module(lifter, step, layer, x)
    weight, bias = (lifter.weight(step.target, name) for name in ("weight", "bias"))
    return instance_normed(lifter, step, x, weight, bias, layer.eps)


def instance_normed(
    lifter: Lifter, step: Step, x: Node, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Node:
    """Normalise every channel over time, or over pixels."""
    if len(x.shape) < 2:
        raise unsupported(step, "an instance norm of something else than (B, C, T) or images")
    return group_normed(lifter, step, x, x.shape[0], weight, bias, eps)


def group_normed(
    lifter: Lifter,
    step: Step,
    x: Node,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Node:
    """Normalise neighbouring channels, axis 1, together with all that comes after them."""
    if x.batch_axis:
        raise unsupported(step, "a normalisation with the batch elsewhere than on axis 0")
    size = math.prod(x.shape) // groups
    rows = affine_of(
        lambda x: x.reshape(len(x), groups, -1), (x,), {}, shape=(groups, size), axis=0
    )
    normal = normalised(_centred(lifter, rows), eps)
    shape = x.shape
    back = affine_of(lambda x: x.reshape(len(x), *shape), (normal,), {}, shape=shape, axis=0)
    ones = [-1, *[1] * (len(shape) - 1)]
    weight, bias = (None if found is None else found.view(ones) for found in (weight, bias))
    return _scaled(lifter, step, back, weight, bias)


def _centred(lifter: Lifter, x: Node) -> Node:
    """Minus the mean over the last axis."""
    unit = torch.eye(x.shape[-1], dtype=lifter.dtype, device=lifter.device)
    return Linear(x, unit - 1 / x.shape[-1])
