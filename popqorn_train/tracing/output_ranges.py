"""Which numbers an output can be, as far as the code alone tells.

Any real number can come from what moves, and from every linear read-out by trained weights,
whatever made its features: ``head(h)`` is a score though h came from gates. From there ranges are
followed to the output.
"""

import math
import operator

from torch import nn

from popqorn_train.tracing.number_range import (
    ELEMENTWISE,
    FREE,
    LOG_PROBABILITY,
    PROBABILITY,
    UNKNOWN,
    Range,
    constant,
    joined,
    plain_name,
    sampled,
)
from popqorn_train.tracing.steps import IDENTITIES, MOVES, REPEATS, Baked, Step, Trace

SIGMOIDS = frozenset(("sigmoid", "expit"))
_KEEPING = (
    MOVES
    | IDENTITIES
    | REPEATS
    | frozenset(
        (
            "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d",
            "adaptive_max_pool2d", "amax", "amin", "avg_pool1d", "avg_pool2d", "bfloat16", "chunk",
            "expand_as", "getattr", "half", "max", "max_pool1d", "max_pool2d", "mean", "median",
            "min", "pad_lengths", "ravel", "reshape_as", "split", "tensor_split", "unbind",
            "view_as",
        )
    )
)  # fmt: skip
_KEEPING_LAYERS = (
    nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten, nn.Unflatten, nn.AvgPool1d,
    nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.AvgPool2d, nn.MaxPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_STACKING = frozenset(
    ("cat", "column_stack", "concat", "concatenate", "dstack", "hstack", "stack", "vstack")
)
_FILLING = {"zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0}
_LINEAR = frozenset(
    (
        "addmm", "baddbmm", "bilinear", "bmm", "conv1d", "conv2d", "dot", "einsum", "inner",
        "linear", "matmul", "mm", "mv", "tensordot",
    )
)  # fmt: skip
_SQUASHING = {"log_softmax": LOG_PROBABILITY} | (
    dict.fromkeys([*SIGMOIDS, "hardsigmoid", "softmax", "softmin"], PROBABILITY)
)
_SQUASHING_LAYERS: dict[type[nn.Module], Range] = {
    nn.Sigmoid: PROBABILITY,
    nn.Hardsigmoid: PROBABILITY,
    nn.Softmax: PROBABILITY,
    nn.Softmax2d: PROBABILITY,
    nn.Softmin: PROBABILITY,
    nn.LogSoftmax: LOG_PROBABILITY,
}


def keeps_numbers(step: Step, model: nn.Module) -> bool:
    """Whether a step only moves, casts, picks or averages entries."""
    if step.kind == "module":
        return isinstance(model.get_submodule(step.target), _KEEPING_LAYERS)
    return step.kind in ("function", "method") and plain_name(step) in _KEEPING


class OutputRanges:
    """Ranges of what the step that moves is made from, and of what is made from it.

    Args:
        trace: the recording.
        model: where its modules and weights are.
        source: the step whose result moves.
    """

    def __init__(self, trace: Trace, model: nn.Module, source: Step) -> None:
        self._trace, self._model = trace, model
        self._steps = {step.name: step for step in trace.steps}
        fixed = {step.name for step in trace.steps if step.kind in ("weight", "baked")}
        self._moving = trace.made_from(source.name) | (trace.leading_to(source.name) - fixed)
        self._found: dict[str, Range] = {}

    def of(self, name: str) -> Range:
        """Range of one step; of what does not move, any number."""
        needed: set[str] = set()
        todo = [name]
        while todo:
            step = self._steps[todo.pop()]
            if step.name in needed or step.name not in self._moving:
                continue
            needed.add(step.name)
            todo += [] if self._reads_out(step) else step.refs
        for step in self._trace.steps:
            if step.name in needed:
                self._found[step.name] = self._range(step)
        return self._found.get(name, FREE)

    def _reads_out(self, step: Step) -> bool:
        """Whether trained weights make new numbers of what a step reads."""
        if step.kind == "module":
            return not (keeps_numbers(step, self._model) or self._activation(step))
        return plain_name(step) in _LINEAR and any(map(self._is_trained, step.refs))

    def _activation(self, step: Step) -> nn.Module | None:
        layer = self._model.get_submodule(step.target) if step.kind == "module" else None
        inherited = type(layer).forward.__module__ if layer is not None else ""
        return layer if inherited == "torch.nn.modules.activation" else None

    def _is_trained(self, name: str) -> bool:
        """Whether a constant is worked out from a parameter."""
        todo = [name]
        while todo:
            step = self._steps[todo.pop()]
            if step.kind == "weight":
                value = operator.attrgetter(step.target)(self._model)
                if isinstance(value, nn.Parameter):
                    return True
            todo += [] if step.name in self._moving else step.refs
        return False

    def _range(self, step: Step) -> Range:
        if step.kind == "input" or self._reads_out(step):
            return FREE
        read = {name: self._of_argument(name) for name in step.refs}
        layer, name = self._activation(step), plain_name(step)
        if layer is not None:
            kinds = type(layer).__mro__
            known = [_SQUASHING_LAYERS[kind] for kind in kinds if kind in _SQUASHING_LAYERS]
            return known[0] if known else sampled(step, read, layer)
        if step.kind != "module" and name in _SQUASHING:
            return _SQUASHING[name]
        if step.kind != "module" and name in _FILLING:
            return constant(_FILLING[name])
        of_two = name in ("max", "min") and len(read) == 2
        if step.kind != "module" and (name in ELEMENTWISE or of_two):
            return sampled(step, read)
        return self._of_several(step, read)

    def _of_several(self, step: Step, read: dict[str, Range | None]) -> Range:
        """Of operations that pick, join or add up entries."""
        name, first = plain_name(step), step.refs[0]
        if keeps_numbers(step, self._model):
            return joined([read[first]])
        if name in _STACKING | {"where", "masked_fill"}:
            parts = [found for ref, found in read.items() if self._steps[ref].floating]
            return joined([*parts, *map(constant, _numbers(step))])
        shape, before = step.shape, self._steps[first].shape
        if name == "sum" and shape is not None and before is not None:
            found = joined([read[first]])
            return FREE if found.free else found.times(math.prod(before) / math.prod(shape))
        moving = [found for found in read.values() if found is not None]
        return FREE if name in _LINEAR and any(found.free for found in moving) else UNKNOWN

    def _of_argument(self, name: str) -> Range | None:
        """Of what a step reads; None for a constant that the code does not tell."""
        if name in self._moving:
            return self._found[name]
        baked = self._steps[name].target
        value = baked.value if isinstance(baked, Baked) else None
        if value is None or not value.is_floating_point() or not value.numel():
            return None
        number = float(value.flatten()[0])
        return constant(number) if bool((value == number).all()) else None


def _numbers(step: Step) -> list[float]:
    """Numbers that a step may put in the place of entries."""
    name = plain_name(step)
    at = {"where": 1, "masked_fill": 2}.get(name, len(step.args))
    return [float(x) for x in (*step.args[at:], *step.kwargs.values()) if type(x) in (int, float)]
