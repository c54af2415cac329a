"""The most fragile samples frame by frame, within a part of the time that a run has taken."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.cli.notes import note
from popqorn_train.evaluation.batches import Picked
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.fragile import (
    FragileSample,
    Vocabulary,
    chosen_samples,
    described,
    examined_frames,
    most_fragile,
)
from popqorn_train.evaluation.ledger import Ledger
from popqorn_train.evaluation.progress import Allowance, Progress, duration, shown
from popqorn_train.evaluation.sample_rows import SampleRow

_FRAGILE = 8  # samples looked at frame by frame, if the time allows
_SHARE, _LEAST = 0.25, 2.0  # of the time spent so far, and at least so many seconds


@dataclass
class FrameByFrame:
    """Looks at samples frame by frame; what is known is not done again.

    Attributes:
        model: on its device.
        loader: gives the same batches every time.
        question: what was asked about every sample.
        words: names of the tokens.
        ledger: keeps the radii of frames.
        again: options, beside ``--fragile``, of a command that looks at the rest.
    """

    model: BoundModel
    loader: Iterable[Any]
    question: Examination
    words: Vocabulary | None
    ledger: Ledger
    again: str

    def most_fragile(
        self, rows: Sequence[SampleRow], asked: int | None, spent: float
    ) -> list[FragileSample]:
        """The most fragile samples; an interrupt ends the look at them, and nothing else.

        Args:
            rows: of all samples.
            asked: how many; None looks at so many as a share of the time allows.
            spent: seconds so far.
        """
        wanted = most_fragile(rows, _FRAGILE if asked is None else asked)
        if not wanted:
            return []
        most = math.inf if asked is not None else max(_SHARE * spent, _LEAST)
        limit = "" if asked is not None else f" for up to {duration(most)}"
        note(
            f"examining the {len(wanted)} most fragile samples frame by frame{limit}; Ctrl-C stops "
            "this, --fragile 0 skips it"
        )
        bar = shown("frames of the most fragile", len(wanted))
        found: list[FragileSample] = []
        try:
            self._look(wanted, Allowance(most), bar, found)
            stopped = "in that time"
        except KeyboardInterrupt:
            stopped = "before it was stopped"
        bar.close()
        if len(found) < len(wanted):
            all_of_them = f"{self.again}--fragile {len(wanted)}"
            note(f"examined {len(found)} of them {stopped}; {all_of_them} examines all")
        return found

    def _look(
        self,
        wanted: Sequence[SampleRow],
        clock: Allowance,
        bar: Progress,
        found: list[FragileSample],
    ) -> None:
        picked = {row.index: part for row, part in chosen_samples(self.model, self.loader, wanted)}
        for row in wanted:
            if clock.allows() or row.index in self.ledger.frames:
                found.append(self._frames_of(row, picked[row.index], clock))
                bar.advance(1)

    def _frames_of(self, row: SampleRow, picked: Picked, clock: Allowance) -> FragileSample:
        radii = self.ledger.frames.get(row.index)
        if radii:
            return described(self.model, row, picked, (radii, ""), self.words)
        with clock.spending():
            answer = examined_frames(self.model, picked, self.question)
        if answer[0]:
            self.ledger.add_frames(row.index, answer[0])
        return described(self.model, row, picked, answer, self.words)
