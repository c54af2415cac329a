"""What a training step on certified bounds costs, beside a standard one of the same network.

python tests/benchmarks/training.py [--cell LSTM] [--methods ibp crown-ibp one-row popqorn]
    [--tables steps tight]

A step is the loss and its gradients. The standard ones, by cross entropy, run torch's own layer
("fused"), and the cell written out in Python ("unrolled": gates in one product, the projection of
the inputs outside the loop), which is what the bounds are made of; ratios are to that one. Inputs
in [0, 1], l_inf, clipped, epsilon .1, float32, one CPU thread. Weights are random, the recurrent
ones half as large as torch draws them: else the intervals of a vanilla RNN saturate, and gradients
through 28 frames become denormal numbers, which no CPU multiplies fast. Milliseconds of process
time, the median of several rounds in which all take turns, so that noise is shared. Every 20th
certified step also compares the trace with the model; "check" is the share of that in the average
step. "one-row" is ``crown-ibp`` with ``fused=True``, one backward row per sample in place of nine.
"compiled" is ``crown-ibp`` with ``compiled=True``; the last column has the seconds of compiling it.
``popqorn``, quadratic in the frames, is left out on long sequences and wide layers.

The second table has ``popqorn-fast`` beside ``popqorn``, on smaller networks with weights as torch
draws them, at epsilon .005: the fastest of all rounds, with compiled loops and without.
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from popqorn_train import CertifiedLoss, bound
from popqorn_train.kernels.library import SWITCH
from popqorn_train.objectives import crown_ibp
from popqorn_train.training.objective import CHECK_EVERY, Objective

CELLS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
SIZES = ((4, 196, 128, 256), (7, 112, 64, 256), (28, 28, 64, 256), (8, 8, 32, 64))
TIGHT = ("popqorn-fast", "popqorn")
TIGHT_SIZES = ((7, 112, 32, 32), (14, 56, 32, 16))
METHODS = ("ibp", "crown-ibp", "compiled", "one-row", "popqorn")
LARGEST = 8 * 32  # frames times units, up to which popqorn is timed
CLASSES = 10
Step = Callable[[Tensor, Tensor], Tensor]


class Fused(nn.Module):
    """Torch's own layer, and a linear read-out of its last state."""

    def __init__(self, cell: str, features: int, hidden: int) -> None:
        super().__init__()
        self.cell = cell
        self.rnn = CELLS[cell](features, hidden, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the last hidden state."""
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


class Unrolled(Fused):
    """The same network, frame by frame."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the last hidden state."""
        w_ih, w_hh, b_ih, b_hh = (weight for _, weight in self.rnn.named_parameters())
        if self.cell == "GRU":
            h = self._gru(linear(x, w_ih, b_ih), w_hh, b_hh)
        elif self.cell == "LSTM":
            h = self._lstm(linear(x, w_ih, b_ih + b_hh), w_hh)
        else:
            h = self._rnn(linear(x, w_ih, b_ih + b_hh), w_hh)
        logits: Tensor = self.head(h)
        return logits

    def _rnn(self, inputs: Tensor, w_hh: Tensor) -> Tensor:
        h = inputs.new_zeros(len(inputs), self.rnn.hidden_size)
        for x in inputs.unbind(1):
            h = (x + h @ w_hh.T).tanh()
        return h

    def _lstm(self, inputs: Tensor, w_hh: Tensor) -> Tensor:
        h = c = inputs.new_zeros(len(inputs), self.rnn.hidden_size)
        for x in inputs.unbind(1):
            i, f, g, o = (x + h @ w_hh.T).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h

    def _gru(self, inputs: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
        h = inputs.new_zeros(len(inputs), self.rnn.hidden_size)
        for x in inputs.unbind(1):
            (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, 1), linear(h, w_hh, b_hh).chunk(3, 1)
            z = (x_z + h_z).sigmoid()
            n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
            h = n + z * (h - n)
        return h


def standard(model: nn.Module) -> Step:
    """A step on cross entropy."""
    return lambda x, target: cross_entropy(model(x), target)


def certified(model: nn.Module, method: str) -> Step:
    """A step on the bounds alone."""
    loss: Objective
    if method == "one-row":
        loss = crown_ibp(0.1, low=0.0, high=1.0, fused=True)
    elif method == "compiled":
        loss = CertifiedLoss(0.1, low=0.0, high=1.0, method="crown-ibp", compiled=True)
    else:
        loss = CertifiedLoss(0.1, low=0.0, high=1.0, method=method)
    return lambda x, target: loss(model, x, target)


def milliseconds(call: Callable[[], object]) -> float:
    """CPU time of a call."""
    started = time.process_time()
    call()
    return 1e3 * (time.process_time() - started)


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of every call, all taking turns."""
    for call in (*calls.values(), *calls.values()):
        call()
    spent = [{name: milliseconds(call) for name, call in calls.items()} for _ in range(rounds)]
    return {name: median(one[name] for one in spent) for name in calls}


def row(cell: str, size: tuple[int, int, int, int], methods: list[str], rounds: int) -> str:
    """One line of the table."""
    frames, features, hidden, batch = size
    torch.manual_seed(0)
    fused, unrolled = Fused(cell, features, hidden), Unrolled(cell, features, hidden)
    with torch.no_grad():
        fused.rnn.get_parameter("weight_hh_l0").div_(2)
    unrolled.load_state_dict(fused.state_dict())
    x, target = torch.rand(batch, frames, features), torch.randint(CLASSES, (batch,))
    torch.testing.assert_close(unrolled(x), fused(x))
    steps = {"fused": standard(fused), "unrolled": standard(unrolled)}
    if frames * hidden > LARGEST:
        methods = [method for method in methods if method != "popqorn"]
    steps |= {method: certified(fused, method) for method in methods}

    def call(step: Step) -> Callable[[], None]:
        def run() -> None:
            fused.zero_grad()
            unrolled.zero_grad()
            step(x, target).backward()

        return run

    calls: dict[str, Callable[[], object]] = {name: call(step) for name, step in steps.items()}
    layer = bound(fused)
    compiling = time.perf_counter()
    for _ in range(2 if "compiled" in calls else 0):
        calls["compiled"]()  # the first one is compared with the model
    compiling = time.perf_counter() - compiling
    calls |= {f"case, {on}": lambda on=on: layer.instance(x, check=on) for on in (False, True)}
    spent = medians(calls, rounds)
    check = (spent["case, True"] - spent["case, False"]) / CHECK_EVERY
    base, shape = spent["unrolled"], f"{frames}x{features}, {hidden}"
    costs = "".join(
        f"{spent[method]:>10.1f} {spent[method] / base:>6.1f}" if method in spent else f"{'-':>17}"
        for method in METHODS
    )
    ends = f"{check:>6.2f} {compiling:>9.0f}"
    return f"{cell:<5} {shape:<11} {spent['fused']:>6.1f} {base:>8.1f}{costs} {ends}"


def tight_row(cell: str, size: tuple[int, int, int, int], rounds: int) -> str:
    """One line of the table of tight methods."""
    frames, features, hidden, batch = size
    torch.manual_seed(0)
    model = Fused(cell, features, hidden)
    x, target = torch.rand(batch, frames, features), torch.randint(CLASSES, (batch,))
    losses = {m: CertifiedLoss(0.005, low=0.0, high=1.0, method=m) for m in TIGHT}

    def call(loss: CertifiedLoss) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad()
            loss(model, x, target).backward()

        return run

    cells = []
    for switch in ("1", "0"):
        os.environ[SWITCH] = switch
        calls = {name: call(loss) for name, loss in losses.items()}
        for run in calls.values():
            run()
        spent = [{name: milliseconds(run) for name, run in calls.items()} for _ in range(rounds)]
        fast, slow = (min(one[name] for one in spent) for name in TIGHT)
        cells.append(f"{fast:>10.0f}{slow:>9.0f}{fast / slow:>7.2f}")
    os.environ[SWITCH] = "1"
    return f"{cell:<5} {f'{frames}x{features}, {hidden}, {batch}':<16}" + "".join(cells)


def steps_table(given: argparse.Namespace) -> None:
    """Certified steps beside standard ones."""
    names = "".join(f"{method:>10} {'ratio':>6}" for method in METHODS)
    ends = f"{'check':>6} {'compiling':>9}"
    print(f"{'cell':<5} {'T x N, H':<11} {'fused':>6} {'unrolled':>8}{names} {ends}")
    for size in given.sizes:
        for cell in given.cell:
            print(row(cell, SIZES[size], given.methods, given.rounds), flush=True)


def tight_table(given: argparse.Namespace) -> None:
    """Both tight methods beside each other."""
    print(f"{'':<22}{'compiled loops':>26}{'torch alone':>26}")
    print(f"{'cell':<5} {'T x N, H, batch':<16}" + 2 * f"{'fast':>10}{'popqorn':>9}{'ratio':>7}")
    for size in TIGHT_SIZES:
        for cell in given.cell:
            print(tight_row(cell, size, given.rounds), flush=True)


TABLES = {"steps": steps_table, "tight": tight_table}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Cost of a certified training step.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cell", choices=CELLS, nargs="+", default=list(CELLS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[*range(len(SIZES))])
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--tables", choices=TABLES, nargs="+", default=list(TABLES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.tables:
        TABLES[name](given)


if __name__ == "__main__":
    main()
