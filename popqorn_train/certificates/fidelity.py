"""Does the trace compute what the model computes? Where it does not, nothing is certified.

Two ways to compute the same logits differ by rounding. How much that is, is measured for every
class: the recorded operations are run in the model's own precision and in float64. So a class that
is masked by -1e9, or logits of 1e-5, hide nothing in the other classes.

B: batch, C: what the model returns for a sample.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from popqorn_train.certificates.alone import check_samples_alone, mixing
from popqorn_train.certificates.instance import Instance
from popqorn_train.errors import MixedSamplesError, UnsupportedModelError
from popqorn_train.perturbations.lp_ball import LpBall

_HALF = (torch.float16, torch.bfloat16)


def check_logits(
    instance: Instance, exact: Callable[[], Instance], output: Any, dtype: torch.dtype | None
) -> None:
    """Compare what the recorded operations give with the model's output.

    Args:
        instance: of the inputs.
        exact: makes the same in float64.
        output: what the model returned for them.
        dtype: precision of its weights, if it has any.

    Raises:
        UnsupportedModelError: they differ, or a sample is treated otherwise when it is alone.
    """
    ours = _traced(instance)
    theirs = as_rows(output, ours)
    if theirs is None:
        _refuse(instance)
    dtype = dtype or instance.value.dtype
    near = rounding_of(ours, torch.zeros_like(ours[:1]), dtype)
    if not agree(theirs, ours, near).all():
        precise, near = measured(instance, exact(), dtype)
        if not agree(theirs, precise, near).all():
            _refuse(instance)
    check_samples_alone(instance)  # before logits are compared, since it names the line
    last = torch.tensor([len(instance.center) - 1], device=instance.center.device)
    its_own = _alone(instance, last)
    if agree(its_own, ours[last], near).all():
        return
    if not agree(its_own, ours[last], measured(instance, exact(), dtype)[1]).all():
        raise _mixed(instance)


def _mixed(instance: Instance) -> MixedSamplesError:
    """The error for mixed samples; from the graph, where that knows the line."""
    try:
        instance.met(LpBall(0.0))
    except MixedSamplesError as error:
        return error
    except UnsupportedModelError:
        pass
    return mixing(instance)


@torch.no_grad()
def _traced(instance: Instance) -> Tensor:
    """What the recorded operations return."""
    try:
        return instance.logits(instance.center, whole=True)
    except MixedSamplesError:
        raise
    except UnsupportedModelError:  # shapes that fit another batch only
        _refuse(instance)


@torch.no_grad()
def _alone(instance: Instance, sample: Tensor) -> Tensor:
    """The same of one sample, which a batch norm may refuse."""
    try:
        alone = instance.pick(sample)
        return alone.logits(alone.center, whole=True)
    except MixedSamplesError:
        raise
    except UnsupportedModelError as error:
        raise _mixed(instance) from error


@torch.no_grad()
def measured(instance: Instance, exact: Instance, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the recorded operations return in float64, and how far rounding may move it.

    Args:
        instance: of the inputs.
        exact: the same in float64.
        dtype: precision of the model.

    Returns:
        ``(B, C)``, and ``(1, C)``.
    """
    precise = exact.logits(instance.center.double(), whole=True)
    noise = noise_of(instance, precise, instance.center, dtype)
    return precise, rounding_of(precise, noise, dtype)


def noise_of(instance: Instance, precise: Tensor, moved: Tensor, dtype: torch.dtype) -> Tensor:
    """How far rounding moves the recorded operations, the worst of all samples, ``(1, C)``.

    Args:
        instance: of the samples, in any precision.
        precise: ``(B, C)`` what they give in float64.
        moved: ``(B, T, N)`` value of what moves.
        dtype: precision of the model.
    """
    rough_in = torch.float32 if dtype == torch.float64 else dtype
    rough = instance.to(rough_in).logits(moved.to(rough_in), whole=True).double()
    noise = (rough - precise).abs().nan_to_num(0, 0, 0).amax(0, keepdim=True)
    # More than that is no rounding, whatever it is.
    scale, eps = scale_of(precise), torch.finfo(rough_in).eps
    most = 1e4 * eps * scale
    if instance.plan.output != instance.plan.trace.output and bool((precise <= 0).all()):
        # The log-probability of a class that is nearly sure is rounded as if it were 1.
        most = most.clamp(min=eps)
    noise = torch.minimum(noise, most)
    return noise * (torch.finfo(dtype).eps / torch.finfo(rough_in).eps)


def scale_of(logits: Tensor) -> Tensor:
    """Largest finite absolute value of every class, ``(1, C)``."""
    return logits.abs().nan_to_num(0, 0, 0).amax(0, keepdim=True)


def rounding_of(logits: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
    """What two ways to compute these logits may differ by, ``(1, C)``.

    Args:
        logits: ``(B, C)``, or ``(B,)``.
        noise: seen of every class, see ``noise_of``.
        dtype: precision of the model.
    """
    eps = torch.finfo(dtype).eps
    if dtype in _HALF:
        return 5 * noise + 3 * eps * scale_of(logits)
    return 30 * noise + 250 * eps * scale_of(logits) + 1e-30


def agree(one: Tensor, two: Tensor, near: Tensor) -> Tensor:
    """Where logits are equal but for rounding; NaN and infinity agree with themselves."""
    one = one.to(two.dtype)
    same = (one == two) | (one.isnan() & two.isnan())
    return same | ((one - two).abs() <= near)


def as_rows(output: Any, like: Tensor) -> Tensor | None:
    """The model's output in the shape of ours; None where it is of another."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if len(like) == 1 and output.numel() == like.numel():
        output = output.reshape(like.shape)  # a batch of 1 may lose its axis to a squeeze
    return output.to(like.dtype) if output.shape == like.shape else None


def _refuse(instance: Instance) -> NoReturn:
    model = instance.lifter.model
    way_out = (
        "Something in forward works in place, is random, or differs from batch to batch; remove it."
    )
    if any(getattr(module, "use_nested_tensor", False) for module in model.modules()):
        way_out += (
            " nn.TransformerEncoder sets padded frames to 0 in evaluation alone; "
            "enable_nested_tensor=False avoids it."
        )
    raise UnsupportedModelError(
        f"What was traced of {type(model).__name__} does not reproduce its output. {way_out}"
    )
