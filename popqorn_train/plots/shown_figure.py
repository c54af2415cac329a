"""A figure that Jupyter shows as the last expression of a cell; needs matplotlib."""

import io
from typing import Any

from matplotlib.figure import Figure

_SHARP = 2  # pixels of the picture per pixel that it takes, for screens that have them


class ShownFigure(Figure):
    """A figure of matplotlib that needs no ``%matplotlib inline``."""

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        """The picture, and the size at which it is to be shown."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=_SHARP * self.dpi)
        width, height = (round(side * self.dpi) for side in self.get_size_inches())
        return file.getvalue(), {"width": width, "height": height}
