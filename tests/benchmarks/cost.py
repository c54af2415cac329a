"""What a certificate costs, and how the cost grows with frames, units and samples.

python tests/benchmarks/cost.py [--method popqorn]

Random weights, inputs of 28 features in [0, 1], l_inf, clipped, epsilon .002, confirmed in
float64; one CPU thread, process time of the faster of two calls after one that traces. Seconds an
image are also given in products of two 1000 x 1000 float32 matrices on the same machine, so that
figures of different machines compare.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from popqorn_train import LpBall, certify

CELLS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "tanh RNN": nn.RNN}
FRAMES, UNITS, SAMPLES = (7, 14, 28), (16, 32, 64), (1, 4, 16)
BALL = LpBall(0.002, low=0.0, high=1.0)


class Net(nn.Module):
    """A recurrent layer and a linear read-out of its last state."""

    def __init__(self, cell: type[nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.rnn = cell(28, hidden, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the last hidden state."""
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def fastest(call: Callable[[], object]) -> float:
    """CPU seconds of a call, warm."""
    call()
    seconds = []
    for _ in range(2):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return min(seconds)


def seconds_of(cell: str, method: str, *, frames: int, units: int, samples: int) -> float:
    """CPU seconds of one certificate of a batch."""
    torch.manual_seed(0)
    net, x = Net(CELLS[cell], units), torch.rand(samples, frames, 28)
    target = net(x).argmax(1)
    return fastest(lambda: certify(net, x, target, BALL, method=method))


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    x = torch.tensor([math.log(size) for size in sizes], dtype=torch.float64)
    y = torch.tensor([math.log(value) for value in seconds], dtype=torch.float64)
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()


def grow(cell: str, method: str, what: str, sizes: Sequence[int]) -> None:
    """Print the cost at every size of one thing, and the exponent."""
    base = {"frames": 14, "units": 32, "samples": 8}
    seconds = [seconds_of(cell, method, **{**base, what: size}) for size in sizes]
    columns = "  ".join(
        f"{size}: {value:.3f} s" for size, value in zip(sizes, seconds, strict=True)
    )
    print(f"{cell:<9} {what:<8} {columns}   exponent {exponent(sizes, seconds):.2f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Cost of a certificate.")
    parser.add_argument("--method", default="popqorn")
    method = parser.parse_args().method
    torch.set_num_threads(1)
    square = torch.rand(1000, 1000)
    unit = fastest(lambda: [square @ square for _ in range(20)]) / 20
    print(f"a 1000 x 1000 float32 product: {unit:.4f} s; method {method}")
    for cell in CELLS:
        seconds = seconds_of(cell, method, frames=28, units=64, samples=4) / 4
        share = f"{seconds / unit:.0f} products"
        print(f"{cell:<9} 28 frames, 64 units: {seconds:.3f} s an image, {share}", flush=True)
    print("a batch of 8, 14 frames, 32 units, but for what grows:")
    for cell in CELLS:
        for what, sizes in (("frames", FRAMES), ("units", UNITS), ("samples", SAMPLES)):
            grow(cell, method, what, sizes)


if __name__ == "__main__":
    main()
