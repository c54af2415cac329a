"""Parts of nodes: frames of a sequence, spans of features.

T: frames, F: features.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from popqorn_train.bounds.node import Node
from popqorn_train.perturbations.region import Bounds

if TYPE_CHECKING:
    from popqorn_train.bounds.tape import Tape


class NodeSlice(Node):
    """A part of another node; slopes on pieces are joined before the whole is visited.

    Attributes:
        place: which of the pieces it is.
    """

    exact = True
    moves = True
    place: int

    def cut(self, x: Tensor) -> Sequence[Tensor]:
        """All pieces of a value ``(B, *shape)`` of the whole."""
        raise NotImplementedError

    @property
    def kind(self) -> Any:
        """What pieces that are cut together share."""
        raise NotImplementedError

    def range(self, *inputs: Bounds) -> Bounds:
        """The piece of the range.

        All pieces are cut at once: the gradient of every cut is as large as the whole.
        """
        known, kind = self.inputs[0].slices, self.kind
        if kind not in known or known[kind][0] is not inputs[0]:
            ends = zip(*map(self.cut, inputs[0]), strict=True)
            known[kind] = inputs[0], [Bounds(*pair) for pair in ends]
        return known[kind][1][self.place]

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """The piece of the size."""
        return self.cut(inputs[0])[self.place]

    def backward(self, slope: Tensor, tape: "Tape", relaxation: Any) -> Tensor | None:
        """Hand the slope to the whole."""
        tape.add_slice(self, slope)
        return None


class Frame(NodeSlice):
    """Frame ``t`` of a sequence ``(T, F)``."""

    kind = "frames"

    def __init__(self, node: Node, t: int) -> None:
        super().__init__([node], node.shape[1:])
        self.t = self.place = t
        self.time = min(t, node.time)

    def cut(self, x: Tensor) -> Sequence[Tensor]:
        """``(B, T, F)`` to ``(B, F)`` each."""
        return x.unbind(1)


class Span(NodeSlice):
    """One of several neighbouring spans of the last axis.

    Args:
        node: the whole.
        sizes: of all spans.
        place: of this one.
    """

    def __init__(self, node: Node, sizes: tuple[int, ...], place: int) -> None:
        super().__init__([node], (*node.shape[:-1], sizes[place]), node.batch_axis)
        self.sizes, self.place = sizes, place
        self.start = sum(sizes[:place])
        self.stop = self.start + sizes[place]

    @property
    def kind(self) -> tuple[int, ...]:
        """The sizes."""
        return self.sizes

    def cut(self, x: Tensor) -> Sequence[Tensor]:
        """``(B, F)`` to ``(B, stop - start)`` each."""
        return x.split_with_sizes(self.sizes, -1)


def split(node: Node, *sizes: int) -> list[Node]:
    """Neighbouring spans of the last axis."""
    return [Span(node, sizes, place) for place in range(len(sizes))]


def whole(node: Node) -> Node:
    """The node that a piece, a mirror image or a computed value is taken from."""
    while isinstance(node, NodeSlice) or node.mirrors or node.drifts:
        node = node.inputs[0]
    return node
