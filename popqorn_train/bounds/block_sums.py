"""Coefficients of affine forms, and their weighted sums.

Sums are where a pass forward spends its time, so their gradient is written out: it keeps nothing
but what goes in, and every coefficient is read once.

B: batch, n: symbols of a block.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class Block(NamedTuple):
    """Coefficients of neighbouring symbols: those from ``start`` on, ``(n, B, *shape)``."""

    start: int
    data: Tensor

    @property
    def stop(self) -> int:
        """The symbol after the last one."""
        return self.start + len(self.data)


class Part(NamedTuple):
    """A block times a scale ``(B, *shape)``, or times a weight ``(O, F)`` on the last axis."""

    block: Block
    scale: Tensor | None = None
    weight: Tensor | None = None


class Named(NamedTuple):
    """Errors ``(B, *shape)`` that get symbols of their own, from the first one on."""

    first: int
    error: Tensor


def scaled(x: Tensor, scale: Tensor | None, weight: Tensor | None) -> Tensor:
    """A value or coefficients through the factor of a part."""
    if weight is not None:
        return x @ weight.T
    return x if scale is None else x * scale


def added_blocks(parts: Sequence[Part], named: Named | None = None) -> Block | None:
    """Sum of blocks, each through its factor, beside new symbols; None where there are none."""
    if not parts and named is None:
        return None
    if len(parts) == 1 and named is None:
        block, scale, weight = parts[0]
        return Block(block.start, scaled(block.data, scale, weight))
    starts, stops = [part.block.start for part in parts], [part.block.stop for part in parts]
    if named:
        starts.append(named.first)
        stops.append(named.first + named.error[0].numel())
    start, stop = min(starts), max(stops)
    places = tuple(place - start for place in starts)
    tensors = [x for (block, *factor) in parts for x in (block.data, *factor)]
    if named:
        tensors.append(named.error)
    data: Tensor = _Sum.apply(stop - start, places, *tensors)  # type: ignore[no-untyped-call]
    return Block(start, data)


class _Sum(torch.autograd.Function):
    """Blocks added up in the place of all symbols between two.

    Takes the number of symbols and the places of all parts, then data, scale and weight of each,
    and at last the error, if there is one place more.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, count: int, places: tuple[int, ...], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.places = places  # type: ignore[attr-defined]
        parts, errors = _read(places, tensors)
        parts.sort(key=lambda part: -len(part[1]))
        if errors:
            like = errors[0]
        else:
            _, data, scale, weight = parts[0]
            like = scaled(data[0], scale, weight)
        out = like.new_empty(count, *like.shape)
        if not parts:
            out.zero_()
        for index, (place, data, scale, weight) in enumerate(parts):
            target = out[place : place + len(data)]
            if index == 0:  # the largest one is written, the others are added
                out[:place], out[place + len(data) :] = 0, 0
                _write(target, data, scale, weight)
            else:
                _add(target, data, scale, weight)
        for error in errors:
            _diagonal(out, places[-1], error).add_(error.reshape(len(error), -1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts, errors = _read(ctx.places, ctx.saved_tensors)
        needed = iter(ctx.needs_input_grad[2:])
        found: list[Tensor | None] = []
        for place, data, scale, weight in parts:
            own = gradient[place : place + len(data)]
            for_data, for_scale, for_weight = (next(needed) for _ in range(3))
            found += [
                _to_data(own, scale, weight) if for_data else None,
                (own * data).sum(0).sum_to_size(scale.shape) if for_scale else None,
                own.flatten(0, -2).T @ data.flatten(0, -2) if for_weight else None,
            ]
        for error in errors:
            found.append(_diagonal(gradient, ctx.places[-1], error).reshape(error.shape))
        return (None, None, *found)


def _read(places: Sequence[int], tensors: Sequence[Tensor]) -> tuple[list[Any], Sequence[Tensor]]:
    """Place, data, scale and weight of every part, and the error, if any."""
    count = len(tensors) // 3
    parts = [(places[k], *tensors[3 * k : 3 * k + 3]) for k in range(count)]
    return parts, tensors[3 * count :]


def _write(out: Tensor, data: Tensor, scale: Tensor | None, weight: Tensor | None) -> None:
    if weight is not None:
        torch.matmul(data, weight.T, out=out)
    elif scale is not None:
        torch.mul(data, scale, out=out)
    else:
        out.copy_(data)


def _add(out: Tensor, data: Tensor, scale: Tensor | None, weight: Tensor | None) -> None:
    if weight is not None:
        out += data @ weight.T
    elif scale is not None:
        out.addcmul_(data, scale)
    else:
        out += data


def _to_data(gradient: Tensor, scale: Tensor | None, weight: Tensor | None) -> Tensor:
    if weight is not None:
        return gradient @ weight
    return gradient if scale is None else gradient * scale


def _diagonal(out: Tensor, place: int, error: Tensor) -> Tensor:
    """``(B, F)`` coefficients of one symbol for every unit of ``(B, *shape)``; a view."""
    units = error[0].numel()
    flat = out[place : place + units].reshape(units, len(error), units)
    return flat.diagonal(dim1=0, dim2=2)
