"""The least value of a quadratic function on a box or on balls, from below."""

import pytest
import torch

from popqorn_train.bounds.dual import lowest, norms, search

F64 = torch.float64


def form(n, *, seed=0, batch=3, rank=None):
    generator = torch.Generator().manual_seed(seed)
    linear = torch.randn(batch, n, generator=generator, dtype=F64)
    left = torch.randn(batch, n, rank or n, generator=generator, dtype=F64)
    sign = torch.randn(batch, 1, rank or n, generator=generator, dtype=F64)
    return linear, (left * sign) @ left.mT


def value(linear, matrix, x):
    """Of points ``(P, B, n)``."""
    return (linear * x).sum(-1) + (x[..., None, :] @ matrix @ x[..., None])[..., 0, 0]


def points(n, group, count=4000, seed=1):
    """Points with norms of at most 1 in every group, most of them on the border."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, n, generator=generator, dtype=F64)
    size = norms(x, group)
    size = size if group is None else size[:, group]
    x = x / size.clamp(min=1e-300)
    return torch.where(torch.rand(count, 1, generator=generator) < 0.8, x, x / 2)[:, None]


def bound(linear, matrix, group=None, wanted=1e9):
    target = torch.full((len(linear),), wanted)
    found = search(linear.float(), matrix.float(), group, target).double() * (1 + 1e-5)
    return lowest(linear, matrix, found + 1e-7, group).value


GROUPS = {"box": None, "balls": torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 3, 4])}


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("rank", [1, 3, 10])
def test_no_point_lies_below_the_bound(group, rank):
    for seed in range(5):
        linear, matrix = form(10, seed=seed, rank=rank)
        found = bound(linear, matrix, group)
        assert found.isfinite().all()
        assert (value(linear, matrix, points(10, group)) >= found).all()


def test_a_linear_function_is_bounded_by_its_norm():
    linear = torch.randn(2, 10, dtype=F64)
    for group in GROUPS.values():
        found = bound(linear, torch.zeros(2, 10, 10, dtype=F64), group)
        exact = -norms(linear, group).sum(1)
        assert (found <= exact).all()
        torch.testing.assert_close(found, exact, rtol=2e-4, atol=1e-4)


def test_a_convex_function_is_bounded_by_its_least_value():
    _, matrix = form(6, seed=2, batch=1)
    matrix = matrix @ matrix + torch.eye(6, dtype=F64)
    point = torch.linspace(-0.5, 0.5, 6, dtype=F64)[None]
    linear = -2 * (matrix @ point[..., None])[..., 0]
    exact = value(linear, matrix, point)
    found = bound(linear, matrix)
    assert found.item() <= exact.item()
    assert found.item() >= exact.item() - 0.02 * abs(exact.item())


def test_a_matrix_with_a_negative_eigenvalue_proves_nothing():
    # A little below singular, far above what the factorisation itself would refuse.
    n = 40
    left = torch.randn(1, n, n - 1, dtype=F64)
    matrix = left @ left.mT
    low = torch.linalg.eigh(matrix[0])
    null = low.eigenvectors[:, :1]
    weights = torch.full((1, n), 1e-3, dtype=F64)
    linear = 1e-9 * torch.randn(1, n, dtype=F64)
    for below, proved in ((0.9e-3, True), (1.1e-3, False), (1.0e-3 + 1e-15, False)):
        found = lowest(linear, matrix - below * null @ null.T, weights, None)
        assert bool(found.value.isfinite()) == proved


@pytest.mark.parametrize("spread", [1e6, 1e10])
def test_badly_scaled_matrices_are_bounded_from_below(spread):
    for seed in range(5):
        linear, matrix = form(10, seed=seed)
        scale = torch.logspace(0, -torch.tensor(spread).log10().item(), 10, dtype=F64)
        linear, matrix = linear * scale, matrix * scale[:, None] * scale
        found = bound(linear, matrix)
        assert (value(linear, matrix, points(10, None)) >= found).all()


def test_a_point_that_solves_badly_lowers_the_bound_only():
    linear, matrix = form(10, seed=3, batch=1)
    weights = matrix.abs().sum(2) + 1
    good = lowest(linear, matrix, weights, None)
    # The same function, with a linear part that the point was not solved for.
    x = good.point
    image = (good.matrix @ x[..., None])[..., 0]
    residual = linear + 2 * image
    again = -weights.sum(1) - (x * image).sum(1) - residual.abs().sum(1)
    assert good.value <= again  # what is reported is no more than the proof allows


def test_the_search_ends_where_the_bound_is_enough(monkeypatch):
    from popqorn_train.bounds import dual

    calls = []
    inner = dual.solved
    monkeypatch.setattr(dual, "solved", lambda *args: calls.append(1) or inner(*args))
    linear, matrix = form(10)
    bound(linear, matrix, wanted=-1e9)
    assert len(calls) == 1


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_what_is_no_number_proves_nothing(odd):
    linear, matrix = form(5, batch=2)
    linear[0, 0] = odd
    matrix[1, 0, 0] = odd
    assert (
        lowest(linear, matrix, torch.ones(2, 5, dtype=F64) * 100, None).value == -torch.inf
    ).all()
