"""The numbers that are logged after a certification."""

from collections.abc import Sequence

from popqorn_train.evaluation.certification import Certification, lower_quantile
from popqorn_train.evaluation.confidence import confidence_interval
from popqorn_train.evaluation.sample_rows import count_statuses

_DOWN = ("capped_fraction", "unbroken_fraction", "gap")  # best when small
_LAST = "certification/"  # neither large nor small is best


def scalars(certification: Certification, epsilons: Sequence[float]) -> dict[str, float]:
    """Every scalar of a certification, by the name it is logged under.

    Where a sample has no answer only counts and cost are left: radii of other samples than in the
    last epoch would pass for progress.

    Args:
        certification: of the monitored samples.
        epsilons: where certified accuracy is wanted.
    """
    values = _cost(certification)
    if not certification.complete:
        return values
    radii = certification.radii
    capped = [row.capped for row in certification.answered]
    values |= {
        "certified_radius/median": lower_quantile(radii, 0.5).item(),
        "certified_radius/mean": radii.mean().item(),
        "certified_radius/p10": lower_quantile(radii, 0.1).item(),
        "certified_radius/capped_fraction": sum(capped) / len(capped),
        "certified_accuracy/0": certification.clean_accuracy,
    }
    for epsilon, share in zip(epsilons, certification.certified_accuracy(epsilons), strict=True):
        at = dotless(epsilon)
        low, high = confidence_interval(share, len(radii))
        values[f"certified_accuracy/{at}"] = share
        values |= {f"certified_accuracy_low/{at}": low, f"certified_accuracy_high/{at}": high}
    by_class = certification.by_class()
    values |= {f"certified_radius_by_class/{label}": mean for label, mean in by_class.items()}
    return values | _attacked(certification)


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
    values = {"empirical_radius/unbroken_fraction": 1 - broken.double().mean().item()}
    if broken.any():
        found = empirical[broken]
        values |= {
            "empirical_radius/median": lower_quantile(found, 0.5).item(),
            "empirical_radius/mean": found.mean().item(),
            "empirical_radius/gap": (found - certification.radii[broken]).mean().item(),
        }
    return values


def best(key: str) -> str:
    """Which value of a curve is its best: ``"max"``, ``"min"``, or only the ``"last"``."""
    if _LAST in key:
        return "last"
    return "min" if key.endswith(_DOWN) else "max"


def dotless(epsilon: float) -> str:
    """Name of a number without a dot, which loggers take for a path: 0.05 is 0p05."""
    return f"{epsilon:g}".replace(".", "p")
