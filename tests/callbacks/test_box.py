"""The monitor over a box logs shares, under names that say so."""

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from popqorn_train import Box, certified_radius
from popqorn_train.callbacks import CertifiedEarlyStopping, CertifiedRadiusMonitor
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.plots import draw_certifications, draw_training
from tests.fitting import fit, val_loader

BOX = Box([-5.0, -6.0, -5.0], 6.0)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    monitor = CertifiedRadiusMonitor(
        samples=12, box=BOX, epsilons=(0.01, 1.0), attack=True, method="crown-ibp"
    )
    stop = CertifiedEarlyStopping("certified_share/median")
    logger = CSVLogger(folder)
    trainer, module = fit(monitor, stop, logger=logger, log_every_n_steps=1)
    return monitor, trainer, module, logger


def test_it_logs_shares_under_their_own_names(ran):
    monitor, trainer, module, _ = ran
    x, y = val_loader().dataset.tensors
    rows = monitor.last.rows
    chosen = [row.index for row in rows]
    some = x[chosen], y[chosen]
    shares = certified_radius(module.eval(), *some, box=BOX, method="crown-ibp")
    torch.testing.assert_close(monitor.last.radii, shares.double(), rtol=2e-2, atol=1e-9)
    logged = trainer.callback_metrics
    median = monitor.last.radii.sort().values[5].item()
    assert logged["certified_share/median"].item() == pytest.approx(median, abs=1e-6)
    assert logged["cert_share"].item() == pytest.approx(median, abs=1e-6)
    proved = (monitor.last.radii >= 0.01).double().mean().item()
    at = {"0p01": proved, "1": (monitor.last.radii >= 1).double().mean().item()}
    for name, value in at.items():
        found = logged[f"certified_accuracy_at_share/{name}"].item()
        assert found == pytest.approx(value, abs=1e-6)
        assert logged[f"certified_accuracy_at_share_low/{name}"] <= found
    assert "empirical_share/median" in logged
    assert "certified_share_by_class/0" in logged
    wrong = ("radius", "cert_r", "certified_accuracy/", "certified_accuracy_low/")
    assert not [name for name in logged if any(part in name for part in wrong)]


def test_the_record_and_the_figures_speak_of_shares(ran):
    monitor, _, _, logger = ran
    last = read_certifications(monitor.path)[-1]
    assert last.measure.name == "share"
    assert last.settings["box"] == {"lower": [-5.0, -6.0, -5.0], "upper": 6.0}
    assert "p" not in last.settings
    assert "shares of a box" in repr(monitor)
    _, ax = draw_certifications(monitor.path)
    assert ax.get_xlabel().startswith("share of the box\n(shares of the way from each input of 'x'")
    for certifications in (None, monitor.path):
        _, axes = draw_training(f"{logger.log_dir}/metrics.csv", certifications)
        assert axes[2].get_ylabel() == "certified share"
        names = {line.get_label() for line in axes[3].lines}
        assert {"clean, certified samples", "certified at share 0.01"} <= names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 2}, "`box` describes the perturbation: leave out p"),
        ({"features": [True, False, True]}, "`box` describes .* pass frames and features to Box"),
        ({"epsilons": (0.5, 2.0)}, "`epsilons` must be shares of the box, from 0 to 1, got 2"),
    ],
)
def test_what_does_not_go_with_a_box_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CertifiedRadiusMonitor(box=BOX, **options)
