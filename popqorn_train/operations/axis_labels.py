"""Labels for the axes of what is multiplied, as in ``torch.einsum``."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from popqorn_train.bounds.node import Node
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.registry import unsupported
from popqorn_train.operations.shapes import affine_of
from popqorn_train.tracing.steps import Step

AXES = "ABCDEFGHIJKLMNOP"  # labels of leading axes


class Labelled(NamedTuple):
    """A node or a tensor, in the user's layout, and a label for each of its axes."""

    value: Any
    labels: str

    @property
    def batch(self) -> str:
        """Label of the batch of a node; none of a tensor."""
        return self.labels[self.value.batch_axis] if isinstance(self.value, Node) else ""

    def sizes(self) -> dict[str, int]:
        """Length of every axis, but for the batch of a node."""
        shape = self.value.shape
        labels = self.labels.replace(self.batch, "") if self.batch else self.labels
        return dict(zip(labels, shape, strict=True))


class Groups(NamedTuple):
    """Labels by where they occur."""

    both: str
    first: str
    inner: str
    second: str

    @classmethod
    def of(cls, x: str, y: str, out: str) -> "Groups":
        """Of two factors and the result, without the batch."""
        return cls(
            "".join(label for label in out if label in x and label in y),
            "".join(label for label in out if label not in y),
            "".join(label for label in x if label in y and label not in out),
            "".join(label for label in out if label not in x),
        )


def labelled(step: Step, equation: str, operands: Sequence[Any]) -> tuple[list[Labelled], str]:
    """What an einsum multiplies, and the labels of its result."""
    given, arrow, out = equation.replace(" ", "").partition("->")
    names = given.split(",")
    if "." in equation or any(len(set(name)) < len(name) for name in names):
        way_out = "Give every axis a letter of its own."
        raise unsupported(step, f"a product of several that move by {equation!r}", way_out)
    if not arrow:
        out = "".join(sorted(label for label in given if given.count(label) == 1 and label != ","))
    return [Labelled(*pair) for pair in zip(operands, names, strict=True)], out


def with_leading(
    lifter: Lifter, values: Sequence[Any], labels: Sequence[str]
) -> tuple[list[Labelled], str]:
    """Labels for values of which the last axes have theirs, and the others are broadcast.

    Args:
        lifter: knows the number of samples.
        values: nodes or tensors, in the user's layout.
        labels: of the last axes.

    Returns:
        The values, without axes along which they are only broadcast, and the labels of the others.
    """
    shapes = [_leading(lifter, *pair) for pair in zip(values, labels, strict=True)]
    count = max(map(len, shapes))
    lead, found = AXES[-count:] if count else "", []
    longest = [
        max((own[at - count] for own in shapes if len(own) >= count - at), default=1)
        for at in range(count)
    ]
    for value, last, own in zip(values, labels, shapes, strict=True):
        start = count - len(own)
        at = value.batch_axis if isinstance(value, Node) else None
        gone = [i for i, n in enumerate(own) if n == 1 < longest[start + i] and i != at]
        left = "".join(lead[start + i] for i in range(len(own)) if i not in gone)
        found.append(Labelled(_squeezed(value, gone), left + last))
    return found, lead


def _leading(lifter: Lifter, value: Any, labels: str) -> tuple[int, ...]:
    shape = list(value.shape)
    if isinstance(value, Node):
        shape.insert(value.batch_axis, lifter.batch)
    return tuple(shape[: len(shape) - len(labels)])


def _squeezed(value: Any, axes: Sequence[int]) -> Any:
    if not axes or isinstance(value, Tensor):
        return value.squeeze(tuple(axes)) if axes else value
    axis = value.batch_axis - sum(at < value.batch_axis for at in axes)
    own = [at - (at > value.batch_axis) for at in axes]
    shape = tuple(size for at, size in enumerate(value.shape) if at not in own)
    return affine_of(lambda x: x.squeeze(tuple(axes)), (value,), {}, shape=shape, axis=axis)
