"""What a certificate costs, and how the cost grows with frames, units and samples.

python tests/benchmarks/cost.py [--cells LSTM,GRU] [--methods popqorn] [--compare old.json]

Random weights, inputs of 28 features in [0, 1], l_inf, clipped, epsilon .002, confirmed in
float64; one CPU thread, process time. Every pass runs once before it is timed, and once more to
count operations of torch (those in compiled loops are one call) and the bytes that live at once. A
case that the power law through the smaller ones expects to take longer than ``--most`` seconds is
predicted by it and marked "~". Radii are searched where ten passes are within that limit.

``--compare`` names the file of an earlier run (``--out``): cases whose operations have grown by
more than a tenth are listed, and the status is 1.
"""

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from popqorn_train import LpBall, certify, search_radius
from popqorn_train.kernels.library import kernels

CELLS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "tanh RNN": nn.RNN}
METHODS = ("ibp", "crown-ibp", "popqorn-fast", "popqorn")
FRAMES, UNITS, BATCHES = (4, 8, 16, 32, 64), (32, 128, 512), (1, 16)
BALL = LpBall(0.002, low=0.0, high=1.0)
GROWN = 1.1  # times the operations of the earlier run
_TRIED = 6  # short cases by which others can be predicted
LARGEST = 2**33  # bytes; what is expected to need more is not tried
_SIZES = ("frames", "units", "batch")
_USUAL = {  # exponents
    "seconds": (2, 2, 1),
    "bytes": (1, 2, 1),
    "operations": (2, 0, 0),
    "products": (2, 2, 1),
}


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


@dataclass(frozen=True)
class Case:
    """What is certified, and what it costs.

    Attributes:
        cell: one of ``CELLS``.
        method: bounding method.
        frames: T.
        units: H.
        batch: B.
        seconds: of a pass over the batch.
        radius: seconds of a search for the radii of the batch; None where it was left out.
        bytes: that live at once, inputs and weights not counted.
        operations: of torch.
        products: floating-point operations in products of matrices.
        measured: whether it was; the power law says it otherwise.
    """

    cell: str
    method: str
    frames: int
    units: int
    batch: int
    seconds: float
    radius: float | None
    bytes: float
    operations: float
    products: float
    measured: bool = True

    @property
    def name(self) -> str:
        """What it is, without what it costs."""
        return f"{self.cell} {self.method} T={self.frames} H={self.units} B={self.batch}"


def timed(call: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def measured(cell: str, method: str, sizes: tuple[int, int, int], most: float) -> Case:
    """Run a case."""
    frames, units, batch = sizes
    torch.manual_seed(0)
    net, x = Net(CELLS[cell], units).eval(), torch.rand(batch, frames, 28)
    target = net(x).argmax(1)

    def once() -> None:
        certify(net, x, target, BALL, method=method)

    once()
    seconds = timed(once)
    with _Counter() as counted:
        once()
    peak, radius = _peak(once), None
    if 10 * seconds < most:
        found = {"ball": LpBall(0.0, low=0.0, high=1.0), "method": method}
        radius = timed(lambda: search_radius(net, x, target, **found))  # type: ignore[arg-type]
    numbers = (seconds, radius, peak, counted.operations, counted.products)
    return Case(cell, method, *sizes, *numbers)


class _Counter(TorchDispatchMode):
    """Counts operations, and floating-point operations in products."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        count = flop_registry.get(func.overloadpacket)
        self.products += 0 if count is None else count(*args, **(kwargs or {}), out_val=out)
        return out


def _peak(call: Callable[[], object]) -> int:
    """The most bytes that a call has at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = [one for one in events if one.name() == "[memory]"]
    changes = [one.nbytes() for one in sorted(held, key=lambda one: one.start_ns())]
    return max(itertools.accumulate(changes, initial=0))


def power_law(cases: Sequence[Case], what: str) -> Tensor:
    """Logarithm of a factor, and the exponents of frames, units and batch.

    Least squares, in which cases weigh as they take time: small ones are all overhead. Sizes that
    do not vary have the exponents that are usual.
    """
    longest = max(case.seconds for case in cases)
    rows, values = [], []
    for case in cases:
        weight = math.sqrt(case.seconds / longest)
        logs = [1.0, *[math.log(getattr(case, size)) for size in _SIZES]]
        rows.append([weight * entry for entry in logs])
        values.append(weight * math.log(max(getattr(case, what), 1e-9)))
    for at, exponent in enumerate(_USUAL[what], start=1):
        rows.append([0.03 * (place == at) for place in range(4)])
        values.append(0.03 * exponent)
    a, b = torch.tensor(rows, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    return torch.linalg.lstsq(a, b[:, None], driver="gelsd").solution[:, 0]


def expected(cases: Sequence[Case], what: str, sizes: tuple[int, int, int]) -> float:
    """What the power law says of other sizes; products are never faster than the fastest so far."""
    logs = torch.tensor([1.0, *map(math.log, sizes)], dtype=torch.float64)
    found = math.exp(float(power_law(cases, what) @ logs))
    if what == "seconds":
        best = max(case.products / case.seconds for case in cases)
        found = max(found, expected(cases, "products", sizes) / best)
    return found


def costs(cell: str, method: str, grid: Sequence[tuple[int, int, int]], most: float) -> list[Case]:
    """All cases of a cell and a method, small ones first."""
    found: list[Case] = []
    for sizes in sorted(grid, key=lambda one: one[0] ** 2 * one[1] ** 2 * one[2]):
        known = [case for case in found if case.measured]
        tried = len(known) >= _TRIED or any(20 * case.seconds > most for case in known)
        large = tried and expected(known, "bytes", sizes) > LARGEST
        if large or (tried and expected(known, "seconds", sizes) > most):
            numbers = {name: expected(known, name, sizes) for name in _USUAL}
            case = Case(cell, method, *sizes, **numbers, radius=None, measured=False)
        else:
            case = measured(cell, method, sizes, most)
        found.append(case)
        print(line(case), file=sys.stderr, flush=True)
    return found


def line(case: Case, rate: float | None = None) -> str:
    """A row of the table; ``rate`` is that of products of matrices."""
    mark = " " if case.measured else "~"
    radius = "       -" if case.radius is None else f"{case.radius:8.2f}"
    share = "" if rate is None else f" {100 * case.products / case.seconds / rate:6.1f} %"
    return (
        f"{mark}{case.cell:<9}{case.method:<13}{case.frames:>3}{case.units:>5}{case.batch:>4}"
        f"{case.seconds:11.3f}{radius}{case.bytes / 2**20:11.1f}{case.operations:10.0f}{share}"
    )


HEAD = " cell     method         T    H   B   s/a pass  s/radii   MiB peak operations    share"


def grown(cases: Sequence[Case], before: dict[str, Any]) -> list[str]:
    """Measured cases that need more operations than in an earlier run.

    Raises:
        ValueError: one of the runs had compiled loops, the other none.
    """
    if before["compiled"] != (kernels().library is not None):
        raise ValueError("one run had compiled loops, the other none: operations do not compare.")
    old = {Case(**plain).name: Case(**plain) for plain in before["cases"]}
    found = []
    for case in cases:
        earlier = old.get(case.name)
        if earlier is None or not (case.measured and earlier.measured):
            continue
        if case.operations > GROWN * earlier.operations:
            found.append(f"{case.name}: {earlier.operations:.0f} -> {case.operations:.0f}")
    return found


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the exponents."""
    parser = argparse.ArgumentParser(description="Cost of a certificate.")
    parser.add_argument("--cells", type=lambda text: text.split(","), default=list(CELLS))
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--frames", type=_numbers, default=FRAMES)
    parser.add_argument("--units", type=_numbers, default=UNITS)
    parser.add_argument("--batches", type=_numbers, default=BATCHES)
    parser.add_argument("--most", type=float, default=5.0, help="seconds of a pass")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-cost.json"))
    parser.add_argument("--compare", type=Path, help="file of an earlier run")
    given = parser.parse_args(arguments)
    before = None if given.compare is None else json.loads(given.compare.read_text())
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    torch.set_num_threads(1)
    square = torch.rand(1000, 1000)
    rate = 2e9 / min(timed(lambda: square @ square) for _ in range(20))
    grid = list(itertools.product(given.frames, given.units, given.batches))
    found = {
        (cell, method): costs(cell, method, grid, given.most)
        for cell, method in itertools.product(given.cells, given.methods)
    }
    cases = [case for part in found.values() for case in part]
    print(f"products of 1000 x 1000 float32 matrices: {rate / 1e9:.1f} GFlop/s\n{HEAD}")
    print("\n".join(line(case, rate) for case in cases))
    _print_exponents(found)
    plain = {"rate": rate, "compiled": kernels().library is not None}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({**plain, "cases": [asdict(case) for case in cases]}))
    more = [] if before is None else grown(cases, before)
    print("\n".join(f"MORE OPERATIONS: {text}" for text in more), end="\n" if more else "")
    return 1 if more else 0


def _print_exponents(found: dict[tuple[str, str], list[Case]]) -> None:
    print("\nexponents of          seconds: T    H    B     bytes: T    H    B")
    for (cell, method), cases in found.items():
        known = [case for case in cases if case.measured]
        laws = [power_law(known, what)[1:].tolist() for what in ("seconds", "bytes")]
        seconds, peak = ("".join(f"{value:5.2f}" for value in law) for law in laws)
        print(f"{cell:<9}{method:<13}      {seconds}          {peak}")


if __name__ == "__main__":
    sys.exit(main())
