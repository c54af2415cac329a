"""A batch that is ready to be bounded or attacked.

B: batch, T: frames, N: features of a frame, C: classes.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.affine import Linear
from popqorn_train.bounds.computed import deployed
from popqorn_train.bounds.node import Logits, Node, Root
from popqorn_train.bounds.single_reads import Affine
from popqorn_train.certificates.frame_layout import as_frames, in_users_layout
from popqorn_train.errors import UnboundedStepError, UnsupportedModelError
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.sample_order import (
    Met,
    Order,
    check_restored,
    order_after,
    rows_of,
    samples_of,
)
from popqorn_train.operations.token_readers import check_token_readers
from popqorn_train.operations.units import center_and_scale, embedded, embedding_of
from popqorn_train.perturbations.box import Perturbation, check_ball
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.region import Region
from popqorn_train.perturbations.substitutions import Choices, Substitutions
from popqorn_train.tracing.input_path import Plan


class Instance(NamedTuple):
    """A batch of inputs, ready to be bounded or attacked.

    Attributes:
        lifter: holds the value of every step that does not move.
        plan: which step moves.
        center: ``(B, T, N)`` clean value of what moves, in its own units.
        value: ``(B, T, N)`` what the network reads there.
        scale: ``(B, T, N)`` from the one to the other, or None.
        order: ``(T, N)`` where the entries of each frame lie in a sample, see ``Frames``.
        free: ``(B, T)`` frames that are never read, which no domain cuts; None where none is.
        deployed: whether its graph is that of the network as it is computed in float32.
    """

    lifter: Lifter
    plan: Plan
    center: Tensor
    value: Tensor
    scale: Tensor | None
    order: Tensor | None
    free: Tensor | None = None
    deployed: bool = False

    def pick(self, chosen: Tensor) -> "Instance":
        """Some samples of the batch."""
        return self._replace(
            lifter=self.lifter.pick(chosen, self.plan.batch_axis),
            center=self.center[chosen],
            value=self.value[chosen],
            scale=None if self.scale is None else self.scale[chosen],
            free=None if self.free is None else self.free[chosen],
        )

    def to(self, dtype: torch.dtype) -> "Instance":
        """The same batch, computed in another precision from the user's own inputs on."""
        if dtype == self.value.dtype:
            return self
        twin = prepared(self.lifter.to(dtype), self.plan).shifted(self.center.to(dtype))
        return twin._replace(free=self.free)

    def shifted(self, moved: Tensor) -> "Instance":
        """The same batch around another value ``(B, T, N)`` of what moves, in its own units."""
        return self._replace(center=moved, value=self._read(moved))

    def placed(self, ball: Perturbation | Substitutions) -> Region | Choices:
        """What may move, around the inputs.

        Raises:
            ValueError, TypeError: a perturbation that does not fit them.
            UnsupportedModelError: see ``check_frames``.
        """
        if isinstance(ball, Substitutions):
            return self.choices(ball)
        return self.region(ball)

    def region(self, ball: Perturbation) -> Region:
        """``placed`` for what is no substitution."""
        if check_ball(ball).speaks_of_frames:
            self.check_frames()
        return ball.around(self.center, self.value, self.scale, self.free)

    def in_own_units(self, ball: Perturbation) -> Region:
        """``region`` before anything is scaled."""
        return ball.around(self.center, free=self.free)

    def check_frames(self) -> None:
        """Refuse to speak of frames where more than one axis may hold them.

        Raises:
            UnsupportedModelError: naming what moves, and the way out.
        """
        if self.plan.frames.doubt:
            raise UnsupportedModelError(
                f"Which axis of {self.plan.source.name!r} holds the frames is not known: "
                f"{self.plan.frames.doubt}. Name it with bound(model, frame_axis=...); one ball "
                "of p=inf, or of scope='sequence', around all entries needs no frames."
            )

    def graph(self, ball: Perturbation | Substitutions) -> Logits:
        """The logits ``(B, C)`` as a node over what may move around the inputs."""
        region = self.placed(ball)
        plain = self.order is None and self._shape == region.value.shape[1:]
        root = Root(region, self._axis if plain else 0)
        fork = self._fork(root if plain else self._as_users(root), self.sample_order)
        node = self._lifted(fork)
        if not isinstance(node, Node):
            raise UnsupportedModelError(
                f"The logits do not depend on the perturbed tensor, {self.plan.source.name!r}. "
                "Name another one with bound(model, perturb=...)."
            )
        node = self._two_classes(node) if self.plan.meaning.single else node
        batch = len(self.value)

        def pick(instance: Instance, chosen: Tensor) -> Logits:
            return instance.pick(chosen).graph(ball.pick(chosen, batch))

        same = self._replace(lifter=fork)  # which repeats the choices that made this graph
        logits = Logits(node, partial(pick, same), partial(pick, self))
        return deployed(logits) if self.deployed else logits

    def refusals(self) -> list[UnboundedStepError]:
        """All steps without a bound that lead to the logits."""
        lifter, found = self.lifter.fork(), list[UnboundedStepError]()
        lifter.refusals = found
        with contextlib.suppress(UnsupportedModelError, RuntimeError):
            self._replace(lifter=lifter).graph(LpBall(0.0))
        return found

    def met(self, ball: Perturbation) -> list[Met]:
        """Whatever does not move and is read beside what does, in the graph over a ball."""
        lifter, found = self.lifter.fork(), list[Met]()
        lifter.met = found
        self._replace(lifter=lifter).graph(ball)
        return found

    def choices(self, words: Substitutions) -> Choices:
        """What words may be replaced by, around the inputs.

        Raises:
            ValueError, UnsupportedModelError: substitutions that do not fit them.
        """
        source = self.plan.source
        embedding_of(self.plan, self.lifter)
        self._check_tokens()
        tokens = self.lifter.value(source.refs[0])
        axis, order = source.batch_axis or 0, self.sample_order

        def candidates(tokens: Tensor) -> Tensor:
            return rows_of(words.of(samples_of(tokens, order)), order)

        check_token_readers(self.plan, self.lifter, candidates)

        def embed(columns: Sequence[Tensor]) -> list[Tensor]:
            rows = [rows_of(column, order).movedim(0, axis) for column in columns]
            found = embedded(self.plan, self.lifter, rows)
            return [samples_of(as_frames(x, self._axis, self.order), order) for x in found]

        return words.around(samples_of(tokens.movedim(axis, 0), order), embed, self.value)

    def _check_tokens(self) -> None:
        """Refuse frames that are no tokens: substitutions move one token in each."""
        width = (self.plan.source.shape or (1,))[-1]
        tokens = self.plan.frames.places // width
        alone = bool((tokens == tokens[:, :1]).all())
        if not alone or len(set(tokens[:, 0].tolist())) != len(tokens):
            raise UnsupportedModelError(
                f"Substitutions replace tokens, but a frame of {self.plan.source.name!r} is not "
                "the embedding of one token. Leave `frame_axis` out, or write forward so that the "
                "recurrent layer reads one token per frame."
            )

    def _two_classes(self, node: Node) -> Node:
        """The classes (0, logit) of a model that returns one logit per sample, or (0, p - 1/2)."""
        column = Affine(lambda x: x.reshape(len(x), 1), [node], (1,), 0)
        bias = self.value.new_tensor([0.0, -self.plan.meaning.threshold])
        return Linear(column, self.value.new_tensor([[0.0], [1.0]]), bias)

    def as_logits(self, output: Tensor) -> Tensor:
        """Logits ``(B, C)`` from what the model returns; those before a softmax are not undone."""
        squashed = self.plan.meaning.squashed
        return self._pair(torch.logit(output, eps=1e-6) if squashed else output)

    def _pair(self, output: Tensor) -> Tensor:
        """Two columns from a single logit or probability; several logits as they are."""
        if not self.plan.meaning.single:
            return output
        logit = output.reshape(-1, 1) - self.plan.meaning.threshold
        return torch.cat([torch.zeros_like(logit), logit], 1)

    def logits(self, moved: Tensor, *, whole: bool = False) -> Tensor:
        """Logits ``(B, C)`` for another value ``(B, T, N)`` of what moves.

        Modules run in the mode they are in; dropout that is folded into the ball is left out.

        Args:
            moved: value, in its own units.
            whole: go on to what the model returns, a softmax included.
        """
        value = self._in_users_layout(rows_of(self._read(moved), self.sample_order))
        fork = self._fork(value)
        if whole:
            returned: Tensor = fork.value(self.plan.trace.output)
            return returned
        output: Tensor = fork.value(self.plan.output)
        # What is returned is in the order of the samples; perhaps only from the output on.
        return self._pair(rows_of(output, order_after(fork, *self._end)))

    def _read(self, moved: Tensor) -> Tensor:
        """What the network reads for a value of what moves."""
        change = moved - self.center
        return self.value + (change if self.scale is None else change * self.scale)

    def unread(self, value: Tensor) -> Tensor:
        """The value ``(B, T, N)`` of what moves, in its own units, from what the network reads."""
        change = value - self.value
        return self.center + (change if self.scale is None else change / self.scale)

    @property
    def _axis(self) -> int:
        return self.plan.root.batch_axis or 0

    @property
    def _shape(self) -> tuple[int, ...]:
        """Shape of a sample of the root in the user's code."""
        shape = self.plan.root.shape or ()
        return tuple(size for axis, size in enumerate(shape) if axis != self._axis)

    def _as_users(self, root: Root) -> Node:
        return Affine(self._in_users_layout, [root], self._shape, self._axis)

    @property
    def _in_users_layout(self) -> Callable[[Tensor], Tensor]:
        """From ``(B, T, N)`` back to the shape of the root in the user's code."""
        place = None if self.order is None else self.order.flatten().argsort()
        return partial(in_users_layout, place=place, shape=self._shape, axis=self._axis)

    def _fork(self, root: Any, order: Order = None) -> Lifter:
        """What runs the trace on a value of the root, or on a node that stands for it."""
        fork = self.lifter.fork()
        fork.values[self.plan.root.name] = root
        if isinstance(root, Tensor) and root.requires_grad:
            # Attacks look along the gradient in what moves, which a detach of the user's hides.
            fork.attached = self.plan.trace.made_from(self.plan.root.name)
        if order is not None:
            fork.orders[self.plan.root.name] = order
        return fork

    def _lifted(self, fork: Lifter) -> Any:
        """The logits in what the code makes of a root, in the order of the samples."""
        output = fork.value(self.plan.output)
        order = fork.orders.get(self.plan.output)
        check_restored(order_after(fork, *self._end, order))
        return output

    @property
    def _end(self) -> tuple[str, str]:
        """What is returned, and the logits before a softmax or a sigmoid."""
        return self.plan.trace.output, self.plan.output

    @property
    def sample_order(self) -> Order:
        """Which sample each row of what moves holds in the user's code."""
        return order_after(self.lifter, self.plan.source.name)


def prepared(lifter: Lifter, plan: Plan) -> Instance:
    """Work out what does not move, and where what moves stands."""
    value = lifter.value(plan.root.name)
    center, scale = center_and_scale(plan, lifter)
    axis, order = plan.root.batch_axis or 0, plan.frames.order
    order = None if order is None else order.to(value.device)
    samples = order_after(lifter, plan.source.name)
    scale = None if scale is None else samples_of(as_frames(scale, axis, order), samples)
    center, value = (samples_of(as_frames(x, axis, order), samples) for x in (center, value))
    return Instance(lifter, plan, center, value, scale, order)
