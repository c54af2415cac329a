"""Figures show themselves in Jupyter, sharp on every screen."""

import pickle
import struct

from popqorn_train.plots.style import new_figure


def pixels(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_a_figure_is_a_picture_at_twice_its_size():
    figure = new_figure(2, 1)
    png, shown = figure._repr_png_()
    assert shown == {"width": 2 * figure.dpi, "height": figure.dpi}
    assert pixels(png) == (4 * figure.dpi, 2 * figure.dpi)
    assert pixels(pickle.loads(pickle.dumps(figure))._repr_png_()[0]) == pixels(png)
