"""The curvature of sums of squares is never below what is attained, and close to it."""

import pytest
import torch

from popqorn_train.relaxations.curvature import curvature_of

F64 = torch.float64


def problem(squares, size, sums=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(squares, size, dtype=F64, generator=generator)
    weight = torch.rand(sums, squares, dtype=F64, generator=generator)
    return a, weight * (torch.rand(sums, squares, generator=generator) < 0.4)


def attained(a, weight, size, starts=400):
    """The greatest value that climbing from corner to corner finds, ``(K,)``."""
    d = torch.randn(starts, size, dtype=F64, generator=torch.Generator().manual_seed(1)).sign()
    found = []
    for row in weight:
        corner = d
        for _ in range(50):
            corner = ((corner @ a.T) * row @ a).sign()
        found.append(((corner @ a.T).square() @ row).max())
    return torch.stack(found)


@pytest.mark.parametrize(("squares", "size"), [(3, 5), (12, 8), (40, 24)])
def test_no_corner_exceeds_the_constant_and_one_comes_close(squares, size):
    a, weight = problem(squares, size)
    box, reached = curvature_of(a, weight).box, attained(a, weight, size)
    assert (box >= reached).all()
    assert (box <= 1.6 * reached + 1e-9).all()


def test_it_is_exact_where_the_corners_are_known():
    eye = torch.eye(4, dtype=F64)
    ones = torch.ones(1, 4, dtype=F64)
    found = curvature_of(eye, ones)
    torch.testing.assert_close(found.box, torch.tensor([4.0], dtype=F64), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.ball, torch.tensor([1.0], dtype=F64), rtol=1e-9, atol=0)
    single = curvature_of(torch.tensor([[1.0, -2.0, 3.0]], dtype=F64), ones[:, :1])
    torch.testing.assert_close(single.box, torch.tensor([36.0], dtype=F64), rtol=1e-9, atol=0)
    torch.testing.assert_close(single.ball, torch.tensor([14.0], dtype=F64), rtol=1e-9, atol=0)


def test_sums_of_nothing_are_flat():
    a, _ = problem(5, 6)
    assert all((part == 0).all() for part in curvature_of(a, torch.zeros(2, 5, dtype=F64)))


def test_the_ball_is_the_greatest_eigenvalue():
    a, weight = problem(12, 8)
    m = torch.einsum("kj,jn,jm->knm", weight, a, a)
    exact = torch.linalg.eigvalsh(m)[:, -1]
    found = curvature_of(a, weight).ball
    assert (found >= exact).all()
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)


def test_one_bound_a_sum_serves_all_squares_and_beats_one_a_square():
    a, weight = problem(40, 24)
    one_by_one = weight @ a.abs().sum(1).square()
    assert (curvature_of(a, weight).box < 0.5 * one_by_one).all()


def test_the_gradient_predicts_small_changes_of_the_weights():
    a, weight = problem(12, 8)
    a, weight = a.requires_grad_(), (weight + 0.1).requires_grad_()
    for part in (0, 1):
        value = curvature_of(a, weight)[part].sum()
        gradients = torch.autograd.grad(value, (a, weight))
        step = 1e-5
        with torch.no_grad():
            moved = curvature_of(a, weight * (1 + step))[part].sum() - value
        expected = step * (gradients[1] * weight).sum()  # the weights scale the whole
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-9)
        with torch.no_grad():
            moved = curvature_of(a * (1 + step), weight)[part].sum() - value
        torch.testing.assert_close(moved, step * (gradients[0] * a).sum(), rtol=1e-3, atol=1e-9)
