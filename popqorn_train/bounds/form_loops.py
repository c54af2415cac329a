"""Ranges and bands of affine forms through compiled loops, where there are any.

They are for inputs that move in a box; symbols.py has the same in operations of torch.

B: batch.
"""

from collections.abc import Sequence

from popqorn_train.bounds.block_sums import Block
from popqorn_train.bounds.forms import Form, mapped
from popqorn_train.bounds.images import spans
from popqorn_train.kernels.form_bands import octagon_bands
from popqorn_train.kernels.form_ranges import form_range
from popqorn_train.kernels.operands import Operand
from popqorn_train.perturbations.region import Bounds
from popqorn_train.relaxations.domain import Bands, Rectangle


def ranged(form: Form, rounding: float, widths: Sequence[int]) -> tuple[Bounds, list[Form]] | None:
    """Range of a form, and its spans with their sizes; see ``form_range``."""
    known = form_range(_operand(form), rounding, widths)
    if known is None:
        return None
    bare = Form(form.center, None, None, form.own, known.size, form.loose)
    ends = [known.lower, known.upper]
    if widths:
        bare, ends = mapped(bare, lambda x: x.flatten(2)), [end.flatten(1) for end in ends]
    found = []
    for part, blocks in zip(spans(bare, widths), known.spans, strict=True):
        inputs, noise = (block and Block(*block) for block in blocks)
        found.append(Form(part.center, inputs, noise, part.own, part.size, part.loose))
    return Bounds(*ends), found


def banded(
    x: Form, y: Form, signs: tuple[float, float], box: Rectangle, rounding: float
) -> Bands | None:
    """Bands of the octagon of two forms; see ``octagon_bands``."""
    known = octagon_bands([_operand(x), _operand(y)], signs, box, rounding)
    return None if known is None else Bands(*known)


def _operand(form: Form) -> Operand:
    """A form as loops take it."""
    return Operand(form.center, form.own, form.inputs, form.noise)
