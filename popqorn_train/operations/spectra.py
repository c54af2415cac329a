"""How short-time Fourier transforms, and what is asked of their complex numbers, act on nodes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from popqorn_train.bounds.node import Node
from popqorn_train.operations.lift import Lifter, has_node
from popqorn_train.operations.registry import operation, spectral, unsupported
from popqorn_train.operations.shapes import affine_of, function_of, placed_anew
from popqorn_train.operations.spectrum import Parts, Places, Spectrum, Transform
from popqorn_train.operations.ways_out import way_out_of
from popqorn_train.tracing.steps import MOVES, REPEATS, Step, called_name

_ONE_WAVE = "Pass one wave a sample, (B, L), or the channels one by one."
_REAL = "Multiply a spectrum by a real number, or scale its absolute values."


@operation("stft")
def _transformed(
    lifter: Lifter,
    step: Step,
    x: Node,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Any = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Any:
    """Windows of the wave times the matrix that torch's own function stands for."""
    if not isinstance(x, Node) or has_node(window):
        raise unsupported(step, "a Fourier transform whose window moves")
    if len(x.shape) != 1 or x.batch_axis != 0:
        raise unsupported(step, "a Fourier transform of several waves a sample", _ONE_WAVE)
    if align_to_window is not None:
        raise unsupported(step, "a transform with align_to_window", "Leave align_to_window out.")
    windows = _windows(x, n_fft, hop_length or n_fft // 4, pad_mode if center else None)
    a = _matrix(window, n_fft, win_length or n_fft, normalized, onesided, lifter.device)
    transform = Transform(windows, a, lifter.dtype)
    places = torch.arange(windows.shape[0] * len(a) // 2, device=lifter.device)
    found = Spectrum.of(transform, Places(places.view(windows.shape[0], -1).T, 0))
    return found if return_complex else _as_real(lifter, step, found)


def _windows(x: Node, size: int, hop: int, pad_mode: str | None) -> Node:
    """Frames ``(T, N)`` of a wave, padded at both ends if there is a mode for it."""
    edge = 0 if pad_mode is None else size // 2
    count = (x.shape[0] + 2 * edge - size) // hop + 1
    places = torch.arange(count)[:, None] * hop + torch.arange(size)

    def windows(x: Tensor) -> Tensor:
        if pad_mode is not None:
            x = pad(x[:, None], (edge, edge), pad_mode)[:, 0]
        return x[..., places]

    return affine_of(windows, (x,), {}, shape=(count, size), axis=0)


def _matrix(
    window: Tensor | None,
    size: int,
    length: int,
    normalized: bool,
    onesided: bool | None,
    device: torch.device,
) -> Tensor:
    """``(2 F, N)``: the transforms of all unit vectors, real parts before imaginary ones."""
    eye = torch.eye(size, dtype=torch.float64, device=device)
    weights = eye.new_ones(length) if window is None else window.double()
    found = torch.stft(
        eye, size, size, length, weights, center=False, normalized=normalized, onesided=onesided,
        return_complex=True,
    )  # fmt: skip
    return torch.cat([found.real[..., 0], found.imag[..., 0]], 1).T


@spectral("abs")
def _magnitude(lifter: Lifter, step: Step, x: Spectrum) -> Node:
    """Absolute values; their squares are the powers again."""
    return x.magnitude()


@spectral("real", "imag")
def _part(lifter: Lifter, step: Step, x: Spectrum) -> Node:
    return x.part(0 if called_name(step.target) == "real" else 1)


@spectral("getattr")
def _field(lifter: Lifter, step: Step, x: Spectrum, name: str) -> Any:
    if name in ("real", "imag"):
        return x.part(0 if name == "real" else 1)
    if name != "mT":
        raise unsupported(step, f"the field {name!r} of complex numbers", way_out_of("spectrum"))
    return Spectrum.of(x.transform, placed_anew(lifter, step, x.places, lambda x: x.mT))


@spectral("view_as_real")
def _as_real(lifter: Lifter, step: Step, x: Spectrum) -> Node:
    """Both parts along a new last axis."""
    at = torch.stack([x.part(number).places.at for number in (0, 1)], -1)
    return Parts(x.transform, Places(at, x.places.axis))


@spectral("mul", "multiply", "div", "divide", "true_divide", "truediv")
def _scaled(lifter: Lifter, step: Step, x: Any, y: Any) -> Spectrum:
    """Times a real number, or over one."""
    divides = "div" in called_name(step.target)
    whole, factor = (x, y) if isinstance(x, Spectrum) else (y, x)
    number = isinstance(factor, int | float) or (isinstance(factor, Tensor) and factor.numel() == 1)
    if not number or has_node(factor) or (divides and whole is y):
        raise unsupported(step, "a product of complex numbers", _REAL)
    if isinstance(factor, Tensor):
        factor = factor.double().reshape(())
    return Spectrum.of(whole.transform.scaled(1 / factor if divides else factor), whole.places)


@spectral("clone", "contiguous", "detach")
def _same(lifter: Lifter, step: Step, x: Spectrum, **kwargs: Any) -> Spectrum:
    return x


@spectral(*MOVES, *REPEATS)
def _move(lifter: Lifter, step: Step, /, x: Spectrum, *args: Any, **kwargs: Any) -> Spectrum:
    """Entries in other places."""

    def move(value: Tensor) -> Tensor:
        return function_of(step)(value, *args, **kwargs)

    return Spectrum.of(x.transform, placed_anew(lifter, step, x.places, move))
