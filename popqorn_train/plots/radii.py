"""How certified radii are spread: over samples, over classes, over frames.

S: samples, T: frames.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from popqorn_train.plots.style import (
    CERTIFIED,
    Numbers,
    axis_of,
    check_radii,
    colors_of,
    finish,
    literal,
)


def draw_radius_histogram(
    radii: Mapping[str, Numbers],
    *,
    bins: int = 30,
    xlabel: str = "certified radius",
    title: str = "",
    ax: Any = None,
) -> tuple[Any, Any]:
    """Draw how many samples have which radius, one colour per model, with each median.

    Radii of 0 (wrong predictions, and right ones that are not proved) have a hatched bar of their
    own left of 0, so that they are not taken for small radii.

    Args:
        radii: ``(S,)`` of each model, by name.
        bins: number of bars from 0 to the largest radius.
        xlabel: name and unit of the radius.
        title: above the axis.
        ax: a matplotlib axis, or None for a new figure.

    Returns:
        Figure and axis.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no radii.
    """
    found = {name: check_radii(values, 1) for name, values in radii.items()}
    if not found:
        raise ValueError("`radii` must hold the radii of at least one model, got none.")
    figure, ax = axis_of(ax)
    top = max(values.max() for values in found.values()) or 1.0
    edges = np.linspace(0, top, bins + 1)
    width = 2 * edges[1]
    colors = colors_of([*found])
    for index, (name, values) in enumerate(found.items()):
        color, weight = colors[index], 100 / len(values)
        positive, median = values[values > 0], np.quantile(values, 0.5, method="lower")
        heights = weight * np.histogram(positive, edges)[0]
        label = f"{literal(name)}: median {median:.3g}"
        ax.stairs(heights, edges, color=color, fill=True, alpha=0.25)
        ax.stairs(heights, edges, color=color, lw=1.6, label=label)
        ax.axvline(median, color=color, ls="--", lw=1.4)
        zero, thin = weight * (values == 0).sum(), width / len(found)
        left = -1.25 * width + index * thin
        ax.bar(left, zero, thin, align="edge", color="white", edgecolor=color, hatch="///")
    ax.set(xlabel=xlabel, ylabel="samples (%)", title=title, xlim=(-1.5 * width, top * 1.02))
    _zero_named(ax, -0.75 * width)
    finish(ax)
    return figure, ax


def _zero_named(ax: Any, at: float) -> None:
    """Name the bar of zeros under it, among the ticks that are not negative."""
    ticks = [tick for tick in ax.get_xticks() if 0 < tick <= ax.get_xlim()[1]]
    ax.set_xticks([at, *ticks], ["none\nproved", *[f"{tick:g}" for tick in ticks]])


def draw_radii_by_class(
    radii: Numbers,
    labels: Sequence[int],
    *,
    names: Sequence[str] = (),
    xlabel: str = "certified radius",
    title: str = "",
    ax: Any = None,
) -> tuple[Any, Any]:
    """Draw every radius in the row of its class, with the median as a bar across.

    Args:
        radii: ``(S,)``; 0 where the prediction is wrong.
        labels: ``(S,)`` the true classes.
        names: of the classes, by label; numbers where they are missing.
        xlabel: name and unit of the radius.
        title: above the axis.
        ax: a matplotlib axis, or None for a new figure.

    Returns:
        Figure and axis.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no radii, or another number of labels.
    """
    found, classes = check_radii(radii, 1), np.asarray(labels)
    if classes.shape != found.shape:
        raise ValueError(f"`labels` must be one per radius, got {len(classes)} for {len(found)}.")
    present = np.unique(classes)
    figure, ax = axis_of(ax, height=1.4 + 0.34 * len(present))
    scatter = np.random.default_rng(0).uniform(-0.22, 0.22, len(found))
    for row, label in enumerate(present):
        own = classes == label
        ax.plot(found[own], row + scatter[own], "o", color=CERTIFIED, ms=3.5, alpha=0.45, mew=0)
        median = np.quantile(found[own], 0.5, method="lower")
        ax.plot([median, median], [row - 0.38, row + 0.38], color="black", lw=3)
    named = [
        literal(names[label]) if label < len(names) else str(label) for label in present.tolist()
    ]
    counts = [int((classes == label).sum()) for label in present]
    ax.set_yticks(
        range(len(present)), [f"{name} ({n})" for name, n in zip(named, counts, strict=True)]
    )
    ax.set(xlabel=f"{xlabel}\nbar: median of the class", ylabel="class (samples)", title=title)
    ax.set_xlim(left=-0.02 * (found.max() or 1.0))
    ax.invert_yaxis()
    finish(ax)
    return figure, ax


def draw_radius_by_frame(
    radii: Mapping[str, Numbers],
    *,
    xlabel: str = "frame",
    ylabel: str = "certified radius of the frame alone",
    title: str = "",
    ax: Any = None,
) -> tuple[Any, Any]:
    """Draw the median radius of every frame, with the middle half of the samples around it.

    Samples whose radii are all 0 (wrong predictions) are left out; NaN stands for frames that a
    shorter sample does not have.

    Args:
        radii: ``(S, T)`` of each model, by name.
        xlabel: what a frame is.
        ylabel: name and unit of the radius.
        title: above the axis.
        ax: a matplotlib axis, or None for a new figure.

    Returns:
        Figure and axis.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no radii.
    """
    figure, ax = axis_of(ax)
    top, at_top = 0.0, 0
    for color, (name, values) in zip(colors_of([*radii]), radii.items(), strict=True):
        found = check_radii(values, 2)
        top = max(top, np.nanmax(found))
        at_top += int((found > top * (1 - 1e-6)).sum())
        found = found[(found > 0).any(1)]
        if not len(found):
            ax.plot([], [], color=color, label=f"{literal(name)}: nothing proved")
            continue
        low, middle, high = np.nanquantile(found, (0.25, 0.5, 0.75), axis=0)
        frames = np.arange(1, found.shape[1] + 1)
        ax.fill_between(frames, low, high, color=color, alpha=0.15, lw=0)
        label = f"{literal(name)}: median of {len(found)} samples"
        ax.plot(frames, middle, "o-", color=color, ms=3.5, lw=1.8, label=label)
    if at_top > 1:  # no coincidence: that is where the search ended
        ax.axhline(top, color="#666666", ls=":", lw=1.4, label=f"largest radius tried: {top:.3g}")
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.set_ylim(bottom=0)
    ax.xaxis.get_major_locator().set_params(integer=True)
    finish(ax)
    return figure, ax
