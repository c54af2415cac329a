"""Weights from which certified training of recurrent layers starts well.

What counts is the ratio of the radius of a state to what it tells apart (state_widths.py). On 28
rows of MNIST it grows with every frame from the weights of ``torch.nn``, so that a certified loss
has nothing to learn from; among orthogonal matrices only signed permutations have rows of absolute
sum 1, so that the identity keeps both radius and signal.

Shi et al., "Fast certified robust training with short warmup", NeurIPS 2021, for weights whose
radius neither grows nor falls.

G: gates, H: hidden units.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Kind = Literal["eye", "ibp-normal"]
Layer = nn.RNNBase | nn.RNNCellBase
_GATES = 0.1  # of the radius, how much gates and all but the identity get


def certifiable_init_(
    module: nn.Module, kind: Kind = "eye", *, generator: torch.Generator | None = None
) -> nn.Module:
    """Set the weights of every recurrent layer and cell in a module, biases to 0.

    Args:
        module: with an ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` or cells of these in it, of any depth
            and in any direction.
        kind: ``"ibp-normal"``: normal, with the deviation that keeps the radius of a long sum.
            ``"eye"``, for gated cells: the same, but the candidate (g of an LSTM, n of a GRU)
            passes the hidden state on unchanged, and all other recurrent weights and the weights
            of gates are a tenth as large.
        generator: of random numbers; None takes the global one.

    Returns:
        The module.

    Raises:
        ValueError: an unknown kind, no recurrent layer, weights that are computed from others,
            or, for ``"eye"``, a layer without gates or with ``proj_size``.
    """
    if kind not in _KINDS:
        names = ", ".join(repr(name) for name in _KINDS)
        raise ValueError(f"`kind` must be one of {names}, got {kind!r}.")
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, Layer)]
    if not layers:
        raise ValueError(
            f"`module` must hold an nn.RNN, nn.LSTM, nn.GRU or a cell of these, got a "
            f"{type(module).__name__} without."
        )
    for name, layer in layers:
        _check(name, layer, kind)
    with torch.no_grad():
        for _, layer in layers:
            for weights in _weights(layer):
                _KINDS[kind](layer, weights, generator)
    return module


class _Weights(NamedTuple):
    """Weights of one layer in one direction.

    Attributes:
        w_ih: ``(G H, N)``.
        w_hh: ``(G H, H)``, or ``(G H, P)`` with a projection.
        w_hr: ``(P, H)``; None without a projection.
        biases: ``(G H,)`` each, or none.
    """

    w_ih: Tensor
    w_hh: Tensor
    w_hr: Tensor | None
    biases: tuple[Tensor, ...]


def _suffixes(layer: Layer) -> list[str]:
    """Ends of the names of a layer's weights, one for each depth and direction."""
    if isinstance(layer, nn.RNNCellBase):
        return [""]
    ways = ("", "_reverse")[: 1 + layer.bidirectional]
    return [f"_l{depth}{way}" for depth in range(layer.num_layers) for way in ways]


def _weights(layer: Layer) -> Iterator[_Weights]:
    own = dict(layer.named_parameters(recurse=False))
    for suffix in _suffixes(layer):
        w_ih, w_hh, w_hr, b_ih, b_hh = (
            own.get(name + suffix)
            for name in ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")
        )
        if w_ih is None or w_hh is None:
            raise ValueError(
                f"`module` has an nn.{type(layer).__name__} with weights computed from others; "
                "initialise it before it is parametrised."
            )
        yield _Weights(w_ih, w_hh, w_hr, tuple(bias for bias in (b_ih, b_hh) if bias is not None))


def _check(name: str, layer: Layer, kind: Kind) -> None:
    list(_weights(layer))
    called = f"an nn.{type(layer).__name__}" + f" ({name})" * bool(name)
    if kind == "eye" and isinstance(layer, nn.RNN | nn.RNNCell):
        raise ValueError(
            f"`kind`='eye' is for gated cells, and {called} has none; with few frames its own "
            "weights train best, with many use a GRU."
        )
    if kind == "eye" and isinstance(layer, nn.LSTM) and layer.proj_size:
        raise ValueError(
            f"`kind`='eye' passes the hidden state on unchanged, which {called} with proj_size="
            f"{layer.proj_size} cannot; use kind='ibp-normal'."
        )


def _normal(weight: Tensor, generator: torch.Generator | None, scale: float = 1.0) -> None:
    """E|w| times the number of inputs is ``scale``, so that radii are scaled by that."""
    std = scale * math.sqrt(math.pi / 2) / weight.shape[1]
    weight.normal_(0, std, generator=generator)


def _ibp_normal(layer: Layer, weights: _Weights, generator: torch.Generator | None) -> None:
    for weight in (weights.w_ih, weights.w_hh, weights.w_hr):
        if weight is not None:
            _normal(weight, generator)
    for bias in weights.biases:
        bias.zero_()


def _eye(layer: Layer, weights: _Weights, generator: torch.Generator | None) -> None:
    _ibp_normal(layer, weights, generator)
    hidden = layer.hidden_size
    candidate = slice(2 * hidden, 3 * hidden)  # i f g o, or r z n
    for weight in (weights.w_ih, weights.w_hh):
        kept = weight[candidate].clone()
        weight.mul_(_GATES)
        weight[candidate] = kept if weight is weights.w_ih else _GATES * kept
    weights.w_hh[candidate] += torch.eye(
        hidden, dtype=weights.w_hh.dtype, device=weights.w_hh.device
    )


_KINDS: dict[str, Callable[[Layer, _Weights, torch.Generator | None], None]] = {
    "eye": _eye,
    "ibp-normal": _ibp_normal,
}
