"""Median certified radius and cost by depth and directions, on scikit-learn's digits.

python tests/benchmarks/depth.py

Every network is trained for a few epochs on rows of 8 pixels; radii are l_inf, clipped to [0, 1].
One CPU thread; seconds are process time.
"""

import itertools
import time

import torch
from torch import Tensor, nn

from popqorn_train import bound, certified_radius
from popqorn_train.recipes.data.digits import Digits

CELLS: dict[str, type[nn.RNNBase]] = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
HIDDEN, EPOCHS, IMAGES = 32, 12, 50


class Net(nn.Module):
    """A stack of one cell; the last states of all directions are read."""

    def __init__(self, cell: type[nn.RNNBase], depth: int, directions: int) -> None:
        super().__init__()
        both = directions == 2
        self.rnn = cell(8, HIDDEN, depth, batch_first=True, bidirectional=both)  # type: ignore
        self.head, self.directions = nn.Linear(directions * HIDDEN, 10), directions

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        _, state = self.rnn(x)
        h_n = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat([*h_n[-self.directions :]], 1))


def trained(net: Net, data: Digits) -> Net:
    """Cross entropy and Adam."""
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(EPOCHS):
        for x, y in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    data = Digits()
    x, y = (tensor[:IMAGES] for tensor in data.test.tensors)
    print(f"median radius of {IMAGES} test images, l_inf, clipped; {HIDDEN} units a direction")
    print(f"{'cell':<6}{'depth':>6}{'directions':>11}{'clean %':>9}{'radius':>9}{'s/radius':>10}")
    for name, depth, directions in itertools.product(CELLS, (1, 2, 3), (1, 2)):
        torch.manual_seed(0)
        net = trained(Net(CELLS[name], depth, directions), data)
        clean = (net(x).argmax(1) == y).float().mean().item()
        layer = bound(net)
        layer.instance(x)  # traced once
        started = time.process_time()
        radius = certified_radius(layer, x, y, low=0.0, high=1.0, rtol=1e-2)
        seconds = (time.process_time() - started) / IMAGES
        median = radius.median().item()
        print(
            f"{name:<6}{depth:>6}{directions:>11}{100 * clean:>9.1f}{median:>9.4f}{seconds:>10.3f}"
        )


if __name__ == "__main__":
    main()
