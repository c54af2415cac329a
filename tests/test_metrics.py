import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from torchmetrics import MetricCollection

from popqorn_train.metrics import (
    CertifiedAccuracy,
    CertifiedAccuracyCurve,
    CertifiedRadius,
    RobustnessGap,
)
from popqorn_train.plots import AccuracyCurve, draw_accuracy_curves

matplotlib.use("Agg")


def test_batches_add_up_zero_counts_nowhere_and_nan_is_left_out():
    metric = CertifiedAccuracyCurve((0.1, 0.2))
    metric.update(torch.tensor([0.1, 0.3, 0.0]))
    metric.update(torch.tensor([0.15, torch.nan]))
    torch.testing.assert_close(metric.compute(), torch.tensor([3 / 4, 1 / 4]))
    metric.reset()
    metric.update(torch.zeros(2))
    assert metric.compute().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", [CertifiedAccuracy, lambda e: CertifiedAccuracyCurve((e,))])
def test_a_collection_does_not_mix_metrics_that_agree_at_first(kind):
    collection = MetricCollection({"near": kind(0.1), "far": kind(0.3)})  # default compute groups
    collection.update(torch.tensor([0.5]))
    collection.update(torch.tensor([0.2]))
    values = {name: value.item() for name, value in collection.compute().items()}
    assert values == {"near": 1.0, "far": 0.5}


def test_quantiles_are_radii_and_capped_values_are_counted():
    metric = CertifiedRadius((0.0, 0.25, 0.5, 1.0))
    metric.update(torch.tensor([0.4, 0.0]), torch.tensor([True, False]))
    metric.update(torch.tensor([0.1, 0.2]))
    values = {name: value.item() for name, value in metric.compute().items()}
    quantiles = {"p0": 0, "p25": 0, "median": 0.1, "p100": 0.4}
    expected = {"mean": 0.175, "capped_fraction": 0.25, **quantiles}
    assert values == pytest.approx(expected)


def test_a_sample_that_two_processes_saw_counts_once():
    metric = CertifiedRadius((0.5,))
    metric.update(torch.tensor([0.1, 0.2, 0.3]), index=torch.tensor([0, 2, 4]))
    metric.update(torch.tensor([0.5, 0.1]), index=torch.tensor([1, 0]))
    assert metric.compute()["mean"].item() == pytest.approx((0.1 + 0.2 + 0.3 + 0.5) / 4)
    metric.reset()
    metric.update(torch.tensor([0.1]))
    assert metric.compute()["median"].item() == pytest.approx(0.1)


def test_radii_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="`radii` must be finite"):
        CertifiedRadius().update(torch.tensor([torch.inf]))
    with pytest.raises(ValueError, match="`quantiles` must lie between 0 and 1"):
        CertifiedRadius((50,))


def test_the_gap_is_empirical_minus_certified_and_never_negative():
    metric = RobustnessGap()
    metric.update(torch.tensor([0.1, 0.0]), torch.tensor([0.3, 0.0]))
    metric.update(torch.tensor([0.2]), torch.tensor([0.6]))
    assert metric.compute().item() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="`empirical` must not be below `certified`"):
        metric.update(torch.tensor([0.2]), torch.tensor([0.1]))


@pytest.mark.parametrize("metric", [CertifiedAccuracy(0.1), CertifiedRadius(), RobustnessGap()])
def test_every_metric_has_a_figure(metric):
    radii = torch.tensor([0.05, 0.2])
    metric.update(*([radii, 2 * radii] if isinstance(metric, RobustnessGap) else [radii]))
    figure, ax = metric.plot()
    assert ax.get_lines()
    plt.close(figure)


def _two_processes(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    radii, curve = CertifiedRadius((0.5,)), CertifiedAccuracyCurve((0.1, 0.25))
    own = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.4, 0.0]])[rank]
    radii.update(own, index=torch.tensor([[0, 2, 4], [0, 1, 3]])[rank])
    curve.update(own)
    values = {name: value.item() for name, value in radii.compute().items()}
    torch.save((values, curve.compute()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=_two_processes, args=(r, tmp_path)) for r in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    for rank in range(2):
        values, accuracies = torch.load(tmp_path / f"{rank}.pt")
        assert values == pytest.approx({"mean": 0.2, "capped_fraction": 0, "median": 0.2})
        torch.testing.assert_close(accuracies, torch.tensor([5 / 6, 2 / 6]))


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
