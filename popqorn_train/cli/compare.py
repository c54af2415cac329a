"""``popqorn-train compare a.json b.json ...``: the curves of several certifications in one chart.

Radii that do not mean the same are not compared: norm, scope, domain, frames, what moves and the
samples must agree. Methods and precisions may differ, since each proves what it says; they are
marked.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popqorn_train.cli.files import read_certification
from popqorn_train.cli.notes import note, say
from popqorn_train.evaluation.certification import Certification
from popqorn_train.evaluation.confidence import widest
from popqorn_train.evaluation.summaries import aligned, facts, nice_epsilons, unit
from popqorn_train.plots import curve_grid, curve_of, draw_accuracy_curves
from popqorn_train.plots.accuracy import axis_name

SAME = (
    "p",
    "scope",
    "low",
    "high",
    "box",
    "frames",
    "features",
    "perturb",
    "frame_axis",
    "output_is",
    "select",
)
MARKED = ("method", "rtol", "confirm", "max_radius")


def add_compare(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    command = commands.add_parser(
        "compare", help="overlay the curves of several certifications", description=__doc__
    )
    command.add_argument(
        "files", nargs="+", type=Path, help="certification.json, its folder, or a monitor's .jsonl"
    )
    command.add_argument("--names", help="names in the chart, like standard,certified")
    command.add_argument("--picture", type=Path, default=Path("comparison.png"))
    command.add_argument(
        "--anyway", action="store_true", help="compare runs that differ, and list the differences"
    )
    command.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """Print the table and draw the chart; see ``popqorn_train.cli.main`` for the exit status."""
    try:
        runs = _runs(options)
        differ = differences(runs)
        if differ and not options.anyway:
            raise ValueError(
                f"these certifications do not answer the same question: {'; '.join(differ)}. Pass "
                "--anyway to see them side by side."
            )
        print(comparison(runs))
        for text in differ:
            print(f"NOT COMPARABLE: {text}")
        _draw(runs, options.picture, [*differ])
    except (ValueError, TypeError, OSError) as error:
        say(f"popqorn-train compare: {error}")
        return 1
    except ImportError as error:
        note(f"no picture. {error}")
        return 0
    print(f"\nwritten to {options.picture}")
    return 0


def _runs(options: argparse.Namespace) -> dict[str, Certification]:
    found = [read_certification(path) for path in options.files]
    names = options.names.split(",") if options.names else _default_names(options.files)
    if len(names) != len(found) or len(set(names)) != len(names):
        raise ValueError(f"`--names` must be {len(found)} different names, got {', '.join(names)}.")
    for name, run in zip(names, found, strict=True):
        if not run.answered:
            raise ValueError(f"{name} holds no sample that is answered.")
    return dict(zip(names, found, strict=True))


def _default_names(files: Sequence[Path]) -> list[str]:
    """Folders where these differ, else whole paths."""
    folders = [(path if path.is_dir() else path.parent).resolve().name for path in files]
    return folders if len(set(folders)) == len(files) else [str(path) for path in files]


def differences(runs: Mapping[str, Certification]) -> list[str]:
    """What keeps the runs from being compared, one sentence each."""
    found = []
    for name in SAME:
        values = {run: entry.settings.get(name) for run, entry in runs.items()}
        if len({str(value) for value in values.values()}) > 1:
            each = ", ".join(f"{value} in {run}" for run, value in values.items())
            found.append(f"{name} is {each}")
    samples = {tuple((row.index, row.label) for row in entry.rows) for entry in runs.values()}
    inputs = {entry.settings.get("data_fingerprint") for entry in runs.values()}
    if len(samples) > 1 or len(inputs) > 1:
        found.append("the samples are not the same")
    unfinished = [run for run, entry in runs.items() if not entry.complete]
    if unfinished:
        found.append(f"not every sample is answered in {', '.join(unfinished)}")
    return found


def comparison(runs: Mapping[str, Certification]) -> str:
    """The table, a column a run, with marked settings where they differ."""
    marked = [
        name
        for name in MARKED
        if len({str(entry.settings.get(name)) for entry in runs.values()}) > 1
    ]
    best = max(runs.values(), key=lambda entry: entry.radii.max().item())
    epsilons = nice_epsilons(best, 4)
    titles = [f"certified at {epsilon:g}" for epsilon in epsilons]
    sizes = [f"{kind} {best.measure.name}" for kind in ("median", "mean")]
    columns = [["", "samples", "clean", *titles, *sizes, *marked]]
    for name, entry in runs.items():
        numbers = facts(entry)
        shares = [f"{100 * share:.1f} %" for share in entry.certified_accuracy(epsilons)]
        radii = [numbers[f"{kind} {entry.measure.name}"] for kind in ("median", "mean")]
        cells = [str(len(entry.rows)), numbers["clean accuracy"], *shares, *radii]
        columns.append([name, *cells, *[str(entry.settings.get(setting)) for setting in marked]])
    rows = [list(row) for row in zip(*columns, strict=True)]
    first = next(iter(runs.values()))
    count = min(len(entry.answered) for entry in runs.values())
    every = [share for entry in runs.values() for share in entry.certified_accuracy([0, *epsilons])]
    return f"{unit(first.settings)}\n\n{aligned(rows)}\n\n{widest(every, count)}"


def _draw(runs: Mapping[str, Certification], path: Path, differ: Sequence[str]) -> None:
    grids = [curve_grid([entry]) for entry in runs.values()]
    grid = max(grids, key=lambda one: one[-1])
    settings = [entry.settings for entry in runs.values()]
    units = " against ".join(dict.fromkeys(unit(one) for one in settings))
    figure, _ = draw_accuracy_curves(
        [curve_of(name, entry, grid) for name, entry in runs.items()],
        xlabel=f"{axis_name(next(iter(runs.values())).measure)} ({units})",
        title="NOT COMPARABLE: see the text" if differ else "",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
