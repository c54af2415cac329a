"""The numbers that are logged after a certification."""

from collections.abc import Mapping, Sequence

from popqorn_train.evaluation.certification import Certification, lower_quantile
from popqorn_train.evaluation.confidence import confidence_interval
from popqorn_train.evaluation.measures import MEASURES
from popqorn_train.evaluation.sample_rows import count_statuses

_DOWN = ("capped_fraction", "unbroken_fraction", "gap")  # best when small
_LAST = ("certification/", "part/")  # neither large nor small is best; or the samples change


def scalars(certification: Certification, epsilons: Sequence[float]) -> dict[str, float]:
    """Every scalar of a certification, by the name it is logged under.

    Those of a part of the samples begin with ``part/``: they are no points of the same curve.
    Where a sample has no answer only counts and cost are left: radii of other samples than in the
    last epoch would pass for progress.

    Args:
        certification: of the monitored samples.
        epsilons: where certified accuracy is wanted.
    """
    values = _cost(certification)
    if not certification.complete:
        return values
    radii, measure = certification.radii, certification.measure
    size, accuracy = measure.certified, measure.accuracy
    capped = [row.capped for row in certification.answered]
    found = {
        f"{size}/median": lower_quantile(radii, 0.5).item(),
        f"{size}/mean": radii.mean().item(),
        f"{size}/p10": lower_quantile(radii, 0.1).item(),
        f"{size}/capped_fraction": sum(capped) / len(capped),
        f"{accuracy}/0": certification.clean_accuracy,
    }
    for epsilon, share in zip(epsilons, certification.certified_accuracy(epsilons), strict=True):
        at = dotless(epsilon)
        low, high = confidence_interval(share, len(radii))
        found[f"{accuracy}/{at}"] = share
        found |= {f"{accuracy}_low/{at}": low, f"{accuracy}_high/{at}": high}
    by_class = certification.by_class()
    found |= {f"{size}_by_class/{label}": mean for label, mean in by_class.items()}
    found |= _attacked(certification)
    part = "" if certification.part is None else "part/"
    return values | {part + key: value for key, value in found.items()}


def _cost(certification: Certification) -> dict[str, float]:
    counts = count_statuses(certification.rows)
    evaluations = [row.evaluations for row in certification.answered if row.evaluations]
    return {
        "certification/seconds": certification.seconds,
        "certification/evaluations": sum(evaluations) / max(1, len(evaluations)),
        **{f"certification/{str(key).replace(' ', '_')}": n for key, n in counts.items()},
    }


def _attacked(certification: Certification) -> dict[str, float]:
    empirical = certification.empirical
    if empirical is None:
        return {}
    broken = empirical.isfinite()
    name = certification.measure.empirical
    values = {f"{name}/unbroken_fraction": 1 - broken.double().mean().item()}
    if broken.any():
        found = empirical[broken]
        values |= {
            f"{name}/median": lower_quantile(found, 0.5).item(),
            f"{name}/mean": found.mean().item(),
            f"{name}/gap": (found - certification.radii[broken]).mean().item(),
        }
    return values


def median_of(values: Mapping[str, float]) -> tuple[float, str] | None:
    """The median among scalars, of all samples or of a part, if there is one.

    Returns:
        It, and the name that a progress bar shows it under.
    """
    found = [
        (values[key], measure.bar)
        for part in ("", "part/")
        for measure in MEASURES.values()
        if (key := f"{part}{measure.certified}/median") in values
    ]
    return found[0] if found else None


def best(key: str) -> str:
    """Which value of a curve is its best: ``"max"``, ``"min"``, or only the ``"last"``."""
    if any(name in key for name in _LAST):
        return "last"
    return "min" if key.endswith(_DOWN) else "max"


def dotless(epsilon: float) -> str:
    """Name of a number without a dot, which loggers take for a path: 0.05 is 0p05."""
    return f"{epsilon:g}".replace(".", "p")
