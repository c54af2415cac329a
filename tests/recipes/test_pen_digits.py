"""Pen-written digits: read, changed in training alone, and drawn point by point."""

import json

import numpy as np
import pytest
import torch

from popqorn_train.recipes.data.pen_digits import PenDigits, changed
from popqorn_train.recipes.data.sequences import DataNotFoundError
from popqorn_train.recipes.experiments import pen_points
from popqorn_train.recipes.experiments.pen_points import steps_of


def write(folder, **replaced):
    generator = np.random.default_rng(0)
    parts = {}
    for name, count in (("tra", 30), ("tes", 8)):
        parts[f"x_{name}"] = generator.integers(0, 101, (count, 8, 2), dtype=np.uint8)
        parts[f"y_{name}"] = np.arange(count, dtype=np.uint8) % 10
    np.savez(folder / "pen_digits.npz", **{**parts, **replaced})
    return folder


def test_points_lie_in_the_domain_and_what_is_held_out_comes_from_training(tmp_path):
    data = PenDigits(write(tmp_path), validation=5, batch_size=4)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [25, 5, 8]
    points = torch.cat([part.tensors[0] for part in (data.train, data.validation, data.test)])
    assert points.shape == (38, 8, 2)
    assert 0 <= points.min() <= points.max() <= 1
    labels = torch.cat([data.train.tensors[1], data.validation.tensors[1]])
    assert labels.bincount().tolist() == [3] * 10


def test_digits_change_in_training_alone(tmp_path):
    data = PenDigits(write(tmp_path), validation=5, batch_size=25, stretch=0.1, shift=0.03)
    (x, y), (again, _) = next(iter(data.train_dataloader())), next(iter(data.train_dataloader()))
    known = data.train.tensors[0]
    assert x.sort(0).values.ne(known.sort(0).values).any()
    assert x.shape == again.shape == (25, 8, 2)
    assert y.shape == (25,)
    torch.testing.assert_close(next(iter(data.val_dataloader()))[0], data.validation.tensors[0])


def test_a_change_keeps_straight_lines_and_the_domain():
    line = torch.linspace(0.3, 0.7, 8)[:, None].expand(4, 8, 2)
    torch.testing.assert_close(changed(line, 0.0, 0.0, 0.0), line)
    torch.manual_seed(0)
    moved = changed(line, 0.1, 0.03, 0.1)
    assert moved.diff(dim=1).diff(dim=1).abs().max() < 1e-6
    assert 0 <= changed(line, 9.0, 9.0, 9.0).min() <= changed(line, 9.0, 9.0, 9.0).max() <= 1


@pytest.mark.parametrize("name", ["stretch", "shift", "slant"])
def test_changes_out_of_range_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must be at least 0"):
        PenDigits(write(tmp_path), **{name: -0.1})


def test_files_of_another_form_are_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"put pen_digits\.npz there"):
        PenDigits(tmp_path)
    with pytest.raises(ValueError, match=r"must hold points \(S, 8, 2\) from 0 to 100"):
        PenDigits(write(tmp_path, x_tra=np.full((30, 8, 2), 101, dtype=np.uint8)))
    np.savez(tmp_path / "pen_digits.npz", x_tra=np.zeros(1))
    with pytest.raises(ValueError, match=r"lacks \['x_tes', 'y_tes', 'y_tra'\]"):
        PenDigits(tmp_path)


def test_points_become_steps_of_one_stroke():
    points = torch.tensor([[0.2, 1.0], [0.2, 0.5], [0.6, 0.5]])
    steps = steps_of(points)
    torch.testing.assert_close(
        steps[:, :2].cumsum(0) / 100 * torch.tensor([1, -1]) + torch.tensor([0, 1.0]), points
    )
    assert steps[:, 2:].tolist() == [[0, 0], [0, 0], [1, 1]]


def test_the_experiment_writes_radii_and_pictures(tmp_path):
    config = pen_points.Config(
        write(tmp_path), digits=4, epochs=1, hidden=3, folder=tmp_path / "out"
    )
    with pytest.MonkeyPatch.context() as patch:
        whole = PenDigits.__init__
        patch.setattr(
            PenDigits,
            "__init__",
            lambda self, path, **options: whole(self, path, validation=2, **options),
        )
        pen_points.run(config)
    found = json.loads((tmp_path / "out" / "pen_points.json").read_text())["models"]["standard"]
    assert [len(one["radii"]) for one in found["samples"]] == [8] * 4
    for one in found["samples"]:
        assert (min(one["radii"]) > 0) == (one["label"] == one["prediction"])
    assert (tmp_path / "out" / "by_point.png").exists() or not any(
        one["label"] == one["prediction"] for one in found["samples"]
    )
