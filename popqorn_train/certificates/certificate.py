"""Bounds on logits, and certificates: proofs that no input of a ball changes the class.

    margin_j = lower bound of f_y - f_j over the ball, bounded as one linear function
    certified  if  min over j of margin_j > 0          (false for NaN)

B: batch, C: classes.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.backward import Enclosure
from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import Method, method_named
from popqorn_train.bounds.node import Logits, Node
from popqorn_train.certificates.bound_model import BoundModel, Inputs, bound
from popqorn_train.certificates.instance import Instance, undisturbed
from popqorn_train.perturbations.box import Perturbation
from popqorn_train.perturbations.region import Bounds
from popqorn_train.perturbations.substitutions import Substitutions

Confirm = Literal["float64"] | None
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NEAR = 1e-4  # margins this little below 0 are worth a second look in float64


class Certificate(NamedTuple):
    """What was proved.

    Attributes:
        margins: ``(B, C)`` lower bounds of the label's logit minus each other one; ``+inf`` at
            the label itself.
        margin: ``(B,)`` the least of them.
        certified: ``(B,)`` whether ``margin > 0``; a wrong prediction or a NaN never is.
        numerics: precision of what is certified: ``"float64"`` or that of the weights; for a
            model in half precision ``"float64 of bfloat16 weights"``: its float32 or float64
            copy is certified, not its arithmetic. Sound for
            the network over the real numbers up to the rounding of that precision; tested
            against, but not proved for, the deployed kernel.
    """

    margins: Tensor
    margin: Tensor
    certified: Tensor
    numerics: str


def check_target(target: Tensor, batch: int, classes: int, name: str = "target") -> None:
    """Refuse labels that do not fit.

    Args:
        target: labels.
        batch: number of samples.
        classes: number of logits.
        name: what the caller calls them.

    Raises:
        TypeError: not an integer tensor.
        ValueError: wrong shape, or a label outside 0 .. classes - 1.
    """
    whole = isinstance(target, Tensor) and target.dtype in _WHOLE
    if not whole:
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(
            f"`{name}` must be a tensor of integer labels, got {kind}. Use .long(), or .argmax(1) "
            "for one-hot labels."
        )
    if target.shape != (batch,):
        shape = tuple(target.shape)
        raise ValueError(f"`{name}` must hold one label a sample, ({batch},), got shape {shape}.")
    least, most = int(target.min()), int(target.max())
    if least < 0 or most >= classes:
        raise ValueError(
            f"`{name}` must lie in 0..{classes - 1} for {classes} logits, got labels from {least} "
            f"to {most}."
        )


def other_classes(target: Tensor, classes: int) -> Tensor:
    """All classes but the label, ``(B, C - 1)``."""
    return (target[:, None] + torch.arange(1, classes, device=target.device)) % classes


def margin_rows(target: Tensor, classes: int, like: Tensor, others: Tensor) -> Tensor:
    """Rows that take the logits of other classes ``(B, K)`` from the label's: ``(B, K, C)``."""
    unit = torch.eye(classes, dtype=like.dtype, device=like.device)
    return unit[target][:, None] - unit[others]


def with_own(margins: Tensor, others: Tensor, own: float) -> Tensor:
    """Margins ``(B, C)`` from those against other classes ``(B, C - 1)``, and one for the label."""
    whole = margins.new_full((len(margins), margins.shape[1] + 1), own)
    return whole.scatter(1, others, margins)


def margins_of(output: Logits, target: Tensor, method: Method, like: Tensor) -> Tensor:
    """Lower bounds of the margins ``(B, C)``, ``+inf`` at the label; with gradients.

    Args:
        output: logits as a node.
        target: ``(B,)`` labels.
        method: how to bound.
        like: any tensor with the batch first, for its size, precision and device.
    """
    classes = output.shape[0]
    check_target(target, len(like), classes)
    target = target.long().to(like.device)
    others = other_classes(target, classes)
    if method.shares_rows:
        return with_own(bounded_margins(output, target, method, like)[0], others, math.inf)
    rows = margin_rows(target, classes, like, others)
    return with_own(method.margins(output, rows), others, math.inf)


def bounded_margins(
    output: Node, target: Tensor, method: Method, like: Tensor
) -> tuple[Tensor, Enclosure]:
    """Bound the margins against ``other_classes``.

    Returns:
        ``(B, C - 1)``, and the ranges that they come from.
    """
    classes = output.shape[0]
    if not method.shares_rows or classes > len(target):
        rows = margin_rows(target, classes, like, other_classes(target, classes))
        return method.bounded(output, rows)
    every = torch.arange(classes, device=target.device)
    rows = margin_rows(every, classes, like, other_classes(every, classes))
    bounds, found = method.bounded(output, rows.flatten(0, 1)[None])
    samples = torch.arange(len(target), device=target.device)
    return bounds.view(-1, classes, classes - 1)[samples, target], found


def least(margins: Tensor) -> Tensor:
    """The margin ``(B,)`` that decides; NaN if any is NaN."""
    return margins.amin(1)


def proved(margin: Tensor) -> Tensor:
    """Whether a margin proves the class; NaN and overflow never do."""
    return (margin > 0) & margin.isfinite()


def logit_bounds(
    model: nn.Module,
    inputs: Inputs,
    ball: Perturbation | Substitutions,
    *,
    method: str | Method = "popqorn",
) -> Bounds:
    """Bound every logit over the ball; differentiable in the weights.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        ball: what may move, an ``LpBall``, a ``Box`` or ``Substitutions``.
        method: a name, see methods.py, or an object.

    Returns:
        ``Bounds(lower, upper)``, ``(B, C)`` each, in the precision of the weights (at least
        float32).

    Raises:
        ValueError, TypeError: see ``LpBall``, ``Box``, ``BoundModel.instance``, ``method_named``.
        UnsupportedModelError: the model cannot be bounded.
    """
    method = method_named(method)
    layer = bound(model)
    instance = layer.instance(inputs)
    with undisturbed(layer.model):
        output = instance.graph(ball)
        unit = torch.eye(output.shape[0], dtype=instance.value.dtype, device=instance.value.device)
        rows = torch.cat([unit, -unit])[None]
        lower, negative = method.lower(output, rows).chunk(2, dim=1)
    return Bounds(lower, -negative)


def certify(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    ball: Perturbation | Substitutions,
    *,
    method: str | Method = "popqorn",
    confirm: Confirm = "float64",
    max_bytes: int | None = None,
) -> Certificate:
    """Try to prove that no input of the ball changes the class.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        ball: what may move, an ``LpBall``, a ``Box`` or ``Substitutions``.
        method: a name, see methods.py, or an object.
        confirm: ``"float64"`` bounds every sample that would be certified again in float64 (on a
            CPU all at once, which costs less), and reports that; None leaves the precision of the
            weights (at least float32).
        max_bytes: memory aimed at; samples are bounded in chunks that fit, with equal results.
            None takes half of what a GPU has free, or 1 GiB on a CPU.

    Raises:
        ValueError, TypeError: see ``LpBall``, ``Box``, ``BoundModel.instance``, ``method_named``,
            ``check_target``.
        UnsupportedModelError: the model cannot be bounded.

    Source:
        Ko et al., "POPQORN", ICML 2019, section 3; Wong and Kolter, ICML 2018, for the folded
        margin.
    """
    check_confirm(confirm)
    method, chunks = method_named(method), Chunks(max_bytes)
    layer = bound(model)
    with torch.no_grad(), undisturbed(layer.model):
        instance = layer.instance(inputs)
        if confirm == "float64" and instance.value.device.type == "cpu":
            # There, float64 alone costs less than float32 and a confirmation.
            instance = layer.instance(inputs, torch.float64)
        check_target(target, len(instance.center), instance.plan.classes)
        target = target.to(instance.center.device)
        instance.placed(ball)
        every = torch.arange(len(target), device=target.device)
        margins = chunked_margins(instance, target, ball, method, chunks, every)
        if confirm == "float64" and instance.value.dtype != torch.float64:
            # Margins that are or may be certified are replaced by float64 ones.
            chosen = proved(least(margins) + _NEAR).nonzero()[:, 0]
            margins = margins.double()
            if len(chosen):
                instance = layer.instance(inputs, torch.float64)
                margins[chosen] = chunked_margins(instance, target, ball, method, chunks, chosen)
    margin = least(margins)
    return Certificate(margins, margin, proved(margin), _numerics(margins.dtype, layer))


def _numerics(dtype: torch.dtype, layer: BoundModel) -> str:
    name, own = (str(kind).removeprefix("torch.") for kind in (dtype, layer.weights_dtype))
    return f"{name} of {own} weights" if own in ("float16", "bfloat16") else name


def check_confirm(confirm: str | None) -> None:
    """Refuse an unknown way of confirming."""
    if confirm not in ("float64", None):
        raise ValueError(f"`confirm` must be 'float64' or None, got {confirm!r}.")


def chunked_margins(
    instance: Instance,
    target: Tensor,
    ball: Perturbation | Substitutions,
    method: Method,
    chunks: Chunks,
    chosen: Tensor,
) -> Tensor:
    """Margins ``(b, C)`` of some samples, without gradients, as many at once as fit.

    Args:
        instance: the whole batch.
        target: ``(B,)`` labels on its device.
        ball: of the whole batch.
        method: how to bound.
        chunks: how many fit.
        chosen: ``(b,)`` at least one sample.
    """

    def run(some: Tensor) -> Tensor:
        part = instance.pick(some)
        output = part.graph(ball.pick(some, len(target)))
        return margins_of(output, target[some], method, part.value)

    if chunks.dtype != instance.value.dtype:
        one = chosen[:1]
        chunks.fit(instance.pick(one).graph(ball.pick(one, len(target))), instance.value)
    return chunks.map(run, chosen)
