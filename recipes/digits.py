"""Standard against certified training of a GRU on digits, on one core in about two minutes.

python -m popqorn_train.recipes.digits [--quick] [--wandb offline]

8 rows of 8 pixels in [0, 1]; every pixel may move by epsilon (l_inf), within [0, 1]. Certified
training is MTL-IBP (De Palma et al., ICLR 2024): half interval bounds, half an attack.
"""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from popqorn_train import CertifiedLoss
from popqorn_train.callbacks import CertifiedRadiusMonitor, EpsilonSchedule
from popqorn_train.evaluation.confidence import widest
from popqorn_train.plots import draw_accuracy_curves, draw_certifications
from popqorn_train.recipes.classifier import RobustClassifier
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.digits import Digits
from popqorn_train.recipes.evaluation import Evaluation, EvaluationSettings
from popqorn_train.recipes.final_evaluation import evaluate, seconds_used
from popqorn_train.recipes.networks import RecurrentNet

Wandb = Literal["offline", "online"] | None
EPSILONS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1)  # where the attack is run
MODELS = ("standard", "certified")
_TITLES = ("clean", "PGD .02", "PGD .05", "cert .02", "cert .05")
_SHARES = "".join(f"{title:>9}" for title in _TITLES)
HEAD = f"{'training':<10}{_SHARES}{'median radius':>15}{'seconds':>9}"  # of the table


@dataclass(frozen=True)
class Config:
    """Every number of the run.

    Attributes:
        epochs: of either model.
        hidden: units of the GRU.
        epsilon: ball that the certified model is trained for.
        alpha: weight of the bound against the attack.
        kappa: weight of the clean term after the ramp.
        learning_rate: of Adam.
        every_n_epochs: how often radii are certified while training.
        watched_by: bounding method of these radii; the final ones are of popqorn.
        attack_steps: of the final attack.
        test_images: how many are certified and attacked in the end, at most 450.
        rtol: relative precision of their radii, which are rounded down.
        seed: of split, weights and order.
        folder: where results go.
        wandb: also log to wandb; None logs to CSV files.
    """

    epochs: int = 80
    hidden: int = 32
    epsilon: float = 0.055
    alpha: float = 0.5
    kappa: float = 0.0
    learning_rate: float = 1e-2
    every_n_epochs: int = 20
    watched_by: str = "crown-ibp"
    attack_steps: int = 40
    test_images: int = 100
    rtol: float = 1e-2
    seed: int = 0
    folder: Path = Path("runs/digits")
    wandb: Wandb = None


def _loggers(config: Config, name: str) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(config.folder, name=name, version="")]
    if config.wandb is not None:
        offline = config.wandb == "offline"
        run = f"digits-{name}"
        wandb = WandbLogger(
            project="popqorn-train", name=run, save_dir=config.folder, offline=offline
        )
        wandb.log_hyperparams({**_plain(config), "model": name})
        loggers.append(wandb)
    return loggers


def _plain(config: Config) -> dict[str, Any]:
    return {**asdict(config), "folder": str(config.folder)}


def _objective(name: str, config: Config) -> tuple[CertifiedLoss | None, list[pl.Callback]]:
    """Loss and callbacks of one of ``MODELS``."""
    monitor = CertifiedRadiusMonitor(
        samples=32,
        method=config.watched_by,
        low=0.0,
        high=1.0,
        every_n_epochs=config.every_n_epochs,
        max_overhead=None,
        epsilons=(0.02, 0.05),
        attack=True,
        folder=config.folder / name,
    )
    if name == "standard":
        return None, [monitor]
    loss = CertifiedLoss(config.epsilon, low=0.0, high=1.0, kappa=config.kappa, alpha=config.alpha)
    return loss, [monitor, EpsilonSchedule(warmup=0.1, ramp=0.5)]


def train(name: str, config: Config, data: Digits, **trainer_options: Any) -> RecurrentNet:
    """Train one of ``MODELS``, watching its certified radius."""
    pl.seed_everything(config.seed, verbose=False)
    net = RecurrentNet(8, config.hidden, 10)
    loss, callbacks = _objective(name, config)
    trainer = pl.Trainer(
        max_epochs=config.epochs,
        callbacks=callbacks,
        logger=_loggers(config, name),
        gradient_clip_val=1.0,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=10,
        **trainer_options,
    )
    trainer.fit(RobustClassifier(net, loss, config.learning_rate), datamodule=data)
    trainer.save_checkpoint(config.folder / f"{name}.ckpt")
    if config.wandb is not None:
        import wandb

        wandb.finish()
    return net


def _row(name: str, result: Evaluation, seconds: float) -> str:
    shares = [
        result.accuracy(),
        result.attacked(0.02),
        result.attacked(0.05),
        result.certified(0.02),
        result.certified(0.05),
    ]
    cells = "".join(f"{100 * share:9.1f}" for share in shares)
    return f"{name:<10}{cells}{result.median():15.4f}{seconds:9.0f}"


def run(config: Config, **trainer_options: Any) -> dict[str, Evaluation]:
    """Train, certify and attack both models; write table, picture, radii and settings."""
    config.folder.mkdir(parents=True, exist_ok=True)
    (config.folder / "radii.csv").unlink(missing_ok=True)
    for name in MODELS:
        shutil.rmtree(config.folder / name, ignore_errors=True)  # logs of an earlier run
    (config.folder / "config.json").write_text(json.dumps(_plain(config), indent=2) + "\n")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, results, rows = Digits(seed=config.seed), {}, []
    settings = EvaluationSettings(
        EPSILONS,
        low=0.0,
        high=1.0,
        attack_steps=config.attack_steps,
        samples=config.test_images,
        rtol=config.rtol,
    )
    for name in MODELS:
        started = seconds_used(device)
        print(f"\n{name} training, epochs: {config.epochs}", flush=True)
        net = train(name, config, data, **trainer_options).to(device)
        results[name] = evaluate(net, data.test_dataloader(), settings)[-1]
        results[name].write_csv(config.folder / "radii.csv", name)
        rows.append(_row(name, results[name], seconds_used(device) - started))
    _report(config, results, rows)
    return results


def _report(config: Config, results: dict[str, Evaluation], rows: list[str]) -> None:
    count = len(results[MODELS[0]].labels)
    lines = [
        f"{count} test images, pixels in [0, 1], l_inf; accuracy in %,",
        "certified by the method popqorn",
        widest([one.certified(e) for one in results.values() for e in (0.02, 0.05)], count),
        HEAD,
        *rows,
    ]
    print("\n" + "\n".join(lines))
    (config.folder / "table.txt").write_text("\n".join(lines) + "\n")
    figure, _ = draw_accuracy_curves(
        [result.curve(f"{name} training") for name, result in results.items()],
        xlabel="perturbation of every pixel, epsilon (l_inf, pixels in [0, 1])",
        title="GRU on handwritten digits: what is proved, and what an attack leaves standing",
    )
    figure.savefig(config.folder / "certified_accuracy.png", dpi=120)
    figure, _ = draw_certifications(
        config.folder / "certified" / "certification.jsonl",
        xlabel="perturbation of every pixel, epsilon (l_inf, pixels in [0, 1])",
        title=f"Certified training of a GRU: what {config.watched_by} proves after each epoch",
    )
    figure.savefig(config.folder / "certified_curves.png", dpi=120)
    names = "certified_accuracy.png, certified_curves.png, table.txt, radii.csv, config.json"
    print(f"\nwritten to {config.folder}: {names}, *.ckpt, */certification.jsonl")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description="Standard against certified training of a GRU on handwritten digits."
    )
    parser.add_argument(
        "--quick", action="store_true", help="5 epochs, 50 test images, a short attack"
    )
    parser.add_argument("--epochs", type=int, default=Config.epochs)
    parser.add_argument("--seed", type=int, default=Config.seed)
    parser.add_argument("--folder", type=Path, default=Config.folder, help="where results go")
    parser.add_argument("--wandb", choices=["offline", "online"], help="log to wandb too")
    given = parser.parse_args()
    prepare()
    config = Config(epochs=given.epochs, seed=given.seed, folder=given.folder, wandb=given.wandb)
    if given.quick:
        config = replace(config, epochs=5, every_n_epochs=1, attack_steps=10, test_images=50)
        print("quick: far from converged, these are not the numbers of the README")
    run(config)


if __name__ == "__main__":
    main()
