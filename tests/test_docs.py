"""The code that the README and the pages of docs/ show runs, and their links lead somewhere."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from popqorn_train import LpBall, certify, logit_bounds
from popqorn_train.callbacks import CertifiedRadiusMonitor, EpsilonSchedule
from popqorn_train.callbacks.background_certifier import BackgroundCertifier
from popqorn_train.cli import main
from popqorn_train.operations import registry
from popqorn_train.recipes.configurations import configs
from tests.fitting import Classifier, fit

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "recipes" / "RESULTS.md"]
PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]
WHOLE = ("start.md", "plain_torch.md", "words_and_lengths.md")  # each of their blocks runs alone
HOW_TO = ("collapse", "ddp", "hugging_face", "lightning_cli", "report", "sensors", "speech")
HOW_TO += ("wandb", "zoo")
ELSEWHERE = ("tour.md", "scale.md", *WHOLE, *(f"{name}.md" for name in HOW_TO))  # see test_how_to


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def block(containing):
    """The code with a text, the same wherever it is shown but on pages that run as a whole."""
    pages = [page for page in PAGES if page.name not in ELSEWHERE]
    found = [block for page in pages for block in blocks(page) if containing in block]
    assert len(set(found)) == 1, found
    return found[0]


def loader():
    x = torch.rand(24, 4, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.arange(24) % 3), 8)


def test_the_callback_is_added_in_the_lines_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"model": Classifier(), "train_loader": loader(), "val_loader": loader()}
    exec(block("from popqorn_train.callbacks import CertifiedRadiusMonitor\n\n"), names)
    assert {"certified_radius/median", "certified_accuracy/0p05"} <= set(
        names["trainer"].callback_metrics
    )


def test_a_monitor_in_the_background_is_made_in_the_lines_shown():
    names = {"CertifiedRadiusMonitor": CertifiedRadiusMonitor}
    exec(block("background=True"), names)
    assert isinstance(names["monitor"]._certifier, BackgroundCertifier)


def test_a_monitor_of_a_box_is_made_in_the_lines_shown():
    names = {"CertifiedRadiusMonitor": CertifiedRadiusMonitor}
    exec(block("box = Box("), names)
    assert "shares of a box" in repr(names["monitor"])


def test_the_loss_is_used_in_the_lines_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = next(iter(loader()))
    names = {"self": Classifier(), "x": x, "y": y, "pl": pl, "monitor": CertifiedRadiusMonitor()}
    exec(block("CertifiedLoss(epsilon"), names)
    assert names["loss"].requires_grad
    assert isinstance(names["trainer"].callbacks[0], EpsilonSchedule)


@pytest.mark.parametrize("page", ["README.md", "docs/certificates.md"])
def test_a_trained_model_is_asked_in_the_lines_shown(page):
    x, y = next(iter(loader()))
    names = {"model": Classifier(), "x": x, "y": y}
    [lines] = [block for block in blocks(ROOT / page) if "proof = certify" in block]
    exec(lines, names)
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


@pytest.mark.slow
def test_a_recipe_is_run_in_the_lines_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block("load_net"), names)
    assert isinstance(names["net"], torch.nn.Module)
    certified, standard = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert 0 <= certified <= 1
    assert 0 <= standard <= 1


def test_an_activation_is_registered_from_outside_in_the_lines_shown(monkeypatch):
    monkeypatch.setitem(registry.OPERATIONS, "atan", None)  # taken out again afterwards
    exec(block('@operation("atan")'), {})

    class Turned(Classifier):
        def forward(self, x):
            return self.head(torch.atan(3 * self.rnn(x)[0][:, -1]))

    model, (x, _) = Turned().double().eval(), next(iter(loader()))
    x, ball = x.double(), LpBall(0.05)
    for method in ("ibp", "popqorn"):
        lower, upper = logit_bounds(model, x, ball, method=method)
        for _ in range(200):
            logits = model(x + 0.05 * (2 * torch.rand_like(x) - 1))
            assert ((lower <= logits) & (logits <= upper)).all()
        assert certify(model, x, model(x).argmax(1), LpBall(1e-6), method=method).certified.any()


RUN_HERE = (
    '@operation("atan")',
    "CertifiedRadiusMonitor(samples",
    "CertifiedLoss(epsilon",
    "proof = certify",
)
RUN_HERE += (
    "CertifiedEarlyStopping(",
    "ReduceLROnPlateau(",
    "certify_loader(",
    "draw_certifications(",
    "load_net(",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_python_is_run_by_a_test(page):
    if page.name not in ELSEWHERE:  # which other tests run
        assert all(any(text in block for text in RUN_HERE) for block in blocks(page))


@pytest.mark.parametrize("page", WHOLE)
def test_a_page_runs_as_it_stands(page, capsys):
    for lines in blocks(ROOT / "docs" / page):
        names = {}
        exec(lines, names)
        assert (names["radius"] if "radius" in names else names["radii"]).max() > 0
    if page == "plain_torch.md":
        assert len(capsys.readouterr().out.splitlines()) == names["epochs"]


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_the_recipes_named_are_those_that_come_with_the_package():
    section = (ROOT / "docs" / "training.md").read_text().split("\n## Recipes\n")[1]
    assert all(f"`{name}`" in section for name in configs())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere_and_no_placeholder_is_left(page):
    text = page.read_text()
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", text):
        target = page.parent / link if link else page
        if "://" not in link:
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), anchor
    assert not re.search(r"^[A-Z]{3,}$", text, re.MULTILINE)


def anchors(page):
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_page_is_linked_from_the_readme():
    named = re.findall(r"\]\((docs/[^)#]+)\)", README.read_text())
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= {Path(n).name for n in named}


def test_a_model_is_certified_by_the_command_shown(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "command_line.md").read_text()
    [line] = re.findall(r"^popqorn-train certify (.*)$", page, re.MULTILINE)
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
