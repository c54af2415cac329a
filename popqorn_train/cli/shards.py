"""``certify --shard 2/8``, which certifies a part, and ``merge``, which joins all parts."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from popqorn_train.certificates.inputs import as_tuple
from popqorn_train.cli.options import add_certify_options, whole
from popqorn_train.cli.outcome import carried_out
from popqorn_train.cli.run import Run
from popqorn_train.evaluation.batches import unpack_pair, unpacked
from popqorn_train.evaluation.blocks import Blocks, Shard
from popqorn_train.evaluation.folder import FolderLock
from popqorn_train.evaluation.ledger import Ledger
from popqorn_train.evaluation.parts import Part, begin_part, finish_part, part_folder, read_parts
from popqorn_train.evaluation.provenance import DataDigest
from popqorn_train.evaluation.sample_list import SampleRows
from popqorn_train.evaluation.sample_rows import SampleRow


def certify_shard(options: argparse.Namespace) -> None:
    """Certify a part of the batches into its own folder."""
    shard = Shard.of(options.shard)
    folder = part_folder(options.folder, shard)
    lock = FolderLock(folder)
    try:
        run = Run.opened(options)
        own = {"shard": str(shard), "own_samples": _digests(run, [shard])[0]}
        ledger = Ledger(folder, run.settings | _batches(options) | own, resume=options.resume)
        begin_part(folder)
        started = time.monotonic()
        rows = run.certified(ledger, str(shard))
        ledger.rewrite(rows)
        _check_cover(run, [(shard, rows)])
        finish_part(folder, shard, options.arguments, time.monotonic() - started)
    finally:
        lock.release()
    print(f"shard {shard}: {SampleRows(rows)!r}; written to {folder}")
    print(f"once all shards are done: popqorn-train merge {options.folder}")


def _batches(options: argparse.Namespace) -> dict[str, Any]:
    """What decides which samples are in which batch."""
    return {"samples": options.samples, "batch_size": options.batch_size}


def _most(run: Run) -> float:
    return float("inf") if run.options.samples is None else run.options.samples


def _digests(run: Run, shards: Sequence[Shard]) -> list[str]:
    """The fingerprint of the samples of every shard, by one reading of the data."""
    digests = [DataDigest(run.axis) for _ in shards]
    owns = shards[0].owns if len(shards) == 1 else None
    for block in Blocks(run.loader, unpack_pair).chosen(owns, _most(run)):
        inputs, target = unpacked(unpack_pair, block.batch)
        for shard, digest in zip(shards, digests, strict=True):
            if shard.owns(block.number):
                digest.add(as_tuple(inputs), target, _most(run) - block.first)
    return [digest.text() for digest in digests]


def _check_cover(run: Run, parts: Sequence[tuple[Shard, Sequence[SampleRow]]]) -> None:
    """Refuse parts that do not hold exactly their samples."""
    blocks = Blocks(run.loader, unpack_pair)
    for shard, rows in parts:
        wanted = blocks.positions(shard.owns, _most(run), read=True)
        if wanted != [row.index for row in rows]:
            raise ValueError(
                f"shard {shard} holds {len(rows)} samples, not the {len(wanted or ())} that the "
                "data give it now: continue with --resume, or certify it again if the data changed."
            )


def add_merge(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    command = commands.add_parser(
        "merge",
        help="join what certify --shard wrote into the folder of one run",
        description="Join the shards in a folder: rows, report and all, as one run writes them.",
    )
    command.add_argument("folder", type=Path, help="the --folder of all shards")
    command.add_argument("--device", help="device for examining the most fragile samples")
    command.add_argument("--fragile", type=whole, help="replaces the --fragile of the shards")
    command.set_defaults(run=run_merge)


def run_merge(options: argparse.Namespace) -> int:
    """Join and report; see ``popqorn_train.cli.main`` for the exit status."""
    return carried_out(options, _merge, "the shards are unchanged, merge again")


def _merge(options: argparse.Namespace) -> None:
    parts = read_parts(options.folder)
    lock = FolderLock(options.folder)
    try:
        run = Run.opened(_options_of(parts[0], options))
        _check_subject(run, parts)
        ledger = Ledger(options.folder, run.settings, resume=True)
        rows = sorted((row for part in parts for row in part.rows), key=lambda row: row.index)
        run.report(rows, ledger, sum(part.seconds for part in parts), again="")
    finally:
        lock.release()


def _options_of(part: Part, given: argparse.Namespace) -> argparse.Namespace:
    """Those of the command that made a part, for the whole."""
    parser = argparse.ArgumentParser()
    add_certify_options(parser, device=str)
    options = parser.parse_args(part.arguments)
    options.folder, options.device, options.shard = given.folder, given.device, None
    if given.fragile is not None:
        options.fragile = given.fragile
    return options


def _check_subject(run: Run, parts: Sequence[Part]) -> None:
    """Refuse parts of other weights or data than those that their names stand for now."""
    for name, now in run.settings.items():
        then = parts[0].settings.get(name)
        if now != then:
            raise ValueError(
                "the shards were certified with something else than their command names now: "
                f"{name} was {then!r}, is {now!r}."
            )
    digests = _digests(run, [part.shard for part in parts])
    for part, digest in zip(parts, digests, strict=True):
        if digest != part.settings.get("own_samples"):
            raise ValueError(
                f"shard {part.shard} read other samples than {run.options.data} gives now. Certify "
                "it again, with data that are the same every time."
            )
    _check_cover(run, [(part.shard, part.rows) for part in parts])
