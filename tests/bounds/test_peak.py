"""The peak of a wave: one number, between the greatest least and the greatest most."""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, bound, logit_bounds
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.peak import Peak
from tests.problems import F64, METHODS


class Loudness(nn.Module):
    """A wave over its peak, and the peak itself."""

    def __init__(self):
        super().__init__()
        self.unread = nn.Parameter(torch.ones((), dtype=F64))  # whose precision bounds have

    def forward(self, wave):
        peak = wave.abs().amax(1)
        rows = (wave.unfold(1, 4, 3).square().sum(-1) + 0.1) / peak.square()[:, None]
        return torch.cat([rows, peak[:, None], wave.abs().amax(1, keepdim=True)], 1)


def wave():
    torch.manual_seed(0)
    return torch.randn(3, 19, dtype=F64)


@pytest.mark.parametrize("ball", [LpBall(0.1), LpBall(0.3, p=2, scope="sequence"), LpBall(2.5)])
@pytest.mark.parametrize("method", METHODS)
def test_no_point_leaves_the_bounds(method, ball):
    net, x = Loudness(), wave()
    lower, upper = logit_bounds(net, x, ball, method=method)
    d = torch.randn(2000, *x.shape, dtype=F64)
    d = d.sign() if ball.p != 2 else d / torch.linalg.vector_norm(d, dim=-1, keepdim=True)
    values = net((x + ball.epsilon * d).flatten(0, 1)).view(2000, *lower.shape)
    outside = torch.maximum(lower - values, values - upper)
    assert outside.nan_to_num(-1).max() <= 1e-10  # a peak that may be 0 leaves quotients open


def test_the_range_is_exact():
    net, x = Loudness(), wave()
    lower, upper = logit_bounds(net, x, LpBall(0.1), method="ibp")
    peak = x.abs().amax(1)
    torch.testing.assert_close(lower[:, -1], peak - 0.1)
    torch.testing.assert_close(upper[:, -1], peak + 0.1)
    graph = bound(net).instance(x).graph(LpBall(0.1))
    assert sum(isinstance(node, Peak) for node in ancestors(graph)) == 2
