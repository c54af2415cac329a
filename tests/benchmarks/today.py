"""Certified radii of models of today, trained by cross entropy and by certified training.

python tests/benchmarks/today.py [crnn] [motions] [points]

Without a name, all. `crnn` reads MNIST from $POPQORN_DATA (images of 14 x 14, every pixel moves,
clipped to [0, 1]): convolutions, then a GRU over columns. `motions` and `points` read BasicMotions
(50 frames of 6) and GunPoint (75 of 1) from the wheel of sktime, every second frame, in standard
deviations: a minGRU by cumulative sums, and an S4D by the matrix of its kernel. One CPU thread;
seconds are process time. Test samples. How a minGRU trains was chosen on training samples.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from popqorn_train import BoundModel, bound, certified_radius, empirical_radius
from popqorn_train.nested import map_nested
from popqorn_train.objectives import ibp, standard
from popqorn_train.training.loss import CertifiedLoss

SAMPLES = 16


class Data(NamedTuple):
    """Training and test sets; pixels have ends. Inputs are a tensor, or several in a tuple."""

    x: Any
    y: Tensor
    test_x: Any
    test_y: Tensor
    epsilon: float
    ends: dict[str, float]


class CRNN(nn.Module):
    """Convolutions over an image, whose columns a GRU reads."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=(2, 1), padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.rnn, self.head = nn.GRU(32, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        columns = self.front(image).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.rnn(columns)[1][-1])


class MinGRU(nn.Module):
    """Values that decay by the gates after them, in closed form (Feng et al., 2024)."""

    def __init__(self, features: int, classes: int, size: int = 16) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(features, size), nn.Linear(features, size)
        self.head = nn.Linear(size, classes)
        nn.init.constant_(self.gate.bias, -3.0)  # a memory of twenty frames

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        gate = self.gate(x)
        decay = torch.cumsum(-functional.softplus(gate), dim=1)
        value = torch.sigmoid(gate) * self.value(x)
        return self.head((torch.exp(decay[:, -1:] - decay) * value).sum(1))


class S4D(nn.Module):
    """A diagonal state space by the matrix of its kernel (Gu et al., 2022), gelu, and a mean."""

    def __init__(self, features: int, classes: int, size: int = 16, states: int = 4) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(features, size), nn.Linear(size, classes)
        self.decay = nn.Parameter(torch.rand(size, states) - 4)
        self.rate = nn.Parameter(torch.rand(size, states))
        self.weight = nn.Parameter(torch.randn(size, states) / 4)
        self.skip = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        u, frames = self.inner(x), torch.arange(x.size(1), dtype=x.dtype, device=x.device)
        waves = torch.exp(-self.decay.exp()[..., None] * frames)
        waves = waves * torch.cos(self.rate[..., None] * frames)
        kernel = (self.weight[..., None] * waves).sum(1)
        lag = (frames[:, None] - frames).long()
        matrix = torch.where(lag >= 0, kernel[:, lag.clamp(min=0)], 0.0)
        y = torch.einsum("hts,bsh->bth", matrix, u) + u * self.skip
        return self.head(functional.gelu(y).mean(1))


def digits() -> Data:
    """MNIST, 14 x 14: 6000 images to train on."""
    found = np.load(Path(os.environ.get("POPQORN_DATA", "../shared/data")) / "mnist.npz")
    small = [
        functional.avg_pool2d(torch.tensor(found[name][:6000, None] / 255.0).float(), 2)
        for name in ("x_train", "x_test")
    ]
    labels = [torch.tensor(found[name][:6000]).long() for name in ("y_train", "y_test")]
    return Data(small[0], labels[0], small[1], labels[1], 0.02, {"low": 0.0, "high": 1.0})


def series(name: str) -> Data:
    """A time series of sktime, in standard deviations of each feature."""
    spec = find_spec("sktime")
    if spec is None or spec.origin is None:
        sys.exit("BasicMotions and GunPoint come with sktime: pip install sktime")
    folder = Path(spec.origin).parent / "datasets" / "data" / name
    (x, y), (test_x, test_y) = (_read(folder / f"{name}_{part}.ts") for part in ("TRAIN", "TEST"))
    names = sorted(set(y))
    mean, deviation = x.mean((0, 1)), x.std((0, 1))
    labels = [torch.tensor([names.index(label) for label in part]) for part in (y, test_y)]
    sets = (x - mean) / deviation, labels[0], (test_x - mean) / deviation, labels[1]
    return Data(*sets, 0.05, {})


def _read(file: Path) -> tuple[Tensor, list[str]]:
    lines = [line.strip().split(":") for line in file.open() if line[0] not in "#@\n"]
    rows = [[[float(v) for v in part.split(",")] for part in line[:-1]] for line in lines]
    return torch.tensor(rows).transpose(1, 2)[:, ::2].contiguous(), [line[-1] for line in lines]


class Length(NamedTuple):
    """How long a model trains, and how long by cross entropy before epsilon grows."""

    steps: int
    rate: float = 5e-3
    before: int = 0


def train(model: BoundModel, data: Data, loss: CertifiedLoss, length: Length) -> None:
    """Adam with a ramp of epsilon over the first half, if the loss has one."""
    steps, epsilon = length.steps, loss.epsilon
    optimizer = torch.optim.Adam(model.parameters(), length.rate)
    for step in range(-length.before if epsilon else 0, steps):
        chosen = torch.randint(len(data.y), (min(64, len(data.y)),))
        x = map_nested(data.x, Tensor, itemgetter(chosen))
        if epsilon:
            share = min(1.0, max(0.0, 2 * step / steps))
            loss.epsilon, loss.kappa = share * epsilon, 1.0 - share / 2
        optimizer.zero_grad()
        loss(model.train(), x, data.y[chosen]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    loss.epsilon = epsilon


def report(title: str, model: BoundModel, data: Data) -> None:
    """Print one row."""
    right = model.model(data.test_x).argmax(1) == data.test_y
    x, y = data.test_x[right][:SAMPLES], data.test_y[right][:SAMPLES]
    attacked = empirical_radius(model, x, y, **data.ends)
    start = time.process_time()
    found = certified_radius(model, x, y, method="popqorn-fast", rtol=1e-2, **data.ends)
    seconds = (time.process_time() - start) / len(y)
    share, clean = (found / attacked).median(), 100 * right.float().mean()
    at = clean * (found >= data.epsilon).float().mean()
    numbers = f"{clean:>12.1f}{at:>12.1f}{found.median():>12.4f}{share:>12.2f}{seconds:>12.2f}"
    print(f"{title:<42}{numbers}", flush=True)


def compare(
    title: str, make: Callable[[], nn.Module], data: Data, length: Length, **layout: int
) -> None:
    """Train twice and print both rows."""
    for name, loss in (
        ("cross entropy", standard()),
        ("ibp", ibp(data.epsilon, kappa=0.5, **data.ends)),
    ):
        torch.manual_seed(0)
        model = bound(make(), **layout)
        train(model, data, loss, length)
        report(f"{title}, {name}", model.eval(), data)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    asked = sys.argv[1:] or ("crnn", "motions", "points")
    print(f"radii of {SAMPLES} test samples by popqorn-fast, rtol 1e-2; certified: % at epsilon")
    titles = ("clean", "certified", "radius", "of attacked", "s/radius")
    print(f"{'model':<42}" + "".join(f"{title:>12}" for title in titles))
    if "crnn" in asked:
        compare("CRNN, MNIST, .02", CRNN, digits(), Length(400), frame_axis=3)
    for name, data_set in (("motions", "BasicMotions"), ("points", "GunPoint")):
        if name in asked:
            data = series(data_set)
            shape = data.x.size(2), int(data.y.max()) + 1
            # In 200 steps of 5e-3 a minGRU fits half of GunPoint's training samples: chance.
            for kind, length in ((MinGRU, Length(600, 1e-2, 300)), (S4D, Length(200))):
                hard = (kind, data_set) == (MinGRU, "GunPoint")  # at .05 intervals end at chance
                data = data._replace(epsilon=0.02 if hard else 0.05)
                title = f"{kind.__name__}, {data_set}, {data.epsilon:.2f}"
                compare(title, partial(kind, *shape), data, length)


if __name__ == "__main__":
    main()
