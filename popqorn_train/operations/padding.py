"""How padding acts on nodes: every entry of the result is one of x, or a constant."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from popqorn_train.bounds.node import Node
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.registry import module, operation
from popqorn_train.operations.shapes import lifted
from popqorn_train.tracing.steps import Step


@operation("pad")
def _pad(
    lifter: Lifter, step: Step, x: Node, pad: Any, mode: str = "constant", value: Any = None
) -> Node:
    def padded(x: Tensor) -> Tensor:
        return functional.pad(x, list(pad), mode, value)

    return lifted(lifter, step, padded, (x,), {})


@module(
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ReflectionPad1d,
    nn.ReplicationPad1d, nn.CircularPad1d,
)  # fmt: skip
def _pad_module(lifter: Lifter, step: Step, layer: nn.Module, x: Node) -> Node:
    return lifted(lifter, step, layer.forward, (x,), {})
