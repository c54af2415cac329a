"""What moves in its own units, and which of its entries make a frame."""

import torch
from torch import Tensor, nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.operations.lift import Lifter
from popqorn_train.tracing.input_path import SCALES, Plan
from popqorn_train.tracing.steps import MOVES
from popqorn_train.tracing.tracer import called_name


def center_and_scale(found: Plan, lifter: Lifter) -> tuple[Tensor, Tensor | None]:
    """What moves in its own units, and the factor from these to what the root holds.

    Returns:
        Both in the user's layout of the root.
    """
    raw = lifter.value(found.source.name)
    lifter.value(found.root.name)  # everything the chain reads is known from here on
    center = _through(found, lifter, raw, scaled=False)
    if not found.scales:
        return center, None

    def chain(x: Tensor) -> Tensor:
        return _through(found, lifter, x, scaled=True)

    return center, torch.func.jvp(chain, (raw,), (torch.ones_like(raw),))[1]


def embedded(found: Plan, lifter: Lifter, tokens: Tensor) -> Tensor:
    """What the root holds for other tokens, in the user's layout.

    Raises:
        UnsupportedModelError: it is no embedding that moves.
        ValueError: tokens that it does not know.
    """
    layer = (
        lifter.model.get_submodule(found.source.target) if found.source.kind == "module" else None
    )
    if not isinstance(layer, nn.Embedding):
        raise UnsupportedModelError(
            f"Substitutions replace tokens, but {found.source.name!r} moves, which is no "
            "nn.Embedding. Use an LpBall, or name the embedding with bound(model, perturb=...)."
        )
    if int(tokens.max()) >= layer.num_embeddings:
        raise ValueError(
            f"`candidates` must be tokens in 0..{layer.num_embeddings - 1}, got "
            f"{int(tokens.max())}."
        )
    vectors = lifter.cast(layer.forward(tokens))
    return _through(found, lifter, vectors, scaled=True)


def _through(found: Plan, lifter: Lifter, x: Tensor, *, scaled: bool) -> Tensor:
    """Send a tensor through the chain, leaving changes of unit out if asked."""
    fork = lifter.fork()
    before = found.source.name
    fork.values[before] = x
    for step in found.chain:
        moves = called_name(step.target) in MOVES
        scales = scaled and called_name(step.target) in SCALES
        fork.values[step.name] = fork.run(step) if moves or scales else fork.values[before]
        before = step.name
    return fork.values[before]


def frame_order(found: Plan, lifter: Lifter) -> Tensor | None:
    """Which entries of a sample of the root make each frame.

    Returns:
        ``(T, N)`` positions in a flat sample; None where frames are axis 1 as they lie.
    """
    if not found.layout:
        return None
    value, axis = lifter.value(found.root.name), found.root.batch_axis or 0
    sample = value.movedim(axis, 0)[0]
    positions = torch.arange(sample.numel(), device=value.device)
    fork, before = lifter.fork(), found.root
    fork.values[before.name] = positions.view(sample.shape).unsqueeze(axis).expand(value.shape)
    for step in found.layout:
        moves = called_name(step.target) in MOVES
        for name in step.refs if moves else []:
            fork.value(name)  # an index
        fork.values[step.name] = fork.run(step) if moves else fork.values[before.name]
        before = step
    order: Tensor = fork.values[before.name].movedim(before.batch_axis or 0, 0)[0]
    order = order[:, None] if order.ndim == 1 else order.flatten(1)
    lies = order.shape[0] == sample.shape[0] and torch.equal(order.flatten(), positions)
    return None if lies or order.numel() != sample.numel() else order
