"""What ``popqorn-train certify`` is asked about: the model, its data, and the question."""

import argparse
import math

from torch import Tensor, nn

from popqorn_train.bounds.methods import method_named
from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.certificate import Confirm
from popqorn_train.certificates.radius import check_search, check_sizes
from popqorn_train.cli.notes import note
from popqorn_train.cli.options import mask_of
from popqorn_train.evaluation.dataset import Source
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.resolve import resolved
from popqorn_train.evaluation.subject import Subject
from popqorn_train.perturbations.box import Box, Perturbation, searched
from popqorn_train.perturbations.peak_box import PeakBox


def subject_of(options: argparse.Namespace) -> Subject:
    """The model and the data that the options name."""
    source = Source(
        options.data,
        options.inputs,
        options.target,
        options.divide,
        batch_size=options.batch_size,
        samples=options.samples,
    )
    return Subject(
        options.model,
        source,
        options.checkpoint and str(options.checkpoint),
        options.prefix,
        options.device,
        options.perturb,
        options.frame_axis,
        options.output_is,
        options.select,
    )


def loaded_model(subject: Subject) -> BoundModel:
    """The model with its weights, on its device; that these are random is said.

    Raises:
        ValueError, OSError: see ``Subject.opened_model``.
    """
    model = subject.opened_model()
    if subject.checkpoint is None and not isinstance(resolved(subject.model, "model"), nn.Module):
        note(
            f"no --checkpoint: certifying the weights that {subject.model}() creates, which are "
            "random unless it loads some."
        )
    return model


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
    if options.deployed and options.no_confirm:
        raise ValueError("`--deployed` confirms the radii; leave out `--no-confirm`.")
    confirm: Confirm = "deployed" if options.deployed else "float64"
    confirm = None if options.no_confirm else confirm
    epsilons = tuple(epsilon for epsilon in sizes_of(options) if epsilon > 0)
    check_sizes(ball, options.max_radius, epsilons)
    check_search(options.rtol, options.max_radius, confirm, epsilons)
    method, most = method_named(options.method), options.max_radius
    return Examination(
        ball, method, most, options.rtol, confirm, options.attack, epsilons, options.probes
    )


def sizes_of(options: argparse.Namespace) -> list[float]:
    """Where the accuracy is asked for; none where nothing says it."""
    if options.db is not None:
        return [10 ** (level / 20) for level in sorted(set(options.db))]
    return list(options.epsilons or ())


def _searched(
    options: argparse.Namespace, frames: Tensor | None, features: Tensor | None
) -> Perturbation:
    """What may move: the box where there is one, or a ball."""
    domain = {"low": options.low, "high": options.high}
    box: Box | None = None
    if options.db is not None:
        _check_levels(options)
        box = PeakBox(frames=frames, features=features)
    elif options.box is not None:
        box = Box(*options.box, frames=frames, features=features)
    if box is not None:
        frames = features = None
    return searched(
        box, p=options.p, frames=frames, features=features, scope=options.scope, **domain
    )


def _check_levels(options: argparse.Namespace) -> None:
    """Refuse what says otherwise how far inputs move, or where accuracies are printed.

    Raises:
        ValueError: naming it.
    """
    others = {"box": None, "p": math.inf, "low": None, "high": None, "scope": "frame"}
    others["epsilons"] = None
    for name, meaningless in others.items():
        if getattr(options, name) != meaningless:
            raise ValueError(
                f"`--db` says how far inputs move and where the accuracy is printed: leave out "
                f"`--{name}`."
            )
