"""The page of a training: what the CSV and the JSONL of a run hold."""

import pytest
from pytorch_lightning.loggers import CSVLogger

from popqorn_train import CertifiedLoss
from popqorn_train.callbacks import CertifiedRadiusMonitor, EpsilonSchedule
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.plots import draw_training
from popqorn_train.recipes.classifier import RobustClassifier
from popqorn_train.recipes.networks import RecurrentNet
from tests.fitting import fit


def labels(ax):
    return [line.get_label() for line in ax.lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    loss = CertifiedLoss(0.1, alpha=0.5)
    module = RobustClassifier(RecurrentNet(3, 4, 3), loss, 1e-2)
    monitor = CertifiedRadiusMonitor(
        samples=6, epsilons=(0.01,), folder=folder, method="ibp", max_overhead=None
    )
    fit(
        monitor,
        EpsilonSchedule(),
        module=module,
        epochs=3,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
    )
    return folder


def test_the_page_shows_schedule_losses_radii_and_accuracies(run):
    figure, axes = draw_training(run / "metrics.csv", run / "certification.jsonl", unit="l_inf")
    schedule, losses, radii, accuracies = axes
    [epsilon] = schedule.lines
    assert epsilon.get_ydata()[-1] == pytest.approx(0.1)
    assert len(epsilon.get_xdata()) == 9  # three epochs of three steps
    assert {"total", "clean", "bound"} <= set(labels(losses))
    certified = read_certifications(run / "certification.jsonl")
    mean = dict(zip(labels(radii), radii.lines, strict=True))["mean"]
    assert mean.get_ydata().tolist() == [entry.radii.mean().item() for entry in certified]
    assert {"clean, whole validation set", "certified at 0.01"} <= set(labels(accuracies))
    clean = dict(zip(labels(accuracies), accuracies.lines, strict=True))
    shares = [100 * entry.clean_accuracy for entry in certified]
    assert clean["clean, certified samples"].get_ydata() == pytest.approx(shares)
    assert "l_inf" in figure.get_supxlabel()


def test_the_csv_alone_has_the_same_radii(run):
    _, both = draw_training(run / "metrics.csv", run / "certification.jsonl")
    _, alone = draw_training(run / "metrics.csv")
    for name in ("median", "mean", "10th percentile"):
        one, two = (
            dict(zip(labels(axes[2]), axes[2].lines, strict=True))[name] for axes in (both, alone)
        )
        assert two.get_ydata() == pytest.approx(one.get_ydata())


def test_what_was_not_logged_is_said(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,train_loss\n0,1,2.5\n1,2,1.5\n")
    _, axes = draw_training(tmp_path / "metrics.csv")
    assert [text.get_text() for text in axes[0].texts] == ["not logged"]
    assert axes[1].lines[0].get_ydata().tolist() == [2.5, 1.5]
    assert [text.get_text() for text in axes[2].texts] == ["not logged"]


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step\n")
    with pytest.raises(ValueError, match="at least one row"):
        draw_training(tmp_path / "metrics.csv")
