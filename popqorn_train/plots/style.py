"""What all figures share; matplotlib is an optional extra."""

import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from popqorn_train.plots.colors import ANCHORS, UNPROVED, RadiusScale, hexadecimal

# Okabe and Ito's colours, told apart by colour-blind readers. Some mean the same everywhere.
CERTIFIED, STANDARD, ATTACK = "#0072B2", "#666666", "#D55E00"
COLORS = (CERTIFIED, STANDARD, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"  # of the attacks on models that share a chart

_SHARP = 2  # pixels of a picture per pixel that it takes, for screens that have them

Numbers = Tensor | Sequence[Any] | NDArray[Any]


def array(values: Numbers) -> NDArray[np.float64]:
    """Any numbers as float64 on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def check_radii(radii: Numbers, axes: int, name: str = "radii") -> NDArray[np.float64]:
    """Radii as an array.

    Raises:
        ValueError: none at all, the wrong number of axes, or a radius below 0.
    """
    found = array(radii)
    if found.ndim != axes or found.size == 0:
        raise ValueError(f"`{name}` must have {axes} axes and some radii, got shape {found.shape}.")
    if (found < 0).any():
        raise ValueError(f"`{name}` must not be negative, got {found.min()}.")
    return found


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, which no window shows, but Jupyter does.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _matplotlib().figure.Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = functools.partial(_picture, figure)
    return figure


def _picture(figure: Any) -> tuple[bytes, dict[str, int]]:
    """What Jupyter shows of a figure: a PNG, and the size it is to be shown at."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_SHARP * figure.dpi)
    width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
    return file.getvalue(), {"width": width, "height": height}


def settings(values: dict[str, Any]) -> Any:
    """Settings of matplotlib, inside a ``with``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return _matplotlib().rc_context(values)


def _matplotlib() -> Any:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib: pip install "popqorn-train[plots]".') from error
    return matplotlib


def literal(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign does not begin a formula."""
    return text.replace("$", r"\$")


def axis_of(ax: Any, width: float = 7.2, height: float = 4.6) -> tuple[Any, Any]:
    """The figure of an axis and the axis, made where there is none."""
    if ax is not None:
        return ax.figure, ax
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def colors_of(names: Sequence[str]) -> list[str]:
    """One colour per model: the first "standard" and "certified" ones have theirs in every chart.

    Raises:
        ValueError: more models than colours that can be told apart.
    """
    if len(names) > len(COLORS):
        raise ValueError(f"at most {len(COLORS)} models can be told apart in one chart.")
    roles = {"standard": STANDARD, "certified": CERTIFIED}
    found: dict[int, str] = {}
    for word, color in roles.items():
        own = [at for at, name in enumerate(names) if word in name.lower() and at not in found]
        found |= {at: color for at in own[:1]}
    others = iter([color for color in COLORS if color not in found.values()])
    return [found[at] if at in found else next(others) for at in range(len(names))]


def finish(ax: Any, columns: int = 1) -> None:
    """A faint grid, two sides only, and the legend where something has a name."""
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, ncols=columns)


def color_bar(figure: Any, axes: Any, scale: RadiusScale, label: str, *, cax: Any = None) -> Any:
    """Say what the colours of radii mean.

    Args:
        figure: that holds the axes.
        axes: one or several, beside which the bar stands.
        scale: of the radii.
        label: name and unit of the radius.
        cax: an axis to lie in instead.
    """
    from matplotlib.cm import ScalarMappable

    colors, norm = mapped(scale)
    place = {"ax": axes, "fraction": 0.05, "pad": 0.02, "aspect": 24}
    if cax is not None:
        place = {"cax": cax, "orientation": "horizontal"}
    extend = "max" if scale.beyond else "neither"
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=colors), extend=extend, **place)
    bar.set_label(f"{label}\ndark: fragile, light: tolerant")
    if scale.logarithmic:
        plain_logarithm(bar.ax.xaxis if cax is not None else bar.ax.yaxis, scale.high / scale.low)
    return bar


def plain_logarithm(axis: Any, ratio: float) -> None:
    """Write 0.1, 0.2, 0.5 on a logarithmic axis, powers of ten where it is long.

    Args:
        axis: of matplotlib.
        ratio: of its ends.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0,) if ratio > 300 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def mapped(scale: RadiusScale) -> tuple[Any, Any]:
    """The scale as a colour map and a norm of matplotlib; radius 0 is grey, NaN is left out."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize

    anchors = [tuple(part / 255 for part in color) for color in ANCHORS]
    grey = hexadecimal(UNPROVED)
    plain = LinearSegmentedColormap.from_list("radius", anchors)
    colors = plain.with_extremes(under=grey, bad=(1, 1, 1, 0))  # arguments since 3.11 only
    kind = LogNorm if scale.logarithmic else Normalize
    return colors, kind(scale.low, scale.high)


def masked(radii: NDArray[np.float64], scale: RadiusScale) -> NDArray[np.float64]:
    """Radii as ``mapped`` wants them: 0 lies below the scale, whatever its kind."""
    below = scale.low / 2 if scale.low > 0 else -1.0
    return np.where(radii == 0, below, radii)
