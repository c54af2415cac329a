"""What do radii and accuracies look like?

Goes in: rows, radii, certifications. Comes out: figures, sentences as HTML, a report on one page.
Must not know: models, and how a number was found. matplotlib is an optional extra,
``pip install "popqorn-train[plots]"``. Each ``draw_...`` returns a figure and its axis or axes;
``figure.savefig(path)`` keeps it.
"""

from popqorn_train.plots.accuracy import (
    AccuracyCurve,
    curve_grid,
    curve_of,
    draw_accuracy_curves,
    draw_certifications,
    evenly,
)
from popqorn_train.plots.frames import draw_frame_strips, draw_image_rows, draw_strokes
from popqorn_train.plots.radii import (
    draw_radii_by_class,
    draw_radius_by_frame,
    draw_radius_histogram,
)
from popqorn_train.plots.training import draw_training
from popqorn_train.plots.waves import draw_waves
from popqorn_train.plots.words import Sentence, draw_sentences, sentences_html

__all__ = [
    "AccuracyCurve",
    "Sentence",
    "curve_grid",
    "curve_of",
    "draw_accuracy_curves",
    "draw_certifications",
    "draw_frame_strips",
    "draw_image_rows",
    "draw_radii_by_class",
    "draw_radius_by_frame",
    "draw_radius_histogram",
    "draw_sentences",
    "draw_strokes",
    "draw_training",
    "draw_waves",
    "evenly",
    "sentences_html",
]
