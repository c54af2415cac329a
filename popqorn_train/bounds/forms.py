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

from popqorn_train.bounds.block_sums import Block, Named, Part, added_blocks, scaled
from popqorn_train.kernels.form_sums import Weighted, weighted_sum


class Form(NamedTuple):
    """An affine form.

    Attributes:
        center: ``(B, *shape)``.
        inputs: coefficients of coordinates of the input, frame after frame; None for none.
        noise: coefficients of named errors; None for none.
        own: ``(B, *shape)``, not negative; None for 0.
        size: ``(B, *shape)`` at least the sum of the absolute values of all terms; no gradient.
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
        """The factor times a value."""
        return scaled(x, self.scale, self.weight)

    def of_size(self, x: Tensor) -> Tensor:
        """The same of absolute values."""
        scale, weight = (None if factor is None else factor.abs() for factor in self[1:])
        return scaled(x, scale, weight)

    def part(self, block: Block | None) -> list[Part]:
        """The factor times coefficients of the form, if there are any."""
        return [] if block is None else [Part(block, self.scale, self.weight)]


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


def weighted(
    terms: Sequence[Term], constant: Tensor | None, error: Error = NO_ERROR, spans: int = 1
) -> Form:
    """Weighted sum of forms and a constant, with the rounding of working it out.

    Args:
        terms: at least one.
        constant: broadcastable to the result.
        error: of the nonlinearity that the sum stands for.
        spans: as many of one width are read later, and nothing else: the form may be
            ``(B, spans, width)`` then.
    """
    rounding = 0.0
    if error.rounds and not _is_exact(terms, constant):
        count = max(t.weight.shape[1] if t.weight is not None else 1 for t in terms) + len(terms)
        rounding = unit_of_rounding(count, terms[0].form.size.dtype)
    loose = error.gap is not None or any(t.form.loose for t in terms)
    known = weighted_sum(
        [_plain(t) for t in terms], constant, error.gap, rounding, error.first, spans
    )
    if known is not None:
        center, size, own, *blocks = known
        inputs, noise = (block and Block(*block) for block in blocks)
        return Form(center, inputs, noise, own, size, loose and own is not None)
    return _weighted(terms, constant, error, rounding)


def _plain(term: Term) -> Weighted:
    """A term as loops take it."""
    center, inputs, noise, own, size, _ = term.form
    return Weighted(center, size, own, inputs, noise, term.scale, term.weight)


def _weighted(
    terms: Sequence[Term], constant: Tensor | None, error: Error, rounding: float
) -> Form:
    """The same, in operations of torch."""
    center = _added([t.of(t.form.center) for t in terms], constant)
    with torch.no_grad():
        sizes = [t.of_size(t.form.size) for t in terms]
        size = _added(sizes, None if constant is None else constant.abs())
        size = size if error.gap is None else size + error.gap
    owns = [t.of_size(t.form.own) for t in terms if t.form.own is not None]
    owns += [] if error.gap is None else [error.gap]
    if rounding:
        owns.append(size * rounding)
    own = _added(owns, None) if owns else None
    loose = error.gap is not None or any(t.form.loose for t in terms)
    inputs = added_blocks([part for t in terms for part in t.part(t.form.inputs)])
    noise = [part for t in terms for part in t.part(t.form.noise)]
    if error.first is None or own is None:
        return Form(center, inputs, added_blocks(noise), own, size, loose)
    return Form(center, inputs, added_blocks(noise, Named(error.first, own)), None, size)


def _is_exact(terms: Sequence[Term], constant: Tensor | None) -> bool:
    """Whether nothing is worked out."""
    return len(terms) == 1 and constant is None and terms[0][1:] == (None, None)


def _added(parts: Sequence[Tensor], constant: Tensor | None) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total if constant is None else total + constant


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
