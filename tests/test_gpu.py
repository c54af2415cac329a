"""What a GPU must reproduce; skipped where there is none."""

import contextlib

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from popqorn_train import Box, CertifiedLoss, LpBall, bound, certified_radius, certify, frame_radii
from popqorn_train.bounds.methods import METHODS
from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.certificates.margins import margin_rows, other_classes
from popqorn_train.certificates.pgd import attack
from popqorn_train.nested import map_nested
from tests.fitting import QUIET, Classifier, samples
from tests.zoo import zoo

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


@pytest.mark.parametrize("cell", CELLS)
def test_compiled_steps_are_those_of_every_step(cell):
    module, x, y = problem(cell)
    module.cuda().train()
    found = []
    for compiled in (True, False):
        loss = CertifiedLoss(0.02, method="crown-ibp", compiled=compiled)
        for _ in range(3):  # the first one is compared with the model, the second compiled
            module.zero_grad()
            value = loss(module, x.cuda(), y.cuda())
            value.backward()
        assert not compiled or loss.compiled.reason is None
        found.append([value.detach(), torch.cat([p.grad.flatten() for p in module.parameters()])])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


ZOO = zoo() if torch.cuda.is_available() else {}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.filterwarnings("ignore:RNN module weights are not part:UserWarning")
def test_every_model_of_the_zoo_has_the_margins_of_the_cpu(name):
    here, there = (margins_on(device, *ZOO[name]) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-7, equal_nan=True)


def margins_on(device, model, x):
    """Of all methods."""
    layer = bound(model).to(device)
    inputs = map_nested(x, (torch.Tensor, PackedSequence), lambda part: part.to(device))
    instance = layer.instance(inputs)
    y = instance.logits(instance.center).argmax(1)
    ask = (certify(layer, inputs, y, LpBall(0.01), method=method) for method in METHODS)
    return [certificate.margins.cpu() for certificate in ask]


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "popqorn-fast", "popqorn"])
@pytest.mark.parametrize("cell", CELLS)
def test_reduced_precision_is_never_used(cell, method):
    torch.manual_seed(0)
    module = Classifier(cell)
    module.rnn, module.head = cell(64, 64, batch_first=True), nn.Linear(64, 8)
    module = module.cuda().eval()
    x = torch.randn(16, 4, 64, generator=torch.Generator().manual_seed(0)).cuda()
    found, before = [], torch.get_float32_matmul_precision()
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            y = module(x).argmax(1)
            found.append(certify(module, x, y, LpBall(1e-3), method=method).margins)
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "popqorn"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_the_processor_never_waits_inside_a_pass(cell, method):
    module, x, y = problem(cell)
    module, x, y = module.cuda(), x.cuda(), y.cuda()
    graph = bound(module).instance(x).graph(LpBall(0.02))
    rows = margin_rows(y, 3, x, other_classes(y, 3))
    with torch.no_grad():
        METHODS[method].bounded(graph, rows)  # constants are made once
        with no_waiting():
            METHODS[method].bounded(graph, rows)


@contextlib.contextmanager
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("background", [False, True])
def test_a_training_is_certified(background, tmp_path):
    monitor = CertifiedRadiusMonitor(samples=16, background=background, method="popqorn-fast")
    trainer = pl.Trainer(
        **{**QUIET, "accelerator": "gpu", "default_root_dir": tmp_path},
        devices=1,
        max_epochs=2,
        callbacks=[monitor],
        logger=False,
    )
    loaders = [DataLoader(samples(48, seed), 16) for seed in (0, 1)]
    trainer.fit(Classifier(nn.LSTM), *loaders)
    assert monitor.failures == 0
    assert monitor.last is not None
    assert len(monitor.last.radii) == 16
