"""Accuracy against epsilon: of models side by side, and of one model over its epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from popqorn_train.evaluation.certification import Certification, read_certifications
from popqorn_train.evaluation.measures import RADIUS, Measure
from popqorn_train.evaluation.summaries import unit
from popqorn_train.plots.style import ATTACK, MARKERS, axis_of, colors_of, finish, literal

MOST_LINES = 20  # of one chart; more cannot be told apart
_MARKED = 30  # measured points up to which each has a marker


def axis_name(measure: Measure) -> str:
    """What the axis of sizes shows."""
    return "perturbation epsilon" if measure == RADIUS else measure.size


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


def curve_of(name: str, certification: Certification, grid: Sequence[float]) -> AccuracyCurve:
    """The accuracies of one certification at the epsilons of a grid that begins at 0."""
    certified = certification.certified_accuracy(grid)
    if certification.empirical is None:
        return AccuracyCurve(name, grid, certified)
    return AccuracyCurve(name, grid, certified, grid, certification.attacked_accuracy(grid))


def draw_accuracy_curves(
    curves: Sequence[AccuracyCurve],
    *,
    xlabel: str = "perturbation epsilon",
    title: str = "",
    ax: Any = None,
) -> tuple[Any, Any]:
    """Draw certified accuracy against epsilon, one colour per model.

    The certified curve is a solid line of steps: what is proved at an epsilon is proved below it.
    Where an attack was run, its accuracy is the dashed line above, with a marker at each epsilon;
    the band between them is what neither proof nor attack decides.

    Args:
        curves: one per model.
        xlabel: name and unit of epsilon.
        title: above the axis.
        ax: a matplotlib axis, or None for a new figure.

    Returns:
        Figure and axis; save with ``figure.savefig(path)``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no curve, or more than can be told apart.
    """
    if not curves:
        raise ValueError("`curves` must hold at least one curve, got none.")
    figure, ax = axis_of(ax)
    colors = colors_of([curve.name for curve in curves])
    for curve, color, marker in zip(curves, colors, MARKERS, strict=False):
        _draw_curve(ax, curve, color, marker)
    ax.set(xlabel=xlabel, ylabel="accuracy (%)", ylim=(0, 102), title=title)
    ax.set_xlim(left=0, right=max(max(curve.epsilons) for curve in curves))
    finish(ax)
    return figure, ax


def _draw_curve(ax: Any, curve: AccuracyCurve, color: str, marker: str) -> None:
    name, certified = literal(curve.name), [100 * share for share in curve.certified]
    steps = {"drawstyle": "steps-pre", "lw": 2.2, "label": f"{name}: certified"}
    ax.plot(curve.epsilons, certified, color=color, **steps)
    if not curve.attacked:
        return
    x, attacked = curve.attack_epsilons, [100 * share for share in curve.attacked]
    style: dict[str, Any] = {"color": ATTACK, "lw": 1.4, "label": f"{name}: attacked"}
    if len(x) <= _MARKED:
        style |= {"marker": marker, "ms": 5.5, "mfc": color, "mec": ATTACK}
    ax.plot(x, attacked, "--", **style)
    above = np.interp(curve.epsilons, x, attacked)
    ax.fill_between(curve.epsilons, certified, above, step="pre", color=color, alpha=0.12, lw=0)


def evenly(items: Sequence[Certification], most: int = MOST_LINES) -> list[Certification]:
    """At most so many of the items, evenly spread, the first and the last among them."""
    at = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[index] for index in at]


def curve_grid(certifications: Sequence[Certification], points: int = 101) -> list[float]:
    """Epsilons from 0 to where the last curve has ended, for all curves of a chart."""
    tops = [entry.radii.max().item() for entry in certifications]
    empirical = certifications[-1].empirical
    if empirical is not None and empirical.isfinite().any():
        tops.append(empirical[empirical.isfinite()].quantile(0.9).item())
    return np.linspace(0, 1.02 * max(*tops, 1e-6), points).tolist()


def draw_certifications(
    certifications: Sequence[Certification] | str | Path,
    *,
    xlabel: str | None = None,
    title: str = "Certified accuracy while training",
    ax: Any = None,
) -> tuple[Any, Any]:
    """Draw certified accuracy against epsilon, one line an epoch, at most 20.

    Early epochs are dark, the last one is bright and thick; where an attack was run its accuracy
    in the last epoch is the dashed line above.

    Args:
        certifications: of one training, by step, or the path of a ``certification.jsonl``.
        xlabel: name and unit of epsilon; None takes norm and domain of the certifications.
        title: above the axis.
        ax: a matplotlib axis, or None for a new figure.

    Returns:
        Figure and axis; save with ``figure.savefig(path)``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nothing was certified.
    """
    if certifications is None:
        raise ValueError(
            "`certifications` must be certifications or the path of a file, got None. Where "
            "processes were forked the path is known to them alone: name the file."
        )
    if isinstance(certifications, str | Path):
        certifications = read_certifications(certifications)
    shown = evenly([entry for entry in certifications if entry.complete])
    if not shown:
        raise ValueError("`certifications` must hold one with every sample answered, got none.")
    figure, ax = axis_of(ax)
    from matplotlib import colormaps

    colors = colormaps["viridis"](np.linspace(0, 0.9, len(shown)))
    grid = curve_grid(shown)
    for color, entry in zip(colors, shown, strict=True):
        accuracy = [100 * share for share in entry.certified_accuracy(grid)]
        last = entry is shown[-1]
        style: dict[str, Any] = {"drawstyle": "steps-pre", "lw": 2.6 if last else 1.2}
        ax.plot(grid, accuracy, color=color, label=entry.title, **style)
    if shown[-1].empirical is not None:
        attacked = [100 * share for share in shown[-1].attacked_accuracy(grid)]
        label = f"attacked, {shown[-1].title}"
        ax.plot(grid, attacked, "--", color=ATTACK, lw=1.8, label=label)
    settings = shown[-1].settings
    if xlabel is None:
        said = f"\n({unit(settings)})" if {"p", "box"} & {*settings} else ""
        xlabel = f"{axis_name(shown[-1].measure)}{said}"
    ax.set(xlabel=xlabel, ylabel="accuracy (%)", ylim=(0, 102), title=title)
    ax.set_xlim(0, grid[-1])
    finish(ax, columns=1 + (len(shown) > 10))
    return figure, ax
