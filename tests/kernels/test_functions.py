"""sigmoid, tanh and the logarithm of the loops are as exact as box.h says, on every number."""

import numpy as np
import pytest
import torch

from popqorn_train.kernels.library import function, kernels

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")

F32, F64 = np.float32, np.float64
FUNCTIONS = {
    "sigmoid": (0, lambda x: np.where(x < 0, np.exp(x), 1) / (1 + np.exp(-abs(x)))),
    "tanh": (1, np.tanh),
    "log": (2, np.log),
    "steep": (3, lambda x: np.log1p(np.sqrt(1 - x)) - np.log(x) / 2),
}
dtypes = pytest.mark.parametrize("dtype", [F32, F64])
functions = pytest.mark.parametrize("name", ["sigmoid", "tanh", "log"])


def computed(name, x):
    found = torch.empty(len(x), dtype=torch.from_numpy(x[:1]).dtype)
    loop = function("function", found)
    loop(FUNCTIONS[name][0], len(x), x.ctypes.data, found.data_ptr())
    return found.numpy()


def of_all_sizes(dtype, count, least, most):
    generator = np.random.default_rng(0)
    sizes = np.exp(generator.uniform(np.log(least), np.log(most), count))
    return sizes.astype(dtype)


def errors(name, x):
    """In units of the relative precision, against numbers with more digits."""
    wide = x.astype(np.longdouble)
    exact = FUNCTIONS[name][1](wide)
    return np.abs((computed(name, x) - exact) / exact) / np.finfo(x.dtype).eps


@dtypes
@functions
@pytest.mark.parametrize("count", [200_000, pytest.param(20_000_000, marks=pytest.mark.slow)])
def test_functions_are_within_two_eps(name, dtype, count):
    if name == "log":
        x = of_all_sizes(dtype, count, 10 * np.finfo(dtype).tiny, 1e30)
        x = x[np.abs(x - 1) > 1e-3]
        assert errors(name, x).max() < 2
        near = np.linspace(0.99, 1.01, count // 10).astype(dtype)
        assert errors(name, near[near != 1]).max() < 2
        return
    far = 87 if dtype == F32 else 700  # beyond, sigmoid is below the smallest normal number
    x = of_all_sizes(dtype, count, 1e-30, far)
    for part in (x, -x):
        assert errors(name, part).max() < 2


@dtypes
@pytest.mark.parametrize("count", [200_000, pytest.param(20_000_000, marks=pytest.mark.slow)])
def test_the_point_where_tanh_has_a_slope_is_within_four_eps(dtype, count):
    eps, least = np.finfo(dtype).eps, 1e-36 if dtype == F32 else 1e-300
    near = (1 - of_all_sizes(dtype, count, 2 * eps, 1)).clip(least)
    for slopes in (of_all_sizes(dtype, count, least, 1 - 2 * eps), near):
        assert errors("steep", slopes).max() < 4


@dtypes
def test_ends_of_the_range(dtype):
    x = np.array([0.0, 1e4, -1e4, np.inf, -np.inf, 1e30, -1e30], dtype=dtype)
    assert computed("tanh", x).tolist() == [0, 1, -1, 1, -1, 1, -1]
    assert computed("sigmoid", x).tolist() == [0.5, 1, 0, 1, 0, 1, 0]
    small = np.array([1e-42, -1e-42], dtype=dtype)
    np.testing.assert_array_equal(computed("tanh", small), small)


@dtypes
def test_small_gates_fade_out_below_the_smallest_normal_number(dtype):
    x = -np.linspace(80, 120, 100).astype(dtype) * (1 if dtype == F32 else 7)
    exact = np.exp(x.astype(np.longdouble))
    assert np.abs(computed("sigmoid", x) - exact).max() < 4 * np.finfo(dtype).eps * exact.max()
