"""Which part of an utterance does the decision hang on? Waves in the colours of radii.

As in frames.py dark is fragile and light is tolerant, on one scale a figure, and the most fragile
part of every wave is marked.

L: samples of a wave, T: parts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popqorn_train.plots.colors import RadiusScale, hexadecimal
from popqorn_train.plots.frames import MARK, scale_of, weakest
from popqorn_train.plots.style import Numbers, array, check_radii, color_bar, literal, new_figure


def draw_waves(
    waves: Sequence[Numbers],
    radii: Sequence[Numbers],
    *,
    step: int,
    rate: float = 8000.0,
    names: Sequence[str] = (),
    unit: str = "certified radius of the part alone",
    title: str = "",
) -> tuple[Any, Any]:
    """Draw waves one below the other, each of their parts in the colour of its radius.

    Args:
        waves: one ``(L,)`` an utterance.
        radii: one ``(T,)`` an utterance, of its parts.
        step: samples of a part; the last one has the rest.
        rate: samples a second.
        names: of the utterances.
        unit: name and unit of the radius.
        title: above the figure.

    Returns:
        Figure and its axes, one per wave. A band marks the most fragile part.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: radii that do not fit the waves.
    """
    sounds, found = [array(wave) for wave in waves], [check_radii(row, 1) for row in radii]
    if not sounds or len(sounds) != len(found):
        raise ValueError(f"`radii` must be one row per wave, got {len(found)} for {len(sounds)}.")
    for sound, row in zip(sounds, found, strict=True):
        if sound.ndim != 1 or not (len(row) - 1) * step < len(sound):
            raise ValueError(
                f"`waves` must be (L,) with more than {(len(row) - 1) * step} samples for "
                f"{len(row)} radii, got shape {sound.shape}."
            )
    figure = new_figure(7.6, 0.9 + 1.1 * len(sounds))
    axes = list(figure.subplots(len(sounds), 1, squeeze=False, sharex=True).ravel())
    scale = scale_of(found)
    for at, ax in enumerate(axes):
        _draw_wave(ax, sounds[at], found[at], scale, step, rate)
        ax.set_ylabel(literal(names[at]) if names else "", rotation=0, ha="right", va="center")
    axes[-1].set_xlabel("seconds (shaded: the most fragile part)")
    figure.suptitle(title)
    color_bar(figure, axes, scale, unit)
    return figure, axes


def _draw_wave(
    ax: Any,
    wave: NDArray[np.float64],
    radii: NDArray[np.float64],
    scale: RadiusScale,
    step: int,
    rate: float,
) -> None:
    seconds, starts = np.arange(len(wave)) / rate, step * np.arange(len(radii))
    stops = np.append(starts[1:] + 1, len(wave))  # parts share a sample, so the line is whole
    ax.plot(seconds, wave, color="#333333", lw=1.6, zorder=1)  # keeps light colours visible
    for start, stop, radius in zip(starts, stops, radii, strict=True):
        color = hexadecimal(scale.color(radius))
        ax.plot(seconds[start:stop], wave[start:stop], color=color, lw=1.0, zorder=2)
    worst = weakest(radii)
    if worst is not None:
        ends = seconds[starts[worst]], seconds[stops[worst] - 1]
        ax.axvspan(*ends, color=MARK, alpha=0.25, lw=0, zorder=0)
    ax.set(yticks=[])
    ax.spines[:].set_visible(False)
