"""How far rounding may move a backward bound."""

import math

import torch
from torch import Tensor

from popqorn_train.perturbations.region import dot


def rounding_error(slope: Tensor, size: Tensor) -> Tensor:
    """How much rounding may change the step of a backward bound over one node, ``(B, K)``.

    A sum of n terms is off by at most about lambda sqrt(n) eps times the sum of their absolute
    values, but for a probability below 2 exp(-lambda^2 / 2): Higham and Mary, "A new approach to
    probabilistic rounding error analysis", SIAM J. Sci. Comput. 2019. Here lambda is 8, and all
    is doubled for the bound that the result is compared with.
    """
    if slope.ndim > 3:
        size = size[:, : slope.shape[2]]
    terms = max(math.prod(size.shape[1:]), 256)
    return 16 * math.sqrt(terms) * torch.finfo(slope.dtype).eps * dot(slope.abs(), size)
