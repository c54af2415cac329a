"""What ``popqorn-train certify`` is asked about: the model, its data, and the question."""

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.bounds.methods import method_named
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.certificate import Confirm
from popqorn_train.certificates.inputs import as_tuple
from popqorn_train.certificates.radius import check_search, check_sizes
from popqorn_train.cli.notes import note
from popqorn_train.cli.options import mask_of
from popqorn_train.evaluation.batches import on_device, unpack_pair, unpacked
from popqorn_train.evaluation.checkpoint import load_weights
from popqorn_train.evaluation.dataset import Source, opened
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.resolve import resolved, resolved_model
from popqorn_train.perturbations.box import Box, Perturbation, searched
from popqorn_train.tracing.selection import Select


def loaded_model(options: argparse.Namespace) -> BoundModel:
    """The model with its weights, on its device.

    Raises:
        ValueError, OSError: see ``resolved_model`` and ``load_weights``.
    """
    model = resolved_model(options.model)
    if options.prefix and options.checkpoint is None:
        raise ValueError("`--prefix` belongs to --checkpoint, which is missing.")
    if options.checkpoint is not None:
        load_weights(model, options.checkpoint, options.prefix)
    elif not isinstance(resolved(options.model, "model"), nn.Module):
        note(
            f"no --checkpoint, so the weights are those that {options.model}() made: random ones, "
            "unless it loads some."
        )
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return bound(
        model.to(device).eval(),
        perturb=options.perturb,
        frame_axis=options.frame_axis,
        output_is=options.output_is,
        select=select_of(options.select),
    )


def select_of(text: str | None) -> Select | None:
    """What ``--select`` names: an index, a key, or a function ``module:name``.

    Raises:
        ValueError: no such function.
    """
    if text is None or ":" in text:
        found: Select | None = None if text is None else resolved(text, "--select")
        return found
    return int(text) if text.lstrip("-").isdigit() else text


def question_of(options: argparse.Namespace, frames: int, features: int) -> Examination:
    """What is asked about every sample.

    Args:
        options: of the command.
        frames: how many there are.
        features: how many a frame has.

    Raises:
        ValueError: see ``searched``, ``check_sizes``, ``check_search`` and ``method_named``.
    """
    ball = _searched(
        options,
        mask_of("frames", options.frames, frames),
        mask_of("features", options.features, features),
    )
    confirm: Confirm = None if options.no_confirm else "float64"
    epsilons = tuple(epsilon for epsilon in options.epsilons or () if epsilon > 0)
    check_sizes(ball, options.max_radius, epsilons)
    check_search(options.rtol, options.max_radius, confirm, epsilons)
    method, most = method_named(options.method), options.max_radius
    return Examination(
        ball, method, most, options.rtol, confirm, options.attack, epsilons, options.probes
    )


def _searched(
    options: argparse.Namespace, frames: Tensor | None, features: Tensor | None
) -> Perturbation:
    """What may move: the box where there is one, or a ball."""
    domain = {"low": options.low, "high": options.high}
    box = None
    if options.box is not None:
        box = Box(*options.box, frames=frames, features=features)
        frames = features = None
    return searched(
        box, p=options.p, frames=frames, features=features, scope=options.scope, **domain
    )


def opened_data(options: argparse.Namespace, model: BoundModel) -> Iterable[Any]:
    """Batches of the data set; see ``opened``."""
    return opened(
        Source(
            options.data,
            options.inputs,
            options.target,
            options.divide,
            model.weights_dtype or torch.float32,
            options.batch_size,
            options.samples,
        )
    )


def first_inputs(options: argparse.Namespace, model: BoundModel, loader: Iterable[Any]) -> Any:
    """Inputs of the first batch, on the device of the model.

    Raises:
        ValueError: there is none.
    """
    first = next(iter(loader), None)
    if first is None:
        raise ValueError(
            f"`--data` {options.data} must give at least one batch, got none: its data set is "
            "empty, or it is an iterator that was read before."
        )
    inputs, target = unpacked(unpack_pair, first)
    device = next((p.device for p in model.parameters()), target.device)
    return on_device(inputs, device)


def batches(loader: Iterable[Any]) -> Iterable[tuple[tuple[Any, ...], torch.Tensor]]:
    """Inputs as a tuple and labels of every batch."""
    for batch in loader:
        inputs, target = unpacked(unpack_pair, batch)
        yield as_tuple(inputs), target
