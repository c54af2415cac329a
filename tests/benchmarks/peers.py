"""Compare with what other verifiers prove on the same weights and inputs.

python tests/benchmarks/peers.py

Reads the folder named by POPQORN_GOLDEN (default: ../shared/golden beside the repository), which is
not part of the repository. One CPU thread; seconds are process time after one warm-up call.
"""

import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from popqorn_train import LpBall, certified_radius, certify

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("POPQORN_GOLDEN", ROOT.parent / "shared" / "golden"))
LIRPA = {
    "LSTM 4 frames": ("lirpa_CROWN_mnist_04f_032h_1l_pinf", nn.LSTM, "lstm", "linear"),
    "LSTM 7 frames": ("lirpa_CROWN_mnist_07f_032h_1l_pinf", nn.LSTM, "lstm", "linear"),
    "GRU 7 frames": ("lirpa_CROWN_gru_07f_032h_pinf", nn.GRU, "rnn", "linear"),
    "tanh RNN 7 frames": ("lirpa_CROWN_rnn_07f_032h_pinf", nn.RNN, "rnn", "linear"),
}
POPQORN = {
    "tanh RNN, p = 2": ("popqorn_rnn_tanh_T7_H64_p2", {}),
    "tanh RNN, p = inf": ("popqorn_rnn_tanh_T7_H64_pinf", {}),
    "relu RNN, p = 2": ("popqorn_rnn_relu_T7_H64_p2", {"nonlinearity": "relu"}),
}


class Net(nn.Module):
    """One recurrent layer and a linear read-out, under the names that the files use."""

    def __init__(
        self,
        cell: type[nn.RNNBase],
        name: str,
        head: str,
        weights: dict[str, Tensor],
        **options: Any,
    ) -> None:
        super().__init__()
        hidden, features = (
            weights[f"{name}.weight_hh_l0"].shape[1],
            weights[f"{name}.weight_ih_l0"].shape[1],
        )
        self.cell, self.head = name, head
        self.add_module(name, cell(features, hidden, batch_first=True, **options))  # type: ignore[arg-type]
        self.add_module(head, nn.Linear(hidden, len(weights[f"{head}.bias"])))
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the last hidden state."""
        return self.get_submodule(self.head)(self.get_submodule(self.cell)(x)[0][:, -1])


class Golden(NamedTuple):
    """A stored model, its inputs, and what the file says about them."""

    net: Net
    x: Tensor
    y: Tensor
    data: Any


def load(file: str, cell: type[nn.RNNBase], name: str, head: str, **options: Any) -> Golden:
    """Read one file of the golden folder."""
    data = np.load(GOLDEN / f"{file}.npz", allow_pickle=False)
    names = [
        key for key in data.files if key.removeprefix("w.").startswith((f"{name}.", f"{head}."))
    ]
    weights = {key.removeprefix("w."): torch.tensor(data[key]) for key in names}
    label = data["y"] if "y" in data.files else data["label"]
    x = torch.tensor(data["x"], dtype=torch.float32)
    return Golden(Net(cell, name, head, weights, **options), x, torch.tensor(label).long(), data)


def compare_lirpa() -> None:
    """Certified images at every epsilon, l_inf clipped to [0, 1]."""
    print("\ncertified of 20, l_inf on every pixel, clipped to [0, 1]; auto_LiRPA 0.7.1 CROWN")
    print(
        f"{'model':<20}{'epsilon':>8}{'popqorn':>9}{'CROWN':>7}{'s/image':>9}{'CROWN s':>9}"
        f"{'times':>7}"
    )
    for title, (file, cell, name, head) in LIRPA.items():
        net, x, y, data = load(file, cell, name, head)
        certify(net, x, y, LpBall(0.01, low=0.0, high=1.0))
        for index, epsilon in enumerate(data["eps"]):
            started = time.process_time()
            found = certify(net, x, y, LpBall(float(epsilon), low=0.0, high=1.0))
            seconds = (time.process_time() - started) / len(x)
            theirs = int(data["certified"][index].sum())
            cost = data["cpu_seconds_batch"][index] / len(x)
            ours = int(found.certified.sum())
            print(
                f"{title:<20}{epsilon:>8g}{ours:>9}{theirs:>7}{seconds:>9.4f}{cost:>9.4f}"
                f"{cost / seconds:>7.1f}"
            )


def compare_popqorn() -> None:
    """Radii of vanilla RNNs, all frames moved, unclipped."""
    print("\nmedian certified radius of 25, every frame in its own ball, not clipped")
    print(
        f"{'model':<20}{'popqorn_train':>14}{'POPQORN':>9}{'ratio':>7}{'least':>7}{'s/radius':>9}"
    )
    for title, (file, options) in POPQORN.items():
        net, x, y, data = load(file, nn.RNN, "rnn", "fc", **options)
        p = float(data["p"])
        certified_radius(net, x, y, p=p)
        started = time.process_time()
        radius = certified_radius(net, x, y, p=p if math.isfinite(p) else math.inf).double().numpy()
        seconds = (time.process_time() - started) / len(x)
        theirs = data["radius_lower"]
        ratio = np.median(radius) / np.median(theirs)
        least = (radius / theirs).min()
        print(
            f"{title:<20}{np.median(radius):>14.5f}{np.median(theirs):>9.5f}{ratio:>7.3f}{least:>7.3f}{seconds:>9.3f}"
        )


def main() -> None:
    """Print both tables."""
    if not GOLDEN.is_dir():
        sys.exit("The golden files are not here; set POPQORN_GOLDEN to their folder.")
    torch.set_num_threads(1)
    compare_lirpa()
    compare_popqorn()


if __name__ == "__main__":
    main()
