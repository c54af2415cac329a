"""C&W-Ada: an ATTACK. Its score is a distance at which the class does change, so no certified
radius can be larger; it says nothing of smaller distances.

    loss = q + (v + c) * max_t || x_t - x0_t ||_p,    q = max(f_y - f_j, 0),   v = 1 where q = 0

so that the distance counts fully once the attack has succeeded.

Source: Ko et al., "POPQORN", ICML 2019, appendix B.3, after Carlini and Wagner, S&P 2017.

B: batch, T: frames, N: features.
"""

import torch
from torch import Tensor, nn


def attacked_distance(
    net: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    against: Tensor,
    p: float,
    steps: int = 300,
    learning_rate: float = 0.01,
    weight: float = 0.1,
) -> Tensor:
    """Least ``max_t ||x_t - x0_t||_p`` found at which ``against`` is not below the label.

    Args:
        net: returns logits.
        x: ``(B, T, N)``.
        target: ``(B,)`` labels.
        against: ``(B,)`` the other class.
        p: norm.
        steps: of Adam.
        learning_rate: of Adam, in the units of the input.
        weight: c, what the distance counts before the attack has succeeded.

    Returns:
        ``(B,)``; infinite where the attack did not succeed.
    """
    change = torch.full_like(x, 1e-3).requires_grad_()  # the norm has no gradient at 0
    optimizer = torch.optim.Adam([change], lr=learning_rate)
    best = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    with torch.enable_grad():
        for _ in range(steps + 1):
            logits = net(x + change)
            margin = (logits.gather(1, target[:, None]) - logits.gather(1, against[:, None]))[:, 0]
            distance = torch.linalg.vector_norm(change, p, dim=-1).amax(1)
            reached = margin.detach() <= 0
            best = torch.where(reached, torch.minimum(best, distance.detach()), best)
            loss = margin.clamp(min=0) + (reached.to(x) + weight) * distance
            optimizer.zero_grad()
            (gradient,) = torch.autograd.grad(loss.sum(), change)
            change.grad = gradient
            optimizer.step()
    return best
