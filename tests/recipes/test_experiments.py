"""The experiments run from data to figure and numbers, and their numbers are radii."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from popqorn_train import frame_radii
from popqorn_train.recipes import digits, gallery
from popqorn_train.recipes.experiments import objectives, planes, strokes, targets, words
from popqorn_train.recipes.networks import load_net
from tests.small_data import write_mnist, write_news, write_strokes, write_trec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder)
    write_trec(folder)
    write_news(folder)
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_rows_of_digits_have_their_radii_and_their_trend(data, tmp_path):
    config = strokes.Config(data=data, images=3, epochs=40, hidden=8, frames=4, folder=tmp_path)
    numbers = strokes.run(config)
    assert read(tmp_path, "strokes.json")["samples"] == numbers["samples"]
    net = load_net(tmp_path / "lstm.ckpt")
    for one in numbers["samples"]:
        assert len(one["radii"]) == 4
        assert (max(one["radii"]) > 0) == (one["label"] == one["prediction"])
    assert any(one["label"] == one["prediction"] for one in numbers["samples"])
    assert (tmp_path / "strokes.png").stat().st_size > 5000
    assert (tmp_path / "by_frame.png").stat().st_size > 5000
    assert numbers["model"]["hidden"] == net.settings["hidden"] == 8


def test_pen_strokes_are_read_from_a_folder(tmp_path, monkeypatch):
    write_strokes(tmp_path)
    config = strokes.Config(
        strokes=tmp_path,
        labels=tmp_path / "labels.txt",
        images=2,
        epochs=1,
        hidden=3,
        folder=tmp_path / "out",
    )
    net = strokes.run(config)["model"]
    assert (net["features"], net["classes"]) == (4, 2)
    monkeypatch.setattr(strokes, "trained", lambda *_: knows(tmp_path / "out"))
    numbers = strokes.run(config)
    assert all(max(one["radii"]) > 0 for one in numbers["samples"])
    assert (tmp_path / "out" / "strokes.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="`labels` must name"):
        strokes.run(replace(config, labels=None))


def knows(folder):
    """A network that tells ones from sevens: a seven has two ends of strokes."""
    net = load_net(folder / "lstm.ckpt")
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
        rnn = net.recurrent
        hidden = rnn.hidden_size
        rnn.weight_ih_l0[2 * hidden, 2] = 1.0  # the candidate reads the ends
        rnn.bias_ih_l0[: 2 * hidden] = 9.0  # gates are open
        rnn.bias_ih_l0[3 * hidden :] = 9.0
        net.head.weight[1, 0] = 40.0
        net.head.bias[1] = -40 * 0.83
    return net


@pytest.mark.parametrize(
    ("kind", "name"),
    [("trec", "trec.json"), pytest.param("news", "news.json", marks=pytest.mark.slow)],
)
def test_every_word_has_its_radius_in_every_network(data, tmp_path, kind, name):
    given = {"trec": "who is the word1 ?", "news": "topic3 in the news 3"}[kind]
    config = words.Config(
        kind=kind,
        data=data,
        given=(given, "never seen before"),
        cells=("rnn", "gru"),
        samples=2,
        epochs=1,
        hidden=4,
        folder=tmp_path,
    )
    numbers = words.run(config)
    assert set(numbers["models"]) == {"rnn", "gru"}
    opened = words.opened(config)
    for cell, model in numbers["models"].items():
        first = model["given"][0]
        assert first["words"] == given.split()
        assert model["given"][1]["label"] is None
        tokens = opened.vocabulary.tokens(first["words"])
        label = torch.tensor([opened.names.index(first["label"])])
        inputs = tokens[None], torch.tensor([len(tokens)])
        expected = frame_radii(load_net(tmp_path / f"{cell}.ckpt"), inputs, label, p=2)[0]
        assert first["radii"] == pytest.approx(expected.tolist(), rel=2e-2)
        assert model["sentences"] == 2
        assert sum(one["sentences"] for one in model["by_class"].values()) == model["right"]
    page = (tmp_path / f"{kind}_words.html").read_text()
    assert page.count('class="sentence"') == 2 * 2 + 2 * 2
    assert (tmp_path / f"{kind}_words.png").stat().st_size > 5000
    assert read(tmp_path, name)["models"] == numbers["models"]
    other = replace(config, cells=(), checkpoints=(tmp_path / "gru.ckpt",))
    assert list(words.networks(other, opened)) == [tmp_path.parent.name]


def test_samples_are_spread_over_the_classes():
    labels = [2, 0, 1, 0, 2, 1, 0, 1, 2]
    assert [labels[at] for at in words.spread(labels, 3)] == [0, 1, 2]
    assert words.spread(labels, 3) == words.spread(labels, 3)
    assert sorted(words.spread(labels, 99)) == list(range(9))


def test_words_within_a_radius_are_counted_without_the_word_itself(data, tmp_path):
    config = words.Config(kind="trec", data=data, folder=tmp_path)
    opened = words.opened(config)
    tokens = opened.vocabulary.tokens(["word1"])
    known = opened.words - 4
    assert words.words_within(opened, tokens, torch.tensor([9.0])) == known - 1
    assert words.words_within(opened, tokens, torch.tensor([0.0])) == 0


@pytest.mark.slow
def test_planes_prove_more_than_lines_and_lines_more_than_constants(data, tmp_path):
    config = planes.Config(data=data, frames=(4, 7), images=2, epochs=40, hidden=8, folder=tmp_path)
    numbers = planes.run(config)
    for model in numbers["models"].values():
        means = {name: row["mean_radius"] for name, row in model["methods"].items()}
        assert means["planes"] >= means["lines"] >= means["constants"] > 0
    _, ax = planes.draw(numbers)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["planes, paper"].get_ydata().tolist() == [
        0.232,
        0.14,
    ]
    assert lines["lines"].get_xdata().tolist() == [4, 7]


def test_proof_estimate_and_attack_stand_beside_one_another_and_are_never_mixed(data, tmp_path):
    budget = replace(targets.BUDGETS["quick"], images=2, epochs=40, hidden=(8,))
    config = targets.Config(data=data, budget=budget, folder=tmp_path)
    numbers = targets.run(config)
    assert [row["cell"] for row in numbers["rows"]] == ["rnn", "gru"]
    for row in numbers["rows"]:
        assert row["certified"]["found"] == 2
        if row["attack"]["found"] == 2:
            assert row["certified"]["mean"] <= row["attack"]["mean"]
    _, axes = targets.draw(numbers)
    labels = [line.get_label() for line in axes[0].lines]
    assert labels == [f"{kind}, 8 units" for kind in targets.KINDS.values()]
    assert all(any(word in label for word in ("proof", "estimate", "attack")) for label in labels)
    said = targets.said(numbers)
    assert "CLEVER-RNN (estimate)" in said
    assert "C&W-Ada (attack)" in said


@pytest.mark.slow
def test_the_gallery_draws_small_pictures_that_its_page_shows(tmp_path, data):
    config = digits.Config(epochs=1, hidden=8, attack_steps=1, test_images=8, folder=tmp_path / "d")
    digits.run(config, accelerator="cpu", enable_progress_bar=False)
    drawn = gallery.draw_gallery(tmp_path / "out", tmp_path / "d", tmp_path, images=3)
    assert set(drawn) == {
        "epochs",
        "histogram",
        "classes",
        "training",
        "strips",
        "rows",
        "by_frame",
    }
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = (docs / "gallery.md").read_text()
    for name in drawn:
        assert f"gallery/{name}.png" in page
        assert (tmp_path / "out" / f"{name}.png").stat().st_size < 150_000
    for picture in (docs / "gallery").glob("*.png"):
        assert picture.stat().st_size < 150_000
        assert f"gallery/{picture.name}" in page


@pytest.mark.slow
def test_objectives_stand_in_one_table_with_what_they_cost(tmp_path, capsys):
    options = ["--config", "generated", "--epochs", "2", "--samples", "4", "--at", ".02", ".05"]
    options += ["--objectives", "ibp", "mtl", "--folder", str(tmp_path)]
    objectives.main(options)
    numbers = read(tmp_path, "objectives.json")["objectives"]
    assert list(numbers) == ["standard", "ibp", "mtl"]
    for name, row in numbers.items():
        assert row["clean"] >= row["certified_by_intervals"][0] >= row["certified_by_intervals"][1]
        assert all(map(lambda pgd, proved: pgd >= proved, row["pgd"], row["certified"]))
        config = read(tmp_path / name, "results.json")["config"]
        loss = config["model"]["loss"]
        assert (loss is None) == (name == "standard")
        assert loss is None or loss["init_args"]["alpha" if name == "mtl" else "epsilon"] > 0
    assert numbers["standard"]["of_standard"] == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-3:]] == ["standard", "ibp", "mtl"]


def test_pictures_of_experiments_are_drawn_from_their_numbers(tmp_path, capsys):
    spread = {"mean": 0.1, "standard_deviation": 0.0, "found": 1, "seconds": 0.0}
    row = {"cell": "rnn", "frames": 4, "hidden": 8, "certified": spread}
    (tmp_path / "targets.json").write_text(
        json.dumps({"rows": [{**row, "clever": spread, "attack": spread}]})
    )
    found = gallery.of_experiments(tmp_path)
    assert set(found) == {"targets"}
    _, axes = found["targets"]()
    assert axes[0].get_title() == "rnn"
    said = capsys.readouterr().out
    assert "words: no trec.json" in said
    assert "planes: no planes.json" in said
