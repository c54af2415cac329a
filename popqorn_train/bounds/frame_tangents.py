"""Affine forms of sums of squares: the tangents of every frame, as functions of the input itself.

The windows of a wave overlap and are many; their own forms are never made.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import pad

from popqorn_train.bounds.forms import Error, Term, weighted
from popqorn_train.bounds.images import Stacked
from popqorn_train.bounds.quadratic import Quadratic
from popqorn_train.bounds.symbols import Symbols
from popqorn_train.perturbations.region import Bounds


def tangent_forms(
    node: Quadratic, x: Bounds, symbols: Symbols, error: Callable[[Tensor], Error]
) -> Stacked:
    """The form of every frame.

    Args:
        node: the sums.
        x: range of what they read.
        symbols: of the pass.
        error: from what a tangent misses, ``(B, K)``, to the error of the form.
    """
    slope, middle, half = node.strip(x)
    frames = []
    for t in range(node.shape[0]):
        rows = pad(slope[:, t, :, None], (0, 0, t, 0))  # on the frames up to this one
        term = Term(symbols.linear(node.inputs[0], rows))
        frames.append(weighted([term], middle[:, t], error(half[:, t])))
    return Stacked(tuple(frames))
