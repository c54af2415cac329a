"""Certificates of a network as it is computed in float32, and which networks have none.

bounds/computed.py bounds what rounding does to every node of a graph. Here it is decided whether
the graph says all that is computed: whether every step of forward is one whose nodes do what its
kernel does, and whether everything that does not move is exact in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.instance import Instance
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.nested import map_nested
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.tracing.calls import sets_weight
from popqorn_train.tracing.steps import IDENTITIES, MOVES, REPEATS, Step, called_name, casts_to_half

_PIECES = frozenset(
    (
        "cat", "chunk", "column_stack", "concat", "concatenate", "expand_as", "getattr", "hstack",
        "split", "stack", "unbind",
    )
)  # fmt: skip
_ARITHMETIC = frozenset(
    (
        "abs", "add", "addmm", "amax", "amin", "baddbmm", "bmm", "clamp", "clip", "cumsum", "diff",
        "div", "divide", "einsum", "glu", "hardtanh", "leaky_relu", "lerp", "linear", "masked_fill",
        "matmul", "max", "maximum", "mean", "min", "minimum", "mm", "mul", "multiply", "neg",
        "relu", "relu6", "rsub", "scaled_dot_product_attention", "sigmoid", "softmax", "sub",
        "subtract", "sum", "tanh", "true_divide", "truediv", "where", "clamp_min", "clamp_max",
    )
)  # fmt: skip
_PACKED = frozenset(("pack_lengths", "pad_lengths"))
_MAKES = frozenset(
    ("full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
)  # fmt: skip
_LOGIC = frozenset(
    (
        "and_", "arange", "bitwise_and", "bitwise_not", "bitwise_or", "cpu", "eq", "full", "ge",
        "gt", "invert", "le", "logical_and", "logical_not", "logical_or", "lt", "ne", "ones", "or_",
        "size", "tril", "triu", "zeros",
    )
)  # fmt: skip
_WHOLE = frozenset(("add", "cumsum", "max", "min", "mul", "sub", "sum"))  # exact of whole numbers
_PRODUCTS = frozenset(("bmm", "linear", "matmul", "mm", "mul"))  # exact of zeros
MOVING = _PACKED | _MAKES | _ARITHMETIC | _PIECES | MOVES | REPEATS | IDENTITIES
STILL = _PACKED | _MAKES | _LOGIC | _PIECES | MOVES | REPEATS | IDENTITIES | {
    "clamp", "masked_fill", "neg", "where",
}  # fmt: skip
MODULES: tuple[type[nn.Module], ...] = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.GLU, nn.GRU, nn.GRUCell, nn.Hardtanh,
    nn.Identity, nn.LSTM, nn.LSTMCell, nn.LeakyReLU, nn.Linear, nn.MultiheadAttention, nn.RNN,
    nn.RNNCell, nn.ReLU, nn.Sigmoid, nn.Softmax, nn.Tanh, nn.Unflatten,
)  # fmt: skip
_STILL_MODULES = (nn.Dropout, nn.Embedding, nn.Flatten, nn.Identity, nn.Unflatten)
_WAY_OUT = "Use confirm='float64', which certifies the network over the real numbers."


def as_deployed(instance: Instance, layer: BoundModel) -> Instance:
    """The same batch, whose graph is that of the network as it is computed in float32.

    Args:
        instance: in float64.
        layer: made it.

    Raises:
        UnsupportedModelError: what is computed is not known well enough; says why.
    """
    check_deployed(instance, layer)
    lifter = instance.lifter.fork()
    lifter.unrolled = True
    made = instance._replace(lifter=lifter, deployed=True)
    made.graph(LpBall(0.0))  # a node without a rule is refused before anything is asked
    return made


def check_deployed(instance: Instance, layer: BoundModel) -> None:
    """Refuse a network that has no certificate as it is computed; see ``as_deployed``."""
    _check_weights(layer.model)
    plan = instance.plan
    if plan.output != plan.trace.output:
        raise _refused(
            "the model returns probabilities, which may be equal where logits are not. Return the "
            "logits"
        )
    if plan.scales:
        raise _refused("the input is scaled inside forward. Scale it before the model")
    source = plan.source
    module = layer.model.get_submodule(source.target) if source.kind == "module" else None
    if source.kind != "input" and not isinstance(module, nn.Embedding):
        raise _refused(f"{source.name!r}, which moves, is worked out in forward")
    moving = plan.trace.made_from(source.name)
    needed = plan.trace.leading_to(plan.output)
    before = plan.trace.leading_to(source.name)
    for step in plan.trace.steps:
        if step.name not in needed or step.name in before:
            continue
        moves = step.name in moving
        if not (_is_known(step, layer.model) if moves else _is_exact(step, instance)):
            what = "has no rounding rule" if moves else "is worked out beside what moves"
            raise _refused(f"{_named(step)} {what} ({step.source})")


def _check_weights(model: nn.Module) -> None:
    kinds = {p.dtype for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()}
    if kinds - {torch.float32}:
        found = ", ".join(sorted(str(kind) for kind in kinds - {torch.float32}))
        raise _refused(f"weights are {found}, not float32. Certify model.float()")
    for name, module in model.named_modules():
        hooks = module._forward_pre_hooks.values()
        if parametrize.is_parametrized(module) or any(map(sets_weight, hooks)):
            raise _refused(f"weights of {name!r} are worked out at every call")


def _is_known(step: Step, model: nn.Module) -> bool:
    """Whether it is known how a step on what moves rounds."""
    if step.kind == "module":
        return type(model.get_submodule(step.target)) in MODULES
    name = called_name(step.target)
    return step.kind == "input" or name in MOVING


def _is_exact(step: Step, instance: Instance) -> bool:
    """Whether a step beside what moves gives the same in float32 as over the real numbers."""
    if step.kind in ("input", "weight", "baked"):
        return True
    if step.kind == "module":
        module = instance.lifter.model.get_submodule(step.target)
        return type(module) in _STILL_MODULES
    name = called_name(step.target)
    if name in STILL:
        return _keeps_float32(step) and _is_float32(instance.lifter.value(step.name))
    tensors: list[Tensor] = []
    map_nested([instance.lifter.value(ref) for ref in step.refs], Tensor, tensors.append)
    if name in _PRODUCTS and any(not bool(x.any()) for x in tensors):
        return all(bool(x.isfinite().all()) for x in tensors)
    return name in _WHOLE and all(_is_whole(x) for x in tensors)


def _is_float32(value: Any) -> bool:
    """Whether float32 has all numbers of a value; infinity stands for itself."""
    found: list[Tensor] = []
    map_nested(value, Tensor, found.append)
    return all(bool((x.float() == x).all()) for x in found if x.is_floating_point())


def _is_whole(x: Tensor) -> bool:
    """Whether sums of these numbers are exact in float32, whatever their order."""
    if not x.is_floating_point():
        return True
    return bool((x == x.round()).all()) and float(x.double().abs().sum()) < 2**24


def _keeps_float32(step: Step) -> bool:
    """Whether a step casts no floating numbers to half precision."""
    return not step.floating or not casts_to_half(step)


def _named(step: Step) -> str:
    if step.kind == "module":
        return f"module {step.target!r}"
    return f"the operation {called_name(step.target)!r}"


def _refused(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"`confirm='deployed'` cannot bound the rounding of forward: {why}. {_WAY_OUT}"
    )
