"""What loggers show, read back; and that nothing they do stops training."""

import json
from functools import partial

import pytest
import torch
import wandb
from pytorch_lightning.loggers import (
    CometLogger,
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from popqorn_train.callbacks import CertifiedRadiusMonitor
from popqorn_train.callbacks.logged_scalars import best
from popqorn_train.certificates.empirical import search_empirical
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.plots import draw_certifications
from tests.fitting import Classifier, fit
from tests.wandb_reader import Run

EPOCHS = 23


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training with more epochs than a chart has lines, stored offline and read back."""
    folder = tmp_path_factory.mktemp("wandb")
    logger = WandbLogger(project="tests", save_dir=folder, offline=True)
    monitor = CertifiedRadiusMonitor(
        2, samples=5, attack=True, max_overhead=None, low=-9.0, method="ibp", name="l2"
    )
    short = partial(search_empirical, steps=3, restarts=1)
    module = Classifier(dropout=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("popqorn_train.evaluation.examination.search_empirical", short)
        fit(monitor, logger=logger, epochs=EPOCHS, log_every_n_steps=1, module=module)
    wandb.finish()
    found = Run.finished(folder)
    found.monitor, found.folder = monitor, folder
    return found


def test_every_scalar_has_the_epoch_as_its_axis_and_its_best_in_the_summary(run):
    keys = {key for row in run.rows("l2/certified_radius/median") for key in row}
    ours = {key for key in keys if key.startswith("l2/")}
    assert len(ours) > 20
    for key in ours:
        metric = run.metrics[key]
        assert metric.step_metric == "epoch", key
        assert getattr(metric.summary, best(key)), key


def test_the_axis_has_one_point_an_epoch_with_what_was_certified(run):
    rows = run.rows("l2/certified_radius/median")
    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    certified = read_certifications(run.monitor.path)
    for row, entry in zip(rows, certified, strict=True):
        assert row["l2/certified_radius/mean"] == pytest.approx(entry.radii.mean().item())
        assert row["l2/certified_accuracy/0"] == pytest.approx(entry.clean_accuracy)
        assert row["l2/certification/fresh"] == 1


def test_one_chart_shows_certified_accuracy_with_at_most_20_lines_and_the_attack_above(run):
    key = "l2/certified_accuracy/by_epsilon_table"
    rows = [row for row in run.history if any(name.startswith(key) for name in row)]
    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    newest = rows[-1][f"{key}/path"]
    [path] = run.folder.glob(f"**/{newest}")
    table = json.loads(path.read_text())
    assert table["columns"] == ["step", "lineKey", "lineVal"]
    lines = {}
    for epsilon, name, share in table["data"]:
        lines.setdefault(name, []).append((epsilon, share))
    names = [f"epoch {epoch}" for epoch in range(EPOCHS)]
    shown = [name for name in lines if name.startswith("epoch")]
    assert len(shown) == 20
    assert shown[0] == names[0]
    assert shown[-1] == names[-1]
    above = lines[f"attacked, epoch {EPOCHS - 1}"]
    assert all(a[1] >= c[1] for a, c in zip(above, lines[names[-1]], strict=True))
    assert any(a[1] > c[1] for a, c in zip(above, lines[names[-1]], strict=True))
    assert "l2/certified_accuracy/by_epsilon" in "".join(run.config)


def test_histogram_and_table_hold_every_sample(run):
    [row] = [row for row in run.rows("l2/certified_radius/histogram/bins") if row["epoch"] == 3]
    assert sum(json.loads(str(row["l2/certified_radius/histogram/values"]))) == 5
    key = "l2/certified_radius/samples"
    tables = [row for row in run.history if f"{key}/path" in row]
    assert [row["epoch"] for row in tables] == [0, 10, 20, EPOCHS - 1]
    [path] = run.folder.glob(f"**/{tables[-1][f'{key}/path']}")
    table = json.loads(path.read_text())
    assert table["columns"][:5] == [
        "index",
        "label",
        "prediction",
        "certified radius",
        "empirical radius",
    ]
    rows = {row.index: row for row in run.monitor.last.rows}
    assert [line[0] for line in table["data"]] == sorted(rows)
    for line in table["data"]:
        assert line[3] == pytest.approx(rows[line[0]].radius)
        assert line[6] == rows[line[0]].status


def test_the_settings_of_certification_are_in_the_configuration(run):
    settings = run.config["certification_l2"]
    assert settings["p"] == "2"
    assert settings["scope"] == "frame"
    assert settings["low"] == -9.0
    assert settings["high"] is None
    assert settings["method"] == "ibp"
    assert settings["samples"] == 5
    assert settings["moved"] == "x"
    assert settings["versions"]["torch"] == torch.__version__


def test_the_file_of_a_run_lies_in_its_own_folder_and_draws_the_same_chart(run):
    assert run.monitor.path.parent.name == "files"
    assert run.monitor.path.name == "certification-l2.jsonl"
    _, ax = draw_certifications(run.monitor.path)
    labels = [line.get_label() for line in ax.lines]
    assert len(labels) == 21
    assert labels[-2:] == [f"epoch {EPOCHS - 1}", f"attacked, epoch {EPOCHS - 1}"]
    assert ax.get_xlabel().startswith("perturbation epsilon\n(l_2 of 'x', a ball for every frame")


def test_tensorboard_gets_a_histogram_and_a_figure(tmp_path):
    shown = []

    class Writer:
        def __getattr__(self, name):
            return lambda *arguments, **options: shown.append((name, arguments[0]))

    class Fake(TensorBoardLogger):
        def __init__(self):
            Logger.__init__(self)

        @property
        def experiment(self):
            return Writer()

        name = version = ""
        log_dir = str(tmp_path)
        log_metrics = log_hyperparams = log_graph = save = finalize = lambda *_, **__: None

    monitor = CertifiedRadiusMonitor(samples=4, max_overhead=None)
    fit(monitor, logger=Fake(), epochs=1, log_every_n_steps=1)
    assert monitor.failures == 0
    assert ("add_histogram", "certified_radius/histogram") in shown
    assert ("add_figure", "certified_accuracy/by_epsilon") in shown
    shown.clear()
    fit(monitor, logger=Fake(), epochs=3, log_every_n_steps=1)
    assert [name for name, _ in shown].count("add_figure") == 2  # at first and at last
    assert monitor.path == tmp_path / "certification.jsonl"


def fake(kind, folder, writer):
    """A logger of a kind that only hands what is shown to a writer."""

    class Fake(kind):
        def __init__(self):
            Logger.__init__(self)

        name = version = run_id = "run"
        log_dir = save_dir = str(folder)
        experiment = property(lambda self: writer)
        log_metrics = log_hyperparams = log_graph = save = finalize = lambda *_, **__: None

    return Fake()


class Writer:
    """Remembers what it is told."""

    id = "abc"

    def __init__(self, folder):
        self.dir, self.told = str(folder), []

    def __getattr__(self, name):
        return lambda *values, **options: self.told.append((name, [*values, *options.values()]))

    def named(self, name):
        return [values for told, values in self.told if told == name]


def test_mlflow_gets_a_figure_and_a_table(tmp_path):
    writer = Writer(tmp_path)
    monitor = CertifiedRadiusMonitor(samples=4, max_overhead=None, method="ibp")
    fit(monitor, logger=fake(MLFlowLogger, tmp_path, writer), epochs=1, log_every_n_steps=1)
    assert monitor.failures == 0
    [[run, _, name]] = writer.named("log_figure")
    assert (run, name) == ("run", "certified_accuracy/by_epsilon/3.png")
    [[run, table, name]] = writer.named("log_table")
    assert name == "certified_radius/samples/3.json"
    assert table["certified radius"] == [row.radius for row in monitor.last.rows]


def test_comet_gets_a_figure_and_a_table(tmp_path):
    writer = Writer(tmp_path)
    monitor = CertifiedRadiusMonitor(samples=4, max_overhead=None, method="ibp")
    fit(monitor, logger=fake(CometLogger, tmp_path, writer), epochs=1, log_every_n_steps=1)
    assert monitor.failures == 0
    [[name, _, step]] = writer.named("log_figure")
    assert (name, step) == ("certified_accuracy/by_epsilon", 3)
    [[name, rows, titles]] = writer.named("log_table")
    assert name == "certified_radius/samples-3.csv"
    assert [row[titles.index("certified radius")] for row in rows] == [
        row.radius for row in monitor.last.rows
    ]


@pytest.mark.parametrize("wanted", [True, False])
def test_an_artifact_of_rows_and_report_is_logged_where_it_is_asked_for(tmp_path, wanted):
    writer = Writer(tmp_path)
    writer.config = Writer(tmp_path)
    monitor = CertifiedRadiusMonitor(
        samples=4, max_overhead=None, method="ibp", artifacts=wanted, name="l2"
    )
    fit(monitor, logger=fake(WandbLogger, tmp_path, writer), epochs=1, log_every_n_steps=1)
    assert monitor.failures == 0
    artifacts = [values[0] for values in writer.named("log_artifact")]
    assert len(artifacts) == wanted
    for artifact in artifacts:
        assert artifact.name == "certification-l2-abc"
        assert artifact.type == "certification"
        assert set(artifact.manifest.entries) == {
            "certification-l2.jsonl",
            "certification-l2.html",
        }
        assert "Classifier" in monitor.path.with_suffix(".html").read_text()


def test_a_csv_logger_gets_the_scalars_and_the_file_lies_beside_them(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    monitor = CertifiedRadiusMonitor(samples=6, max_overhead=None)
    fit(monitor, logger=logger, log_every_n_steps=1)
    assert "certified_radius/median" in (tmp_path / "metrics.csv").read_text()
    assert [entry.epoch for entry in read_certifications(tmp_path / "certification.jsonl")] == [
        0,
        1,
    ]


class Broken:
    """A wandb run whose service is dead."""

    dir = "nowhere"

    def __getattr__(self, name):
        raise ConnectionResetError("Connection lost")


@pytest.fixture
def dead(tmp_path):
    logger = WandbLogger(project="tests", save_dir=tmp_path, mode="disabled")
    logger.experiment  # noqa: B018  (starts the run)
    logger._experiment = Broken()
    logger.log_metrics = lambda *_, **__: None
    yield logger
    wandb.finish()
    wandb.teardown()  # or the next run in this process would be disabled too


def test_a_dead_wandb_service_is_counted_and_warned_of_once(dead, tmp_path):
    monitor = CertifiedRadiusMonitor(samples=4, max_overhead=None, folder=tmp_path)
    with pytest.warns(
        UserWarning, match="could not write to WandbLogger, training goes on"
    ) as told:
        trainer, _ = fit(monitor, logger=dead, epochs=3, log_every_n_steps=1)
    assert trainer.current_epoch == 3
    assert monitor.failures >= 6
    assert len([w for w in told if "could not write" in str(w.message)]) == 1
    assert len(read_certifications(monitor.path)) == 3


def test_a_full_disk_costs_the_file_and_nothing_else(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monitor = CertifiedRadiusMonitor(samples=4, max_overhead=None, folder=tmp_path)
    with pytest.warns(UserWarning, match=r"could not write to certification.jsonl.*No space left"):
        trainer, _ = fit(monitor, epochs=2)
    assert trainer.current_epoch == 2
    assert monitor.failures == 2
    assert monitor.last.epoch == 1


def test_nothing_is_written_in_a_fast_dev_run(tmp_path):
    monitor = CertifiedRadiusMonitor(samples=4, folder=tmp_path)
    fit(monitor, fast_dev_run=True)
    assert monitor.last is not None
    assert list(tmp_path.iterdir()) == []
