"""Which frame does the decision hang on? Radii of single frames as strips, rows and strokes.

In all of them dark is fragile and light is tolerant, on one scale a figure, and the most fragile
frame of every sample is marked. Frames that a sample does not have are NaN and stay white.

S: samples, T: frames, N: features.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popqorn_train.plots.colors import RadiusScale, hexadecimal, ink_on
from popqorn_train.plots.style import (
    Numbers,
    array,
    check_radii,
    color_bar,
    literal,
    mapped,
    masked,
    new_figure,
)

MARK = "#D55E00"  # the most fragile frame
_WRITTEN = 16  # frames up to which every radius is written into its cell


def weakest(radii: NDArray[np.float64]) -> int | None:
    """The most fragile frame; None where nothing is proved."""
    known = np.where(np.isfinite(radii) & (radii > 0), radii, np.inf)
    return None if np.isinf(known).all() else int(known.argmin())


def scale_of(radii: Sequence[NDArray[np.float64]]) -> RadiusScale:
    """One scale for all radii of a figure."""
    return RadiusScale.of(np.concatenate([row.ravel() for row in radii]).tolist())


def draw_frame_strips(
    radii: Numbers,
    *,
    names: Sequence[str] = (),
    xlabel: str = "frame",
    unit: str = "certified radius of the frame alone",
    title: str = "",
) -> tuple[Any, Any]:
    """Draw one strip a sample, its frames coloured by radius.

    Args:
        radii: ``(S, T)`` as ``frame_radii`` gives them.
        names: of the samples; their positions where there are none.
        xlabel: what a frame is.
        unit: name and unit of the radius.
        title: above the strips.

    Returns:
        Figure and axis.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no radii, or another number of names.
    """
    found = check_radii(radii, 2)
    samples, frames = found.shape
    if names and len(names) != samples:
        raise ValueError(f"`names` must be one per sample, got {len(names)} for {samples}.")
    scale = scale_of([found])
    figure = new_figure(7.6, 1.3 + 0.36 * samples)
    ax = figure.add_subplot()
    colors, norm = mapped(scale)
    edges = np.arange(frames + 1) + 0.5, np.arange(samples + 1) - 0.5
    shown = np.ma.masked_invalid(masked(found, scale))
    ax.pcolormesh(*edges, shown, cmap=colors, norm=norm, edgecolor="white", linewidth=1.0)
    for row, values in enumerate(found):
        _mark_cell(ax, row, values, scale)
    ax.set_yticks(
        range(samples), [literal(name) for name in names] or [str(at) for at in range(samples)]
    )
    ax.set(xlabel=f"{xlabel} (framed: the most fragile of its sample)", title=title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    color_bar(figure, ax, scale, unit)
    return figure, ax


def _mark_cell(ax: Any, row: int, values: NDArray[np.float64], scale: RadiusScale) -> None:
    """Write the radii where there is room, and frame the least."""
    if len(values) <= _WRITTEN:
        for at, value in enumerate(values):
            if not np.isnan(value):
                ink = ink_on(scale.color(value))
                style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": ink}
                ax.text(at + 1, row, _short(value), **style)
    least = weakest(values)
    if least is not None:
        from matplotlib.patches import Rectangle

        corner = least + 0.5, row - 0.5
        frame: dict[str, Any] = {"edgecolor": MARK, "lw": 2.4, "zorder": 3, "clip_on": False}
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, **frame))


def _short(value: float) -> str:
    """Two figures without the zero in front: they have to fit into a cell."""
    return f"{value:.2g}".replace("0.", ".", 1) if value < 1 else f"{value:.3g}"


def draw_image_rows(
    images: Numbers,
    radii: Numbers,
    *,
    names: Sequence[str] = (),
    unit: str = "certified radius of the row alone",
    title: str = "",
    across: int = 5,
) -> tuple[Any, Any]:
    """Draw images whose rows are the frames, each row's ink in the colour of its radius.

    The strip beside an image shows the colour also where a row has no ink.

    Args:
        images: ``(S, T, N)``; the least value is paper, the greatest full ink.
        radii: ``(S, T)`` of the rows.
        names: of the images.
        unit: name and unit of the radius.
        title: above the figure.
        across: images side by side.

    Returns:
        Figure and its axes, one per image.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: radii that do not fit the images.
    """
    pixels, found = array(images), check_radii(radii, 2)
    if pixels.ndim != 3 or pixels.shape[:2] != found.shape:
        raise ValueError(
            f"`images` must be (S, T, N) for radii {found.shape}, got shape {pixels.shape}."
        )
    scale = scale_of([found])
    figure, axes = _panels(len(pixels), title, across)
    low, high = pixels.min(), pixels.max()
    for at, ax in enumerate(axes):
        share = (pixels[at] - low) / ((high - low) or 1.0)
        _draw_rows(ax, share, found[at], scale)
        ax.set_title(literal(names[at]) if names else "", fontsize="medium")
    color_bar(figure, axes, scale, unit)
    return figure, axes


def _draw_rows(
    ax: Any, ink: NDArray[np.float64], radii: NDArray[np.float64], scale: RadiusScale
) -> None:
    colors = np.array([scale.color(radius) for radius in radii])[:, None] / 255
    paper = np.array([0.95, 0.95, 0.95])
    image = ink[..., None] * colors + (1 - ink[..., None]) * paper
    rows, columns = ink.shape
    ax.imshow(image, extent=(0, columns, rows, 0), aspect="auto", interpolation="nearest")
    wide = 0.12 * columns
    strip = (1.03 * columns, 1.03 * columns + wide, rows, 0)
    ax.imshow(colors, extent=strip, aspect="auto", interpolation="nearest")
    ax.set(xlim=(0, 1.4 * columns), ylim=(rows, 0), xticks=[], yticks=[])
    ax.set_box_aspect(1 / 1.4)
    ax.spines[:].set_visible(False)
    least = weakest(radii)
    if least is not None:
        tip = 1.03 * columns + wide
        ax.plot(tip + 0.08 * columns, least + 0.5, "<", color=MARK, ms=7)


def draw_strokes(
    steps: Sequence[Numbers],
    radii: Sequence[Numbers],
    *,
    names: Sequence[str] = (),
    unit: str = "certified radius of the pen step alone",
    title: str = "",
) -> tuple[Any, Any]:
    """Draw digits written by a pen, every step in the colour of its radius.

    Args:
        steps: one ``(T, 4)`` a digit: dx, dy, end of stroke, end of digit (E. de Jong's files); the
            first step is the start point.
        radii: one ``(T,)`` a digit.
        names: of the digits.
        unit: name and unit of the radius.
        title: above the figure.

    Returns:
        Figure and its axes, one per digit. A ring marks the start, a cross the most fragile step.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: radii that do not fit the steps.
    """
    pens, found = [array(step) for step in steps], [check_radii(row, 1) for row in radii]
    for pen, row in zip(pens, found, strict=True):
        if pen.shape != (len(row), 4):
            raise ValueError(f"`steps` must be (T, 4) for {len(row)} radii, got {pen.shape}.")
    figure, axes = _panels(len(pens), title, 5)
    scale = scale_of(found)
    for at, ax in enumerate(axes):
        _draw_pen(ax, pens[at], found[at], scale)
        ax.set_title(literal(names[at]) if names else "", fontsize=9)
    color_bar(figure, axes, scale, f"{unit}\nring: start, cross: most fragile step")
    return figure, axes


def _draw_pen(
    ax: Any, pen: NDArray[np.float64], radii: NDArray[np.float64], scale: RadiusScale
) -> None:
    points = pen[:, :2].cumsum(0)
    for at, point in enumerate(points):
        color = hexadecimal(scale.color(radii[at]))
        if at > 0 and pen[at - 1, 2] == 0:  # the pen was not lifted before
            line = np.stack([points[at - 1], point]).T
            # A dark line below keeps light colours visible on white paper.
            ax.plot(*line, color="#333333", lw=6.5, solid_capstyle="round", zorder=1)
            ax.plot(*line, color=color, lw=4.5, solid_capstyle="round", zorder=2)
        else:
            ax.plot(*point, "o", color=color, mec="#333333", ms=6, zorder=3)
    ax.plot(*points[0], "o", mfc="none", mec="#333333", ms=12, mew=1.5, zorder=4)
    least = weakest(radii)
    if least is not None:
        ax.plot(*points[least], "X", color=MARK, mec="white", ms=10, zorder=5)
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, 0.58 * max(*(high - low), 1.0)
    ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half))
    ax.set(xticks=[], yticks=[])
    ax.set_aspect("equal")
    ax.spines[:].set_visible(False)


def _panels(count: int, title: str, across: int) -> tuple[Any, list[Any]]:
    """A figure with so many axes."""
    if count < 1:
        raise ValueError("a figure needs at least one sample, got none.")
    across = min(count, across)
    down = -(-count // across)
    figure = new_figure(1.9 * across + 1.2, 1.65 * down + 0.5)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.remove()
    figure.suptitle(title)
    return figure, list(grid[:count])
