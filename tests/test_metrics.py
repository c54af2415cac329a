import pytest
import torch
from torchmetrics import MetricCollection

from popqorn_train.metrics import CertifiedAccuracyCurve
from popqorn_train.plots import AccuracyCurve, draw_accuracy_curves


def test_batches_add_up_and_zero_or_nan_counts_nowhere():
    metric = CertifiedAccuracyCurve((0.1, 0.2))
    metric.update(torch.tensor([0.1, 0.3, 0.0]))
    metric.update(torch.tensor([0.15, torch.nan]))
    torch.testing.assert_close(metric.compute(), torch.tensor([3 / 5, 1 / 5]))
    metric.reset()
    metric.update(torch.zeros(2))
    assert metric.compute().tolist() == [0.0, 0.0]


def test_a_collection_does_not_mix_curves_that_agree_at_first():
    curves = {"near": CertifiedAccuracyCurve((0.1,)), "far": CertifiedAccuracyCurve((0.3,))}
    collection = MetricCollection(curves, compute_groups=False)
    collection.update(torch.tensor([0.5]))
    collection.update(torch.tensor([0.2]))
    assert {name: value.item() for name, value in collection.compute().items()} == {
        "near": 1.0,
        "far": 0.5,
    }


@pytest.mark.parametrize("epsilons", [(), (0.0, 0.1), (0.2, 0.1), (0.1, 0.1), (-1.0,)])
def test_epsilons_must_be_positive_and_increase(epsilons):
    with pytest.raises(ValueError, match="`epsilons` must be positive and increasing"):
        CertifiedAccuracyCurve(epsilons)


def test_plot_draws_the_curve_in_percent():
    metric = CertifiedAccuracyCurve((0.1, 0.2))
    metric.update(torch.tensor([0.1, 0.3]))
    _, ax = metric.plot()
    [line] = ax.get_lines()
    assert line.get_ydata().tolist() == [100.0, 50.0]


def test_a_figure_has_two_lines_a_model_a_legend_and_units(tmp_path):
    curves = [
        AccuracyCurve(name, (0.0, 0.1), (0.9, 0.4), (0.0, 0.1), (0.9, 0.7))
        for name in ("standard", "certified")
    ]
    figure, ax = draw_accuracy_curves(curves, xlabel="epsilon (pixels)")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "standard: certified",
        "standard: attacked",
        "certified: certified",
        "certified: attacked",
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epsilon (pixels)", "accuracy (%)")
    figure.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
