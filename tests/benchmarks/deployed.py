"""How much smaller radii are with ``confirm="deployed"``: ``make bench-deployed``."""

import warnings

import torch
from torch import nn

from popqorn_train import certified_radius
from tests.certificates.test_deployed import small


def main() -> None:
    """Print a line for each kind of layer and size."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for kind in (nn.RNN, nn.LSTM, nn.GRU):
        for size in (6, 32):
            model, x, y = small(kind, size)
            real = certified_radius(model, x, y, rtol=1e-6).double()
            computed = certified_radius(model, x, y, rtol=1e-6, confirm="deployed").double()
            loss = 100 * (1 - computed / real).max()
            print(f"{kind.__name__} of {size}: radii smaller by {loss:.4f} % at most", flush=True)


if __name__ == "__main__":
    main()
