"""Does the trace compute what the model computes? Where it does not, nothing is certified.

A recording can miss what changes a model from outside (hooks), what is written in place, or what
has changed since. So the model itself is run, and compared: with the graph when it is made, and
with the recorded operations whenever something is certified.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.bounds.backward import minimum
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.certificates.instance import Instance
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.perturbations.lp_ball import LpBall


def check_hooks(model: nn.Module, run: Callable[[], Any]) -> None:
    """Refuse hooks that change values; those that only look on are welcome.

    Args:
        model: what is traced.
        run: calls it.

    Raises:
        UnsupportedModelError: a forward pre-hook, or a forward hook that returns something.
    """
    for path, module in model.named_modules():
        if module._forward_pre_hooks:
            raise UnsupportedModelError(
                f"module {path!r} has a forward pre-hook, which can change weights or inputs "
                "unseen. Remove it; for weight or spectral norm use "
                "torch.nn.utils.parametrizations."
            )
    hooked = [(path, module) for path, module in model.named_modules() if module._forward_hooks]
    if not hooked:
        return
    saved = [(module, dict(module._forward_hooks)) for _, module in hooked]
    changed: list[str] = []
    try:
        for path, module in hooked:
            for key, hook in list(module._forward_hooks.items()):
                module._forward_hooks[key] = _watched(hook, path, changed)
        run()
    finally:
        for module, hooks in saved:
            module._forward_hooks.update(hooks)
    if changed:
        raise UnsupportedModelError(
            f"module {changed[0]!r} has a forward hook that returns another value. Remove it, or "
            "make it part of forward."
        )


def _watched(hook: Callable[..., Any], path: str, changed: list[str]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = hook(*args, **kwargs)
        if result is not None:
            changed.append(path)
        return result

    return watched


def check_graph(instance: Instance, output: Any) -> None:
    """Compare the graph without perturbation, and the recording, with the model's output.

    Raises:
        UnsupportedModelError: they differ.
    """
    node = instance.graph(LpBall(0.0))
    check_logits(instance, output)
    unit = torch.eye(
        instance.plan.classes, dtype=instance.value.dtype, device=instance.value.device
    )
    found = enclose(node, relax=Relaxation())
    rows = torch.cat([unit, -unit])[None]
    logits = instance.logits(instance.center)
    tolerance = _tolerance(logits)
    for intervals in (True, False):
        bounds = minimum(node, rows, found, intervals=intervals)
        lower, negative = bounds.chunk(2, dim=1)
        outside = (logits < lower - tolerance) | (logits > tolerance - negative)
        _refuse_if(bool(outside.any()), instance)


def check_logits(instance: Instance, output: Any) -> None:
    """Compare what the recorded operations give with the model's output.

    Raises:
        UnsupportedModelError: they differ.
    """
    last = torch.tensor([len(instance.center) - 1], device=instance.center.device)
    try:
        with torch.no_grad():
            ours = instance.logits(instance.center, whole=True)
            alone = instance.pick(last)
            its_own = alone.logits(alone.center, whole=True)
    except UnsupportedModelError:  # shapes that fit another batch only
        _refuse_if(True, instance)
    _refuse_if(not alike(ours, output), instance)
    if not alike(its_own, ours[last]):
        raise mixes(instance.lifter.model)


def mixes(model: nn.Module) -> UnsupportedModelError:
    """The error for logits of a sample that depend on other samples."""
    return UnsupportedModelError(
        f"{type(model).__name__} treats a sample otherwise when it is alone: something in forward "
        "mixes samples, a mean over the batch for one. Bounds are for one sample at a time; write "
        "forward so that samples stay apart."
    )


def alike(ours: Tensor, output: Any) -> bool:
    """Whether logits agree up to the rounding of the model's own precision."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return False
    if len(ours) == 1 and output.numel() == ours.numel():
        output = output.reshape(ours.shape)  # a batch of 1 may lose its axis to a squeeze
    if output.shape != ours.shape:
        return False
    theirs = output.to(ours.dtype)
    return torch.allclose(ours, theirs, rtol=0, atol=_tolerance(output), equal_nan=True)


def _tolerance(logits: Tensor) -> float:
    """Rounding in the model's own precision."""
    finite = logits[logits.isfinite()]
    size = finite.abs().max().item() if len(finite) else 0.0
    return min(1e3 * torch.finfo(logits.dtype).eps, 0.05) * (1 + size)


def _refuse_if(differs: bool, instance: Instance) -> None:
    if differs:
        raise UnsupportedModelError(
            f"What was traced of {type(instance.lifter.model).__name__} does not reproduce its "
            "output. Something in forward is in place, random, or differs from batch to batch; "
            "write it without."
        )
