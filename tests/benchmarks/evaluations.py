"""How many margins a search for radii computes, over the epochs of real trainings.

python tests/benchmarks/evaluations.py [--epochs 12]

scikit-learn's digits as 8 rows of 8 pixels in [0, 1]; a GRU and an LSTM of 32 units, trained by
cross entropy and by a certified loss. Radii (l_inf, clipped) of 32 test images are searched after
every epoch, once from nothing and once from the search of the epoch before. Printed: the mean over
samples and epochs, float64 confirmation not counted, and the greatest distance of a radius to one
found at rtol 1e-6, in units of rtol.
"""

import argparse
from collections import defaultdict

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from popqorn_train import CertifiedLoss, LpBall, RadiusSearch, Start, search_radius

TOLERANCES = (1e-2, 1e-3)
EPSILON = 0.05


class Net(nn.Module):
    """A recurrent layer and a linear read-out of its last state."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = cell(8, 32, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the last hidden state."""
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


class Counts:
    """Evaluations and distances of one training, by tolerance and start."""

    def __init__(self) -> None:
        self.evaluations: dict[tuple[float, str], list[Tensor]] = defaultdict(list)
        self.distances: dict[tuple[float, str], list[Tensor]] = defaultdict(list)
        self.drift: list[Tensor] = []
        self.last: RadiusSearch | None = None

    def epoch(self, net: Net, x: Tensor, y: Tensor) -> None:
        """Search all radii, from nothing and from the last ones."""
        ball = LpBall(0.0, low=0.0, high=1.0)
        found = search_radius(net, x, y, ball, rtol=1e-6)
        starts: dict[str, Start | None] = {"cold": None}
        if self.last is not None:
            starts["warm"] = self.last.start
            both = (self.last.radius > 0) & (found.radius > 0)
            self.drift.append((found.radius[both] / self.last.radius[both]).log().abs())
        best, self.last = found.radius, found
        for rtol in TOLERANCES:
            for name, start in starts.items():
                found = search_radius(net, x, y, ball, rtol=rtol, start=start)
                some = best > 0
                distance = (best[some] / found.radius[some] - 1).abs() / rtol
                self.evaluations[rtol, name].append(found.evaluations[some].double())
                self.distances[rtol, name].append(distance)

    def report(self, title: str) -> None:
        """Print one line a tolerance."""
        drift = torch.cat(self.drift).median().item()
        for rtol in TOLERANCES:
            columns = ""
            for name in ("cold", "warm"):
                mean = torch.cat(self.evaluations[rtol, name]).mean().item()
                far = torch.cat(self.distances[rtol, name]).max().item()
                columns += f"{mean:>8.2f}{far:>10.2f}"
            print(f"{title:<18}{rtol:>7g}{columns}{100 * drift:>9.0f} %", flush=True)


def follow(cell: type[nn.RNNBase], certified: bool, epochs: int) -> Counts:
    """Train a network, searching radii after every epoch."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8) / 16, torch.tensor(labels)
    torch.manual_seed(0)
    net, counts = Net(cell), Counts()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    robust = CertifiedLoss(EPSILON, low=0.0, high=1.0, alpha=0.5)
    for epoch in range(epochs):
        robust.epsilon = EPSILON * min(1.0, epoch / (epochs / 2))
        for batch in torch.randperm(1400).split(64):
            if certified:
                loss = robust(net, x[batch], y[batch])
            else:
                loss = cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        counts.epoch(net, x[1400:1432], y[1400:1432])
    return counts


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Evaluations of a radius search.")
    parser.add_argument("--epochs", type=int, default=12)
    epochs = parser.parse_args().epochs
    torch.set_num_threads(1)
    head = "".join(f"{name:>8}{'off/rtol':>10}" for name in ("cold", "warm"))
    print(f"{'training':<18}{'rtol':>7}{head}{'drift':>11}")
    for cell in (nn.GRU, nn.LSTM):
        for certified in (False, True):
            kind = "certified" if certified else "standard"
            follow(cell, certified, epochs).report(f"{cell.__name__} {kind}")


if __name__ == "__main__":
    main()
