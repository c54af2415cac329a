"""Fuzz the certificates: ``make fuzz ARGS="--minutes 10 --seed 0"``.

Draws models, balls and precisions from consecutive seeds, attacks everything that is proved, and
prints counts. What is found false is shrunk to a script, printed, and kept in ``--folder``.
"""

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tests.fuzz.checks import METHODS, check, is_lively
from tests.fuzz.draws import drawn
from tests.fuzz.shrink import fails, script, shrunk

# With many samples: the largest cost, models between other checks, and, of those that no random
# corner flips, one in so many.
CHEAP, RARE, STILL = 12, 10, 7
SHOWN = ("models", "refused", "failures", "points", "claims", "subdivided",
         "attacked certificates", "attacks within 1.5 x")  # fmt: skip


def methods_of(seed: int) -> tuple[str, ...]:
    """Three methods in turn; the slowest with one seed in four."""
    cheap = METHODS[:4]
    some = (*[cheap[(seed + step) % 4] for step in range(2)], "popqorn-tight")
    return (*some, "popqorn-tightest") if seed % 4 == 0 else some


def one_of(seed: int) -> tuple[str, ...]:
    """One method in turn; the tight ones with one seed in eight."""
    fast = METHODS[seed % 4]
    return ((METHODS[4 + seed // 8 % 2] if seed % 8 == 7 else fast),)


def one(seed: int, counts: Counter[str], folder: Path | None, samples: int | None) -> None:
    """Check the draw of a seed; a failure is counted, shrunk and shown."""
    draw, methods, one_in = drawn(seed), methods_of(seed), 1
    if samples is not None:
        draw, methods, one_in = replace(draw, batch=samples), one_of(seed), RARE
        if draw.cost > CHEAP or (seed % STILL and not is_lively(draw)):
            counts["skipped"] += 1
            return
    try:
        check(draw, counts, methods, one_in=one_in)
    except Exception as error:
        counts["failures"] += 1
        print(f"seed {seed}: {type(error).__name__}: {error}\n{draw!r}", flush=True)
        print("".join(traceback.format_exc().splitlines(True)[-8:]))
        simple, needed = shrunk(draw, methods)
        text = script(simple, needed, fails(simple, needed) or str(error))
        print(text, flush=True)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"failure_{seed}.py").write_text(text)


def run(
    seed: int,
    *,
    minutes: float = 10.0,
    models: int | None = None,
    samples: int | None = None,
    folder: Path | None = None,
) -> Counter[str]:
    """Check consecutive seeds for so long, or so many."""
    counts: Counter[str] = Counter()
    end, said = time.monotonic() + 60 * minutes, time.monotonic()
    start = seed
    while time.monotonic() < end and (models is None or seed < start + models):
        one(seed, counts, folder, samples)
        seed += 1
        if time.monotonic() > said + 60:
            said = time.monotonic()
            print(f"seed {seed}: {line(counts)}", flush=True)
    counts["next seed"] = seed
    return counts


def line(counts: Counter[str]) -> str:
    """The counters on one line."""
    return ", ".join(f"{counts[name]:,} {name}" for name in SHOWN)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the status is 1 if something is false."""
    parser = argparse.ArgumentParser(description="Attack what is proved of random models.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--models", type=int, help="stop after so many seeds")
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument(
        "--samples",
        type=int,
        help="of each model, for one method and with fewer of the other checks",
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="of scripts")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts = run(
        given.seed, minutes=given.minutes, models=given.models, samples=given.samples,
        folder=given.folder,
    )  # fmt: skip
    counts["processor seconds"] = round(time.process_time())
    for name, number in sorted(counts.items()):
        print(f"{number:>12,}  {name}")
    return 1 if counts["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
