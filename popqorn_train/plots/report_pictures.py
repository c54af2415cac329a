"""The pictures of a report, as SVG; none where matplotlib is not installed.

They are drawn small and with large text, so that a phone shows text of 11 pixels and more.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch

from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.fragile import FragileSample
from popqorn_train.evaluation.summaries import class_name, unit
from popqorn_train.plots import (
    curve_grid,
    curve_of,
    draw_accuracy_curves,
    draw_image_rows,
    draw_radii_by_class,
    draw_radius_histogram,
)
from popqorn_train.plots.accuracy import axis_name
from popqorn_train.plots.style import settings

_LARGEST = 256  # frames and features of an image that is drawn
_CLASSES = 60  # rows of a chart by class
_WIDTH, _TEXT = 4.6, 11  # inches; points
_ACROSS = 2  # images side by side


def _svg(make: Callable[[], tuple[Any, Any]]) -> bytes:
    """A figure that is sharp at every size."""
    buffer = io.BytesIO()
    with settings({"font.size": _TEXT, "svg.hashsalt": "report"}):
        figure, _ = make()
        width, height = figure.get_size_inches()
        figure.set_size_inches(_WIDTH, height * _WIDTH / width if width < _WIDTH else height)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def report_figures(
    certification: Certification,
    fragile: Sequence[FragileSample],
    *,
    classes: Sequence[str],
    image: tuple[int, int] | None,
) -> dict[str, bytes]:
    """Draw what can be drawn, by name.

    Args:
        certification: of at least one sample that is answered.
        fragile: samples with radii of their frames.
        classes: names of the classes.
        image: height and width of the picture that the frames make up; None takes a frame for
            a row; see ``check_image``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    measure, meant = certification.measure, unit(certification.settings)
    label = f"certified {measure.name}\n({meant})"
    radii = certification.radii
    labels = [row.label for row in certification.answered]
    draw: dict[str, Callable[[], tuple[Any, Any]]] = {
        "curves": lambda: draw_accuracy_curves(
            [curve_of("model", certification, curve_grid([certification]))],
            xlabel=f"{axis_name(measure)}\n({meant})",
        ),
        "radii": lambda: draw_radius_histogram({"model": radii}, xlabel=label),
    }
    if None not in labels and 1 < len(set(labels)) <= _CLASSES:
        draw["classes"] = lambda: draw_radii_by_class(
            radii, [int(label or 0) for label in labels], names=classes, xlabel=label
        )
    if shown := _images(fragile, image):
        draw["rows"] = lambda: _drawn_rows(shown, image, classes, certification)
    return {name: _svg(make) for name, make in draw.items()}


def check_image(image: tuple[int, int] | None, frames: int, features: int) -> None:
    """Refuse an image whose rows do not lie within frames.

    Raises:
        ValueError: another number of pixels, or rows that lie across frames.
    """
    if image is None:
        return
    height, width = image
    if frames * features != height * width or features % width:
        raise ValueError(
            f"`--image` must cut {frames} frames of {features} features into rows, got "
            f"{height},{width}."
        )


def _images(fragile: Sequence[FragileSample], image: tuple[int, int] | None) -> list[FragileSample]:
    """Those samples of one shape that are worth an image."""
    found = [one for one in fragile if one.radii and not one.words]
    found = [one for one in found if one.values.shape == found[0].values.shape]
    if not found:
        return []
    frames, features = found[0].values.shape
    drawn = image is not None or (2 <= features <= _LARGEST and 2 <= frames <= _LARGEST)
    return found if drawn else []


def _drawn_rows(
    fragile: Sequence[FragileSample],
    image: tuple[int, int] | None,
    classes: Sequence[str],
    certification: Certification,
) -> tuple[Any, Any]:
    values = torch.stack([one.values for one in fragile])
    radii = torch.tensor([one.radii for one in fragile], dtype=torch.float64)
    if image is not None:
        features, (height, width) = values.shape[2], image
        values = values.reshape(-1, height, width)
        radii = radii.repeat_interleave(features // width, dim=1)
    names = [f"#{one.row.index}: {class_name(one.row.label, classes)}" for one in fragile]
    norm = f" (l_{float(certification.settings['p']):g})" if "p" in certification.settings else ""
    what = f"certified {certification.measure.name} of\nthe frame alone{norm}"
    return draw_image_rows(values, radii, names=names, unit=what, across=_ACROSS)
