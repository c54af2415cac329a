"""Affine forms of affine nodes, from those of their inputs.

A sequence of which the frames have forms of their own is kept as ``Stacked``: what works frame by
frame never builds one form of all frames. An affine node that has no rule of its own is run on
the coefficients of every symbol.

B: batch, T: frames, F: features, n: symbols of a block.
"""

import math
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from popqorn_train.bounds.affine import Linear, Negative, Scale, Sum
from popqorn_train.bounds.block_sums import Block
from popqorn_train.bounds.concatenation import Projected, Select, Stack
from popqorn_train.bounds.forms import Error, Form, Term, mapped, unit_of_rounding, weighted
from popqorn_train.bounds.node import Node
from popqorn_train.bounds.slices import Frame, Span
from popqorn_train.perturbations.region import Bounds


class Stacked(NamedTuple):
    """Forms of all frames of a sequence."""

    frames: tuple[Form, ...]


Image = Form | Stacked


def sources(node: Node) -> Sequence[Node]:
    """The nodes whose forms a node's form is made of: its inputs, or the frame that it reads."""
    if isinstance(node, Projected) and isinstance(node.layer.inputs[0], Stack):
        return [node.layer.inputs[0].inputs[node.t]]
    return node.inputs


def framewise(of: Callable[..., Form], *images: Image) -> Image:
    """A function of forms, frame by frame where all are sequences of frames."""
    stacks = [image.frames for image in images if isinstance(image, Stacked)]
    if len(stacks) < len(images):
        return of(*map(joined, images))
    return Stacked(tuple(of(*column) for column in zip(*stacks, strict=True)))


def joined(image: Image) -> Form:
    """One form ``(B, T, F)`` of all frames."""
    if isinstance(image, Form):
        return image
    frames = image.frames
    sizes = torch.stack([form.size for form in frames], 1)
    zero = torch.zeros_like(frames[0].center)
    owns = [zero if form.own is None else form.own for form in frames]
    return Form(
        torch.stack([form.center for form in frames], 1),
        _joined_blocks([form.inputs for form in frames], sizes),
        _joined_blocks([form.noise for form in frames], sizes),
        torch.stack(owns, 1),
        sizes,
        any(form.loose for form in frames),
    )


def _joined_blocks(blocks: Sequence[Block | None], like: Tensor) -> Block | None:
    """Blocks of all frames, ``(n, B, T, F)``."""
    known = [block for block in blocks if block is not None]
    if not known:
        return None
    start, stop = min(b.start for b in known), max(b.stop for b in known)
    out = like.new_zeros(stop - start, *like.shape)
    for t, block in enumerate(blocks):
        if block is not None:
            out[block.start - start : block.stop - start, :, t] += block.data
    return Block(start, out)


@singledispatch
def image(node: Node, *forms: Image) -> Image:
    """The form of an affine node; its linear part is that of its range, run on coefficients."""
    inputs = [joined(form) for form in forms]

    def at(*values: Tensor) -> Tensor:
        return node.range(*[Bounds(value, value) for value in values]).lower

    zeros = [torch.zeros_like(form.center) for form in inputs]
    # The linear part as the transpose of its transpose: users' functions know no symbols.
    constant, transpose, *_ = torch.func.vjp(at, *zeros)
    _, again, *_ = torch.func.vjp(transpose, torch.zeros_like(constant))

    def linear(*columns: Tensor) -> Tensor:
        (found,) = again(columns)
        return cast(Tensor, found)

    def run(blocks: Sequence[Block | None]) -> Block | None:
        known = [block for block in blocks if block is not None]
        if not known:
            return None
        start, stop = min(b.start for b in known), max(b.stop for b in known)
        pairs = zip(blocks, zeros, strict=True)
        data = [_widened(block, start, stop, zero) for block, zero in pairs]
        return Block(start, torch.vmap(linear)(*data))

    with torch.no_grad():
        size = node.size(None, *[form.size for form in inputs])
    terms = sum(math.prod(parent.shape) for parent in node.inputs)
    own = size * unit_of_rounding(terms, size.dtype)
    if any(form.own is not None for form in inputs):
        owns = [z if f.own is None else f.own for f, z in zip(inputs, zeros, strict=True)]
        own = own + (node.size(None, *owns) - node.size(None, *zeros))
    parts = [run([form.inputs for form in inputs]), run([form.noise for form in inputs])]
    center = at(*[form.center for form in inputs])
    return Form(center, parts[0], parts[1], own, size, any(form.loose for form in inputs))


def _widened(block: Block | None, start: int, stop: int, zero: Tensor) -> Tensor:
    """Coefficients of all symbols between two, 0 where there are none."""
    if block is not None and (block.start, block.stop) == (start, stop):
        return block.data
    out = zero.new_zeros(stop - start, *zero.shape)
    if block is not None:
        out[block.start - start : block.stop - start] += block.data
    return out


@image.register
def _(node: Linear, x: Image) -> Image:
    return framewise(lambda form: weighted([Term(form, weight=node.weight)], node.bias), x)


@image.register
def _(node: Projected, x: Image) -> Image:
    layer = node.layer
    if isinstance(layer.inputs[0], Stack):
        return weighted([Term(joined(x), weight=layer.weight)], layer.bias)
    return frame_of(x, node.t)


@image.register
def _(node: Frame, x: Image) -> Image:
    return frame_of(x, node.t)


def frame_of(x: Image, t: int) -> Form:
    """The form of one frame of a sequence."""
    return x.frames[t] if isinstance(x, Stacked) else mapped(x, lambda data: data[:, :, t])


@image.register
def _(node: Span, x: Image) -> Image:
    return framewise(lambda form: spans(form, node.sizes)[node.place], x)


def spans(form: Form, sizes: Sequence[int]) -> list[Form]:
    """Neighbouring spans of the last axis, all at once: the gradient of one is as large as all.

    Without any sizes, all of it is one.
    """
    if not sizes:
        return [form]
    center, inputs, noise, own, size = (_split(part, sizes) for part in form[:5])
    places = range(len(sizes))
    return [Form(center[k], inputs[k], noise[k], own[k], size[k], form.loose) for k in places]


def _split(part: Block | Tensor | None, sizes: Sequence[int]) -> list[Any]:
    if part is None:
        return [None] * len(sizes)
    if isinstance(part, Block):
        return [Block(part.start, piece) for piece in part.data.split_with_sizes(sizes, -1)]
    return list(part.split_with_sizes(sizes, -1))


@image.register
def _(node: Scale, x: Image) -> Image:
    if isinstance(x, Stacked):
        factors = [part.expand(-1, *node.shape).unbind(1) for part in (node.weight, node.bias)]
        columns = zip(x.frames, *factors, strict=True)
        return Stacked(tuple(weighted([Term(f, weight)], bias) for f, weight, bias in columns))
    return weighted([Term(x, node.weight)], node.bias)


@image.register
def _(node: Negative, x: Image) -> Image:
    def minus(form: Form) -> Form:
        flipped = mapped(form, torch.neg)
        return flipped._replace(own=form.own, size=form.size)

    return framewise(minus, x)


@image.register
def _(node: Stack, *frames: Image) -> Image:
    if any(isinstance(frame, Stacked) for frame in frames):
        return image.dispatch(Node)(node, *frames)
    return Stacked(tuple(joined(frame) for frame in frames))


@image.register
def _(node: Select, one: Image, other: Image) -> Image:
    def chosen(one: Form, other: Form) -> Form:
        mask = node.mask.view(-1, *[1] * (one.center.ndim - 1)).to(one.center)
        return weighted([Term(one, mask), Term(other, 1 - mask)], None, Error(rounds=False))

    return framewise(chosen, one, other)


@image.register
def _(node: Sum, *terms: Image) -> Image:
    if all(isinstance(term, Form) for term in terms):
        return added(node, [joined(term) for term in terms])
    if node.constant is not None:
        return image.dispatch(Node)(node, *terms)
    return framewise(lambda *forms: added(node, forms), *terms)


def added(node: Sum, forms: Sequence[Form]) -> Form:
    """The form of a sum."""
    return weighted([Term(form) for form in forms], node.constant)
