"""Certify everything that a loader gives, without Lightning."""

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import (
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from popqorn_train.bounds.methods import Method, method_named
from popqorn_train.certificates.bound_model import bound
from popqorn_train.certificates.certificate import Confirm
from popqorn_train.certificates.probes import PROBES, check_probes
from popqorn_train.certificates.radius import check_search, check_sizes
from popqorn_train.evaluation.batches import Unpack, unpack_pair
from popqorn_train.evaluation.blocks import Blocks, Shard
from popqorn_train.evaluation.examination import AtBall, Examination
from popqorn_train.evaluation.loader_pass import (
    LoaderPass,
    OnError,
    Tell,
    check_on_error,
    check_one_size,
)
from popqorn_train.evaluation.progress import Silent, shown
from popqorn_train.evaluation.sample_list import SampleRows
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from popqorn_train.perturbations.box import Box, Perturbation, check_ball, searched
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope

_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def certify_loader(
    model: nn.Module,
    loader: Iterable[Any],
    ball: Perturbation | None = None,
    *,
    p: float = math.inf,
    method: str | Method = "popqorn",
    frames: Mask | None = None,
    features: Mask | None = None,
    scope: Scope = "frame",
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    box: Box | None = None,
    max_radius: float | None = None,
    rtol: float = 1e-2,
    confirm: Confirm = "float64",
    attack: bool = False,
    epsilons: Sequence[float] = (),
    probes: int = PROBES,
    unpack: Unpack = unpack_pair,
    samples: int | None = None,
    seconds: float | None = None,
    on_error: OnError = "warn",
    progress: bool = True,
    known: Mapping[int, SampleRow] | None = None,
    tell: Tell | None = None,
    shard: str | None = None,
) -> SampleRows:
    """Certify the samples of a loader, in its order, with a progress bar.

    With a ``ball`` every sample is certified in that ball; without one its radius is searched, or
    the share of a ``box``.

    Args:
        model: a classifier, or ``bound(model)``; inputs are moved to its device.
        loader: gives batches, in the same order every time.
        ball: an ``LpBall`` of fixed size, or a ``Box`` around every sample, of which ``share`` may
            be used; None searches the largest ball.
        p: norm of the ball that is searched; see ``certified_radius``, as for everything down to
            ``confirm``. With a ``ball`` only ``method`` and ``confirm`` matter.
        method: bounding method.
        frames: mask of the perturbed frames, or a list of booleans.
        features: mask of the perturbed features, likewise.
        scope: one ball per frame, or one for the sequence.
        low: least value of an input.
        high: greatest value of an input.
        box: search the largest share of this box, instead of a ball; see ``certified_radius``.
        max_radius: largest radius tried.
        rtol: relative precision of the radii.
        confirm: prove again in float64.
        attack: also look for the smallest distortion that breaks the prediction.
        epsilons: where certified samples will be counted; see ``certified_radius``.
        probes: points at which the model is compared with what was proved, see ``certify``.
        unpack: from a batch to ``(inputs, target)``.
        samples: how many to certify, from the first on; None takes all.
        seconds: after which no further sample is attempted.
        on_error: what to do when samples raise an error after others were certified: ``"warn"``
            gives them the status error, and returns what it has when the loader itself fails;
            ``"raise"`` raises it. A sample that cannot be asked about (NaN or infinity in what the
            model reads, or a NaN logit) has the status error by itself, also at first.
        progress: show a bar on a terminal, or log a line every tenth.
        known: rows by position, from an earlier pass over the same data; they are returned as
            they are.
        tell: called with the rows of a few samples as soon as they are certified, to keep them.
        shard: certify a part of the batches only: ``"2/8"`` is every eighth from the second on.
            The parts from ``"1/8"`` to ``"8/8"`` have the rows of one pass.

    Returns:
        One ``SampleRow`` a sample, its index is the position in the loader; a list that has
        ``to_pandas``.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certified_radius`` and ``certify``; a
            loader that shuffles; a ``ball`` together with what describes another one; a ``shard``
            that is none.
    """
    check_on_error(on_error)
    check_search(rtol, max_radius, confirm, epsilons)
    check_probes(probes)
    _check_loader(loader, samples, seconds)
    domain = {"low": low, "high": high}
    described = searched(box, p=p, frames=frames, features=features, scope=scope, **domain)
    check_sizes(described, max_radius, epsilons)
    check_one_size(described)
    question: Examination | AtBall
    if ball is None:
        question = Examination(
            described,
            method_named(method),
            max_radius,
            rtol,
            confirm,
            attack,
            tuple(epsilons),
            probes,
        )
    else:
        _check_ball(ball, described, attack=attack)
        question = AtBall(ball, method_named(method), confirm, probes)
    most = math.inf if samples is None else samples
    until = math.inf if seconds is None else time.monotonic() + seconds
    known = {} if known is None else known
    part = None if shard is None else Shard.of(shard)
    run = LoaderPass(bound(model), question, unpack, on_error, most, until, known, tell, part)
    left = _left(loader, part, most, known, unpack)
    bar = shown("certifying", left) if progress and left != 0 else Silent()
    try:
        rows = run.run(Blocks(loader, unpack), bar)
    finally:
        bar.close()
    wrong = [row for row in rows if row.status == Status.ERROR]
    if wrong:
        warnings.warn(
            f"{len(wrong)} of {len(rows)} samples ended in an error, first {wrong[0].error}",
            stacklevel=2,
        )
    if not rows and part is None:
        raise ValueError(
            "`loader` must give at least one batch, got none: its data set is empty, or it is an "
            "iterator that was read before. Pass a DataLoader or a list of batches."
        )
    return SampleRows(rows)


def _left(
    loader: Iterable[Any],
    shard: Shard | None,
    most: float,
    known: Mapping[int, SampleRow],
    unpack: Unpack,
) -> int | None:
    """How many samples are to be examined; None where only reading the loader tells."""
    if shard is not None:
        own = Blocks(loader, unpack).positions(shard.owns, most)
        return None if own is None else sum(at not in known for at in own)
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__len__"):
        return None
    total = int(min(len(dataset), most))
    return total - sum(at < total for at in known)


def _check_loader(loader: Iterable[Any], samples: int | None, seconds: float | None) -> None:
    if isinstance(loader, Dataset):
        kind = "an IterableDataset" if isinstance(loader, IterableDataset) else "a data set"
        raise TypeError(
            f"`loader` must give batches, got {kind} ({type(loader).__name__}), which gives single "
            "samples. Pass DataLoader(dataset, batch_size=32); batch_size=None where it gives "
            "batches."
        )
    streamed = isinstance(getattr(loader, "dataset", None), IterableDataset)
    if streamed and getattr(loader, "num_workers", 0) > 1:
        raise ValueError(
            "`loader` reads an IterableDataset with several workers, which may give samples twice "
            "or in another order. Pass num_workers=0."
        )
    sampler = getattr(getattr(loader, "batch_sampler", loader), "sampler", None)
    if isinstance(sampler, _RANDOM) or getattr(sampler, "shuffle", False):
        raise ValueError(
            "`loader` must give samples in the same order every time, got one that shuffles. Use "
            "shuffle=False: a sample is known by its position."
        )
    if samples is not None and (not isinstance(samples, int) or samples < 1):
        raise ValueError(f"`samples` must be at least 1, got {samples!r}.")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"`seconds` must be positive, got {seconds!r}.")


def _check_ball(ball: Perturbation, described: Perturbation, *, attack: bool) -> None:
    check_ball(ball)
    if isinstance(described, Box):
        raise ValueError(
            "`ball` is certified as it is, and of `box` the largest share is searched: pass one of "
            "them."
        )
    other = described.p != math.inf or described.scope != "frame" or attack
    parts = (described.frames, described.features, described.low, described.high)
    if other or any(part is not None for part in parts):
        raise ValueError(
            "`ball` describes the perturbation: pass p, frames, features, scope, low and high to "
            "LpBall, and leave out `attack`, which searches radii."
        )
    check_one_size(ball)
