import csv

import pytest
import torch

from popqorn_train.recipes import digits
from popqorn_train.recipes.data.digits import Digits

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def test_digits_are_split_without_overlap_and_lie_in_the_domain():
    data = Digits()
    parts = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [1219, 128, 450]
    images = torch.cat([part.tensors[0] for part in parts])
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max()) == (0, 1)


@pytest.mark.slow  # CI runs the command itself
@pytest.mark.parametrize("wandb", [None, "offline"])
def test_the_recipe_writes_table_picture_radii_and_checkpoints(
    tmp_path, capsys, wandb, monkeypatch
):
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = digits.Config(
        epochs=1, hidden=4, attack_steps=1, test_images=60, folder=tmp_path, wandb=wandb
    )
    results = digits.run(config, **QUIET)
    assert set(results) == {"standard", "certified"}
    for name, result in results.items():
        assert (tmp_path / f"{name}.ckpt").exists()
        assert result.certified(0.02) <= result.attacked(0.02) <= result.accuracy()
    rows = list(csv.DictReader((tmp_path / "radii.csv").read_text().splitlines()))
    assert len(rows) == 120
    assert {row["model"] for row in rows} == {"standard", "certified"}
    assert (tmp_path / "certified_accuracy.png").stat().st_size > 10_000
    assert (tmp_path / "certified_curves.png").stat().st_size > 10_000
    assert "cert .05" in capsys.readouterr().out
    if wandb:
        assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
