"""Parts of one certification that were made by several processes, and what must hold to join them.

Each part lies in its own folder beside the others: rows that were appended as they came, settings
that say what they are about, and, once it is whole, ``part.json``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popqorn_train.evaluation.blocks import Shard
from popqorn_train.evaluation.folder import write_whole
from popqorn_train.evaluation.ledger import read_rows, read_settings
from popqorn_train.evaluation.sample_rows import SampleRow
from popqorn_train.evaluation.stored import object_in, with_checksum

_WHOLE = "part.json"
_OWN = ("shard", "own_samples")  # settings that differ between the parts


@dataclass(frozen=True)
class Part:
    """The rows of one shard.

    Attributes:
        shard: which.
        settings: what the rows depend on; ``own_samples`` is the fingerprint of their inputs.
        rows: by position.
        arguments: of the command that made it.
        seconds: that it took.
    """

    shard: Shard
    settings: dict[str, Any]
    rows: list[SampleRow]
    arguments: list[str]
    seconds: float


def part_folder(folder: Path, shard: Shard) -> Path:
    """Where the rows of a shard lie, in the folder of all."""
    return folder / f"shard-{shard.number}-of-{shard.count}"


def begin_part(folder: Path) -> None:
    """Say that a part is being made: it is no longer whole, if it was."""
    (folder / _WHOLE).unlink(missing_ok=True)


def finish_part(folder: Path, shard: Shard, arguments: Sequence[str], seconds: float) -> None:
    """Say that a part is whole."""
    plain = {"shard": str(shard), "arguments": [*arguments], "seconds": seconds}
    write_whole(folder / _WHOLE, json.dumps(with_checksum(plain), indent=2) + "\n")


def read_parts(folder: Path) -> list[Part]:
    """The parts of one certification, by number.

    Raises:
        ValueError: one is missing, not whole, of other settings, or has samples of another one.
    """
    folders = sorted(path.parent for path in folder.glob("shard-*-of-*/settings.json"))
    shards = {path: Shard.of(str(read_settings(path)[0].get("shard"))) for path in folders}
    _check_numbers(folder, [*shards.values()])
    whole = [path for path in folders if (path / _WHOLE).exists()]
    _check_whole(folder, [shard for path, shard in shards.items() if path not in whole])
    parts = [_read(path) for path in whole]
    parts.sort(key=lambda part: part.shard.number)
    _check_settings(parts)
    _check_samples(parts)
    return parts


def _read(path: Path) -> Part:
    settings, checked = read_settings(path)
    plain = object_in(path / _WHOLE, checked=checked)
    try:
        rows, damage = read_rows(path, checked=checked)
        shard, arguments = Shard.of(str(plain["shard"])), [*map(str, plain["arguments"])]
        seconds = float(plain["seconds"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} holds something that was not written by certify --shard: certify it again."
        ) from error
    if damage:
        raise ValueError(f"{damage}: continue with --shard {shard} --resume.")
    return Part(shard, settings, sorted(rows, key=lambda row: row.index), arguments, seconds)


def _check_numbers(folder: Path, shards: Sequence[Shard]) -> None:
    if not shards:
        raise ValueError(
            f"{folder} holds no shards: it must be the --folder of popqorn-train certify --shard."
        )
    counts = sorted({shard.count for shard in shards})
    if len(counts) > 1:
        raise ValueError(
            f"{folder} holds shards of {' and of '.join(map(str, counts))}: keep those of one "
            "count."
        )
    numbers = [shard.number for shard in shards]
    twice = {number for number in numbers if numbers.count(number) > 1}
    if twice:
        raise ValueError(f"{folder} holds shard {min(twice)}/{counts[0]} twice: keep one of them.")
    lacking = sorted({*range(1, counts[0] + 1)} - {*numbers})
    if lacking:
        raise ValueError(
            f"{folder} lacks shard {_listed(lacking)} of {counts[0]}: certify with --shard "
            f"{lacking[0]}/{counts[0]} and --folder {folder}."
        )


def _check_whole(folder: Path, unfinished: Sequence[Shard]) -> None:
    if unfinished:
        numbers = sorted(shard.number for shard in unfinished)
        raise ValueError(
            f"{folder} holds shard {_listed(numbers)} of {unfinished[0].count} unfinished: "
            f"continue with --shard {numbers[0]}/{unfinished[0].count} --resume."
        )


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return ", ".join(map(str, numbers[:5])) + more


def _check_settings(parts: Sequence[Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        for name in sorted({*first.settings, *part.settings} - {*_OWN}):
            one, other = first.settings.get(name), part.settings.get(name)
            if one != other:
                raise ValueError(
                    f"shards {first.shard} and {part.shard} were not certified alike: {name} was "
                    f"{one!r} and {other!r}. Certify one of them again."
                )


def _check_samples(parts: Sequence[Part]) -> None:
    owner: dict[int, Shard] = {}
    for part in parts:
        for row in part.rows:
            other = owner.setdefault(row.index, part.shard)
            if other is not part.shard:
                raise ValueError(
                    f"shards {other} and {part.shard} both hold sample {row.index}: the batches of "
                    "the data were not the same. Certify one of them anew."
                )
