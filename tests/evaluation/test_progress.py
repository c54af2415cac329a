"""What a person watching a training sees of a certification."""

import sys

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.callbacks.progress import progress_in
from popqorn_train.evaluation.progress import LogLines, Silent
from tests.fitting import QUIET, Classifier, train_loader, val_loader


class Terminal:
    """Standard output that says it is one."""

    def __init__(self, stream):
        self._stream = stream

    def isatty(self):
        return True

    def __getattr__(self, name):
        return getattr(self._stream, name)


@pytest.fixture
def terminal(monkeypatch):
    def use():
        monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))

    return use


def trainer_with(bar, **options):
    settings = {**QUIET, "enable_progress_bar": True, "logger": False, "max_epochs": 1}
    return pl.Trainer(callbacks=[bar, *options.pop("callbacks", [])], **settings, **options)


def test_a_task_appears_below_those_of_a_rich_bar_and_goes_away(terminal, monkeypatch):
    terminal()
    monkeypatch.setattr("popqorn_train.evaluation.batches.CHUNK", 4)
    seen = []

    class Bar(RichProgressBar):
        def _init_progress(self, trainer):
            super()._init_progress(trainer)
            update = self.progress.update

            def spied(task, **changes):
                update(task, **changes)
                found = self.progress._tasks.get(task)
                if found is not None and found.description == "certifying":
                    seen.append((found.completed, found.total, len(self.progress.tasks)))

            self.progress.update = spied

        def on_train_end(self, trainer, pl_module):
            seen.append([task.description for task in self.progress.tasks])
            super().on_train_end(trainer, pl_module)

    monitor = CertifiedRadiusMonitor(samples=12)
    trainer_with(Bar(), callbacks=[monitor]).fit(Classifier(), train_loader(), val_loader())
    passed = dict.fromkeys(entry[:2] for entry in seen[:-1])
    assert list(passed) == [(4, 12), (8, 12), (12, 12)]
    assert all(entry[2] >= 2 for entry in seen[:-1])
    assert "certifying" not in seen[-1]


def test_a_bar_of_its_own_appears_below_those_of_tqdm(terminal, capsys):
    terminal()
    monitor = CertifiedRadiusMonitor(samples=12)
    trainer_with(TQDMProgressBar(), callbacks=[monitor]).fit(
        Classifier(), train_loader(), val_loader()
    )
    shown = capsys.readouterr().out
    assert "certifying" in shown
    assert "cert_r=" in shown


def test_off_a_terminal_long_ones_write_lines_and_without_a_bar_nothing_is_shown():
    trainer = trainer_with(TQDMProgressBar())
    assert isinstance(progress_in(trainer, "certifying", 5), LogLines)
    assert isinstance(progress_in(trainer, "certifying", 0), Silent)
    assert isinstance(progress_in(trainer_with(TQDMProgressBar(0)), "certifying", 5), Silent)
    assert isinstance(progress_in(pl.Trainer(logger=False, **QUIET), "certifying", 5), Silent)


def test_lines_come_every_tenth_and_not_before_some_seconds(monkeypatch):
    lines = []
    progress = LogLines("certifying", 40, lines.append)
    progress.advance(20)
    assert lines == []
    monkeypatch.setattr("popqorn_train.evaluation.progress._QUIET", 0.0)
    for _ in range(20):
        progress.advance(1)
    assert len(lines) == 5
    assert lines[0] == "certifying: 24 of 40 samples (60 %), about 0 s left"
    assert lines[-1] == "certifying: 40 of 40 samples (100 %)"


def test_the_time_left_grows_with_what_is_left(monkeypatch):
    lines, now = [], [100.0]
    monkeypatch.setattr("popqorn_train.evaluation.progress.time.monotonic", lambda: now[0])
    progress = LogLines("certifying", 100, lines.append)
    for passed, done in ((60.0, 10), (6000.0, 40)):
        now[0] = 100.0 + passed
        progress.advance(done)
    assert lines == [
        "certifying: 10 of 100 samples (10 %), about 9 min left",
        "certifying: 50 of 100 samples (50 %), about 1.7 h left",
    ]


def test_the_pre_flight_says_what_a_certification_will_cost(capsys, caplog):
    monitor = CertifiedRadiusMonitor(2, samples=12)
    settings = {**QUIET, "logger": False, "max_epochs": 1}
    with caplog.at_level("INFO"):
        pl.Trainer(callbacks=[monitor], **settings).fit(Classifier(), train_loader(), val_loader())
    [line] = [text for text in caplog.messages if "one certification takes about" in text]
    assert line.startswith("CertifiedRadiusMonitor: 12 of 20 samples, l_2, popqorn; one")
