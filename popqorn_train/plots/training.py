"""A training on one page: epsilon, kappa, losses, certified radii and accuracies."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from popqorn_train.evaluation.certification import (
    Certification,
    lower_quantile,
    read_certifications,
)
from popqorn_train.evaluation.measures import RADIUS, SHARE, Measure
from popqorn_train.plots.style import ATTACK, CERTIFIED, COLORS, finish, new_figure

Column = tuple[list[float], list[float]]  # steps or epochs, values
_TRAINING = "certified_training/"
_LOSSES = ("total", "clean", "bound", "attack")


class _Metrics:
    """The columns of a ``metrics.csv``; a cell that is empty was not logged at that step."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"`metrics` must be a table of CSVLogger; {path}: {error}.") from error
        self.names = [name for name in (self.rows[0] if self.rows else {}) if name]

    def column(self, name: str, axis: str) -> Column:
        """Values where both the column and the axis were logged."""
        filled = [row for row in self.rows if row.get(name) and row.get(axis)]
        try:
            return [float(row[axis]) for row in filled], [float(row[name]) for row in filled]
        except (TypeError, ValueError) as error:
            raise ValueError(f"`metrics` must hold numbers in column {name!r}: {error}.") from error

    def first(self, *names: str) -> str | None:
        """The first of the names that was logged, also with Lightning's suffixes."""
        known = [f"{name}{end}" for name in names for end in ("", "_epoch", "_step")]
        return next((name for name in known if name in self.names), None)


def draw_training(
    metrics: str | Path,
    certifications: Sequence[Certification] | str | Path | None = None,
    *,
    unit: str = "",
    title: str = "",
) -> tuple[Any, Any]:
    """Draw what a run logged: its schedule, losses, certified radii and accuracies.

    Args:
        metrics: the ``metrics.csv`` that Lightning's ``CSVLogger`` wrote.
        certifications: of the run, or its ``certification.jsonl``; None takes radii and
            accuracies from ``metrics`` too.
        unit: of epsilon and radii, said below the panels.
        title: above the panels.

    Returns:
        Figure and its four axes. A panel for which nothing was logged says so.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the file holds no row.
    """
    found = _Metrics(Path(metrics))
    if not found.rows:
        raise ValueError(f"`metrics` must hold at least one row, got none in {metrics}.")
    if isinstance(certifications, str | Path):
        certifications = read_certifications(certifications)
    figure = new_figure(9.6, 6.2)
    axes = figure.subplots(2, 2).ravel().tolist()
    schedule, losses, radii, accuracies = axes
    _draw_schedule(schedule, found)
    _draw_losses(losses, found)
    complete = [entry for entry in certifications or () if entry.complete]
    measure = _measure(found, complete)
    _draw_lines(radii, _radii(found, complete), f"certified {measure.name}")
    _draw_lines(accuracies, _accuracies(found, complete), "samples (%)")
    accuracies.set_ylim(0, 102)
    for ax, name in zip(axes, ("schedule", "losses", measure.many, "accuracies"), strict=True):
        ax.set_title(name, fontsize=10, loc="left")
        if not ax.lines:
            style = {"ha": "center", "va": "center", "transform": ax.transAxes}
            ax.text(0.5, 0.5, "not logged", color="#666666", **style)
    figure.suptitle(title)
    if unit:
        figure.supxlabel(f"epsilon and certified {measure.name}: {unit}", fontsize=9)
    return figure, axes


def _draw_schedule(ax: Any, metrics: _Metrics) -> None:
    epsilon = metrics.column(f"{_TRAINING}epsilon", "step")
    kappa = metrics.column(f"{_TRAINING}kappa", "step")
    if epsilon[0]:
        ax.plot(*epsilon, color=CERTIFIED, lw=2, label="epsilon (left)")
    ax.set(xlabel="optimizer step", ylabel="epsilon")
    lines = list(ax.lines)
    if kappa[0]:
        right = ax.twinx()
        lines += right.plot(*kappa, "--", color="black", lw=2, label="kappa (right)")
        right.set(ylabel="kappa (share of the clean loss)", ylim=(-0.03, 1.05))
        right.spines[["top"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.spines[["top"]].set_visible(False)
    if lines:
        ax.legend(handles=lines, frameon=False, loc="center right")


def _draw_losses(ax: Any, metrics: _Metrics) -> None:
    names = {name: metrics.first(_TRAINING + name) for name in _LOSSES}
    names["total"] = names["total"] or metrics.first("train_loss")
    lines = {}
    for name, key in names.items():
        epochs, values = metrics.column(key, "epoch") if key else ([], [])
        computed = [at for at, value in enumerate(values) if value != 0]  # else its weight was 0
        if computed:
            lines[name] = [epochs[at] for at in computed], [values[at] for at in computed]
    _draw_lines(ax, lines, "loss (nats)")


def _measure(metrics: _Metrics, certifications: Sequence[Certification]) -> Measure:
    """Whether radii were searched, or shares of a box."""
    if certifications:
        return certifications[-1].measure
    shares = any(name.startswith(SHARE.certified) for name in metrics.names)
    return SHARE if shares else RADIUS


def _radii(metrics: _Metrics, certifications: Sequence[Certification]) -> dict[str, Column]:
    if not certifications:
        names = {"median": "median", "mean": "mean", "10th percentile": "p10"}
        size = _measure(metrics, certifications).certified
        columns = {name: metrics.column(f"{size}/{key}", "epoch") for name, key in names.items()}
        return {name: column for name, column in columns.items() if column[0]}
    epochs = [float(entry.epoch) for entry in certifications]
    found = {
        "median": (epochs, [lower_quantile(one.radii, 0.5).item() for one in certifications]),
        "mean": (epochs, [one.radii.mean().item() for one in certifications]),
        "10th percentile": (
            epochs,
            [lower_quantile(one.radii, 0.1).item() for one in certifications],
        ),
    }
    return found


def _accuracies(metrics: _Metrics, certifications: Sequence[Certification]) -> dict[str, Column]:
    found: dict[str, Column] = {}
    clean = metrics.first("val_accuracy", "val_acc")
    if clean is not None:
        epochs, shares = metrics.column(clean, "epoch")
        found["clean, whole validation set"] = (epochs, [100 * share for share in shares])
    for name in metrics.names:
        matched = re.fullmatch(r"certified_accuracy(_at_share)?/(\d+(?:p\d+)?)", name)
        if matched:
            epochs, shares = metrics.column(name, "epoch")
            at = matched[2].replace("p", ".")
            of = "share " if matched[1] else ""
            label = "clean, certified samples" if at == "0" else f"certified at {of}{at}"
            found[label] = (epochs, [100 * share for share in shares])
    if certifications and not any(name.startswith("certified") for name in found):
        epochs = [float(entry.epoch) for entry in certifications]
        shares = [entry.clean_accuracy for entry in certifications]
        found["clean, certified samples"] = (epochs, [100 * share for share in shares])
    return found


def _draw_lines(ax: Any, lines: dict[str, Column], ylabel: str) -> None:
    for index, (name, values) in enumerate(lines.items()):
        color = ATTACK if name == "attack" else COLORS[index % len(COLORS)]
        ax.plot(*values, "o-", color=color, ms=3, lw=1.6, label=name)
    ax.set(xlabel="epoch", ylabel=ylabel)
    if lines:
        ax.set_ylim(bottom=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
    finish(ax)
