"""Draw tanh between lines on three ranges, as docs/relaxations.png: `make relaxations`."""

from pathlib import Path

import torch

from popqorn_train.plots.style import new_figure
from popqorn_train.relaxations.lines import tanh_lines

ROOT = Path(__file__).resolve().parents[1]
RANGES = ((-0.4, 1.2), (-1.0, 2.0), (-3.0, 3.0))


def draw(path: Path) -> None:
    """One axis a range, with the lines that the package computes."""
    figure = new_figure(9.0, 2.8)
    axes = figure.subplots(1, len(RANGES), sharey=True)
    for ax, (low, high) in zip(axes, RANGES, strict=True):
        ends = torch.tensor([[low], [high]], dtype=torch.float64)
        lines = tanh_lines(ends[:1], ends[1:])
        x = torch.linspace(low, high, 200, dtype=torch.float64)
        ax.plot(x, x.tanh(), color="black", label="tanh")
        for side, name in (("upper", "above"), ("lower", "below")):
            slope, intercept = (getattr(lines, f"{side}_{part}") for part in ("slope", "intercept"))
            ax.plot(x, (slope * x + intercept).flatten(), "--", label=name)
        ax.set(title=f"[{low:g}, {high:g}]", xlabel="x")
    axes[0].legend()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    draw(ROOT / "docs" / "relaxations.png")
