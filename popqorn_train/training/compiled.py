"""A bound term and its gradients as one compiled program, for batches whose graphs are of one kind.

The term is recorded on tensors that hold no numbers, so that nothing of a batch can find its way
into the program: what looks at a number cannot be recorded. Its gradients are recorded with it.
Ansel et al., "PyTorch 2", ASPLOS 2024, for the compiler.
"""

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.autograd.function import once_differentiable

from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.graph_copy import copied
from popqorn_train.bounds.node import Node, Nonlinear
from popqorn_train.training.cuda_graph import Program, replayed

_LOG = logging.getLogger("popqorn_train")
_OFF = 1e-3  # by which the loss of a program may differ, relatively
_APART = 1e-2  # likewise its gradients, in lengths of all of them: kinks are passed on either side
_KINDS = 64  # of graphs that may come
_MOST = 2**15  # operations of a program; more take too long to compile


class Term(NamedTuple):
    """A bound term, as scalars.

    Attributes:
        loss: mean over the batch.
        certified: share of the batch that is certified.
    """

    loss: Tensor
    certified: Tensor


class Question(NamedTuple):
    """A term, and what it is worked out from.

    Attributes:
        term: of the logits as a node, of labels, and of numbers.
        variant: equal where ``term`` does the same.
        graph: the logits as a node.
        target: ``(B,)`` labels.
        numbers: scalars that change while a model trains.
        held: the tensors of the graph.
    """

    term: Callable[..., Term]
    variant: Hashable
    graph: Node
    target: Tensor
    numbers: Sequence[Tensor]
    held: Sequence[Tensor] = ()

    @property
    def inputs(self) -> list[Tensor]:
        """All tensors, without gradients."""
        return [x.detach() for x in (*self.held, self.target, *self.numbers)]

    @property
    def wanted(self) -> list[Tensor]:
        """The tensors that gradients are asked for."""
        return [x for x in self.held if x.requires_grad]

    def answer(self) -> Term:
        """The term, operation by operation."""
        return self.term(self.graph, self.target, *self.numbers)

    def with_gradients(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The term of other tensors, and its gradients, each as if no tensor came from another."""
        own = [
            x.detach().requires_grad_(held.requires_grad)
            for x, held in zip(inputs, self.held, strict=False)
        ]
        places = {id(held): x for held, x in zip(self.held, own, strict=True)}
        graph = copied(self.graph, lambda held: places[id(held)]).graph
        target, *numbers = inputs[len(own) :]
        with torch.enable_grad():
            loss, certified = self.term(graph, target, *numbers)
            leaves = [x for x in own if x.requires_grad]
            found = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return loss.detach(), certified, *found


class CompiledTerm:
    """Runs a term, by a program where that pays.

    The first kind of graphs is compiled at once, any other one when running it has taken as much
    time as compiling did.

    Attributes:
        reason: why there are no programs; None as long as there may be.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._programs: dict[Hashable, Program] = {}
        self._spent: dict[Hashable, float] = {}  # seconds, of kinds without a program
        self._price = 0.0  # seconds of compiling

    def __getstate__(self) -> dict[str, Any]:
        return vars(CompiledTerm())  # programs stay in the process that made them

    def __call__(self, question: Question) -> Term:
        """The term, with gradients."""
        started, kind = time.perf_counter(), None
        if self.reason is None and torch.is_grad_enabled():
            try:
                kind, question = _kind_of(question)
                program = self._program(kind, question)
                if program is not None:
                    return _run(program, question)
            except Exception as error:  # of the recorder or the compiler, whatever it may be
                self._give_up((str(error).strip() or repr(error)).splitlines()[0])
        found = question.answer()
        if self.reason is None and kind is not None:  # gradients take about twice as long
            self._spent[kind] = self._spent.get(kind, 0.0) + 3 * (time.perf_counter() - started)
        return found

    def _program(self, kind: Hashable, question: Question) -> Program | None:
        """The program for a kind of graphs; None where it does not pay yet."""
        if kind not in self._programs and self._spent.get(kind, 0.0) >= self._price:
            started = time.perf_counter()
            program = program_for(question)
            self._price = time.perf_counter() - started
            _compare(program, question)
            self._programs[kind] = program
            self._spent.pop(kind, None)
        if len(self._spent) > _KINDS:
            raise TypeError(f"more than {_KINDS} kinds of batches; give them one size")
        return self._programs.get(kind)

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._programs.clear()
        self._spent.clear()
        warnings.warn(f"`compiled=True` has no effect: {reason}.", stacklevel=2)


def _kind_of(question: Question) -> tuple[Hashable, Question]:
    """What programs differ by, and the question with the tensors of its graph."""
    _, kind, tensors = copied(question.graph)
    rest = (question.target, *question.numbers)
    forms = [(x.shape, x.stride(), x.dtype, x.device) for x in rest]
    return (question.variant, *forms, *kind), question._replace(held=tensors)


def program_for(question: Question) -> Program:
    """A program that answers questions of this kind, with gradients, on one processor or device.

    Raises:
        Exception: what cannot be recorded, or a compiler that is missing or fails.
    """
    import torch._inductor  # takes seconds
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    partial = {type(node).__name__ for node in ancestors(question.graph) if _is_partial(node)}
    if partial:
        raise TypeError(f"ranges must be looked at, as {partial} may be undefined on them")
    try:
        graph = make_fx(question.with_gradients, tracing_mode="fake")(*question.inputs)
    except (DataDependentOutputException, GuardOnDataDependentSymNode) as error:
        raise TypeError("its bound looks at numbers of the batch, as that of a softmax") from error
    count = len(graph.graph.nodes)
    if count > _MOST:
        raise TypeError(f"a step has {count} operations, of which at most {_MOST} are compiled")
    _LOG.warning("CertifiedLoss: compiling %d operations, once; this takes minutes.", count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for those who write compilers, or to use TF32
        program: Program = torch._inductor.compile(graph, [*question.inputs])
    return replayed(program, question.inputs) if question.target.is_cuda else program


def _is_partial(node: Node) -> bool:
    return isinstance(node, Nonlinear) and node.partial


def _compare(program: Program, question: Question) -> None:
    """Refuse a program that does not do what it was recorded from.

    Raises:
        RuntimeError: saying how far it is off.
    """
    inputs = question.inputs
    (loss, _, *found), (right, _, *gradients) = program(*inputs), question.with_gradients(*inputs)
    off = float((loss - right).abs() / right.abs().clamp(min=1e-6))
    apart = float(_length([x - y for x, y in zip(found, gradients, strict=True)]))
    apart /= max(float(_length(gradients)), 1e-12)
    if not (off <= _OFF and apart <= _APART):
        raise RuntimeError(f"the program is off by {off:.1e}, its gradients by {apart:.1e}")


def _length(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.double().square().sum() for x in tensors]).sum().sqrt()


def _run(program: Program, question: Question) -> Term:
    loss, certified, *gradients = program(*question.inputs)
    found = _Known.apply(loss, gradients, *question.wanted)  # type: ignore[no-untyped-call]
    return Term(found, certified)


class _Known(torch.autograd.Function):
    """A number whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, worth: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *[worth * gradient for gradient in ctx.gradients])
