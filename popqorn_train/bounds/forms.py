"""Affine forms: what a quantity is worth as a function of the input and of earlier errors.

    value  =  center + sum_k inputs[k] x_k + sum_k noise[k] e_k + own e,      |e_k| <= 1, |e| <= 1

The part in the input x is exact; every e_k is the error of one unit of one nonlinearity, and is
the same number wherever it is read, so that errors cancel out as the input does. ``own`` is an
error without a name: another one for every unit, and for every reader.

Stolfi and de Figueiredo, "Self-Validated Numerical Methods and Applications", 1997, for affine
arithmetic; Singh et al., "Fast and Effective Robustness Certification", NeurIPS 2018, for networks.

B: batch, n: symbols of a block. A value of a node is ``(B, *shape)``.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """Coefficients of neighbouring symbols: those from ``start`` on, ``(n, B, *shape)``."""

    start: int
    data: Tensor

    @property
    def stop(self) -> int:
        """The symbol after the last one."""
        return self.start + len(self.data)


class Form(NamedTuple):
    """An affine form.

    Attributes:
        center: ``(B, *shape)``.
        inputs: coefficients of coordinates of the input, frame after frame; None for none.
        noise: coefficients of named errors; None for none.
        own: ``(B, *shape)``, not negative; None for 0.
        size: ``(B, *shape)`` at least the sum of the absolute values of all terms.
        loose: whether ``own`` is more than rounding.
    """

    center: Tensor
    inputs: Block | None
    noise: Block | None
    own: Tensor | None
    size: Tensor
    loose: bool = False


class Term(NamedTuple):
    """A form times a scale ``(B, *shape)``, or times a weight ``(O, F)`` on the last axis."""

    form: Form
    scale: Tensor | None = None
    weight: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """The factor times a value, or times coefficients."""
        if self.weight is not None:
            return x @ self.weight.T
        return x if self.scale is None else x * self.scale

    def of_size(self, x: Tensor) -> Tensor:
        """The same of absolute values."""
        if self.weight is not None:
            return x @ self.weight.abs().T
        return x if self.scale is None else x * self.scale.abs()

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the factor times coefficients in place."""
        if self.weight is not None:
            out += x @ self.weight.T
        elif self.scale is not None:
            out.addcmul_(x, self.scale)
        else:
            out += x

    def write_to(self, out: Tensor, x: Tensor) -> None:
        """Write the factor times coefficients, without gradient."""
        if self.weight is not None:
            torch.matmul(x, self.weight.T, out=out)
        elif self.scale is not None:
            torch.mul(x, self.scale, out=out)
        else:
            out.copy_(x)


class Error(NamedTuple):
    """What a sum of forms is off by.

    Attributes:
        gap: ``(B, *shape)`` error of the nonlinearity that it stands for.
        first: place of the first of the symbols that its errors get; None for no names.
        rounds: whether working it out rounds.
    """

    gap: Tensor | None = None
    first: int | None = None
    rounds: bool = True


NO_ERROR = Error()


def unit_of_rounding(terms: int, dtype: torch.dtype) -> float:
    """By how much a sum of so many products is off, in units of the sum of absolute values.

    The smaller of the bound that always holds and of the one of roundoff.py.
    """
    return min(terms + 2.0, 8 * math.sqrt(terms) + 2) * torch.finfo(dtype).eps


def weighted(terms: Sequence[Term], constant: Tensor | None, error: Error = NO_ERROR) -> Form:
    """Weighted sum of forms and a constant, with the rounding of working it out.

    Args:
        terms: at least one.
        constant: broadcastable to the result.
        error: of the nonlinearity that the sum stands for.
    """
    center = _added([t.of(t.form.center) for t in terms], constant)
    sizes = [t.of_size(t.form.size) for t in terms]
    size = _added(sizes, None if constant is None else constant.abs())
    owns = [t.of_size(t.form.own) for t in terms if t.form.own is not None]
    count = max(t.weight.shape[1] if t.weight is not None else 1 for t in terms) + len(terms)
    exact = len(terms) == 1 and constant is None and terms[0].scale is terms[0].weight is None
    if error.rounds and not exact:
        owns.append(size.detach() * unit_of_rounding(count, size.dtype))
    if error.gap is not None:
        owns.append(error.gap)
        size = size + error.gap
    own = _added(owns, None) if owns else None
    loose = error.gap is not None or any(t.form.loose for t in terms)
    inputs = added_blocks([(t, t.form.inputs) for t in terms if t.form.inputs is not None])
    rest = [(t, t.form.noise) for t in terms if t.form.noise is not None]
    if error.first is None or own is None:
        return Form(center, inputs, added_blocks(rest), own, size, loose)
    return Form(center, inputs, added_blocks(rest, named=Named(error.first, own)), None, size)


class Named(NamedTuple):
    """Errors ``(B, *shape)`` that get symbols of their own, from the first one on."""

    first: int
    error: Tensor


def _added(parts: Sequence[Tensor], constant: Tensor | None) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total if constant is None else total + constant


def added_blocks(parts: Sequence[tuple[Term, Block]], named: Named | None = None) -> Block | None:
    """Sum of blocks, each through its factor, beside new symbols; None where there are none."""
    if not parts and named is None:
        return None
    if len(parts) == 1 and named is None:
        term, block = parts[0]
        return Block(block.start, term.of(block.data))
    new = [named.first, named.first + named.error[0].numel()] if named else []
    start = min([block.start for _, block in parts] + new)
    stop = max([block.stop for _, block in parts] + new)
    like = named.error if named else parts[0][0].of(parts[0][1].data[0])
    out = _sum(parts, like, start, stop)
    if named:
        _write_diagonal(out[named.first - start : new[1] - start], named.error)
    return Block(start, out)


def _sum(parts: Sequence[tuple[Term, Block]], like: Tensor, start: int, stop: int) -> Tensor:
    """Blocks added up in the place of all symbols between two, the largest one written first."""
    shape = (stop - start, *like.shape)
    parts = sorted(parts, key=lambda part: -len(part[1].data))
    if torch.is_grad_enabled() or not parts:
        out = like.new_zeros(shape)
    else:
        out, (term, first) = like.new_empty(shape), parts[0]
        out[: first.start - start] = 0
        out[first.stop - start :] = 0
        term.write_to(out[first.start - start : first.stop - start], first.data)
        parts = parts[1:]
    for term, block in parts:
        term.add_to(out[block.start - start : block.stop - start], block.data)
    return out


def _write_diagonal(out: Tensor, error: Tensor) -> None:
    """Coefficients ``(F, B, F)`` of one symbol for every unit, ``(B, F)``; flat inside."""
    flat = error.flatten(1)
    out.view(len(out), len(flat), -1).diagonal(dim1=0, dim2=2).add_(flat)


def constant_form(value: Tensor) -> Form:
    """What does not move."""
    return Form(value, None, None, None, value.abs())


def mapped(form: Form, move: Callable[[Tensor], Tensor]) -> Form:
    """A form of which numbers are moved, without rounding.

    Args:
        form: of the whole.
        move: of coefficients ``(n, B, *shape)`` and, with n = 1, of values.
    """

    def one(x: Tensor) -> Tensor:
        return move(x[None])[0]

    return Form(
        one(form.center),
        form.inputs and Block(form.inputs.start, move(form.inputs.data)),
        form.noise and Block(form.noise.start, move(form.noise.data)),
        None if form.own is None else one(form.own),
        one(form.size),
        form.loose,
    )
