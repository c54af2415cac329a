"""A certification in a few lines: what was asked, how it ended, how much is proved."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from popqorn_train.evaluation.certification import Certification, lower_quantile
from popqorn_train.evaluation.confidence import confidence_interval
from popqorn_train.evaluation.measures import LEVEL, RADIUS, SHARE, Measure
from popqorn_train.evaluation.sample_rows import Status, count_statuses

PROMISE = (
    "Every certified {name} is sound for the network over the real numbers: no input within "
    "{within} changes the predicted class. {confirmed} A {name} is a lower bound: the network may "
    "well be robust further out, and nothing is said of inputs that are not within {within} of a "
    "certified sample."
)
TESTED = "It is tested against, but not proved for, the deployed kernel at float32."
_CONFIRMED = f"It was confirmed in float64, with intercepts rounded outward. {TESTED}"
_UNCONFIRMED = (
    "It was NOT confirmed in float64 (--no-confirm), so tiny {many} may be rounding errors. "
    f"{TESTED}"
)
_DEPLOYED = (
    "It holds for the model as it computes in float32 too: sums in any order, tanh, sigmoid and "
    "exp within 4 units in the last place, without TF32 or half precision."
)
_COST = (
    " That costs about {percent:.2g} % of a {name}, the largest share among the smallest {many}."
)
_BY = {"float64": _CONFIRMED, "deployed": _DEPLOYED}


def promise(settings: dict[str, Any], rounding: float | None = None) -> str:
    """What the certificates promise, and what not.

    Args:
        settings: of the certification.
        rounding: the share of a radius that rounding takes, where that was measured.
    """
    words: dict[str, Any] = _measure(settings)._asdict()
    confirmed = _BY.get(settings.get("confirm") or "", _UNCONFIRMED)
    if rounding is not None:
        words["percent"] = 100 * rounding
        confirmed += _COST
    return PROMISE.format(confirmed=confirmed.format(**words), **words)


def _measure(settings: dict[str, Any]) -> Measure:
    """What settings say that is searched."""
    if "box" not in settings:
        return RADIUS
    return LEVEL if settings["box"] == "peak" else SHARE


def unit(settings: dict[str, Any]) -> str:
    """Norm, scope and domain in words; or the box that there are shares of."""
    moved = f" of {settings['moved']!r}" if settings.get("moved") else ""
    if settings.get("box") == "peak":
        return f"shares of the peak of each input{moved}{_chosen(settings)}"
    if "box" in settings:
        ends = [_end(settings["box"][name]) for name in ("lower", "upper")]
        way = f"shares of the way from each input{moved} to the ends of [{', '.join(ends)}]"
        return f"{way}{_chosen(settings)}"
    low, high = settings.get("low"), settings.get("high")
    ends = ["-inf" if low is None else f"{low:g}", "inf" if high is None else f"{high:g}"]
    clipped = "" if low is None and high is None else f", inputs in [{ends[0]}, {ends[1]}]"
    whole = settings.get("scope") == "sequence"
    moves = "one ball for the sequence" if whole else "a ball for every frame"
    moves += _chosen(settings)
    return f"l_{float(settings['p']):g}{moved}, {moves}{clipped}"


def _chosen(settings: dict[str, Any]) -> str:
    """Which part of an input moves, if not all of it."""
    chosen = [name for name in ("frames", "features") if settings.get(name) is not None]
    return f" (chosen {' and '.join(chosen)} move)" if chosen else ""


def _end(value: Any) -> str:
    """An end of a box: a number, or what differs between features."""
    return f"{value:g}" if isinstance(value, int | float) else "..."


def nice_epsilons(certification: Certification, count: int = 5) -> list[float]:
    """Round numbers from 0 up to the larger radii."""
    if not certification.answered:
        return []
    top = lower_quantile(certification.radii, 0.95).item()
    if not 0 < top < math.inf:
        return []
    scale = 10 ** math.floor(math.log10(top / count))
    step = next(scale * m for m in (1, 2, 5, 10, 20) if scale * m * count >= top * (1 - 1e-9))
    steps = [float(f"{step * (at + 1):.6g}") for at in range(count)]
    return [epsilon for epsilon in steps if epsilon <= top * (1 + 1e-9)] or steps[:1]


def facts(certification: Certification) -> dict[str, str]:
    """The numbers of a headline, as text."""
    radii = certification.radii
    capped = sum(row.capped for row in certification.answered)
    name, said = certification.measure.name, certification.measure.said
    numbers = {
        "clean accuracy": f"{100 * certification.clean_accuracy:.1f} %",
        f"median {name}": said(lower_quantile(radii, 0.5).item()),
        f"mean {name}": said(radii.mean().item()),
        "10th percentile": said(lower_quantile(radii, 0.1).item()),
        f"samples at the largest {name} tried": str(capped),
    }
    if certification.empirical is not None:
        broke = lower_quantile(certification.empirical, 0.5).item()
        numbers[f"median {name} of the attack"] = said(broke)
    return numbers


def accuracy_rows(certification: Certification, epsilons: Sequence[float]) -> list[list[str]]:
    """Sizes, certified accuracy, its 95 % interval, attacked accuracy as text, with a head."""
    grid, count = [0.0, *epsilons], len(certification.answered)
    measure = certification.measure
    columns = [[measure.size, *[measure.said(epsilon, "g") for epsilon in grid]]]
    shares = certification.certified_accuracy(grid)
    columns.append(["certified", *[f"{100 * share:.1f} %" for share in shares]])
    ends = [confidence_interval(share, count) for share in shares]
    columns.append(["95 % interval", *[f"{100 * a:.1f} to {100 * b:.1f}" for a, b in ends]])
    if certification.empirical is not None:
        shares = certification.attacked_accuracy(grid)
        columns.append(["attack failed", *[f"{100 * share:.1f} %" for share in shares]])
    return [list(row) for row in zip(*columns, strict=True)]


def class_rows(certification: Certification, classes: Sequence[str]) -> list[list[str]]:
    """Samples, accuracy and radius of every class as text, with a head."""
    name, said = certification.measure.name, certification.measure.said
    rows = [["class", "samples", "accuracy", f"median {name}", f"mean {name}"]]
    for label in certification.by_class():
        own = [row for row in certification.answered if row.label == label]
        radii = torch.tensor([row.radius for row in own], dtype=torch.float64)
        right = sum(row.prediction == label for row in own) / len(own)
        rows.append(
            [
                class_name(label, classes),
                str(len(own)),
                f"{100 * right:.1f} %",
                said(lower_quantile(radii, 0.5).item()),
                said(radii.mean().item()),
            ]
        )
    return rows


def class_name(label: int | None, classes: Sequence[str]) -> str:
    """Name of a class, or its number."""
    if label is None:
        return "unknown"
    return classes[label] if 0 <= label < len(classes) else str(label)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table of text for a terminal, numbers to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def statuses(certification: Certification) -> str:
    """How many samples ended how."""
    counts = count_statuses(certification.rows)
    wrong = sum(row.prediction != row.label for row in certification.answered)
    named = [f"{count} {status}" for status, count in counts.items()]
    named[list(Status).index(Status.NOT_CERTIFIED)] += f" ({wrong} wrong predictions)"
    return ", ".join(named)


def summary(certification: Certification, epsilons: Sequence[float]) -> str:
    """What a terminal shows."""
    settings = certification.settings
    lines = [
        f"{settings['model']} on {len(certification.rows)} samples of {settings['data']}",
        f"{unit(settings)}; method {settings['method']}; {certification.seconds:.1f} s",
        statuses(certification),
    ]
    if certification.answered:
        lines += ["", aligned(accuracy_rows(certification, epsilons)), ""]
        lines += [aligned([[name, value] for name, value in facts(certification).items()])]
    return "\n".join(lines)
