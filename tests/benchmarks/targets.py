"""Print what the certifying methods must reach, and what they reach.

python tests/benchmarks/targets.py [methods] [radii] [popqorn] [planes] [cost]

Without a name, everything. Reads the folder named by POPQORN_GOLDEN like peers.py. One CPU thread;
seconds are process time. The first line times a matrix product, so that seconds measured on
another machine compare.
"""

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from peers import GOLDEN, LIRPA, POPQORN, Golden, load

from popqorn_train import (
    LpBall,
    Popqorn,
    certified_radius,
    certify,
    empirical_radius,
    search_radius,
)
from popqorn_train.bounds.methods import METHODS
from popqorn_train.evaluation.certification import count_certified
from popqorn_train.relaxations.domain import Rectangle
from popqorn_train.relaxations.planes import enclosing
from popqorn_train.relaxations.products import MEMORY, SIGMOID_TANH, Product
from popqorn_train.relaxations.slopes import tilted

METHOD_ROWS = ("popqorn-fast", "popqorn", "popqorn-tight", "popqorn-tightest")
# model: epsilons, what must be certified of 20 by every method, what others certify
TARGETS = {
    "LSTM 4 frames": (
        (0.013, 0.015, 0.02, 0.03),
        {"popqorn": "18/18/8/0", "popqorn-tight": "19/18/11/3", "popqorn-tightest": "-/-/16/-"},
        "CROWN 18/13/3/0 (.04 s), PROVER 16/11/3/0 (1.5 s)",
    ),
    "LSTM 7 frames": (
        (0.01, 0.013, 0.015, 0.02),
        {"popqorn": "17/13/5/0", "popqorn-tight": "18/15/10/1"},
        "CROWN 14/3/2/0 (.11 s)",
    ),
    "tanh RNN 7 frames": (
        (0.01, 0.013, 0.015),
        {"popqorn": "6/2/0", "popqorn-tight": "16/6/3"},
        "CROWN 6/2/0, alpha-CROWN 10 at .01",
    ),
    "GRU 7 frames": (
        (0.005, 0.008, 0.01, 0.013),
        {"popqorn": "19/15/6/0", "popqorn-tight": "19/19/9/3"},
        "CROWN 19 at .005, 0 at .01 (.10 s)",
    ),
}
LSTMS = {
    "LSTM 4 frames, p = 2": ("popqorn_lstm_T4_H32", 0),
    "LSTM 4 frames, p = inf": ("popqorn_lstm_T4_H32", 1),
    "TREC, last word, p = 2": ("popqorn_lstm_trec_L8_word7", 0),
}
PLANES: dict[str, tuple[str, Product]] = {
    "sigmoid(y) x": ("popqorn_planes_x_sigmoid_y", MEMORY),
    "sigmoid(y) tanh(x)": ("popqorn_planes_tanh_x_sigmoid_y", SIGMOID_TANH),
}


def calibrate() -> None:
    """Time a product of two 1024 x 1024 matrices."""
    matrix = torch.randn(1024, 1024)
    seconds = min(_seconds(lambda: matrix @ matrix)[1] for _ in range(10))
    print(f"one float32 product of 1024 x 1024 matrices: {1e3 * seconds:.1f} ms on one thread")


def _seconds(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    result = run()
    return result, time.process_time() - started


def certified_counts() -> None:
    """Certified images, l_inf clipped to [0, 1]."""
    for title, (epsilons, wanted, _) in TARGETS.items():
        net, x, y, domain = _announced(title)
        for method in METHOD_ROWS:
            certify(net, x, y, LpBall(epsilons[0], **domain), method=method)
            found = [
                _seconds(partial(certify, net, x, y, LpBall(e, **domain), method=method))
                for e in epsilons
            ]
            counts = "/".join(str(int(proof.certified.sum())) for proof, _ in found)
            seconds = sum(seconds for _, seconds in found) / len(found) / len(x)
            asked = wanted.get(method, "-")
            print(f"  {method:<18}{counts:>14}  asked {asked:<12}{seconds:.3f} s/image", flush=True)


def radii() -> None:
    """The same counted from radii, and what a search takes."""
    for title, (epsilons, *_) in TARGETS.items():
        net, x, y, domain = _announced(title)
        reach = empirical_radius(net, x, y, **domain)
        for method in METHOD_ROWS:
            ball = LpBall(0.0, **domain)
            search = partial(
                search_radius, net, x, y, ball, method=method, rtol=1e-2, epsilons=epsilons
            )
            found, seconds = _seconds(search)
            radius = found.radius
            evaluations = found.evaluations[radius > 0].double().mean()
            share = (radius / reach)[radius > 0]
            counts, median = _counts(radius, epsilons), radius.median()
            print(
                f"  {method:<18}{counts:>14}  of radii, median {median:.5f}, of the attacked one "
                f"{share.median():.3f}, {evaluations:.1f} margins, {seconds / len(x):.2f} s/image"
            )


def _announced(title: str) -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
    """A network with its images and the domain of their pixels, under its title."""
    epsilons, _, peers = TARGETS[title]
    net, x, y, _ = load(*LIRPA[title])
    shown = " ".join(f"{epsilon:g}" for epsilon in epsilons)
    print(f"\n{title}: certified of {len(x)} at {shown}; {peers}", flush=True)
    return net, x, y, {"low": 0.0, "high": 1.0}


def _counts(radius: Tensor, epsilons: tuple[float, ...]) -> str:
    counted = count_certified(radius.double(), torch.tensor(epsilons, dtype=torch.float64))
    return "/".join(str(count) for count in counted.tolist())


def popqorn_radii() -> None:
    """Radii against those that POPQORN's code finds, not clipped."""
    print("\nmedian radius against POPQORN (2-D planes, or lines for vanilla RNNs), not clipped")
    titles = ("ours", "theirs", "ratio", "least", "s/radius", "times faster", "of attacked")
    print(f"{'model':<26}" + "".join(f"{title:>13}" for title in titles))
    for title, (file, index) in LSTMS.items():
        golden = load(file, nn.LSTM, "rnn", "fc")
        data = golden.data
        p, frames = float(data["ps"][index]), torch.tensor(data["frame_mask"])
        theirs = torch.tensor(data["radius_plane_lower"][:, index])
        # both rounds of its bracket, for all inputs and both norms together
        spent = float(data["plane_round1_cpu_s"] + data["plane_round2_cpu_s"]) / len(data["ps"])
        _compare(title, golden, theirs, spent, p=p, frames=frames)
        settings = {"method": Popqorn("lambda", ()), "rtol": 1e-2}
        _compare("  closed form, 1e-2", golden, theirs, spent, p=p, frames=frames, **settings)
    for title, (file, options) in POPQORN.items():
        golden = load(file, nn.RNN, "rnn", "fc", **options)
        p = float(golden.data["p"])
        _compare(title, golden, torch.tensor(golden.data["radius_lower"]), math.nan, p=p)


def _compare(
    title: str,
    golden: Golden,
    theirs: Tensor,
    spent: float,
    *,
    p: float,
    frames: Tensor | None = None,
    method: str | Popqorn = "popqorn",
    rtol: float = 1e-3,
) -> None:
    """Print one row; ``spent`` are their seconds on all inputs."""
    net, x, y, _ = golden
    settings = {"p": p, "frames": frames, "method": method, "rtol": rtol}
    radius, seconds = _seconds(partial(certified_radius, net, x, y, **settings))
    reach = empirical_radius(net, x, y, p=p, frames=frames)
    cells = (
        f"{radius.median():.5f}",
        f"{theirs.median():.5f}",
        f"{radius.median() / theirs.median():.3f}",
        f"{(radius / theirs).min():.3f}",
        f"{seconds / len(x):.3f}",
        "-" if math.isnan(spent) else f"{spent / seconds:.0f}",
        f"{(radius / reach)[radius > 0].median():.3f}",
    )
    print(f"{title:<26}" + "".join(f"{cell:>13}" for cell in cells))


def plane_gaps() -> None:
    """Mean gaps of planes with the centre as reference, on boxes at least .1 wide."""
    print("\nmean gap of our planes over that of POPQORN's, centre reference, widths >= .1")
    for title, (file, product) in PLANES.items():
        data = np.load(GOLDEN / f"{file}.npz", allow_pickle=False)
        ends = [torch.tensor(data[k]).double() for k in ("y_minus", "y_plus", "x_minus", "x_plus")]
        wide = (ends[1] - ends[0] >= 0.1 - 1e-6) & (ends[3] - ends[2] >= 0.1 - 1e-6)
        box = Rectangle(*[end[wide][None] for end in ends])
        planes = enclosing(product, box, lambda *a: tilted(*a, reference=(0.0, 0.0), steps=25))
        share = torch.linspace(0, 1, 101, dtype=torch.float64)
        x = torch.lerp(box.lx, box.ux, share[:, None])[:, None]
        y = torch.lerp(box.ly, box.uy, share[:, None])[None]
        f, worst, gaps = product.value(x, y), math.inf, []
        for plane, sign, side in ((planes.lower, 1, "l"), (planes.upper, -1, "u")):
            gap = sign * (f - plane.x * x - plane.y * y - plane.intercept)
            worst = min(worst, gap.min().item())
            a, b, c = (torch.tensor(data[f"{k}_{side}"])[wide] for k in "abc")
            other = sign * (f - b * x - a * y - c)
            other = other.mean((0, 1)) - other.amin((0, 1)).clamp(max=0)  # moved until it holds
            gaps.append(gap.mean((0, 1)) / other)
        ratio = torch.stack(gaps)
        print(
            f"  {title:<20}{int(wide.sum())} boxes, {2 * f.numel():.1e} points: median ratio "
            f"{ratio.median():.4f}, largest {ratio.max():.4f}, smallest distance {worst:.1e}"
        )


def cost() -> None:
    """Seconds of ``popqorn`` against frames, units and batch, with fitted exponents."""
    print("\nCPU seconds an image of popqorn, LSTM on 28 features, random weights")
    for name, sizes in {"T": (7, 14, 28), "H": (16, 32, 64), "B": (2, 8, 32)}.items():
        seconds = []
        for size in sizes:
            setting = {"T": 14, "H": 32, "B": 8} | {name: size}
            seconds.append(_one(**setting))
        slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        table = ", ".join(f"{s}: {t:.3f}" for s, t in zip(sizes, seconds, strict=True))
        print(f"  {name}  {table}   exponent {slope:.2f}")
    print(f"  T = 28, H = 64, B = 4: {_one(T=28, H=64, B=4):.2f} (asked 2, auto_LiRPA 8.2)")


def _one(*, T: int, H: int, B: int) -> float:
    torch.manual_seed(0)
    rnn, head = nn.LSTM(28, H, batch_first=True), nn.Linear(H, 10)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = rnn, head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    net, x = Net(), torch.rand(B, T, 28)
    y, ball = net(x).argmax(1), LpBall(0.005, low=0.0, high=1.0)
    certify(net, x[:1], y[:1], ball)
    return _seconds(lambda: certify(net, x, y, ball))[1] / B


PARTS = {
    "methods": certified_counts,
    "radii": radii,
    "popqorn": popqorn_radii,
    "planes": plane_gaps,
    "cost": cost,
}


def main() -> None:
    """Print the parts that are named, or all."""
    if not GOLDEN.is_dir():
        sys.exit("The golden files are not here; set POPQORN_GOLDEN to their folder.")
    if unknown := set(sys.argv[1:]) - set(PARTS):
        sys.exit(f"Unknown part {sorted(unknown)[0]!r}; choose from {', '.join(PARTS)}.")
    assert {m for _, wanted, _ in TARGETS.values() for m in wanted} <= set(METHODS)
    torch.set_num_threads(1)
    calibrate()
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
