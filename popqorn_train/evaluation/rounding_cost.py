"""What it costs to certify the model as it computes: the share of a radius that rounding takes."""

from collections.abc import Iterable

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.certificate import Confirm, certify
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.evaluation.batches import Picked
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.sample_rows import SampleRow

_STEP = 0.1  # of the way to the radius


def rounding_loss(
    model: BoundModel, samples: Iterable[tuple[SampleRow, Picked]], question: Examination
) -> float | None:
    """Estimate the largest share of a radius that rounding takes, from above.

    At the radius of each sample, the margin of the network over the real numbers is compared with
    that of the model as it computes. What lies between them is divided by how fast the margin falls
    there: as fast as on the last tenth of the way, or faster, since margins fall faster and faster.

    Args:
        model: the classifier.
        samples: with the rows of what was certified with ``confirm="deployed"``, one at a time.
        question: that was asked.

    Returns:
        The share; None where no sample has a radius below the largest that was tried.
    """
    with undisturbed(model.model):
        shares = [
            _share(model, picked, row.radius, question)
            for row, picked in samples
            if row.radius and not row.capped
        ]
    return max(shares, default=None)


def _share(model: BoundModel, picked: Picked, radius: float, question: Examination) -> float:
    def margin(size: float, confirm: Confirm = "float64") -> float:
        asked = model, picked.inputs, picked.labels, question.ball.sized(size)
        return float(certify(*asked, method=question.method, confirm=confirm, probes=0).margin)

    clean, before, real = margin(0.0), margin((1 - _STEP) * radius), margin(radius)
    fall = max(clean - real, (before - real) / _STEP)
    return (real - margin(radius, "deployed")) / fall if fall > 0 else 0.0
