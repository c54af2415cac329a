"""Normalisations by their functions, as nodes of the layers (norms.py).

``torch.batch_norm`` and ``torch.instance_norm`` have the names of those of
``torch.nn.functional``, and take their arguments in another order.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from popqorn_train.bounds.node import Node
from popqorn_train.operations.lift import Lifter, has_node
from popqorn_train.operations.norms import (
    batch_normed,
    group_normed,
    instance_normed,
    layer_normed,
)
from popqorn_train.operations.registry import operation, unsupported
from popqorn_train.tracing.steps import Step

Weight = Tensor | None


def _check(step: Step, x: Any, *weights: Any) -> None:
    """Refuse weights that move."""
    if not isinstance(x, Node) or has_node(weights):
        raise unsupported(step, "a normalisation by weights that move")


def _check_own(step: Step, own: Callable[..., Any]) -> None:
    """Refuse a function of the same name that reads its arguments otherwise."""
    if step.target is not own:
        name = own.__name__
        raise unsupported(step, f"torch.{name}", f"Use torch.nn.functional.{name}.")


@operation("batch_norm")
def _batch_norm(lifter: Lifter, step: Step, *args: Any, **kwargs: Any) -> Node:
    _check_own(step, functional.batch_norm)
    return _of_statistics(lifter, step, *args, **kwargs)


def _of_statistics(
    lifter: Lifter,
    step: Step,
    x: Node,
    running_mean: Weight,
    running_var: Weight,
    weight: Weight = None,
    bias: Weight = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Node:
    _check(step, x, running_mean, running_var, weight, bias)
    if training:
        raise unsupported(
            step,
            "a batch norm by the statistics of the batch",
            "Pass training=self.training, and running statistics.",
        )
    return batch_normed(lifter, step, x, running_mean, running_var, weight, bias, eps)


@operation("layer_norm")
def _layer_norm(
    lifter: Lifter,
    step: Step,
    x: Node,
    normalized_shape: Sequence[int],
    weight: Weight = None,
    bias: Weight = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Node:
    _check(step, x, weight, bias)
    return layer_normed(lifter, step, x, normalized_shape, weight, bias, eps, centred=True)


@operation("rms_norm")
def _rms_norm(
    lifter: Lifter,
    step: Step,
    x: Node,
    normalized_shape: Sequence[int],
    weight: Weight = None,
    eps: float | None = None,
) -> Node:
    _check(step, x, weight)
    return layer_normed(lifter, step, x, normalized_shape, weight, None, eps, centred=False)


@operation("group_norm")
def _group_norm(
    lifter: Lifter,
    step: Step,
    x: Node,
    num_groups: int,
    weight: Weight = None,
    bias: Weight = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Node:
    _check(step, x, weight, bias)
    return group_normed(lifter, step, x, num_groups, weight, bias, eps)


@operation("instance_norm")
def _instance_norm(lifter: Lifter, step: Step, *args: Any, **kwargs: Any) -> Node:
    _check_own(step, functional.instance_norm)
    return _of_channels(lifter, step, *args, **kwargs)


def _of_channels(
    lifter: Lifter,
    step: Step,
    x: Node,
    running_mean: Weight = None,
    running_var: Weight = None,
    weight: Weight = None,
    bias: Weight = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Node:
    _check(step, x, running_mean, running_var, weight, bias)
    if use_input_stats:
        return instance_normed(lifter, step, x, weight, bias, eps)
    return batch_normed(lifter, step, x, running_mean, running_var, weight, bias, eps)
