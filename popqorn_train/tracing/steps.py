"""What a recording consists of."""

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from popqorn_train.nested import map_nested
from popqorn_train.tracing.packed_inputs import pick_packed

IDENTITIES = frozenset(
    (
        "alpha_dropout", "clone", "contiguous", "detach", "double", "dropout", "dropout1d",
        "dropout2d", "feature_alpha_dropout", "float", "to", "type", "type_as",
    )
)  # operations that do nothing to real numbers in eval mode  # fmt: skip
MOVES = frozenset(
    (
        "flatten", "flip", "getitem", "moveaxis", "movedim", "narrow", "permute", "reshape", "roll",
        "select", "squeeze", "swapaxes", "t", "transpose", "unflatten", "unsqueeze", "view",
    )
)  # operations that only move entries  # fmt: skip
REPEATS = frozenset(
    (
        "expand", "gather", "index_select", "repeat", "repeat_interleave", "take_along_dim",
        "tile", "unfold",
    )
)  # operations that also repeat entries  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ref:
    """The result of another step, by name."""

    name: str


@dataclass(frozen=True, eq=False)
class Multiple:
    """A number recorded as ``per_sample * batch + rest``."""

    per_sample: int
    rest: int


@dataclass(frozen=True, eq=False)
class Repeated:
    """A list with the same item for every sample."""

    item: Any


@dataclass(frozen=True, eq=False)
class Baked:
    """A tensor that the code made while it was recorded, and the axis along which it repeats.

    A value of None stands for the numbers of the samples, ``torch.arange(batch)``.
    """

    value: Tensor | None
    batch_axis: int | None


@dataclass(frozen=True)
class Step:
    """One recorded operation.

    Attributes:
        name: unique name.
        kind: ``input``, ``weight``, ``function``, ``method`` or ``module``.
        target: argument name, attribute path, function, method name or module path.
        args: arguments, with ``Ref``, ``Multiple`` and ``Baked`` inside.
        kwargs: the same by name.
        shape: of the result in the example; None if it is not a tensor.
        floating: whether the result is a floating tensor.
        batch_axis: of the result; None if it has none.
        source: file, line and text of the user's code.
        grows: whether the size of the result depends on the number of samples.
        discrete: the whole numbers, or truth values, that it gave for every recorded batch; NaN
            where these differ, None for other results. Sizes may follow from them.
        merged: whether the code has its first two axes as one.
    """

    name: str
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...] | None
    floating: bool
    batch_axis: int | None
    source: str
    grows: bool
    discrete: Any = field(compare=False)
    merged: bool = False

    @functools.cached_property
    def refs(self) -> list[str]:
        """Names of the steps this one reads."""
        found: list[str] = []
        map_nested((self.args, self.kwargs), Ref, lambda ref: found.append(ref.name))
        return found


class Trace(NamedTuple):
    """A recorded forward.

    Attributes:
        steps: in order.
        output: name of the step that is returned.
        visited: paths of the modules whose code was recorded.
        tied: weights that forward gives to layers: from a path and the name of a weight to the path
            of the parameter that it is.
    """

    steps: tuple[Step, ...]
    output: str
    visited: frozenset[str]
    tied: dict[tuple[str, str], str]

    @property
    def output_step(self) -> Step:
        """The step that is returned."""
        return next(step for step in self.steps if step.name == self.output)

    def leading_to(self, name: str) -> set[str]:
        """Names of the steps that a step is made from, its own among them."""
        found = {name}
        for step in reversed(self.steps):
            if step.name in found:
                found.update(step.refs)
        return found

    def made_from(self, name: str) -> set[str]:
        """Names of the steps that are made from a step, its own among them."""
        found = {name}
        for step in self.steps:
            if not found.isdisjoint(step.refs):
                found.add(step.name)
        return found


def pick_samples(value: Any, chosen: Tensor, batch_axis: int) -> Any:
    """Some samples of an input; a number, or what is no tensor, belongs to all."""
    if isinstance(value, PackedSequence):
        return pick_packed(value, chosen)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.index_select(min(batch_axis, value.ndim - 1), chosen.to(value.device))


def casts_to_half(step: Step) -> bool:
    """Whether a step names half precision for its result."""
    found: list[torch.dtype] = []
    map_nested((step.args, step.kwargs), torch.dtype, found.append)
    return any(kind in (torch.bfloat16, torch.float16) for kind in found)


def detaches(step: Step, args: Any) -> bool:
    """Whether a step cuts a tensor off its gradient, as ``x.detach()`` and ``x.data`` do."""
    name = called_name(step.target)
    cut = name == "detach" or (name == "getattr" and args[1] == "data")
    return cut and isinstance(args[0], Tensor)


def called_name(target: Any) -> str:
    """``add`` for ``torch.add``, ``operator.add`` and ``Tensor.add``."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")
