"""What a training step of every objective costs, in steps of standard training.

python tests/benchmarks/objectives.py [--rounds 5]

A step is loss, gradients and Adam, with all settings as an objective has them by default; standard
is cross entropy on ``model(x)``. Random inputs in [0, 1]; one CPU thread, process time of the
fastest of several steps, each measured beside standard ones. "of a cell loop" divides by the step
of the same cell unrolled by hand, since bounds are Python loops over frames and a fused layer is
not.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from popqorn_train.objectives import OBJECTIVES


class Net(nn.Module):
    """A recurrent layer and a linear read-out of its last state."""

    def __init__(self, rnn: nn.RNNBase, classes: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Unrolled(nn.Module):
    """The same as a loop over a cell."""

    def __init__(self, cell: nn.RNNCellBase, classes: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for frame in x.unbind(1):
            h = self.cell(frame, h)
        return self.head(h)


class Task(NamedTuple):
    """A model, a batch, and the epsilon to train for."""

    name: str
    net: Net
    loop: Unrolled
    x: Tensor
    y: Tensor
    epsilon: float


def tasks() -> list[Task]:
    torch.manual_seed(0)

    def batch(size: int, frames: int, features: int, classes: int) -> tuple[Tensor, Tensor]:
        return torch.rand(size, frames, features), torch.arange(size) % classes

    gru = Net(nn.GRU(8, 32, batch_first=True), 10), Unrolled(nn.GRUCell(8, 32), 10)
    speech = Net(nn.GRU(12, 32, batch_first=True), 9), Unrolled(nn.GRUCell(12, 32), 9)
    rnn = Net(nn.RNN(196, 128, batch_first=True), 10), Unrolled(nn.RNNCell(196, 128), 10)
    return [
        Task("digits: GRU 32, 8 frames, batch 64", *gru, *batch(64, 8, 8, 10), 0.05),
        Task("speech: GRU 32, 29 frames of 12, batch 64", *speech, *batch(64, 29, 12, 9), 0.05),
        Task("MNIST 4x196: RNN 128, batch 256", *rnn, *batch(256, 4, 196, 10), 0.1),
    ]


def seconds(net: nn.Module, loss: Callable[[], Tensor], rounds: int) -> float:
    """Process time of the fastest step, after one that traces."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-5)
    taken = []
    for _ in range(rounds + 1):
        started = time.process_time()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        taken.append(time.process_time() - started)
    return min(taken[1:])


def measure(task: Task, rounds: int) -> None:
    """Print a line for every objective."""
    print(task.name)

    def standard(net: nn.Module) -> float:
        return seconds(net, lambda: cross_entropy(net(task.x), task.y), 10 * rounds)

    for name, make in OBJECTIVES.items():
        settings = {} if name == "standard" else {"low": 0.0, "high": 1.0}
        loss = make(*([task.epsilon] if settings else []), **settings)
        before, loop = standard(task.net), standard(task.loop)
        own = seconds(task.net, lambda loss=loss: loss(task.net, task.x, task.y), rounds)
        before = min(before, standard(task.net))
        cells = f"{1000 * own:12.1f}{own / before:12.1f}{own / loop:12.1f}"
        print(f"  {name:<12}{cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{'':<14}{'ms a step':>12}{'of standard':>12}{'of a loop':>12}")
    for task in tasks():
        measure(task, rounds)


if __name__ == "__main__":
    main()
