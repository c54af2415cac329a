"""What a person watching a training sees of a certification."""

import io
import logging
import sys
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.callbacks.progress import above_bars, progress_in
from popqorn_train.callbacks.session import pre_flight
from popqorn_train.evaluation.batches import unpack_pair
from popqorn_train.evaluation.loader import certify_loader
from popqorn_train.evaluation.progress import (
    Allowance,
    Bar,
    Group,
    LogLines,
    Silent,
    duration,
    shown,
)
from tests.fitting import QUIET, Classifier, train_loader, val_loader
from tests.problems import build, predicted, sequences


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
    passed = [entry[0] for entry in seen[:-1]]
    assert passed == sorted(passed)
    assert passed[-1] == 12
    assert {4, 8} <= set(passed)
    assert len(set(passed)) > 3  # samples of one group, one by one
    assert all(entry[1] == 12 for entry in seen[:-1])
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
    assert line.startswith(
        "CertifiedRadiusMonitor: 12 of 20 samples, l_2, popqorn-fast (chosen for 4 frames); one"
    )
    assert (" once predictions are right, " in line) == line.endswith(" before.")


def test_the_cost_later_is_that_of_right_predictions(monkeypatch):
    def counted(ask):
        rows = ask()
        return rows, float(sum(row.evaluations for row in rows))

    monkeypatch.setattr("popqorn_train.callbacks.session._timed", counted)
    net = build("tanh")
    x = sequences(6, 4)
    y = predicted(net, x)
    y[:4] = (y[:4] + 1) % 3  # wrong
    question = CertifiedRadiusMonitor(method="ibp")._certifier.question
    cost = pre_flight(net, Classifier(), question, unpack_pair, (x, y))
    assert 0 < cost.first < 0.7 * cost.later
    right = pre_flight(net, Classifier(), question, unpack_pair, (x, predicted(net, x)))
    assert right.first == right.later == cost.later


def recorder(monkeypatch):
    """What is told to the bar of ``certify_loader``."""
    told = []
    bar = SimpleNamespace(advance=told.append, close=lambda: told.append("closed"))
    monkeypatch.setattr("popqorn_train.evaluation.loader.shown", lambda what, total: bar)
    return told


@pytest.mark.parametrize("attack", [False, True])
def test_bars_move_by_samples_of_one_batch(monkeypatch, attack):
    told, net, x = recorder(monkeypatch), build("tanh"), sequences(40, 4)
    batch = [(x, predicted(net, x))]
    certify_loader(net, batch, method="ibp", attack=attack)
    assert told.pop() == "closed"
    assert sum(told) == 40
    assert len(told) > 3
    assert all(count > 0 for count in told)
    assert (max(told[:2]) < 20) or attack


def test_a_group_counts_whole_samples_once():
    told = []
    group = Group(SimpleNamespace(advance=told.append), 4)
    for count in (0.5, 1.5, 1.0, 3.0, 2.0, 9.0):
        group.reach(count)
    group.finish()
    assert told == [1, 2, 1]
    other = Group(SimpleNamespace(advance=told.append), 4)
    other.finish()
    assert told[-1] == 4


def test_jupyter_shows_a_bar(monkeypatch):
    assert isinstance(shown("certifying", 3), LogLines)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    bar = shown("certifying", 3)
    bar.close()
    assert isinstance(bar, Bar)
    other = progress_in(trainer_with(TQDMProgressBar()), "certifying", 3)
    other.close()
    assert isinstance(other, Bar)
    shell.kernel = None  # IPython in a terminal
    assert isinstance(shown("certifying", 3), LogLines)


@pytest.mark.parametrize("kind", ["rich", "tqdm"])
def test_messages_are_printed_above_live_bars(terminal, capsys, kind):
    terminal()
    printed, kept = io.StringIO(), io.StringIO()
    bar = TQDMProgressBar()
    if kind == "rich":
        bar = RichProgressBar()
        console = SimpleNamespace(print=lambda line, **_: print(line, file=printed))
        bar.progress = SimpleNamespace(console=console)
    logger = logging.getLogger("tests.progress")
    to_terminal, to_file = logging.StreamHandler(sys.stderr), logging.StreamHandler(kept)
    logger.handlers = [to_terminal, to_file]
    with above_bars(SimpleNamespace(progress_bar_callback=bar)):
        logger.warning("a [message]")
        print("a warning", file=sys.stderr)
    assert to_terminal.stream is sys.stderr
    logger.handlers = []
    out, err = capsys.readouterr()
    assert (printed.getvalue() if kind == "rich" else out) == "a [message]\na warning\n"
    assert err == ""
    assert kept.getvalue() == "a [message]\n"


def test_without_a_live_bar_messages_go_where_they_went(capsys):
    with above_bars(SimpleNamespace(progress_bar_callback=TQDMProgressBar())):
        print("here", file=sys.stderr)
    assert capsys.readouterr().err == "here\n"


def test_an_allowance_ends_before_it_is_used_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("popqorn_train.evaluation.progress.time.monotonic", lambda: now[0])
    clock, done = Allowance(10.0), 0
    while clock.allows():
        with clock.spending():
            now[0] += 4.0
        done += 1
    assert done == 2
    assert Allowance(0.0).allows()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (0.01, "0 s"), (0.312, "0.31 s"), (3.14, "3.1 s"), (42.2, "42 s")],
)
def test_durations_are_read_easily(seconds, said):
    assert duration(seconds) == said
