"""Training by a configuration: the command line, what it refuses, and what it leaves behind."""

import csv
import json
import logging
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

from popqorn_train import certified_radius
from popqorn_train.callbacks import EpsilonSchedule
from popqorn_train.evaluation.folder import FolderLock
from popqorn_train.recipes.cli import TRAINING, main
from popqorn_train.recipes.configurations import configs
from popqorn_train.recipes.networks import load_net
from popqorn_train.recipes.training import ConfigurationError, RecipeCLI, run

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_epochs=2",
    "--data.samples=60",
    "--evaluation.attack_steps=2",
    "--evaluation.method=ibp",
)
ALONE = "--standard_epochs=0"


@pytest.fixture(autouse=True)
def as_before():
    """The command line keeps Lightning quiet; other tests listen to it."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    yield
    logger.setLevel(level)


def checkpoint(folder):
    return folder / "checkpoints" / "last.ckpt"


def fit(folder, *arguments):
    return main(["fit", "--config", "generated", *QUICK, f"--folder={folder}", *arguments])


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A run of the certified network alone."""
    folder = tmp_path_factory.mktemp("once") / "run"
    assert fit(folder, ALONE, "--model.loss.epsilon=0.03") == 0
    return folder


@pytest.fixture
def trained(once, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(once, tmp_path / "one"))


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_recipe_leaves_results_of_both_models(tmp_path, capsys):
    assert fit(tmp_path) == 0
    found = results(tmp_path)
    assert found["schema"] == 1
    assert found["seed"] == 0
    assert found["config"]["model"]["loss"]["init_args"]["epsilon"] == 0.2
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["models"]) == {"certified", "standard"}
    for model in found["models"].values():
        assert model["train_seconds"] > 0
        [entry] = model["evaluations"]
        assert entry["samples"] == entry["attacked_samples"] == 24
        assert entry["epsilons"] == [0.1, 0.15, 0.2]
        shares = zip(entry["certified_accuracy"], entry["pgd_accuracy"], strict=True)
        assert all(proved <= left <= entry["clean_accuracy"] for proved, left in shares)
    rows = list(csv.DictReader((tmp_path / "radii.csv").read_text().splitlines()))
    assert len(rows) == 48
    assert {(row["model"], row["method"]) for row in rows} == {
        ("certified", "ibp"),
        ("standard", "ibp"),
    }
    assert (tmp_path / "certified_accuracy.png").stat().st_size > 10_000
    assert (tmp_path / "table.txt").read_text().strip() in capsys.readouterr().out


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal_and_another_differs(tmp_path):
    def trained(name, *arguments):
        assert fit(tmp_path / name, ALONE, *arguments) == 0
        weights = torch.load(checkpoint(tmp_path / name), weights_only=True)["state_dict"]
        rows = (tmp_path / name / "radii.csv").read_text()
        return torch.cat([weight.flatten() for weight in weights.values()]), rows

    first, second = trained("one"), trained("two")
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]
    assert not torch.equal(first[0], trained("other", "--seed_everything=1")[0])


def test_the_saved_configuration_repeats_the_run(trained, tmp_path):
    saved = trained / "config.yaml"
    assert main(["fit", "--config", str(saved), f"--folder={tmp_path / 'two'}"]) == 0
    one, two = results(trained), results(tmp_path / "two")
    assert one["config"]["model"]["loss"]["init_args"]["epsilon"] == 0.03
    for part in ("model", "data", "evaluation", "seed_everything"):
        assert one["config"][part] == two["config"][part]
    one, two = (tmp_path / name / "radii.csv" for name in ("one", "two"))
    assert one.read_text() == two.read_text()


def test_a_run_is_resumed_where_it_stopped(trained):
    last = checkpoint(trained)
    first = torch.load(last, weights_only=True)
    assert fit(trained, ALONE, "--trainer.max_epochs=4", f"--ckpt_path={last}") == 0
    resumed = torch.load(last, weights_only=True)
    assert (first["epoch"], resumed["epoch"]) == (1, 3)
    assert resumed["global_step"] == 2 * first["global_step"]


def test_a_checkpoint_is_tested_validated_and_loaded(trained, capsys):
    arguments = ["--config", "generated", *QUICK[:2], "--data.samples=60", f"--folder={trained}"]
    arguments += [f"--ckpt_path={checkpoint(trained)}", "--evaluation.method=ibp"]
    assert main(["validate", *arguments]) == 0
    assert "certified_radius/median" in capsys.readouterr().out
    assert main(["test", *arguments]) == 0
    [fitted] = results(trained)["models"]["certified"]["evaluations"]
    [tested] = results(trained / "test")["models"]["tested"]["evaluations"]
    assert tested["certified_accuracy"] == fitted["certified_accuracy"]
    net = load_net(checkpoint(trained))
    x = torch.rand(4, 5, 3)
    assert certified_radius(net, x, net(x).argmax(1), method="ibp").min() > 0


@pytest.mark.parametrize("command", ["test", "validate"])
def test_untrained_weights_are_not_certified(tmp_path, capsys, command):
    assert main([command, "--config", "generated", f"--folder={tmp_path}"]) == 2
    assert f"--ckpt_path must name the checkpoint to {command}" in capsys.readouterr().err


def test_a_trial_of_one_batch_reports_nothing(tmp_path):
    assert fit(tmp_path, "--trainer.fast_dev_run=true") == 0
    assert not (tmp_path / "results.json").exists()


def test_callbacks_loggers_and_objectives_are_named_shortly(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # logs go into the folder of the run
    more = [
        "--trainer.callbacks+=CertifiedEarlyStopping",
        "--trainer.callbacks.patience=7",
        "--trainer.logger=WandbLogger",
        "--trainer.logger.offline=true",
        "--model.loss=popqorn_train.objectives.sabr",
        "--model.loss.epsilon=0.02",
        "--model.loss.ratio=0.4",
    ]
    assert fit(tmp_path, ALONE, *more) == 0
    import wandb

    wandb.finish()
    config = results(tmp_path)["config"]
    kinds = [entry["class_path"].rpartition(".")[2] for entry in config["trainer"]["callbacks"]]
    assert kinds == ["EpsilonSchedule", "CertifiedRadiusMonitor", "CertifiedEarlyStopping"]
    assert config["trainer"]["callbacks"][2]["init_args"]["patience"] == 7
    assert config["model"]["loss"]["init_args"]["ratio"] == 0.4
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_masks_are_lists_of_booleans(tmp_path):
    masks = [
        "--model.loss.frames=[true,true,true,true,false]",
        "--model.loss.features=[true,false,true]",
    ]
    arguments = ["fit", "--config", "generated", *QUICK, f"--folder={tmp_path}", *masks]
    recipe = RecipeCLI([*arguments, "--standard_epochs=1"])
    loss = results(tmp_path)["config"]["model"]["loss"]["init_args"]
    assert loss["frames"] == [True, True, True, True, False]
    assert loss["features"] == [True, False, True]
    metrics = [path.read_text() for path in (tmp_path / "logs").rglob("metrics.csv")]
    assert any("certified_training/bound" in text for text in metrics)
    standard = results(tmp_path / "standard")["config"]["evaluation"]
    assert (standard["frames"], standard["features"]) == (loss["frames"], loss["features"])
    found, data = recipe.evaluations["certified"][-1], recipe.datamodule.test_dataloader().dataset
    x, y = (torch.stack(column) for column in zip(*data, strict=True))
    ball = {"low": 0.0, "high": 1.0, "frames": loss["frames"], "features": loss["features"]}
    radii = certified_radius(recipe.model.net, x, y, method="ibp", **ball)
    torch.testing.assert_close(found.radii, radii.double(), rtol=2e-3, atol=0)


def test_the_sweep_gives_options_that_train(tmp_path, monkeypatch):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    sweep = yaml.safe_load((ROOT / "recipes" / "configs" / "sweep.yaml").read_text())
    picked = {
        name: {"value": chosen["values"][0] if "values" in chosen else chosen["max"]}
        for name, chosen in sweep["parameters"].items()
    }
    command = utils.create_sweep_command(sweep["command"])
    filled = utils.create_sweep_command_args({"args": picked})
    words = [word for part in command for word in (filled["args"] if part == "${args}" else [part])]
    name, *arguments = words[words.index("${program}") :]
    assert sweep["program"] == "popqorn-train"
    assert name == "${program}"
    small = ["--trainer.max_epochs=1", "--evaluation.samples=4", "--evaluation.method=ibp"]
    small += [*QUICK[:2], "--evaluation.attack_steps=1", "--trainer.callbacks.samples=2"]
    small += ["--trainer.callbacks.method=ibp"]
    assert main([*arguments, *small, f"--folder={tmp_path}"]) == 0
    import wandb

    wandb.finish()
    wandb.teardown()  # or the next run in this process would be disabled too
    config = results(tmp_path)["config"]
    assert config["model"]["loss"]["init_args"]["epsilon"] == picked["model.loss.epsilon"]["value"]
    assert config["seed_everything"] == picked["seed_everything"]["value"]


REFUSED = {
    "no file": (["--config=nowhere"], "--config must be a file or one of digits"),
    "a typo": (["--trainer.max_epochz=3"], "max_epochz"),
    "a typo in a loss": (["--model.loss.epsilonn=1"], "epsilonn"),
    "no number": (["--model.loss.epsilon=big"], "Got value: big"),
    "no cell": (["--model.net.cell=gruu"], "Got value: gruu"),
    "no callback": (["--trainer.callbacks+=Monitr"], "there is no class 'Monitr'. Known by name"),
    "a typo in a callback": (
        ["--trainer.callbacks+=CertifiedEarlyStoping"],
        "--trainer.callbacks: there is no class 'CertifiedEarlyStoping'. Did you mean "
        "CertifiedEarlyStopping?",
    ),
    "the beginning of an option": (["--trainer.max_epoch=3"], "--trainer.max_epoch=3"),
    "no checkpoint": (["--ckpt_path=none.ckpt"], "--ckpt_path must be a file, got 'none.ckpt'"),
    "no checkpoint after a space": (["--ckpt_path", "none.ckpt"], "must be a file"),
    "no data": (["--data=TREC", "--data.path=/nowhere"], "TREC was not found in '/nowhere': put"),
    "too little": (["--data.samples=2"], "`samples` must be at least 5, got 2."),
    "falling": (["--evaluation.epsilons=[0.2, 0.1]"], "`epsilons` must be positive and"),
    "eye": (["--model.net.cell=rnn", "--model.net.init=eye"], "'eye' is for gated cells"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_said_and_nothing_runs(tmp_path, capsys, arguments, message):
    assert fit(tmp_path / "runs", *arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("popqorn-train: ")
    assert message in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "runs").exists()


def test_results_of_another_run_are_not_overwritten(trained, capsys):
    before = results(trained)
    assert fit(trained, ALONE) == 2
    said = capsys.readouterr().err
    assert f"--folder {trained} holds the results of an earlier run" in said
    assert results(trained) == before
    lock = FolderLock(trained)
    assert fit(trained, ALONE, f"--ckpt_path={checkpoint(trained)}") == 2
    assert "is in use by another run" in capsys.readouterr().err
    lock.release()
    assert fit(trained, ALONE, f"--ckpt_path={checkpoint(trained)}") == 0


def test_python_raises_what_the_command_says():
    with pytest.raises(ConfigurationError, match="`samples` must be at least 5"):
        run("generated", ["--data.samples=2"])


def test_python_runs_a_recipe_with_options_of_its_own(tmp_path):
    epochs = {"certified": 1, "standard": 2}
    arguments = [*QUICK, f"--folder={tmp_path}", "--standard_epochs=2"]
    found = run("generated", arguments, max_epochs=1, callbacks=[EpsilonSchedule()])
    assert set(found) == set(epochs)
    for name, count in epochs.items():
        folder = tmp_path if name == "certified" else tmp_path / name
        assert torch.load(checkpoint(folder), weights_only=True)["epoch"] == count - 1


@pytest.mark.parametrize("name", configs())
def test_every_packaged_configuration_can_be_read(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", name, "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["net"]["class_path"].endswith(("RecurrentNet", "SpeechNet"))
    assert printed["folder"].endswith(name)


def test_help_documents_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for text in (
        "popqorn-train [options] fit",
        "--evaluation.samples",
        "of the same network trained by",
    ):
        assert text in said


def test_all_commands_are_listed_and_others_run_without_lightning():
    code = (
        "import sys; from popqorn_train.recipes.cli import main; main(['supported'])\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'pytorch_lightning', 'jsonargparse', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in (*TRAINING, "doctor", "supported", *configs()):
        assert command in done.stdout


def test_the_console_script_is_declared():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["popqorn-train"].partition(":")
    assert getattr(import_module(module), name) is main


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "popqorn_train.recipes.training", None)
    assert main(["fit"]) == 1
    assert 'pip install "popqorn-train[recipes]"' in capsys.readouterr().err


def test_configurations_are_shipped():
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "configs/*.yaml" in shipped["package-data"]["popqorn_train.recipes"]
