"""Nothing that a GPU would refuse: tensors of two devices that meet, and waiting inside a pass."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from popqorn_train import CertifiedLoss, LpBall, bound, certified_radius, certify, frame_radii
from popqorn_train.bounds.methods import METHODS
from popqorn_train.certificates.margins import margin_rows, other_classes
from popqorn_train.certificates.pgd import attack
from popqorn_train.kernels.library import SWITCH
from popqorn_train.nested import map_nested
from tests.fitting import Classifier
from tests.other_device import NAME, DeviceMixError, OtherDevice
from tests.zoo import zoo

ZOO = zoo()
CELLS = [nn.RNN, nn.LSTM, nn.GRU]
# The stand-in does not follow writes into slices that a tracer records, nor packed inputs, whose
# sizes of batches stay on the processor.
LEFT_OUT = ("CollectedStates", "PackedInput")


def there(value):
    return map_nested(value, torch.Tensor, lambda x: x.to(NAME))


def test_the_stand_in_tells_devices_apart():
    with OtherDevice():
        here = torch.ones(3)
        other = here.to(NAME)
        assert (here.device.type, other.device.type) == ("cpu", NAME)
        assert (other + 1).device == torch.zeros_like(other).device == other.device
        assert torch.zeros(2, device=other.device).device == other.device
        assert other.cpu().device == here.device
        with pytest.raises(DeviceMixError, match="meet"):
            here + other
        with pytest.raises(DeviceMixError, match="numpy"):
            other.numpy()


def in_turn(every=8):
    """Every so many-th model with the next of the methods in the fast run, all in the slow one."""
    for at, name in enumerate(name for name in ZOO if name not in LEFT_OUT):
        for turn, method in enumerate(METHODS):
            fast = at % every == 0 and at // every % len(METHODS) == turn
            yield pytest.param(name, method, marks=[] if fast else pytest.mark.slow)


@pytest.mark.one_in(4)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(("name", "method"), in_turn())
def test_nothing_is_made_on_the_processor_for_a_model_elsewhere(name, method):
    model, x = ZOO[name]
    with OtherDevice():
        layer, x = bound(model).to(NAME), there(x)
        instance = layer.instance(x)
        y = instance.logits(instance.center).argmax(1)
        margins = certify(layer, x, y, LpBall(0.01), method=method).margins
        assert margins.device.type == NAME


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cell", CELLS)
def test_radii_losses_and_attacks_stay_where_the_model_is(cell):
    module, x = Classifier(cell), torch.randn(4, 4, 3)
    with OtherDevice():
        module, x = module.to(NAME), there(x)
        CertifiedLoss(0.02, kappa=0.3, alpha=0.5)(module, x, there(torch.arange(4) % 3)).backward()
        module.eval()
        y = module(x).argmax(1)
        radii = certified_radius(module, x, y, method="popqorn-fast")
        assert radii.device.type == frame_radii(module, x, y).device.type == NAME
        assert attack(module, x, y, LpBall(radii)).margin.device.type == NAME


class _Waits(TorchDispatchMode):
    """Notes what makes a processor wait for a GPU: numbers read, and places looked for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "popqorn"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_pass_never_waits(cell, method, monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    module, x = Classifier(cell).eval(), torch.randn(4, 4, 3)
    with OtherDevice():
        module, x = module.to(NAME), there(x)
        y = module(x).argmax(1)
        graph = bound(module).instance(x).graph(LpBall(0.02))
        rows, waits = margin_rows(y, 3, x, other_classes(y, 3)), _Waits()
        with torch.no_grad(), waits:
            METHODS[method].bounded(graph, rows)
    assert waits.found == []
