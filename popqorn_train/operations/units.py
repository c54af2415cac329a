"""What moves in its own units."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.operations.lift import Lifter
from popqorn_train.tracing.input_path import Plan
from popqorn_train.tracing.roads import SCALES, arranges
from popqorn_train.tracing.steps import called_name


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


def embedding_of(found: Plan, lifter: Lifter) -> nn.Embedding:
    """The embedding whose output moves.

    Raises:
        UnsupportedModelError: something else moves.
    """
    layer = (
        lifter.model.get_submodule(found.source.target) if found.source.kind == "module" else None
    )
    if not isinstance(layer, nn.Embedding):
        raise UnsupportedModelError(
            f"Substitutions replace tokens, but the perturbed tensor, {found.source.name!r}, is no "
            "nn.Embedding. Use an LpBall, or name the embedding with bound(model, perturb=...)."
        )
    return layer


def embedded(found: Plan, lifter: Lifter, columns: Sequence[Tensor]) -> list[Tensor]:
    """What the root holds for other tokens, in the user's layout, several at once.

    Raises:
        UnsupportedModelError: it is no embedding that moves.
        ValueError: tokens that it does not know.
    """
    layer = embedding_of(found, lifter)
    tokens = torch.stack(list(columns))
    if int(tokens.max()) >= layer.num_embeddings:
        raise ValueError(
            f"`candidates` must be tokens in 0..{layer.num_embeddings - 1}, got "
            f"{int(tokens.max())}."
        )
    vectors = lifter.cast(layer.forward(tokens))
    return [_through(found, lifter, some, scaled=True) for some in vectors]


def _through(found: Plan, lifter: Lifter, x: Tensor, *, scaled: bool) -> Tensor:
    """Send a tensor through the chain, leaving changes of unit out if asked."""
    fork = lifter.fork()
    before = found.source.name
    fork.values[before] = x
    for step in found.chain:
        moves = arranges(step, lifter.model)
        scales = scaled and called_name(step.target) in SCALES
        fork.values[step.name] = fork.run(step) if moves or scales else fork.values[before]
        before = step.name
    return fork.values[before]


def source_positions(found: Plan, lifter: Lifter) -> Tensor:
    """Where the entries of what moves lie in a flat sample of the source, in the root's layout.

    Returns:
        Positions in the shape of the root's value; all samples alike.
    """
    raw, axis = lifter.value(found.source.name), found.source.batch_axis or 0
    sample = raw.movedim(axis, 0)[0]
    numbers = torch.arange(sample.numel(), device=raw.device, dtype=torch.float64)
    fork = lifter.to(torch.float64)
    fork.values = dict(lifter.values)
    places = numbers.view(sample.shape).unsqueeze(axis).expand(raw.shape)
    return _through(found, fork, places, scaled=False).long()
