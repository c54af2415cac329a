"""What bounds, radii and training steps cost on a CUDA device.

python tests/benchmarks/gpu.py [passes] [radii] [steps]

Without a name, all of them. Wall seconds after warm-up, the device synchronised, the fastest of
some turns. The share is that of the rate of a large float32 product of matrices, without TF32,
which a certificate never uses. Weights are random but for the radii, where the golden file of the
LSTM is read if it is there; images are MNIST where its file is, uniform noise elsewhere.
"""

import copy
import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from peers import GOLDEN, LIRPA, load

from popqorn_train import CertifiedLoss, LpBall, bound, certified_radius, certify
from popqorn_train.bounds.methods import METHODS
from popqorn_train.certificates.margins import margin_rows, other_classes

CLASSES, LARGE = 10, 8192
MNIST = GOLDEN.parent / "data" / "mnist.npz"
PASSES = ("ibp", "crown-ibp", "popqorn-fast", "popqorn")


class Size(NamedTuple):
    """Of a network and its batch."""

    frames: int
    hidden: int
    samples: int
    epsilon: float

    @property
    def title(self) -> str:
        """As tables have it."""
        return f"T {self.frames} H {self.hidden} B {self.samples}"


SIZES = (Size(4, 32, 1000, 0.01), Size(28, 128, 256, 0.001))


class Classifier(nn.Module):
    """One LSTM and a linear read-out of its last state."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.rnn, self.head = (
            nn.LSTM(features, hidden, batch_first=True),
            nn.Linear(hidden, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def problem(size: Size) -> tuple[Classifier, Tensor, Tensor]:
    """A network with random weights, images and their labels."""
    torch.manual_seed(0)
    net = Classifier(784 // size.frames, size.hidden).cuda().eval()
    return net, *images(size.samples, size.frames)


def seconds(run: Callable[[], object], turns: int = 3) -> float:
    """The fastest of some turns, after one that warms up."""
    spent = []
    for _ in range(turns + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
    return min(spent[1:])


def matmul_rate() -> float:
    """Operations a second of one large float32 product."""
    one = torch.randn(LARGE, LARGE, device="cuda")
    return 2 * LARGE**3 / seconds(lambda: one @ one)


def images(count: int, frames: int) -> tuple[Tensor, Tensor]:
    """Some images in frames, and their labels, on the device."""
    if not MNIST.is_file():
        return torch.rand(count, frames, 784 // frames).cuda(), torch.arange(count).cuda() % CLASSES
    with np.load(MNIST, allow_pickle=False) as data:
        x = torch.tensor(data["x_test"][:count]).float().div(255)
        y = torch.tensor(data["y_test"][:count]).long()
    return x.view(count, frames, -1).cuda(), y.cuda()


def passes() -> None:
    """Bounds alone, graphs ready."""
    rate = matmul_rate()
    print(f"\none pass of bounds; a product of matrices: {rate / 1e12:.1f} TFLOP/s")
    print(f"{'LSTM':<20}{'method':<14}{'seconds':>9}{'GiB':>7}{'TFLOP':>8}{'share':>7}")
    for size, name in itertools.product(SIZES, PASSES):
        one_pass(size, name, rate)


def one_pass(size: Size, name: str, rate: float) -> None:
    """One row of the table."""
    net, x, _ = problem(size)
    with torch.no_grad():
        y = net(x).argmax(1)
        case, ball = bound(net).instance(x), LpBall(size.epsilon, low=0.0, high=1.0)
        rows = margin_rows(y, CLASSES, x, other_classes(y, CLASSES))
        torch.cuda.reset_peak_memory_stats()
        spent = seconds(lambda: METHODS[name].bounded(case.graph(ball), rows), turns=2)
        with FlopCounterMode(display=False) as counter:
            METHODS[name].bounded(case.graph(ball), rows)
    work, peak = counter.get_total_flops(), torch.cuda.max_memory_allocated() / 2**30
    row = f"{size.title:<20}{name:<14}{spent:>9.3f}{peak:>7.2f}{work / 1e12:>8.3f}"
    print(f"{row}{work / spent / rate:>7.2f}", flush=True)


def radii() -> None:
    """Radii of 1000 images by an LSTM of 32 units in 4 frames; what the CPU says of the first."""
    if GOLDEN.is_dir():
        net: nn.Module = load(*LIRPA["LSTM 4 frames"]).net.float().eval()
    else:
        net = Classifier(196, 32).eval()
    net, (x, y) = net.cuda(), images(1000, 4)
    print(f"\nradii of {len(x)} images, 4 frames, LSTM 32, clipped to [0, 1], rtol 1e-2")
    print(f"{'method':<14}{'seconds':>9}{'median':>10}{'CPU - GPU':>11}")
    for name in ("crown-ibp", "popqorn-fast", "popqorn"):
        ask: dict[str, Any] = {"method": name, "low": 0.0, "high": 1.0}
        certified_radius(net, x[:8], y[:8], **ask)
        torch.cuda.synchronize()
        started = time.perf_counter()
        median = certified_radius(net, x, y, **ask).median().item()
        spent, gap = time.perf_counter() - started, gap_to_cpu(net, x[:20], y[:20], name)
        print(f"{name:<14}{spent:>9.2f}{median:>10.5f}{gap:>11.1e}", flush=True)


def gap_to_cpu(net: nn.Module, x: Tensor, y: Tensor, method: str) -> float:
    """The largest difference of margins, in float64."""
    net, x, ball = copy.deepcopy(net).double(), x.double(), LpBall(0.01, low=0.0, high=1.0)
    there = certify(net, x, y, ball, method=method).margins.cpu()
    here = certify(net.cpu(), x.cpu(), y.cpu(), ball, method=method).margins
    return (here - there).abs().nan_to_num(0).max().item()


def steps() -> None:
    """Training steps: the loss, its gradients and Adam."""
    print("\ntraining steps of 256 images, milliseconds; cross entropy runs cuDNN's layer")
    print(
        f"{'LSTM':<20}{'plain':>8}{'ibp':>9}{'ratio':>7}{'crown-ibp':>11}{'ratio':>7}{'compiled':>10}{'ratio':>7}"
    )
    for size in SIZES:
        one_step(size._replace(samples=256))


def one_step(size: Size) -> None:
    """One row of the table."""
    net, x, y = problem(size)
    adam = torch.optim.Adam(net.train().parameters())
    plain = seconds(lambda: step(adam, cross_entropy(net(x), y)), turns=10)
    cells = f"{size.title:<20}{1e3 * plain:>8.2f}"
    for name, width, compiled in (
        ("ibp", 9, False),
        ("crown-ibp", 11, False),
        ("crown-ibp", 10, True),
    ):
        loss = CertifiedLoss(size.epsilon, method=name, low=0.0, high=1.0, compiled=compiled)
        spent = seconds(functools.partial(certified_step, adam, loss, net, x, y), turns=10)
        cells += f"{1e3 * spent:>{width}.1f}{spent / plain:>7.1f}"
    print(cells, flush=True)


def certified_step(adam: Adam, loss: CertifiedLoss, net: nn.Module, x: Tensor, y: Tensor) -> None:
    """One step on a certified loss."""
    step(adam, loss(net, x, y))


def step(adam: Adam, loss: Tensor) -> None:
    """One step down."""
    adam.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    adam.step()


def main() -> None:
    """Print the tables asked for."""
    parts = {"passes": passes, "radii": radii, "steps": steps}
    if not set(sys.argv[1:]) <= parts.keys():
        sys.exit(f"Expected some of {', '.join(parts)}, got {' '.join(sys.argv[1:])}.")
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
