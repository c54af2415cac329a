"""Figures. matplotlib is an optional extra: ``pip install "popqorn-train[plots]"``."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Okabe and Ito's colours, told apart by colour-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class AccuracyCurve(NamedTuple):
    """Accuracy of one model against the size of the perturbation.

    Attributes:
        name: shown in the legend.
        epsilons: increasing, in the units of the input.
        certified: share proved robust at each epsilon, from 0 to 1.
        attack_epsilons: where an attack was run.
        attacked: share that it left standing there.
    """

    name: str
    epsilons: Sequence[float]
    certified: Sequence[float]
    attack_epsilons: Sequence[float] = ()
    attacked: Sequence[float] = ()


def _new_axis(size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib: pip install "popqorn-train[plots]".') from error
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def draw_accuracy_curves(
    curves: Sequence[AccuracyCurve],
    *,
    xlabel: str = "perturbation epsilon",
    title: str = "",
    ax: Any = None,
) -> tuple[Any, Any]:
    """Draw certified accuracy against epsilon, one colour a model.

    The certified curve is a solid line; where an attack was run its accuracy is the dashed line
    above, and the band between them is what neither proof nor attack decides.

    Args:
        curves: one a model.
        xlabel: name and unit of epsilon.
        title: above the axis.
        ax: a matplotlib axis, or None for a new figure.

    Returns:
        Figure and axis; save with ``figure.savefig(path)``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, ax = _new_axis((7.2, 4.6)) if ax is None else (ax.figure, ax)
    for index, curve in enumerate(curves):
        color = _COLORS[index % len(_COLORS)]
        certified = [100 * share for share in curve.certified]
        ax.plot(curve.epsilons, certified, color=color, lw=2.2, label=f"{curve.name}: certified")
        if curve.attacked:
            x, attacked = curve.attack_epsilons, [100 * share for share in curve.attacked]
            ax.plot(x, attacked, "--", color=color, lw=1.6, label=f"{curve.name}: attacked")
            above = np.interp(curve.epsilons, x, attacked)
            ax.fill_between(curve.epsilons, certified, above, color=color, alpha=0.10, lw=0)
    ax.set(xlabel=xlabel, ylabel="accuracy (%)", ylim=(0, 102), title=title)
    ax.set_xlim(left=0, right=max(max(curve.epsilons) for curve in curves))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure, ax
