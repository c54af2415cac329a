"""Arguments of nonlinearities as linear functions of one vector of symbols.

B: batch, n: symbols, U: units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from popqorn_train.bounds.joint_pass import Gap, Read
from popqorn_train.bounds.symbols import Symbols
from popqorn_train.perturbations.region import Region
from popqorn_train.relaxations.paraboloids import Axis

F64 = torch.float64


class Vector(NamedTuple):
    """How symbols make one vector xi.

    Attributes:
        inputs: how many coordinates of the input come first.
        total: of all symbols.
        unit: ``(B, inputs)`` what a coordinate of xi is worth in coefficients of forms.
        center: ``(B, inputs)`` the input where xi is 0.
        reach: ``(B, inputs)`` what a coordinate of xi is worth in the input.
        group: ``(n,)`` symbols of one group have a norm of at most 1; None makes each its own.
    """

    inputs: int
    total: int
    unit: Tensor
    center: Tensor
    reach: Tensor
    group: Tensor | None


class Rows(NamedTuple):
    """Arguments on their axes: ``center + data xi``, give or take ``own``.

    Attributes:
        read: which arguments.
        axis: the scale that they are measured on.
        center: ``(B, U)``.
        data: ``(B, U, n)``.
        own: ``(B, U)``, not negative.
    """

    read: Read
    axis: Axis
    center: Tensor
    data: Tensor
    own: Tensor


def vector_of(symbols: Symbols, gaps: Sequence[Gap]) -> Vector:
    """The symbols that arguments of nonlinearities are made of."""
    region, inputs = symbols.region, symbols.reach[0].numel()
    assert isinstance(region, Region)
    noise = [read.form.noise for gap in gaps for read in gap.reads]
    count = inputs + max((block.stop for block in noise if block is not None), default=0)
    center, reach = (x.to(F64).flatten(1) for x in (symbols.center, symbols.reach))
    if symbols.boxed:
        return Vector(inputs, count, torch.ones_like(reach), center, reach, None)
    epsilon = region.epsilon[..., None].to(F64)
    if region.scope == "sequence":
        epsilon = epsilon.amax(1, keepdim=True) * region.moved[..., None]
    scale = 1.0 if region.scale is None else region.scale.to(F64)
    reach = (epsilon * scale).expand(symbols.reach.shape).flatten(1)
    time, width = symbols.reach.shape[1:]
    frame = torch.arange(time, device=reach.device).repeat_interleave(width)
    frame = frame if region.scope == "frame" else torch.zeros_like(frame)
    rest = torch.arange(count - inputs, device=reach.device) + 1 + int(frame[-1])
    return Vector(inputs, count, reach, center, reach, torch.cat([frame, rest]))


def rows_of(read: Read, axis: Axis, vector: Vector) -> Rows:
    """An argument on its axis."""
    form, (batch, units) = read.form, axis.half.shape
    data = axis.half.new_zeros(batch, units, vector.total)
    parts = ((form.inputs, 0, vector.unit[:, None]), (form.noise, vector.inputs, None))
    for block, first, unit in parts:
        if block is not None:
            places = slice(first + block.start, first + block.stop)
            columns = block.data.reshape(*block.data.shape[:2], -1).to(F64).permute(1, 2, 0)
            own = 1.0 if unit is None else unit[..., block.start : block.stop]
            data[..., places] = columns * own * read.sign / axis.half[..., None]
    center = (read.sign * flat(form.center).to(F64) - axis.middle) / axis.half
    own = torch.zeros_like(center) if form.own is None else flat(form.own) / axis.half
    return Rows(read, axis, center, data, own.expand_as(center))


def flat(x: Tensor) -> Tensor:
    """All entries of a node in one row ``(B, U)``, also of one that is a number."""
    return x.reshape(len(x), -1)
