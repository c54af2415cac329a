"""Print what it costs to trace a model anew and to probe its certificate, beside the bounds.

python tests/benchmarks/probes.py

Reads the folder named by POPQORN_GOLDEN like peers.py; small networks need none. One CPU thread;
milliseconds of process time, the least of several runs.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from peers import LIRPA, load

from popqorn_train import LpBall, bound
from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import METHODS
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.margins import (
    chunked_margins,
    enclosed_margins,
    least,
    proved,
)
from popqorn_train.certificates.module_probe import Claim
from popqorn_train.certificates.probes import Probes

BATCH, EPSILON, RUNS = 20, 0.01, 7


class Small(nn.Module):
    """One recurrent layer and a read-out."""

    def __init__(self, kind: str, features: int, hidden: int) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits from the last state."""
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def least_ms(run: Callable[[], Any]) -> float:
    """Milliseconds of the quickest run."""
    times = []
    for _ in range(RUNS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return 1e3 * min(times)


def measure(title: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Print one row."""
    ball, layer, method = LpBall(EPSILON, low=0.0, high=1.0), bound(net), METHODS["popqorn"]
    with torch.no_grad(), undisturbed(net):
        instance = layer.instance(x, torch.float64)
        every = torch.arange(len(y))
        bounds = least_ms(lambda: chunked_margins(instance, y, ball, method, Chunks(None), every))
        graph = instance.graph(ball)
        margins, found = enclosed_margins(graph, y, method, instance.value)
        claim = Claim(proved(least(margins)), margins)

        def probe() -> None:
            probes = Probes(layer, instance, y, 8)
            probes.nodes(every, graph, found)
            probes.certificate(ball, claim)

        probed, known = least_ms(probe), least_ms(lambda: layer.instance(x, torch.float64))
    extra = least_ms(lambda: layer.instance(x)) - known
    shares = f"{(extra + probed) / bounds:>8.0%}"
    print(f"{title:<20}{bounds:>9.1f}{extra:>9.1f}{probed:>9.1f}{extra + probed:>9.1f}{shares}")


def main() -> None:
    """Golden networks, where they are to be had, and small ones."""
    torch.set_num_threads(1)
    print(f"{'ms at B = 20':<20}{'bounds':>9}{'trace':>9}{'probes':>9}{'both':>9}{'share':>8}")
    for title in ("LSTM 4 frames", "LSTM 7 frames", "GRU 7 frames", "tanh RNN 7 frames"):
        try:
            net, x, y, _ = load(*LIRPA[title])
        except FileNotFoundError:
            continue
        measure(title, net, x[:BATCH], y[:BATCH])
    for kind in ("RNN", "GRU", "LSTM"):
        torch.manual_seed(0)
        net, x = Small(kind, 3, 8).eval(), torch.rand(BATCH, 8, 3)
        measure(f"{kind} 8, 8 frames", net, x, net(x).argmax(1))


if __name__ == "__main__":
    main()
