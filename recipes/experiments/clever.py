"""CLEVER-RNN: an ESTIMATE of a targeted radius. It proves nothing: samples can miss the steepest
place, and then it is too large.

    radius = min( g(X0) / sum_t L_t, epsilon0 ),   L_t = max over the ball of || d g / d x_t ||_q

with the margin g = f_y - f_j, the ball of size epsilon0 around every frame, and 1/p + 1/q = 1. The
maxima are those of sampled points, without a fit of an extreme-value distribution.

Source: Ko et al., "POPQORN", ICML 2019, appendix B.2, after Weng et al., "CLEVER", ICLR 2018.

B: batch, T: frames, N: features.
"""

import torch
from torch import Tensor, nn

from popqorn_train.perturbations.region import dual_exponent


def clever_estimate(
    net: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    against: Tensor,
    p: float,
    largest: Tensor,
    samples: int = 500,
    seed: int = 0,
) -> Tensor:
    """Estimate the distance ``(B,)`` at which ``against`` overtakes the label; 0 where it has.

    Args:
        net: returns logits.
        x: ``(B, T, N)``.
        target: ``(B,)`` labels.
        against: ``(B,)`` the other class.
        p: norm of the ball around every frame.
        largest: ``(B,)`` epsilon0, the ball that is sampled and the largest answer.
        samples: points drawn in it.
        seed: of the points.
    """
    generator = torch.Generator().manual_seed(seed)
    clean, steepest = _gradients(net, x, target, against, p)
    for _ in range(samples):
        step = _inside(x.shape, p, generator).to(x) * largest[:, None, None].to(x)
        steepest = torch.maximum(steepest, _gradients(net, x + step, target, against, p)[1])
    radius = clean / steepest.sum(1).clamp(min=1e-12)
    return torch.minimum(radius, largest.to(radius)).clamp(min=0)


def _gradients(
    net: nn.Module, x: Tensor, target: Tensor, against: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """Margin ``(B,)`` and the dual norm of its gradient in every frame, ``(B, T)``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = net(x)
        margin = (logits.gather(1, target[:, None]) - logits.gather(1, against[:, None]))[:, 0]
        (gradient,) = torch.autograd.grad(margin.sum(), x)
    return margin.detach(), torch.linalg.vector_norm(gradient, dual_exponent(p), dim=-1)


def _inside(shape: torch.Size, p: float, generator: torch.Generator) -> Tensor:
    """Points of the unit ball, one per frame; uniform for p = 2 and p = infinity."""
    if p == float("inf"):
        return 2 * torch.rand(shape, generator=generator) - 1
    step = torch.randn(shape, generator=generator)
    length = torch.rand((*shape[:-1], 1), generator=generator) ** (1 / shape[-1])
    return length * step / torch.linalg.vector_norm(step, p, dim=-1, keepdim=True)
