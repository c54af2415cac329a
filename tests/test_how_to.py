"""The pages that show how to do one thing run as they stand, from their first block to the last."""

import re
import sys
from pathlib import Path

import pytest
import wandb
import yaml

from popqorn_train.recipes import zoo
from tests import renew
from tests.fitting import Classifier, train_loader, val_loader

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page, language="python"):
    text = (DOCS / f"{page}.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Runs a page in an empty folder, with names that it may use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def run(name, **names):
        for block in blocks(name):
            exec(block, names)
        return names

    return run


def test_a_radius_of_a_raw_wave(page):
    names = page("speech")
    assert names["radius"].min() > 0


def test_a_share_of_a_box_of_sensors_with_missing_values(page):
    names = page("sensors")
    assert names["x"].isnan().any()
    assert names["radius"].isfinite().all()
    assert names["radius"].max() > 0


def test_intervals_of_a_recurrent_network_grow_unless_it_starts_otherwise(page):
    names = page("collapse")
    default, certifiable = names["default"], names["certifiable"]
    assert default[-1] > default[0]
    assert certifiable[-1] / certifiable[0] < default[-1] / default[0]


def test_a_trainer_of_two_processes_is_made(page):
    assert page("ddp")["trainer"].world_size == 2


def test_wandb_gets_a_training(page):
    names = {"model": Classifier(), "train_loader": train_loader(), "val_loader": val_loader()}
    found = page("wandb", **names)
    wandb.finish()
    wandb.teardown()  # or the next run in this process would be disabled too
    assert "certified_radius/median" in found["trainer"].callback_metrics
    assert found["monitor"].last is not None


def test_rows_of_a_report_are_read(page, capsys):
    from popqorn_train.recipes.cli import main

    assert main(["certify", "zoo:generated", "--method=ibp", "--fragile=0"]) == 0
    assert page("report")["settings"]["method"] == "ibp"


def test_the_zoo_is_read_and_the_page_lists_it(page):
    names = page("zoo")
    assert names["radius"].shape == (10,)
    text = (DOCS / "zoo.md").read_text()
    assert renew.blocks(text)["zoo"].strip() == zoo.table()


def test_a_lightning_cli_trains_by_the_configuration_shown(page, tmp_path, monkeypatch):
    [code], [config] = blocks("lightning_cli"), blocks("lightning_cli", "yaml")
    (tmp_path / "main.py").write_text(code)
    (tmp_path / "config.yaml").write_text(config)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert set(yaml.safe_load(config)) == {"seed_everything", "model", "trainer"}
    names = {"__name__": "shown"}
    exec(code, names)
    quick = ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    quick += ["--data.samples=40", "--trainer.enable_checkpointing=false"]
    quick += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    names["main"](["fit", "--config", "config.yaml", *quick])
    assert (tmp_path / "certification.jsonl").is_file()


def test_a_trainer_of_hugging_face_is_watched(page, tmp_path):
    pytest.importorskip("transformers")
    from tests.callbacks.test_hugging_face import Net, Rows

    names = page("hugging_face", model=Net(), train=Rows(16), validation=Rows(12))
    assert len(names["callback"].last) == 8
    assert names["trainer"].state.best_metric is not None
