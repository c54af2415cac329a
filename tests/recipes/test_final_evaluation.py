"""What recipes report: certified and attacked accuracies, their files, and the networks."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import CertifiedLoss, LpBall, certify, search_radius
from popqorn_train.recipes.classifier import RobustClassifier
from popqorn_train.recipes.data.sequences import SequenceSet, padded
from popqorn_train.recipes.evaluation import EvaluationSettings
from popqorn_train.recipes.final_evaluation import evaluate
from popqorn_train.recipes.networks import RecurrentNet, load_net
from popqorn_train.recipes.results import draw, model_results, table, write_results

SETTINGS = EvaluationSettings((0.01, 0.05), low=0.0, high=1.0, method="crown-ibp", attack_steps=3)


@pytest.fixture
def net():
    return RecurrentNet(3, 4, 3).eval()


@pytest.fixture
def frames(net):
    x = torch.rand(30, 4, 3)
    labels = net(x).argmax(1)
    labels[:5] = (labels[:5] + 1) % 3  # wrong predictions
    return DataLoader(TensorDataset(x, labels), 8)


@pytest.fixture
def sentences():
    words = RecurrentNet(5, 4, 3, words=9, init="eye").eval()
    tokens = [torch.randint(1, 9, (length,)) for length in (3, 1, 5, 2, 4, 3)]
    labels = words(*padded([(one, torch.tensor(0)) for one in tokens])[0]).argmax(1)
    return words, DataLoader(SequenceSet(tokens, labels), 2, collate_fn=padded)


def test_radii_and_predictions_are_those_of_the_library(net, frames):
    [found] = evaluate(net, frames, SETTINGS)
    x, labels = frames.dataset.tensors
    ball = LpBall(0.0, low=0.0, high=1.0)
    radius = search_radius(net, x, labels, ball, method="crown-ibp").radius
    assert torch.allclose(found.radii, radius.double(), rtol=2e-3)
    assert found.accuracy() == pytest.approx(25 / 30)
    assert found.certified(0.05) == pytest.approx((radius >= 0.05).double().mean().item())
    assert found.certified(0.05) <= found.attacked(0.05) <= found.accuracy()
    assert found.median() == found.radii.sort().values[14]


def test_without_a_search_radii_are_the_greatest_epsilon_that_is_proved(net, frames):
    settings = replace(SETTINGS, epsilons=(0.01, 0.05, 0.1), radii=False)
    [found] = evaluate(net, frames, settings)
    x, labels = frames.dataset.tensors
    proved = [
        certify(net, x, labels, settings.ball(e), method="crown-ibp").certified
        for e in settings.epsilons
    ]
    assert [found.certified(e) for e in settings.epsilons] == [
        pytest.approx(one.double().mean().item()) for one in proved
    ]
    assert set(found.radii.tolist()) <= {0.0, *settings.epsilons}
    assert torch.equal(found.capped, proved[-1])
    assert found.accuracy() == pytest.approx(25 / 30)


def test_without_a_search_stronger_methods_see_what_intervals_leave(net, frames):
    settings = replace(SETTINGS, radii=False, method_samples=2, undecided_at=0.05)
    intervals, both, some = evaluate(net, frames, settings)
    [alone] = evaluate(net, frames, replace(SETTINGS, radii=False))
    assert (intervals.method, both.method, some.method) == ("ibp", "ibp, crown-ibp", "crown-ibp")
    assert torch.equal(both.radii, torch.maximum(intervals.radii, alone.radii))
    assert len(some.radii) == 2


def test_masks_hold_for_radii_and_attacks(net, frames):
    masks = {"frames": [True, False, True, True], "features": [False, True, False]}
    settings = replace(SETTINGS, **masks)
    [found], [whole] = evaluate(net, frames, settings), evaluate(net, frames, SETTINGS)
    x, labels = frames.dataset.tensors
    ball = LpBall(0.0, **{k: torch.tensor(m) for k, m in masks.items()}, low=0.0, high=1.0)
    radius = search_radius(net, x, labels, ball, method="crown-ibp").radius
    assert torch.allclose(found.radii, radius.double(), rtol=2e-3)
    assert (found.radii[found.radii > 0] > whole.radii[found.radii > 0]).all()
    assert found.attacked(0.05) >= whole.attacked(0.05)
    assert settings.ball(0.05) != SETTINGS.ball(0.05)


def test_a_part_is_drawn_for_the_strong_method_and_the_whole_set_has_intervals(net, frames):
    settings = EvaluationSettings(
        (0.01, 0.05), method="crown-ibp", method_samples=12, attack_samples=5, attack_steps=1
    )
    whole, part = evaluate(net, frames, settings)
    assert (whole.method, part.method) == ("ibp", "crown-ibp")
    assert whole.positions.tolist() == list(range(30))
    assert len(set(part.positions.tolist())) == 12
    assert part.positions.tolist() != sorted(part.positions.tolist())
    assert whole.standing.shape == (2, 0)
    assert part.standing.shape == (2, 5)
    assert torch.equal(whole.labels[part.positions], part.labels)
    assert (part.radii >= 0.998 * whole.radii[part.positions]).all()
    again = evaluate(net, frames, settings)[1]
    assert torch.equal(again.radii, part.radii)


def test_what_intervals_leave_undecided_is_tried_by_the_method_up_to_an_epsilon(net, frames):
    part = {"method_samples": 12, "attack_samples": 5, "attack_steps": 1}
    settings = EvaluationSettings((0.01, 0.1), method="crown-ibp", undecided_at=0.1, **part)
    whole, both, _ = evaluate(net, frames, settings)
    [strong] = evaluate(net, frames, EvaluationSettings((0.01, 0.1), method="crown-ibp"))
    assert both.method == "ibp, crown-ibp"
    assert torch.equal(both.predictions, whole.predictions)
    assert both.certified(0.1) == strong.certified(0.1) > whole.certified(0.1)
    open_ = (whole.radii < 0.1) & (whole.predictions == whole.labels)
    assert torch.equal(both.radii[~open_], whole.radii[~open_])
    below = strong.radii < 0.099
    torch.testing.assert_close(both.radii[below], strong.radii[below], rtol=3e-3, atol=0)
    settings = EvaluationSettings((0.01,), method="crown-ibp", undecided_at=1e-9, **part)
    assert torch.equal(evaluate(net, frames, settings)[1].radii, whole.radii)


def test_sentences_keep_their_places_however_long_they_are(sentences):
    words, loader = sentences
    settings = EvaluationSettings((0.01,), p=2.0, method="ibp", attack_steps=2)
    [found] = evaluate(words, loader, settings)
    for position, (tokens, label) in enumerate(loader.dataset):
        inputs = tokens[None], torch.tensor([len(tokens)])
        assert found.predictions[position] == words(*inputs).argmax(1)
        radius = found.radii[position].item()
        for epsilon, proved in ((0.99 * radius, True), (1.01 * radius, False)):
            ball = LpBall(epsilon, 2.0)
            assert certify(words, inputs, label[None], ball, method="ibp").certified == proved


def test_results_are_written_with_every_number(net, frames, tmp_path):
    found = evaluate(net, frames, SETTINGS)
    models = {"certified": model_results(found, 1.5, 0.5)}
    path = write_results(
        tmp_path, models, name="toy", seed=3, config={"a": 1}, nearest_neighbour=0.5
    )
    read = json.loads(path.read_text())
    [entry] = read["models"]["certified"]["evaluations"]
    assert entry["median_radius_over_nearest_neighbour"] == 2 * entry["median_radius"]
    assert entry["certified_accuracy"] == [found[0].certified(e) for e in (0.01, 0.05)]
    assert (read["seed"], read["recipe"], read["config"]) == (3, "toy", {"a": 1})
    assert {"python", "torch", "pytorch-lightning", "popqorn-train"} <= set(read["versions"])
    assert list(tmp_path.iterdir()) == [path]
    lines = table(models).splitlines()
    assert lines[-2].split()[0] == "median/nn"
    assert lines[3].split() == ["clean", "83.3"]
    assert lines[-1].startswith("95 % confidence intervals (Wilson, 30 samples)")
    assert max(map(len, lines)) <= 80


def test_sizes_are_reported_in_decibels_too(net, frames, tmp_path):
    settings = EvaluationSettings(decibels=(-40.0, -20.0), method="ibp", attack_steps=1)
    assert settings.epsilons == pytest.approx((0.01, 0.1))
    found = evaluate(net, frames, settings)
    models = {"certified": model_results(found, 1.5, None)}
    [entry] = models["certified"]["evaluations"]
    assert entry["decibels"] == [-40, -20]
    assert 10 ** (entry["median_decibels"] / 20) == pytest.approx(entry["median_radius"])
    rows = dict(line.rsplit(maxsplit=1) for line in table(models).splitlines()[:-1])
    assert rows["cert -40 dB"] == f"{100 * found[0].certified(0.01):.1f}"
    assert list(rows)[-1].split() == ["median", f"{entry['median_decibels']:.1f}"]
    nothing = models["certified"]["evaluations"][0] | {"median_decibels": None}
    assert table({"certified": {"evaluations": [nothing]}}).splitlines()[-2].split()[1] == "-"


def test_radii_are_one_line_a_sample(net, frames, tmp_path):
    [found] = evaluate(net, frames, SETTINGS)
    found.write_csv(tmp_path / "radii.csv", "a")
    found.write_csv(tmp_path / "radii.csv", "b")
    rows = list(csv.DictReader((tmp_path / "radii.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["a"] * 30 + ["b"] * 30
    assert [int(row["index"]) for row in rows[:30]] == list(range(30))
    assert float(rows[7]["certified_radius"]) == pytest.approx(found.radii[7].item(), rel=1e-5)


def test_the_picture_has_a_curve_for_each_model(net, frames, tmp_path):
    [found] = evaluate(net, frames, SETTINGS)
    path = draw(tmp_path, {"certified": found, "standard": found}, SETTINGS)
    assert path.stat().st_size > 10_000
    assert found.curve("x").certified[0] == found.accuracy()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilons": (0.2, 0.1)}, "`epsilons` must be positive and increasing"),
        ({"epsilons": ()}, "`epsilons` must be positive and increasing"),
        ({"samples": 0}, "`samples` must be at least 1"),
        ({"attack_samples": -1}, "`attack_samples` must be at least 1"),
        ({"undecided_at": 0.0}, "`undecided_at` must be positive or null, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**options)


@pytest.mark.parametrize("cell", ["rnn", "relu-rnn", "lstm", "gru"])
def test_the_state_is_read_after_the_last_frame(cell):
    net = RecurrentNet(3, 4, 2, cell=cell, frame_units=5).eval()
    x, lengths = torch.rand(2, 6, 3), torch.tensor([4, 6])
    other = x.clone()
    other[0, 4:] = 7.0
    assert torch.allclose(net(x, lengths), net(other, lengths))
    assert torch.allclose(net(x, lengths)[1], net(x)[1], atol=1e-6)
    assert torch.allclose(net(x, lengths)[0], net(x[:1, :4])[0], atol=1e-6)


def test_the_recurrent_layer_starts_as_asked():
    torch.manual_seed(1)
    net = RecurrentNet(3, 4, 2, init="eye")
    states = net.recurrent.weight_hh_l0
    assert torch.allclose(states[8:12], torch.eye(4), atol=0.2)
    assert net.recurrent.bias_hh_l0.abs().max() == 0
    assert RecurrentNet(3, 4, 2).recurrent.bias_hh_l0.abs().max() > 0
    with pytest.raises(ValueError, match="'eye' is for gated cells"):
        RecurrentNet(3, 4, 2, cell="rnn", init="eye")


def test_word_vectors_are_frozen_and_must_fit():
    net = RecurrentNet(5, 4, 3, words=9)
    vectors = torch.rand(9, 5)
    net.use_vectors(vectors)
    assert torch.equal(net.embedding.weight, vectors)
    assert not net.embedding.weight.requires_grad
    with pytest.raises(ValueError, match="need an embedding of that shape"):
        net.use_vectors(torch.rand(8, 5))
    with pytest.raises(ValueError, match="no embedding"):
        RecurrentNet(5, 4, 3).use_vectors(vectors)


def test_another_checkpoint_is_no_network(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="must be the checkpoint of a recipe"):
        load_net(tmp_path / "other.ckpt")


def test_an_objective_and_cross_entropy_train_on_the_same_batches():
    net = RecurrentNet(3, 4, 3)
    batch = (torch.rand(6, 4, 3), torch.arange(6) % 3)
    module = RobustClassifier(net, CertifiedLoss(0.0, kappa=1.0))
    module.log = module.log_dict = lambda *_, **__: None
    plain = nn.functional.cross_entropy(net(batch[0]), batch[1])
    assert torch.allclose(module.training_step(batch, 0), plain)
    module.loss = None
    assert torch.equal(module.training_step(batch, 0), plain)


def test_a_limit_of_samples_holds_for_every_row(net, frames):
    settings = EvaluationSettings(
        (0.01, 0.1), samples=9, method_samples=4, method="crown-ibp", attack_steps=1
    )
    every, strong = evaluate(net, frames, settings)
    assert (len(every.radii), len(strong.radii)) == (9, 4)
    assert set(strong.positions.tolist()) < set(every.positions.tolist())
    [alone] = evaluate(net, frames, EvaluationSettings((0.01,), samples=9, attack_steps=1))
    assert torch.equal(alone.positions, every.positions)
