"""POPQORN, and its cheap form.

Source: Ko et al., "POPQORN", ICML 2019.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from popqorn_train.bounds.backward import Enclosure, has_choice, minimum
from popqorn_train.bounds.enclosure import enclose
from popqorn_train.bounds.forward import ForwardPass, bytes_of_forms
from popqorn_train.bounds.method import CrownIBP, Method
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.outline import Outline
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.kernels.library import is_recorded
from popqorn_train.relaxations.gap_search import least_gap
from popqorn_train.relaxations.products import PRODUCTS
from popqorn_train.relaxations.slopes import POLICIES
from popqorn_train.relaxations.strips import chords

STRIPS = {"least_gap": least_gap, "chords": chords}
_OCTAGONS = ("sigmoid_tanh", "reset")


@dataclass(frozen=True)
class Popqorn(Method):
    """A backward bound for everything a nonlinearity reads, quadratic in the number of frames.

    Attributes:
        slopes: how planes are chosen: ``"lambda"``, ``"tilted"``, ``"constant"`` or ``"line"``
            (slopes.py), or ``"best"``, the larger margin of lambda and tilted.
        octagons: the products that are enclosed on octagons, by name (products.py). All four
            cost about twice as much as boxes; the default has nearly all of the gain.
        own_lines: let every bounded row choose the lines around tanh, sigmoid and relu that are
            closest where its worst input lies; three times the cost for networks that have them.

    Gradients hold tilted slopes and own lines fixed; those of
    ``Popqorn("lambda", octagons=(), own_lines=False)`` are exact.
    """

    dip: ClassVar[float] = 0.08  # margins were not seen to jump further
    slopes: str = "tilted"
    octagons: tuple[str, ...] = _OCTAGONS
    own_lines: bool = True

    def __post_init__(self) -> None:
        _check_slopes(self.slopes, (*POLICIES, "best"))
        _check_octagons(self.octagons)

    @property
    def policies(self) -> tuple[str, ...]:
        """What ``slopes`` stands for."""
        return ("lambda", "tilted") if self.slopes == "best" else (self.slopes,)

    def differentiates(self, output: Node) -> bool:
        """Lines of rows' own come from derivatives."""
        return self.own_lines and has_choice(output)

    def bounded(self, output: Node, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """See ``Method``; the ranges are those of the last policy."""
        bounds = []
        for policy in self.policies:
            relaxation = Relaxation(policy, self.octagons)
            found = enclose(output, relax=relaxation, backward=True, chosen=self.own_lines)
            bounds.append(minimum(output, rows, found))
            bounds.append(minimum(output, rows, found, intervals=True))
        return functools.reduce(torch.maximum, bounds), found


@dataclass(frozen=True)
class FastPopqorn(Method):
    """Ranges from affine forms, linear in the number of bounded quantities; one backward pass.

    The margin is the largest of that of the backward pass, the interval one, and that of
    ``CrownIBP``. Octagons cost nothing in the forward pass, where every product has one.

    Attributes:
        strips: the linear functions of the forward pass: ``"least_gap"`` or ``"chords"``
            (strips.py, gap_search.py).
        slopes: of the planes of the backward pass, as in ``Popqorn``.
        octagons: the products that the backward pass encloses on octagons, likewise.
        own_lines: as in ``Popqorn``.

    Gradients hold searched slopes and own lines fixed; those of
    ``FastPopqorn("chords", "lambda", own_lines=False)`` are exact.
    """

    dip: ClassVar[float] = 0.03  # margins seldom jump further
    strips: str = "least_gap"
    slopes: str = "tilted"
    octagons: tuple[str, ...] = _OCTAGONS
    own_lines: bool = True

    def __post_init__(self) -> None:
        if self.strips not in STRIPS:
            known = ", ".join(map(repr, STRIPS))
            raise ValueError(f"`strips` must be one of {known}, got {self.strips!r}.")
        _check_slopes(self.slopes, tuple(POLICIES))
        _check_octagons(self.octagons)

    @property
    def deciding(self) -> Method:
        """See ``Method``; a subclass, which may bound in a way of its own, is kept."""
        if type(self) is not FastPopqorn:
            return self
        return _Deciding(self.strips, self.slopes, self.octagons, self.own_lines)

    def bounded(self, output: Node, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """See ``Method``."""
        if output.region is None:  # nothing moves: no symbols
            return CrownIBP().bounded(output, rows)
        outline = Outline(output)
        bound, found = self.from_forms(output, rows, outline)
        return _with_intervals(bound, output, rows, outline), found

    def from_forms(self, output: Node, rows: Tensor, outline: Outline) -> tuple[Tensor, Enclosure]:
        """What the ranges from forms give, see ``Method.bounded``."""
        relaxation = Relaxation(self.slopes, self.octagons)
        found = ForwardPass(output, STRIPS[self.strips], relaxation, outline).run()
        found = found._replace(chosen=self.own_lines)
        interval = minimum(output, rows, found, intervals=True)
        return torch.maximum(minimum(output, rows, found), interval), found

    def bytes_a_sample(self, output: Node, like: Tensor) -> int:
        """See ``Method``; the forms that live at once, beside one backward pass."""
        return bytes_of_forms(output, like) + super().bytes_a_sample(output, like)


class _Deciding(FastPopqorn):
    """Asks intervals only where forms do not prove everything already."""

    def bounded(self, output: Node, rows: Tensor) -> tuple[Tensor, Enclosure]:
        """See ``Method``."""
        if output.region is None:
            return super().bounded(output, rows)
        outline = Outline(output)
        bound, found = self.from_forms(output, rows, outline)
        proved = (bound > 0).all(1, keepdim=True)
        if proved.all():
            return bound, found
        every = _with_intervals(bound, output, rows, outline)
        return torch.where(proved, bound, every), found  # the same in any batch


def _with_intervals(bound: Tensor, output: Node, rows: Tensor, outline: Outline) -> Tensor:
    """The larger of a bound and that of intervals.

    Where they are larger nowhere, which is nearly always so, they cost no gradient.
    """
    if bound.requires_grad and not is_recorded(bound):
        with torch.no_grad():
            interval = _of_intervals(output, rows, outline)
        if (interval < bound).all():
            return bound
    return torch.maximum(bound, _of_intervals(output, rows, outline))


def _of_intervals(output: Node, rows: Tensor, outline: Outline) -> Tensor:
    """Bounds of ``CrownIBP(1)``; its intervals are no closer than those of ``FastPopqorn``."""
    return minimum(output, rows, enclose(output, relax=Relaxation(), outline=outline))


def _check_slopes(slopes: str, known: tuple[str, ...]) -> None:
    if slopes not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"`slopes` must be one of {names}, got {slopes!r}.")


def _check_octagons(octagons: tuple[str, ...]) -> None:
    if isinstance(octagons, str) or not set(octagons) <= set(PRODUCTS):
        known = ", ".join(PRODUCTS)
        raise ValueError(f"`octagons` must be a tuple of {known}, got {octagons!r}.")
