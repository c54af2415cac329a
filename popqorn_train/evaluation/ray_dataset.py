"""The rows of a data set as a data set of Ray."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from popqorn_train.bounds.methods import Method, method_named
from popqorn_train.certificates.certificate import Confirm
from popqorn_train.certificates.probes import PROBES, check_probes
from popqorn_train.certificates.radius import check_search, check_sizes
from popqorn_train.evaluation.dataset import Source
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.ray_rows import Workers, dataset_of, left_of
from popqorn_train.evaluation.ray_worker import Job
from popqorn_train.evaluation.subject import Subject
from popqorn_train.perturbations.box import Box, searched
from popqorn_train.perturbations.masks import Mask
from popqorn_train.perturbations.region import Scope


def rows_on_ray(
    model: str,
    data: str,
    *,
    workers: int = 2,
    address: str | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    checkpoint: str | None = None,
    prefix: str = "",
    batch_size: int = 32,
    samples: int | None = None,
    perturb: str | None = None,
    p: float = math.inf,
    method: str | Method = "popqorn",
    frames: Mask | None = None,
    features: Mask | None = None,
    scope: Scope = "frame",
    low: float | None = None,
    high: float | None = None,
    box: Box | None = None,
    max_radius: float | None = None,
    rtol: float = 1e-2,
    confirm: Confirm = "float64",
    attack: bool = False,
    epsilons: Sequence[float] = (),
    probes: int = PROBES,
    known: Collection[int] = (),
) -> Any:
    """Certify a data set on Ray, one row a sample, in any order.

    Every worker opens the model and the data by name and compares their fingerprints with those
    found here. Rows are computed when the data set is read; the columns are those of
    ``SampleRow``. A batch whose worker dies is done again, sample by sample; a sample with which
    two workers died has the status error.

    Args:
        model: ``module:Name`` of a class, a function or an object.
        data: what ``popqorn-train certify --data`` takes.
        workers: how many.
        address: ``host:port`` of a cluster, or ``"auto"``; None starts Ray here, unless it runs in
            this process already.
        num_cpus: of each worker; None takes 0.9, or what there is of this machine for each.
        num_gpus: of each worker.
        checkpoint: file of the weights.
        prefix: of the model's names in that file.
        batch_size: samples certified at once, where ``data`` gives no loader.
        samples: how many to certify, from the first on; None takes all.
        perturb: the tensor that moves; see ``bound``.
        p: norm of the ball that is searched; see ``certified_radius``, as for everything down to
            ``confirm``.
        method: bounding method.
        frames: mask of the perturbed frames.
        features: mask of the perturbed features.
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
        known: positions of samples that are left out.

    Returns:
        A ``ray.data.Dataset``.

    Raises:
        ValueError, TypeError, UnsupportedModelError: as ``certify_loader``.
        ImportError: Ray is not installed.
        ConnectionError: no cluster answers.
    """
    check_search(rtol, max_radius, confirm, epsilons)
    check_probes(probes)
    spread = Workers(workers, address, num_cpus, num_gpus)
    domain = {"low": low, "high": high}
    ball = searched(box, p=p, frames=frames, features=features, scope=scope, **domain)
    check_sizes(ball, max_radius, epsilons)
    by = method_named(method)
    question = Examination(ball, by, max_radius, rtol, confirm, attack, tuple(epsilons), probes)
    source = Source(data, batch_size=batch_size, samples=samples)
    subject = Subject(model, source, checkpoint, prefix, perturb=perturb)
    opened = subject.opened_model()
    loader = subject.opened_data(opened)
    inputs = subject.first_inputs(opened, loader)
    opened.instance(inputs).placed(ball)  # inputs must lie in the domain
    identity = subject.identity(opened, loader, opened.batch_axis(inputs))
    most = math.inf if samples is None else samples
    job = Job(subject, question, identity, str(Path.cwd()), most)
    return dataset_of(job, spread, left_of(job, known))
