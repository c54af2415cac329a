"""A batch that is ready to be bounded or attacked, and the quiet in which that happens.

B: batch, T: frames, N: features of a frame, C: classes.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.affine import Affine, Linear
from popqorn_train.bounds.node import Logits, Node, Root
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.units import embedded
from popqorn_train.perturbations.box import Perturbation, check_ball
from popqorn_train.perturbations.region import Region
from popqorn_train.perturbations.substitutions import Choices, Substitutions
from popqorn_train.tracing.input_path import Plan


@contextlib.contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """No autocast, no TF32 and no inference mode; everything restored after."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    precision, grad = torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    try:
        torch.set_float32_matmul_precision("highest")
        # Leaving inference mode would switch gradients on.
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(grad),
            torch.autocast(device, enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and full precision; everything restored after."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        with full_precision(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def as_frames(x: Tensor, batch_axis: int, order: Tensor | None) -> Tensor:
    """``(B, T, N)`` from the user's layout; numbers are frames of one feature."""
    x = x.movedim(batch_axis, 0)
    if order is not None:
        return x.flatten(1)[:, order]
    return x[..., None] if x.ndim == 2 else x.flatten(2)


class Instance(NamedTuple):
    """A batch of inputs, ready to be bounded or attacked.

    Attributes:
        lifter: holds the value of every step that does not move.
        plan: which step moves.
        center: ``(B, T, N)`` clean value of what moves, in its own units.
        value: ``(B, T, N)`` what the network reads there.
        scale: ``(B, T, N)`` from the one to the other, or None.
        order: ``(T, N)`` where the entries of each frame lie in a sample, see ``frame_order``.
    """

    lifter: Lifter
    plan: Plan
    center: Tensor
    value: Tensor
    scale: Tensor | None
    order: Tensor | None

    def pick(self, chosen: Tensor) -> "Instance":
        """Some samples of the batch."""
        return self._replace(
            lifter=self.lifter.pick(chosen, self.plan.batch_axis),
            center=self.center[chosen],
            value=self.value[chosen],
            scale=None if self.scale is None else self.scale[chosen],
        )

    def shifted(self, moved: Tensor) -> "Instance":
        """The same batch around another value ``(B, T, N)`` of what moves, in its own units."""
        return self._replace(center=moved, value=self._read(moved))

    def placed(self, ball: Perturbation | Substitutions) -> Region | Choices:
        """What may move, around the inputs.

        Raises:
            ValueError, TypeError: a perturbation that does not fit them.
        """
        if isinstance(ball, Substitutions):
            return self._choices(ball)
        return check_ball(ball).around(self.center, self.value, self.scale)

    def graph(self, ball: Perturbation | Substitutions) -> Logits:
        """The logits ``(B, C)`` as a node over what may move around the inputs."""
        region = self.placed(ball)
        plain = self.order is None and self._shape == region.value.shape[1:]
        root = Root(region, self._axis if plain else 0)
        fork = self._fork(root if plain else self._as_users(root))
        node = fork.value(self.plan.output)
        if not isinstance(node, Node):
            raise UnsupportedModelError(
                f"The logits do not depend on {self.plan.source.name!r}, which moves. Name another "
                "tensor with bound(model, perturb=...)."
            )
        node = self._two_classes(node) if self.plan.single else node
        batch = len(self.value)

        def pick(instance: Instance, chosen: Tensor) -> Logits:
            return instance.pick(chosen).graph(ball.pick(chosen, batch))

        same = self._replace(lifter=fork)  # which repeats the choices that made this graph
        return Logits(node, partial(pick, same), partial(pick, self))

    def _choices(self, words: Substitutions) -> Choices:
        source = self.plan.source
        tokens = self.lifter.value(source.refs[0]) if source.refs else self.value
        axis = source.batch_axis or 0

        def embed(tokens: Tensor) -> Tensor:
            found = embedded(self.plan, self.lifter, tokens.movedim(0, axis))
            return as_frames(found, self._axis, self.order)

        return words.around(tokens.movedim(axis, 0), embed, self.value)

    def _two_classes(self, node: Node) -> Node:
        """The classes (0, logit) of a model that returns one logit a sample."""
        column = Affine(lambda x: x.reshape(len(x), 1), [node], (1,), 0, exact=True)
        return Linear(column, self.value.new_tensor([[0.0], [1.0]]))

    def as_logits(self, output: Tensor) -> Tensor:
        """Logits ``(B, C)`` from what the model returns; those before a softmax are not undone."""
        squashed = self.plan.squashed
        return self._pair(torch.logit(output, eps=1e-6) if squashed else output)

    def _pair(self, output: Tensor) -> Tensor:
        """Two columns from a single logit; several logits as they are."""
        if not self.plan.single:
            return output
        logit = output.reshape(-1, 1)
        return torch.cat([torch.zeros_like(logit), logit], 1)

    def logits(self, moved: Tensor, *, whole: bool = False) -> Tensor:
        """Logits ``(B, C)`` for another value ``(B, T, N)`` of what moves.

        Modules run in the mode they are in; dropout that is folded into the ball is left out.

        Args:
            moved: value, in its own units.
            whole: go on to what the model returns, a softmax included.
        """
        value = self._in_users_layout(self._read(moved))
        output: Tensor = self._fork(value).value(
            self.plan.trace.output if whole else self.plan.output
        )
        return output if whole else self._pair(output)

    def _read(self, moved: Tensor) -> Tensor:
        """What the network reads for a value of what moves."""
        change = moved - self.center
        return self.value + (change if self.scale is None else change * self.scale)

    @property
    def _axis(self) -> int:
        return self.plan.root.batch_axis or 0

    @property
    def _shape(self) -> tuple[int, ...]:
        """Shape of a sample of the root in the user's code."""
        shape = self.plan.root.shape or ()
        return tuple(size for axis, size in enumerate(shape) if axis != self._axis)

    def _as_users(self, root: Root) -> Node:
        return Affine(self._in_users_layout, [root], self._shape, self._axis, exact=True)

    def _in_users_layout(self, x: Tensor) -> Tensor:
        """``(B, T, N)`` back to the shape of the root in the user's code."""
        x = x.flatten(1)
        if self.order is not None:
            x = x[:, self.order.flatten().argsort()]
        return x.reshape(len(x), *self._shape).movedim(0, self._axis)

    def _fork(self, root: Any) -> Lifter:
        """What runs the trace on a value of the root."""
        fork = self.lifter.fork()
        fork.values[self.plan.root.name] = root
        return fork
