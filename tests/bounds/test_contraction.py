"""Sums of products with constants."""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, certify


class Summed(nn.Module):
    """Frames summed up from the first, times a weight of all samples or one of each."""

    def __init__(self, *, own: bool = False) -> None:
        super().__init__()
        self.own, self.fc = own, nn.Linear(2, 3)

    def forward(self, x, scale):
        total = torch.cumsum(torch.tanh(x), dim=1)
        equation = "bts,bsf->btf" if self.own else "ts,bsf->btf"
        return self.fc(torch.einsum(equation, scale if self.own else scale[0], total).mean(1))


def case(batch, frames, own, dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(batch, frames, 2, dtype=dtype)
    scale = torch.randn(1, frames, frames, dtype=dtype).expand(batch, -1, -1)
    net = Summed(own=own).to(dtype)
    return net, (x, scale.contiguous()), net(x, scale).argmax(1)


def margins(batch, frames, own):
    net, inputs, y = case(batch, frames, own)
    return certify(net, inputs, y, LpBall(1e-3), method="popqorn").margins


def test_a_weight_of_every_sample_is_worth_one_of_all() -> None:
    torch.testing.assert_close(margins(3, 4, own=True), margins(3, 4, own=False))


@pytest.mark.parametrize("own", [True, False])
def test_a_sample_alone_has_its_margins(own) -> None:
    net, (x, scale), y = case(3, 4, own)
    whole = certify(net, (x, scale), y, LpBall(1e-3)).margins
    alone = certify(net, (x[1:2], scale[1:2]), y[1:2], LpBall(1e-3)).margins
    torch.testing.assert_close(alone, whole[1:2])


def test_sums_of_many_frames_of_many_samples_are_not_refused() -> None:
    """In float32 such a sum is off by more than what one sample differs from the next."""
    net, inputs, y = case(40, 200, own=False, dtype=torch.float32)
    assert certify(net, inputs, y, LpBall(0.0), method="ibp").certified.all()
