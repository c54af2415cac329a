"""What popqorn-fast costs and reaches beside popqorn.

python tests/benchmarks/fast.py [golden] [long]

Without a name, both. Process time of one CPU thread for the bounds of 20 images alone, graphs ready
(tracing and probing cost the same for every method); the fastest of some turns, with compiled
loops in both methods and in neither. `golden` reads the golden files, like peers.py.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from peers import GOLDEN, LIRPA, load

from popqorn_train import LpBall, bound, certified_radius
from popqorn_train.bounds.methods import METHODS
from popqorn_train.certificates.margins import margin_rows, other_classes
from popqorn_train.kernels.library import SWITCH, kernels

NAMES = ("popqorn", "popqorn-fast")
# model: epsilon, the share of the time and of the median radius that are asked
ASKED = {
    "LSTM 4 frames": (0.015, 0.28, 0.94),
    "LSTM 7 frames": (0.013, 0.28, 0.92),
    "GRU 7 frames": (0.008, 0.24, 0.94),
    "tanh RNN 7 frames": (0.01, 0.2, 0.94),
}


def seconds(net: nn.Module, x: Tensor, y: Tensor, ball: LpBall, turns: int) -> dict[str, float]:
    """Seconds an image of the bounds alone, by method."""
    case = bound(net).instance(x)
    rows = margin_rows(y, 10, x, other_classes(y, 10))
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    with torch.no_grad():
        for turn in range(turns + 1):
            for name, spent in found.items():
                graph = case.graph(ball)
                started = time.process_time()
                METHODS[name].bounded(graph, rows)
                if turn:  # the first one warms up
                    spent.append(time.process_time() - started)
    return {name: min(spent) / len(x) for name, spent in found.items()}


def row(title: str, net: nn.Module, x: Tensor, y: Tensor, ball: LpBall, turns: int = 5) -> None:
    """Print milliseconds and ratios in both precisions, with compiled loops and without."""
    for dtype in (torch.float32, torch.float64):
        net, x = net.to(dtype), x.to(dtype)
        cells = []
        for switch in ("1", "0"):
            os.environ[SWITCH] = switch
            spent = seconds(net, x, y, ball, turns)
            slow, fast = (1e3 * spent[name] for name in NAMES)
            cells.append(f"{slow:9.1f}{fast:9.1f}{fast / slow:8.2f}")
        os.environ[SWITCH] = "1"
        kind = str(dtype).removeprefix("torch.")
        print(f"{f'{title}, {kind}':<34}" + "".join(cells), flush=True)


def golden() -> None:
    """Four networks whose results other verifiers are compared with, and their median radii."""
    if not GOLDEN.is_dir():
        sys.exit("The golden files are not here; set POPQORN_GOLDEN to their folder.")
    for title, (epsilon, time_asked, radius_asked) in ASKED.items():
        net, x, y, _ = load(*LIRPA[title])
        domain: dict[str, Any] = {"low": 0.0, "high": 1.0}
        row(title, net, x, y, LpBall(epsilon, **domain))
        net, x = net.float(), x.float()
        medians = [
            certified_radius(net, x, y, method=name, **domain).median().item() for name in NAMES
        ]
        print(
            f"  asked {time_asked} of the time; median radius {medians[1]:.5f}, "
            f"{medians[1] / medians[0]:.3f} of that of popqorn, asked {radius_asked}"
        )


class Net(nn.Module):
    """One recurrent layer on 28 features."""

    def __init__(self, cell: type[nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.rnn, self.head = cell(28, hidden, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The last state."""
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def long() -> None:
    """Twenty-eight frames, 64 units, random weights, four images."""
    for cell in (nn.LSTM, nn.GRU, nn.RNN):
        torch.manual_seed(0)
        net, x = Net(cell, 64), torch.rand(4, 28, 28)
        row(f"{cell.__name__} 28 frames, 64 units", net, x, net(x).argmax(1), LpBall(0.001), 1)
    print("  asked .2 of the time for the LSTM")


PARTS = {"golden": golden, "long": long}


def main() -> None:
    """Print the parts that are named, or both."""
    if unknown := set(sys.argv[1:]) - set(PARTS):
        sys.exit(f"Unknown part {sorted(unknown)[0]!r}; choose from {', '.join(PARTS)}.")
    torch.set_num_threads(1)
    if kernels().library is None:
        print(f"No compiled loops: {kernels().reason}")
    heads = f"{'popqorn':>9}{'fast':>9}{'ratio':>8}"
    print(f"{'ms an image':<34}{'compiled loops':>26}{'torch alone':>26}\n{'':<34}{heads}{heads}")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
