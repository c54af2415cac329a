"""What a GPU must reproduce; skipped where there is none."""

import pytest
import torch
from torch import nn

from popqorn_train import Box, CertifiedLoss, LpBall, certified_radius, certify, frame_radii
from popqorn_train.certificates.pgd import attack
from tests.fitting import Classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CELLS = [nn.RNN, nn.LSTM, nn.GRU]


def problem(cell):
    module = Classifier(cell).eval()
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    return module, x, module(x).argmax(1)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "popqorn-fast", "popqorn"])
@pytest.mark.parametrize("cell", CELLS)
def test_margins_agree_with_the_cpu(cell, method):
    module, x, y = problem(cell)
    ball = LpBall(0.02)
    here = certify(module, x, y, ball, method=method).margins
    there = certify(module.cuda(), x.cuda(), y.cuda(), ball, method=method).margins
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_radii_agree_with_the_cpu_and_survive_an_attack(cell):
    module, x, y = problem(cell)
    here = certified_radius(module, x, y)
    there = certified_radius(module.cuda(), x.cuda(), y.cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=5e-3, atol=1e-6)
    assert (attack(module, x.cuda(), y.cuda(), LpBall(there)).margin > 0).all()


@pytest.mark.parametrize("cell", CELLS)
def test_frames_boxes_and_gradients_agree_with_the_cpu(cell):
    module, x, y = problem(cell)
    found = []
    for device in ("cpu", "cuda"):
        net, inputs, target = module.to(device), x.to(device), y.to(device)
        net.zero_grad()
        certified_radius(net, inputs, target, differentiable=True).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
        frames = frame_radii(net, inputs, target)
        box = certify(net, inputs, target, Box(inputs - 0.01, inputs + 0.02)).margins
        found.append([frames.cpu(), box.cpu(), gradient.cpu()])
    for here, there, close in zip(*found, (5e-3, 1e-4, 2e-2), strict=True):
        torch.testing.assert_close(there, here, rtol=close, atol=close / 10)


@pytest.mark.parametrize("cell", CELLS)
def test_the_loss_trains_in_train_mode_with_every_term(cell):
    module, x, y = problem(cell)
    module.cuda().train()
    CertifiedLoss(0.02, kappa=0.3, alpha=0.5)(module, x.cuda(), y.cuda()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
