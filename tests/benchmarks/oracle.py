"""What exactness of each part of popqorn would give, beside what the bounds give.

python tests/benchmarks/oracle.py [MODEL EPSILON]

Every product and activation lies between its linear functions. The least margin that is left to
points between them is looked for by gradients, and again with some of them exact: what a better
part could give at most, for the hardest class of every image. Nothing here is a certificate. Reads
the golden files, like peers.py; MODEL is a title of `make bench-targets`, "LSTM 4 frames".
"""

import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from peers import GOLDEN, LIRPA, load

from popqorn_train import LpBall, bound, certify
from popqorn_train.bounds.backward import Enclosure, ancestors, lower_bound
from popqorn_train.bounds.enclosure import enclose, intersect
from popqorn_train.bounds.node import Logits, Node, Nonlinear, Root
from popqorn_train.bounds.relaxer import Relaxation, Relaxer
from popqorn_train.bounds.witness import values_at
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.products import PRODUCTS

ASKED = {
    "LSTM 4 frames": (0.02, 0.024, 0.03),
    "LSTM 7 frames": (0.013, 0.015, 0.02),
    "GRU 7 frames": (0.008, 0.01, 0.013),
    "tanh RNN 7 frames": (0.01, 0.013, 0.015),
}
A_FRAME = {"LSTM": 3, "GRU": 2, "tanh RNN": 1}  # nonlinear nodes
SIGNS, STEPS = 12, 120
FINE = Relaxation("tilted", tuple(PRODUCTS))


class Question(NamedTuple):
    """The hardest class of every image.

    Attributes:
        output: logits.
        row: ``(B, C)`` margins.
        ends: of the input.
    """

    output: Logits
    row: Tensor
    ends: Bounds

    def margin(self, root: Tensor, shares: dict[Node, Tensor], found: Enclosure) -> Tensor:
        """At an input, where nodes with a share lie between their sides, the others on both."""
        values: dict[Node, Tensor] = {}
        for node in ancestors(self.output):
            read = [values[parent] for parent in node.inputs]
            if isinstance(node, Root):
                values[node] = root
            elif node in shares and isinstance(node, Nonlinear):
                lower, upper = node.at(found.relaxations[node], *read)
                values[node] = lower + shares[node] * (upper - lower)
            else:
                lower, upper = node.range(*[Bounds(value, value) for value in read])
                values[node] = (lower + upper) / 2
        return (self.row * values[self.output]).sum(-1)


class Lowest:
    """The lowest margins so far, and where they are."""

    def __init__(self, like: list[Tensor]) -> None:
        self.value = torch.full((len(like[0]),), torch.inf, dtype=like[0].dtype)
        self.point = [part.clone() for part in like]

    def keep(self, value: Tensor, point: list[Tensor]) -> None:
        """Take what is lower."""
        better = value < self.value
        self.value = torch.where(better, value.detach(), self.value)
        for old, new in zip(self.point, point, strict=True):
            old[better] = new.detach()[better]


def least(question: Question, found: Enclosure, exact: Collection[Node]) -> Tensor:
    """The least margin found, ``(B,)``."""
    lower, upper = question.ends
    nodes = [node for node in found.relaxations if node not in exact]

    def margin(point: list[Tensor]) -> Tensor:
        shares = dict(zip(nodes, point[1:], strict=True))
        return question.margin(torch.lerp(lower, upper, point[0]), shares, found)

    sizes = [lower.shape, *[(len(lower), *node.shape) for node in nodes]]
    starts = [_descended(margin, [torch.rand(size).to(lower) for size in sizes]) for _ in range(2)]
    return torch.minimum(*starts)


def _descended(margin: Callable[[list[Tensor]], Tensor], point: list[Tensor]) -> Tensor:
    """From a point: signs of gradients first, then Adam."""
    lowest = Lowest(point)
    for _ in range(SIGNS):
        point = [part.requires_grad_() for part in point]
        value = margin(point)
        lowest.keep(value, point)
        slopes = torch.autograd.grad(value.sum(), point)
        point = [(slope < 0).to(slope) for slope in slopes]
    point = [part.clone().requires_grad_() for part in lowest.point]
    optimizer = torch.optim.Adam(point, 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(STEPS):
        value = margin(point)
        lowest.keep(value, point)
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for part in point:
                part.clamp_(0, 1)
    return lowest.value


def reached(question: Question, found: Enclosure, steps: int = 5) -> Enclosure:
    """Ranges as small as attacks on every unit find them, and relaxations on these."""
    ranges = dict(found.ranges)
    for node in [node for node in ranges if node.region is not None and not node.affine]:
        units = [_reached(question, node, unit, steps) for unit in range(node.shape[-1])]
        ends = (torch.stack(column, -1) for column in zip(*units, strict=True))
        ranges[node] = intersect(found.ranges[node], Bounds(*ends))
    small = Enclosure(ranges, {}, found.chosen)
    relaxer = Relaxer(FINE, partial(lower_bound, found=small))
    for node in ancestors(question.output):
        if isinstance(node, Nonlinear):
            inputs = [ranges[parent] for parent in node.inputs]
            small.relaxations[node] = node.relax(relaxer, *inputs)
    return small


def _reached(question: Question, node: Node, unit: int, steps: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of a unit that signs of gradients reach."""
    lower, upper = question.ends
    found = []
    for sign in (-1, 1):
        root = (lower + upper) / 2
        for _ in range(steps):
            root = root.requires_grad_()
            value = values_at(node, root)[node][:, unit]
            (slope,) = torch.autograd.grad(value.sum(), root)
            root = torch.where(sign * slope > 0, upper, lower)
        found.append(value.detach())
    return found[0], found[1]


def asked(title: str, epsilon: float) -> None:
    """Print one row for every oracle."""
    net, x, y, _ = load(*LIRPA[title])
    net.requires_grad_(False)
    ball, started = LpBall(epsilon, low=0.0, high=1.0), time.process_time()
    output = bound(net).instance(x).to(torch.float64).graph(ball)
    classes = torch.eye(10, dtype=torch.float64)
    rows = classes[y][:, None] - classes
    with torch.no_grad():
        found = enclose(output, relax=FINE, backward=True)
        margins = lower_bound([(output, rows)], found).scatter(1, y[:, None], torch.inf)
    bounded, hardest = margins.min(1)
    ends = Bounds((x - epsilon).clamp(0, 1).double(), (x + epsilon).clamp(0, 1).double())
    question = Question(output, rows[torch.arange(len(x)), hardest], ends)
    nonlinear = [node for node in ancestors(output) if isinstance(node, Nonlinear)]
    frame = next(count for name, count in A_FRAME.items() if title.startswith(name))
    boxes = reached(question, found)
    results = {
        "the bound of popqorn": bounded,
        "points between its linear functions": least(question, found, ()),
        "exact: the last frame": least(question, found, nonlinear[-frame:]),
        "exact: the last two frames": least(question, found, nonlinear[-2 * frame :]),
        "exact: all but the last frame": least(question, found, nonlinear[:-frame]),
        "smallest ranges": least(question, boxes, ()),
        "smallest ranges, exact last frame": least(question, boxes, nonlinear[-frame:]),
        "everything exact: an attack": least(question, found, nonlinear),
    }
    print(f"\n{title}, {epsilon:g}: the hardest class of {len(x)} images")
    for name, least_margin in results.items():
        count = int((least_margin > 0).sum())
        print(f"  {name:<38}{count:>4} of {len(x)}   mean margin {least_margin.mean():>8.3f}")
    for method in ("popqorn-tight", "popqorn-tightest"):
        proof = certify(net, x, y, ball, method=method)
        print(f"  {method + ', all classes':<38}{int(proof.certified.sum()):>4} of {len(x)}")
    print(f"  {time.process_time() - started:.0f} CPU seconds", flush=True)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    if not GOLDEN.is_dir():
        sys.exit("The golden files are not here; set POPQORN_GOLDEN to their folder.")
    if sys.argv[1:]:
        asked(sys.argv[1], float(sys.argv[2]))
        return
    for title, epsilons in ASKED.items():
        for epsilon in epsilons:
            asked(title, epsilon)


if __name__ == "__main__":
    main()
