"""The code that the README shows runs."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train.callbacks import CertifiedRadiusMonitor, EpsilonSchedule
from popqorn_train.cli import main
from popqorn_train.recipes.configurations import configs
from tests.fitting import Classifier, fit

README = Path(__file__).resolve().parents[1] / "README.md"


def block(containing):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    [found] = [block for block in blocks if containing in block]
    return found


def loader():
    x = torch.rand(24, 4, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.arange(24) % 3), 8)


def test_the_callback_is_added_in_the_lines_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"model": Classifier(), "train_loader": loader(), "val_loader": loader()}
    exec(block("CertifiedRadiusMonitor(samples"), names)
    assert {"certified_radius/median", "certified_accuracy/0p05"} <= set(
        names["trainer"].callback_metrics
    )


def test_the_loss_is_used_in_the_lines_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = next(iter(loader()))
    names = {"self": Classifier(), "x": x, "y": y, "pl": pl, "monitor": CertifiedRadiusMonitor()}
    exec(block("CertifiedLoss(epsilon"), names)
    assert names["loss"].requires_grad
    assert isinstance(names["trainer"].callbacks[0], EpsilonSchedule)


def test_a_trained_model_is_asked_in_the_lines_shown():
    x, y = next(iter(loader()))
    names = {"model": Classifier(), "x": x, "y": y}
    exec(block("proof = certify"), names)
    assert names["radius"].shape == (8,)
    assert names["proof"].certified.dtype == torch.bool


def test_checkpoints_and_stopping_are_added_in_the_lines_shown():
    names = {"pl": pl, "monitor": CertifiedRadiusMonitor()}
    exec(block("CertifiedEarlyStopping"), names)
    assert names["best"] in names["trainer"].callbacks


def test_a_plateau_is_watched_in_the_lines_shown():
    optimizer = torch.optim.Adam(Classifier().parameters())
    names = {"optimizer": optimizer}
    exec(block("ReduceLROnPlateau"), names)

    class Plateau(Classifier):
        def configure_optimizers(self):
            return {"optimizer": optimizer, "lr_scheduler": names["lr_scheduler"]}

    fit(CertifiedRadiusMonitor(samples=3, method="ibp"), module=Plateau(), epochs=1)
    assert names["plateau"].last_epoch == 1


def test_a_loader_is_certified_in_the_lines_shown(capsys):
    names = {"model": Classifier(), "val_loader": loader()}
    exec(block("certify_loader"), names)
    assert len(names["rows"]) == 24
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_chart_is_drawn_in_the_lines_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = CertifiedRadiusMonitor(samples=3, folder=tmp_path)
    fit(monitor, epochs=1)
    exec(block("draw_certifications"), {"monitor": monitor})
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_recipe_is_run_in_the_lines_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block("load_net"), names)
    assert isinstance(names["net"], torch.nn.Module)
    certified, standard = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert 0 <= certified <= 1
    assert 0 <= standard <= 1


def test_the_recipes_named_are_those_that_come_with_the_package():
    section = README.read_text().split("## Train a certified model")[1].split("\n## ")[0]
    assert all(f"`{name}`" in section for name in configs())


def test_every_link_leads_somewhere_and_no_placeholder_is_left():
    text = README.read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) >= 3
    for link in links:
        assert (README.parent / link).exists(), link
    assert not re.search(r"^[A-Z]{3,}$", text, re.MULTILINE)


def test_a_model_is_certified_by_the_command_shown(tmp_path, monkeypatch, capsys):
    [line] = re.findall(r"^popqorn-train certify (.*)$", README.read_text(), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)\n\n"
        "    def forward(self, x):\n        return self.head(self.rnn(x)[0][:, -1])\n\n\n"
        "def data():\n    return torch.rand(3, 4, 3), torch.tensor([0, 1, 0])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("my_model").Net()
    torch.save({f"net.{k}": v for k, v in net.state_dict().items()}, "last.ckpt")
    assert main(["certify", *shlex.split(line)]) == 0
    assert "3 samples of my_model:data" in capsys.readouterr().out
    assert (tmp_path / "runs" / "certify" / "report.html").is_file()
    sys.modules.pop("my_model")
