"""What compiled loops save: each loop alone, and certificates by popqorn.

python tests/benchmarks/kernels.py [loops] [certificates]

Without a name, both. Process time of one CPU thread, with the loops and with POPQORN_KERNELS=0, the
faster of several calls that take turns. Certificates need the golden files, like peers.py.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from peers import GOLDEN, LIRPA, load

from popqorn_train import LpBall, certify
from popqorn_train.bounds.back_substitution import back_substitute
from popqorn_train.kernels.library import SWITCH, kernels
from popqorn_train.relaxations.domain import Bands, Domain, Octagon, Rectangle
from popqorn_train.relaxations.planes import enclosing
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH
from popqorn_train.relaxations.slopes import POLICIES

EPSILONS = {
    "LSTM 4 frames": 0.013,
    "LSTM 7 frames": 0.01,
    "GRU 7 frames": 0.005,
    "tanh RNN 7 frames": 0.01,
}


def compared(call: Callable[[], Any], turns: int = 5) -> tuple[float, float]:
    """Seconds without the loops, and with them."""
    seconds: dict[str, list[float]] = {"0": [], "1": []}
    for turn in range(turns + 1):
        for switch, found in seconds.items():
            os.environ[SWITCH] = switch
            started = time.process_time()
            call()
            if turn:  # the first one warms up
                found.append(time.process_time() - started)
    return min(seconds["0"]), min(seconds["1"])


def row(title: str, call: Callable[[], Any], turns: int = 5) -> None:
    """Print one comparison, in milliseconds."""
    eager, compiled = compared(call, turns)
    times = f"{1e3 * eager:10.3f}{1e3 * compiled:10.3f}"
    print(f"{title:<52}{times}{compiled / eager:8.2f}{eager / compiled:8.1f}", flush=True)


def domain(units: int, dtype: torch.dtype, *, octagon: bool) -> Domain:
    """Boxes of usual sizes, cut or not."""
    middle, half = 2 * torch.randn(2, 1, units, dtype=dtype), torch.rand(2, 1, units, dtype=dtype)
    (lx, ly), (ux, uy) = middle - half, middle + half
    box = Rectangle(lx, ux, ly, uy)
    reach = 2 * torch.rand(4, 1, units, dtype=dtype)
    return Octagon(box, Bands(-reach[0], reach[1], -reach[2], reach[3])) if octagon else box


def loops() -> None:
    """Every loop alone, for 20 samples of 32 units and more."""
    for dtype in (torch.float32, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        for units in (640, 20_480):
            for product in (SIGMOID_TANH, MEMORY):
                for shape, policy in ((0, "lambda"), (0, "tilted"), (1, "tilted")):
                    on = domain(units, dtype, octagon=bool(shape))
                    where = "octagons" if shape else "boxes"
                    title = f"{policy} planes of {product.name}, {units} {where}, {kind}"
                    row(title, partial(enclosing, product, on, POLICIES[policy]))
        for batch, rows, units in ((20, 256, 32), (20, 128, 64)):
            slope = torch.randn(batch, rows, units, dtype=dtype)
            sides = torch.randn(2, 3, batch, 1, units, dtype=dtype)
            title = f"step over a product, {batch} x {rows} x {units}, {kind}"
            row(title, partial(back_substitute, slope, [*sides[0]], [*sides[1]]))
            region = LpBall(0.01, low=0.0, high=1.0).around(torch.rand(batch, 4, 196, dtype=dtype))
            slope = torch.randn(batch, rows, 4, 196, dtype=dtype)
            row(f"least values, {batch} x {rows} x 784, {kind}", partial(region.minimum, slope))


def certificates() -> None:
    """Certificates of 20 images, confirmed in float64 and not; the counts must be equal."""
    if not GOLDEN.is_dir():
        sys.exit("The golden files are not here; set POPQORN_GOLDEN to their folder.")
    for title, epsilon in EPSILONS.items():
        net, x, y, _ = load(*LIRPA[title])
        for confirm in ("float64", None):
            proved = []

            def run(net=net, x=x, y=y, epsilon=epsilon, confirm=confirm, proved=proved) -> None:  # type: ignore[no-untyped-def]
                ball = LpBall(epsilon, low=0.0, high=1.0)
                found = certify(net, x, y, ball, method="popqorn", confirm=confirm)
                proved.append(int(found.certified.sum()))

            row(f"{title}, epsilon {epsilon:g}, confirmed in {confirm}", run, turns=3)
            print(f"  certified of {len(x)}: {sorted(set(proved))}", flush=True)


PARTS = {"loops": loops, "certificates": certificates}


def main() -> None:
    """Print the parts that are named, or both."""
    if unknown := set(sys.argv[1:]) - set(PARTS):
        sys.exit(f"Unknown part {sorted(unknown)[0]!r}; choose from {', '.join(PARTS)}.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if kernels().library is None:
        sys.exit(f"No compiled loops: {kernels().reason}")
    print(f"{'milliseconds of CPU':<52}{'torch':>10}{'compiled':>10}{'ratio':>8}{'times':>8}")
    with torch.no_grad():
        for name in sys.argv[1:] or PARTS:
            PARTS[name]()


if __name__ == "__main__":
    main()
