"""Planes on octagons with their gradient, for training.

The gradient is that of torch for the same planes. The point that decides an intercept is held, but
moves with the corners of its side, which are functions of the box and of its bands; where the box
gives the lower intercept, it follows an end on which it lies. Tilted slopes have no gradient. The
points are found again instead of kept, since that is cheap.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from popqorn_train.kernels import enclosing
from popqorn_train.kernels.library import function, wants_gradient
from popqorn_train.kernels.signatures import pointers


class _OnOctagons(torch.autograd.Function):
    """See ``octagon_planes``."""

    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], *ends: Tensor) -> tuple[Tensor, ...]:
        found = enclosing.planes(ends, **options)
        assert found is not None
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(found, *ends)
        return found.unbind()

    @staticmethod
    @once_differentiable  # as for the planes of torch, which overwrite what they would need
    def backward(ctx: Any, *worths: Tensor | None) -> tuple[Tensor | None, ...]:
        known, *ends = (part.contiguous() for part in ctx.saved_tensors)
        options, run = ctx.options, function("octagon_gradient", *ends)
        parts = [None if worth is None else worth.contiguous() for worth in worths]
        found = known.new_empty(8, *ends[0].shape)
        run(
            ends[0].numel(), options["curved"], options.get("shift") is not None, options["share"],
            pointers(*ends), known.data_ptr(), pointers(*parts), found.data_ptr(),
        )  # fmt: skip
        return (None, *found.unbind())


def octagon_planes(ends: Sequence[Tensor], **options: Any) -> Tensor | Sequence[Tensor] | None:
    """Planes of the closed form, or tilted ones, on octagons.

    Args:
        ends: of boxes and bands, as of ``planes``.
        options: likewise.

    Returns:
        As ``planes``, with a gradient that has none itself where one is asked for. None without
        kernels.
    """
    if not wants_gradient(*ends):
        return enclosing.planes(ends, **options)
    with torch.no_grad():
        fits = all(function(name, *ends) is not None for name in ("planes", "octagon_gradient"))
    if not fits or any(end.shape != ends[0].shape for end in ends):
        return None
    found: tuple[Tensor, ...] = _OnOctagons.apply(options, *ends)  # type: ignore[no-untyped-call]
    return found
