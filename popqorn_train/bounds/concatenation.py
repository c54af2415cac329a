"""Nodes put together: frames to sequences, features side by side, one node or another.

B: batch, T: frames, F: features.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.node import Node, Root
from popqorn_train.bounds.slices import Frame
from popqorn_train.bounds.tape import Tape
from popqorn_train.perturbations.region import Bounds, for_batch


class Stack(Node):
    """Frames put together to a sequence ``(T, F)``.

    Args:
        frames: nodes of one shape, first to last.
        batch_axis: 0 or 1, where the user's code has the batch.
    """

    exact = True

    def __init__(self, frames: Sequence[Node], batch_axis: int = 0) -> None:
        super().__init__(frames, (len(frames), *frames[0].shape), batch_axis)

    def range(self, *inputs: Bounds) -> Bounds:
        """Stack the ends."""
        lower, upper = (torch.stack(ends, 1) for ends in zip(*inputs, strict=True))
        return Bounds(lower, upper)

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Stack the sizes."""
        batch = max(len(x) for x in inputs)
        return torch.stack([for_batch(x, batch) for x in inputs], 1)

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> None:
        """Every frame gets its part."""
        for t in range(slope.shape[2]):
            tape.add(self.inputs[t], slope[:, :, t])


class Concat(Node):
    """Nodes side by side on the last axis, features on features.

    Args:
        parts: nodes that differ in their last size only.
    """

    exact = True

    def __init__(self, parts: Sequence[Node]) -> None:
        self.sizes = [part.shape[-1] for part in parts]
        super().__init__(parts, (*parts[0].shape[:-1], sum(self.sizes)), parts[0].batch_axis)

    def range(self, *inputs: Bounds) -> Bounds:
        """Join the ends."""
        lower, upper = (torch.cat(ends, -1) for ends in zip(*inputs, strict=True))
        return Bounds(lower, upper)

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """Join the sizes."""
        batch = max(len(x) for x in inputs)
        return torch.cat([for_batch(x, batch) for x in inputs], -1)

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> None:
        """Every part gets its columns."""
        for part, own in zip(self.inputs, torch.split(slope, self.sizes, -1), strict=True):
            tape.add(part, own)


class Select(Node):
    """One node for some samples of the batch, another for the rest.

    Args:
        mask: ``(B,)`` boolean, where the first one counts.
        one: node.
        other: node of the same shape.
    """

    exact = True

    def __init__(self, mask: Tensor, one: Node, other: Node) -> None:
        super().__init__([one, other], one.shape, one.batch_axis)
        self.mask = mask

    def _as(self, x: Tensor) -> Tensor:
        return self.mask.view(-1, *[1] * (x.ndim - 1))

    def range(self, *inputs: Bounds) -> Bounds:
        """The range that counts."""
        one, other = inputs
        mask = self._as(one.lower)
        return Bounds(
            torch.where(mask, one.lower, other.lower), torch.where(mask, one.upper, other.upper)
        )

    def size(self, relaxation: Any, *inputs: Tensor) -> Tensor:
        """The size that counts."""
        one, other = inputs
        return torch.where(self._as(one), one, other)

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> None:
        """The node that counts gets the slope, the other one exactly 0."""
        zero = slope.new_zeros(())
        tape.add(self.inputs[0], torch.where(self._as(slope), slope, zero))
        tape.add(self.inputs[1], torch.where(self._as(slope), zero, slope))


class Projected(Frame):
    """Frame ``t`` of a linear layer on a sequence, of which it reads frame ``t`` alone.

    Its range is a part of the layer's, for which all frames are multiplied at once. Slopes on it
    go straight to the frame that the layer reads.
    """

    moves = False

    def __init__(self, layer: Linear, t: int) -> None:
        super().__init__(layer, t)
        self.layer = layer

    def least(self, slope: Tensor) -> Tensor | None:
        """See ``Linear``."""
        return self.layer.least(slope[:, :, None], self.t)

    def backward(self, slope: Tensor, tape: Tape, relaxation: Any) -> Tensor | None:
        """The chain rule."""
        on_x, constant = self.layer.through(slope)
        (x,) = self.layer.inputs
        if isinstance(x, Stack):
            tape.add(x.inputs[self.t], on_x)
        else:
            tape.add_slice(Frame(x, self.t), on_x)
        return constant


def frame(node: Node, position: int) -> Node:
    """One frame of a sequence, without building the sequence where its frames are known."""
    if isinstance(node, Stack):
        return node.inputs[position]
    if isinstance(node, Linear) and isinstance(node.inputs[0], Root | Stack):
        return Projected(node, position)
    return Frame(node, position)


def frames(node: Node) -> list[Node]:
    """All frames of a sequence."""
    return [frame(node, t) for t in range(node.shape[0])]


def readers_of_input(nodes: Iterable[Node], passed: Sequence[Node]) -> Sequence[Linear | Projected]:
    """What reads the perturbed input, where no two nodes read the same frame.

    Args:
        nodes: all that a bound passes.
        passed: those on which it starts.
    """
    nodes = list(nodes)
    readers = [node for node in nodes if any(isinstance(x, Root) for x in node.inputs)]
    layer = readers[0] if len(readers) == 1 else None
    if not isinstance(layer, Linear) or any(isinstance(node, Root) for node in passed):
        return ()
    above = [node for node in nodes if layer in node.inputs]
    frames = [node for node in above if isinstance(node, Projected)]
    if not frames:
        return (layer,)
    alone = len({node.t for node in frames}) == len(above) and layer not in passed
    return frames if alone else ()
