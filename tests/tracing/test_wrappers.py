"""Compiled models and wrapped ones are bounded as the module inside, and left as they were."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from popqorn_train import (
    CertifiedLoss,
    LpBall,
    UnsupportedModelError,
    bound,
    certified_radius,
    certify,
    logit_bounds,
)
from popqorn_train.callbacks import CertifiedRadiusMonitor
from tests.fitting import Classifier, fit


class Counting:
    """A compiler that compiles nothing and counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, example):
        self.calls += 1
        return graph.forward


class Net(nn.Module):
    """A front end of several modules, a layer, a function and a head."""

    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5))
        self.rnn, self.head = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 3)
        self.squash = torch.tanh

    def forward(self, x):
        return self.head(self.squash(self.rnn(self.front(x))[0][:, -1]))


def whole(net, backend):
    return torch.compile(net, backend=backend)


def parts(net, backend):
    for name, child in list(net.named_children()):
        setattr(net, name, torch.compile(child, backend=backend))
    return net


def in_place(net, backend):
    net.compile(backend=backend)
    return net


def parts_in_place(net, backend):
    for child in net.children():
        child.compile(backend=backend)
    return net


def function(net, backend):
    net.squash = torch.compile(net.squash, backend=backend)
    return net


def method(net, backend):
    net.forward = torch.compile(net.forward, backend=backend)
    return net


def method_of_a_part(net, backend):
    net.front.forward = torch.compile(net.front.forward, backend=backend)
    return net


def parallel(net, backend):
    return nn.DataParallel(net)


def parallel_part(net, backend):
    net.front = nn.DataParallel(net.front)
    return net


def averaged(net, backend):
    return AveragedModel(net)


def twice(net, backend):
    return nn.DataParallel(torch.compile(net, backend=backend))


WRAPS = (
    whole, parts, in_place, parts_in_place, function, method, method_of_a_part,
    parallel, parallel_part, averaged, twice,
)  # fmt: skip


def net_and_inputs():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 6, 3)
    return net, x, net.eval()(x).argmax(1)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("wrap", WRAPS, ids=lambda wrap: wrap.__name__)
def test_a_wrapped_model_has_the_bounds_of_the_one_inside(wrap):
    net, x, y = net_and_inputs()
    ball, loss = LpBall(0.05, 2), CertifiedLoss(0.05, alpha=0.5)
    settings = {"method": "crown-ibp", "rtol": 1e-2}
    expected = [certify(net, x, y, ball).margins, certified_radius(net, x, y, **settings)]
    expected.append(loss(net, x, y))
    backend = Counting()
    model = wrap(net, backend).train()
    found = [certify(model, x, y, ball).margins, certified_radius(model, x, y, **settings)]
    model.eval()
    found.append(loss(model, x, y))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert backend.calls == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # from the compiler
@pytest.mark.parametrize("wrap", WRAPS, ids=lambda wrap: wrap.__name__)
def test_bounding_leaves_a_compiled_model_compiled(wrap):
    net, x, y = net_and_inputs()
    backend = Counting()
    model = wrap(net, backend)
    before = model(x)
    calls, state = backend.calls, [(vars(m).keys(), m.training) for m in model.modules()]
    certify(model, x, y, LpBall(0.05), method="ibp")
    assert [(vars(m).keys(), m.training) for m in model.modules()] == state
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert backend.calls == calls


@pytest.mark.one_in(2)
@pytest.mark.parametrize("wrap", [whole, parts, parallel], ids=lambda wrap: wrap.__name__)
def test_a_wrapped_part_can_be_named_as_what_moves(wrap):
    net, x, _ = net_and_inputs()
    expected = logit_bounds(bound(net, perturb="front.0"), x, LpBall(0.1))
    found = logit_bounds(bound(wrap(net, Counting()), perturb="front.0"), x, LpBall(0.1))
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # from the compiler
def test_a_loss_inside_compiled_code_is_the_same():
    net, x, y = net_and_inputs()
    loss = CertifiedLoss(0.05, kappa=0.5, alpha=0.5)

    def training_step(x):
        return 2 * loss(net, x + 0.0, y)

    compiled = torch.compile(training_step, backend="eager")
    torch.testing.assert_close(compiled(x), training_step(x))
    compiled(x).backward()
    assert net.head.weight.grad.isfinite().all()


def test_a_change_of_weights_inside_a_wrapper_is_seen():
    net, x, _ = net_and_inputs()
    model = whole(net, Counting())
    before = logit_bounds(model, x, LpBall(0.1))
    with torch.no_grad():
        net.head.weight.mul_(2)
        net.head.bias.mul_(2)
    after = logit_bounds(model, x, LpBall(0.1))
    torch.testing.assert_close(after.lower, 2 * before.lower)
    net.squash = torch.sigmoid
    torch.testing.assert_close(logit_bounds(model, x, LpBall(0.0)).lower, net(x))


def test_a_wrapper_with_hooks_is_refused():
    net, x, _ = net_and_inputs()
    model = parallel(net, None)
    model.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(UnsupportedModelError, match="hooks of its own"):
        logit_bounds(model, x, LpBall(0.1))


class Fitted(Classifier):
    """Trains the net on a certified loss."""

    def __init__(self, wrap):
        super().__init__()
        self.net = Net() if wrap is None else wrap(Net(), "eager")
        self.loss = CertifiedLoss(0.05, kappa=0.5)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self, *batch)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("wrap", [whole, parts, parts_in_place], ids=lambda wrap: wrap.__name__)
def test_the_monitor_sees_the_same_radii_in_a_compiled_model(wrap):
    radii = []
    for kind in (None, wrap):
        torch.manual_seed(1)
        monitor = CertifiedRadiusMonitor(samples=4, method="crown-ibp")
        fit(monitor, module=Fitted(kind), epochs=1)
        radii.append(monitor.last.radii)
    torch.testing.assert_close(*radii, rtol=2e-2, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # from the compiler
def test_a_lightning_module_that_is_compiled_as_a_whole_is_monitored():
    monitor = CertifiedRadiusMonitor(samples=4, method="crown-ibp")
    fit(monitor, module=torch.compile(Fitted(None), backend="eager"), epochs=1)
    assert len(monitor.last.radii) == 4


def test_a_model_in_distributed_data_parallel_is_bounded_and_trained():
    net, x, y = net_and_inputs()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(net)
        loss = CertifiedLoss(0.05, kappa=0.5)
        expected = loss(net, x, y)
        found = loss(model, x, y)
        torch.testing.assert_close(found, expected)
        found.backward()
        assert all(weight.grad.isfinite().all() for weight in net.parameters())
        assert certify(model, x, y, LpBall(0.0)).certified.all()
    finally:
        torch.distributed.destroy_process_group()


def test_random_numbers_in_code_that_forward_compiles_itself_are_seen_at_the_first_call():
    code = """
import sys, torch
from torch import nn
from popqorn_train import LpBall, certify
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 3)
    def forward(self, x):
        noisy = torch.compile(lambda h: h + 1e-9 * torch.rand_like(h), backend="eager")
        return self.head(noisy(self.rnn(x)[0][:, -1]))
assert "torch._dynamo" not in sys.modules
certify(Net(), torch.rand(2, 2, 3), torch.tensor([0, 1]), LpBall(0.1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "draws random numbers in eval mode (rand_like" in done.stderr
