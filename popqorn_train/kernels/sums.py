"""Sums of absolute values over all symbols of affine forms, in one pass over memory.

Every unit is summed on its own, symbol after symbol, so that it has the same bits in any batch.
n: symbols, B: batch.
"""

from torch import Tensor

from popqorn_train.kernels.library import function


def add_absolute(data: Tensor, sums: Tensor) -> bool:
    """Add the sum of ``|data|`` over the first axis.

    Args:
        data: ``(n, B, *shape)``.
        sums: ``(B, *shape)``, contiguous; written to.

    Returns:
        Whether it was done; it is not without kernels.
    """
    loop = function("absolute", data, sums)
    if loop is None:
        return False
    data = _rows(data)
    loop(*data.shape, data.data_ptr(), *data.stride()[:2], sums.data_ptr())
    return True


def add_pairs(
    x: Tensor, y: Tensor, on_x: Tensor, on_y: Tensor, plus: Tensor, minus: Tensor
) -> bool:
    """Add the sums of ``|on_x x + on_y y|`` and of ``|on_x x - on_y y|`` over the first axis.

    Args:
        x: ``(n, B, *shape)``.
        y: likewise.
        on_x: ``(B, *shape)``.
        on_y: likewise.
        plus: ``(B, *shape)``, contiguous; written to.
        minus: likewise.

    Returns:
        Whether it was done; it is not without kernels.
    """
    loop = function("pairs", x, y, on_x, on_y, plus, minus)
    if loop is None or not x.shape == y.shape == (len(x), *on_x.shape):
        return False
    x, y, on_x, on_y = _rows(x), _rows(y), on_x.contiguous(), on_y.contiguous()
    loop(
        *x.shape, x.data_ptr(), *x.stride()[:2], y.data_ptr(), *y.stride()[:2],
        on_x.data_ptr(), on_y.data_ptr(), plus.data_ptr(), minus.data_ptr(),
    )  # fmt: skip
    return True


def _rows(data: Tensor) -> Tensor:
    """``(n, B, units)`` with neighbouring units."""
    data = data.flatten(2) if data.ndim > 2 else data.reshape(*data.shape, 1)
    return data if data.stride(2) == 1 else data.contiguous()
