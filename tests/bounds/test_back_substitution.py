"""A backward step over a nonlinearity takes the side that the sign of its slope asks for."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from popqorn_train.bounds.back_substitution import back_substitute
from popqorn_train.bounds.wanted import only_slopes, slopes_alone
from tests.problems import F64

pytestmark = pytest.mark.usefixtures("loops")

SHAPES = {
    "units": ((2, 3, 4), (2, 1, 4)),
    "the same rows for all samples": ((1, 3, 4), (2, 1, 4)),
    "sides of every row": ((2, 3, 4), (2, 3, 4)),
    "frames": ((2, 3, 5, 4), (2, 1, 5, 4)),
    "a side for all samples": ((2, 3, 4), (1, 1, 4)),
    "single numbers": ((2, 3), (2, 1)),
    "sides without an axis of rows": ((2, 3, 4), (2, 4)),
    "sides of frames, for all samples and rows": ((2, 3, 5, 4), (1, 5, 4)),
}
shapes = pytest.mark.parametrize(("on", "of"), SHAPES.values(), ids=SHAPES)
counts = pytest.mark.parametrize("arguments", [0, 1, 2, 3])


def problem(on, of, arguments):
    generator = torch.Generator().manual_seed(0)
    shapes = [on, *[of] * 2 * (arguments + 1)]
    return [torch.randn(shape, generator=generator, dtype=F64) for shape in shapes]


def carried(slope, *sides):
    half = len(sides) // 2
    slopes, constant = back_substitute(slope, sides[:half], sides[half:])
    return (*slopes, constant)


@counts
@shapes
def test_positive_slopes_take_the_lower_side_and_negative_ones_the_upper(on, of, arguments):
    slope, *sides = problem(on, of, arguments)
    half = len(sides) // 2
    *slopes, constant = carried(slope, *sides)
    sides = [side if side.ndim == slope.ndim else side[:, None] for side in sides]
    terms = [
        torch.where(slope > 0, slope * low, slope * high)
        for low, high in zip(sides[:half], sides[half:], strict=True)
    ]
    for found, expected in zip(slopes, terms[:-1], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(constant, terms[-1].reshape(*constant.shape, -1).sum(-1))


@counts
@shapes
def test_gradients_are_exact(on, of, arguments):
    parts = [part.requires_grad_() for part in problem(on, of, arguments)]
    assert gradcheck(carried, parts)
    assert gradgradcheck(carried, parts)


def test_only_gradients_that_are_asked_for_are_computed():
    slope, *sides = problem((2, 3, 4), (2, 1, 4), 1)
    for index in range(5):
        parts = [slope, *sides]
        parts[index] = parts[index].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(sum(p.sum() for p in carried(*parts)), parts[index])
        assert gradient.shape == parts[index].shape


def test_a_gradient_in_slopes_alone_leaves_out_the_sides():
    parts = [part.requires_grad_() for part in problem((2, 3, 4), (2, 1, 4), 1)]
    total = sum(part.sin().sum() for part in carried(*parts))
    every = torch.autograd.grad(total, parts, retain_graph=True)
    with slopes_alone():
        assert only_slopes()
        found = torch.autograd.grad(total, parts, retain_graph=True, allow_unused=True)
        with slopes_alone():
            pass
        assert only_slopes()
    assert not only_slopes()
    torch.testing.assert_close(found[0], every[0])
    assert found[1:] == (None,) * 4


def test_a_slope_of_0_leaves_nothing():
    slope, *sides = problem((2, 3, 4), (2, 1, 4), 2)
    assert not any(part.any() for part in carried(torch.zeros_like(slope), *sides))
