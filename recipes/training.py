"""Recipes as a LightningCLI: train by a configuration, certify and attack the test set, report.

Everything that a configuration may hold is an argument of ``RobustClassifier``, of a data module,
of a loss, of a callback or of Lightning's Trainer.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger

from popqorn_train.evaluation.folder import FolderLock
from popqorn_train.recipes.arguments import (
    ConfigurationError,
    Parser,
    own_words,
    with_packaged,
)
from popqorn_train.recipes.classifier import RobustClassifier
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.sequences import SequenceData
from popqorn_train.recipes.data.text import TextData
from popqorn_train.recipes.evaluation import Evaluation, EvaluationSettings
from popqorn_train.recipes.final_evaluation import evaluate, seconds_used
from popqorn_train.recipes.results import draw, model_results, table, write_results
from popqorn_train.recipes.together import processes, shared
from popqorn_train.recipes.twin import changes_of_twin, with_masks_of
from popqorn_train.recipes.word_evaluation import WordEvaluation, WordSettings, evaluate_words

Found = Sequence[Evaluation] | Sequence[WordEvaluation]

__all__ = ["ConfigurationError", "RecipeCLI", "run", "start"]


class RecipeCLI(LightningCLI):
    """Train, then certify and attack; a standard network of the same kind stands beside it.

    Args:
        arguments: of the command line, ``["fit", "--config", "digits"]``.
        trainer_options: of Lightning's Trainer, before those of the configuration.

    Attributes:
        folder: of the results.
        evaluations: what ``evaluate`` found for each model.
        models: what results.json says of each.
    """

    def __init__(self, arguments: Sequence[str], **trainer_options: Any) -> None:
        self._trainer_options = trainer_options
        self._started = 0.0
        self.evaluations: dict[str, Found] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self._lock: FolderLock | None = None
        try:
            super().__init__(
                RobustClassifier,
                SequenceData,
                subclass_mode_data=True,
                save_config_callback=None,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_class=Parser,
                parser_kwargs={"prog": "popqorn-train"},
                args=with_packaged(arguments),
            )
        finally:
            if self._lock is not None:
                self._lock.release()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Methods of the trainer, with the arguments that are not asked for."""
        skipped = {"model", "dataloaders", "datamodule", "train_dataloaders", "val_dataloaders"}
        return {name: skipped | {"verbose", "weights_only"} for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is neither the trainer's, nor the model's, nor the data's."""
        parser.add_argument("--folder", type=Path, default=Path("runs/recipe"), help="of results")
        parser.add_argument(
            "--standard_epochs",
            type=int | None,
            default=None,
            help="of the same network trained by cross entropy, to compare; null: as many as the "
            "certified one, 0: leave it out",
        )
        parser.add_class_arguments(EvaluationSettings, "evaluation")
        parser.add_class_arguments(WordSettings, "words")
        parser.link_arguments("folder", "trainer.default_root_dir", compute_fn=str)
        for size in ("features", "classes", "words"):
            target = f"model.net.init_args.{size}"
            parser.link_arguments(f"data.{size}", target, apply_on="instantiate")
        parser.set_defaults(
            {"model.net": {"class_path": "popqorn_train.recipes.networks.RecurrentNet"}}
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the arguments given, whatever the command line of this process is."""
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Make data, model and trainer.

        Raises:
            ConfigurationError: one of them refuses its arguments.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise ConfigurationError(own_words(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """With a logger and a checkpoint in the folder, unless the configuration has others."""
        trainer: dict[str, Any] = {**self._get(self.config_init, "trainer"), **kwargs}
        trainer |= self._trainer_options
        folder = self.folder
        if trainer["logger"] is None:
            trainer["logger"] = CSVLogger(folder, name="logs")
        given = trainer["callbacks"] or []
        given = list(given) if isinstance(given, list) else [given]
        if trainer["enable_checkpointing"] is not False and not any(
            isinstance(callback, ModelCheckpoint) for callback in given
        ):
            given.append(_last_checkpoint(folder))
        return pl.Trainer(**{**trainer, "callbacks": given})

    @property
    def folder(self) -> Path:
        """Of the results."""
        return Path(self._get(self.config, "folder"))

    @property
    def settings(self) -> EvaluationSettings:
        """How the network is certified and attacked: where the loss lets move, if it says so."""
        found: EvaluationSettings = self._get(self.config_init, "evaluation")
        return with_masks_of(self.model.loss, found)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.trainer.strategy.root_device
        return device

    def before_instantiate_classes(self) -> None:
        """Let loggers write into the folder of the run, unless they are told where."""
        loggers = self._get(self.config, "trainer.logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            arguments = getattr(logger, "init_args", None)
            if arguments is not None and arguments.get("save_dir", "") in (".", None):
                arguments["save_dir"] = str(self.folder)

    def _check_unused(self) -> None:
        """Refuse to write over the results of another run.

        Raises:
            ConfigurationError: there are some, and no checkpoint to go on from.
        """
        results, last = self.folder / "results.json", self.folder / "checkpoints" / "last.ckpt"
        if results.exists() and self._get(self.config, "ckpt_path") is None:
            raise ConfigurationError(
                f"--folder {self.folder} holds the results of an earlier run. Name another folder, "
                f"continue with --ckpt_path={last}, or remove it."
            )
        try:
            self._lock = FolderLock(self.folder)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    def before_fit(self) -> None:
        """Save the configuration beside the results and in the logger, then start the clock."""
        if self.trainer.is_global_zero:
            self._check_unused()
        config = self._save_config(self.folder)
        for logger in self.trainer.loggers:
            logger.log_hyperparams(config)
        self._started = seconds_used(self._device)

    def after_fit(self) -> None:
        """Certify and attack, train what it is compared with, and report."""
        seconds = seconds_used(self._device) - self._started
        trial = bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        if trial or self.trainer.interrupted or (self._left and not self.trainer.is_global_zero):
            return
        name = "standard" if self.model.loss is None else "certified"
        self._evaluate(name, sum(shared(lambda _: seconds, processes())))
        self._report(self.folder)
        if name == "certified" and not self._left:
            self._compare()

    @property
    def _left(self) -> bool:
        """Whether the other processes of the training have ended with it, as forked ones do."""
        return self.trainer.world_size != processes()

    def before_validate(self) -> None:
        """Refuse to watch weights that were never trained."""
        self._check_checkpoint()

    def before_test(self) -> None:
        """Refuse to certify weights that were never trained."""
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        if self._get(self.config, "ckpt_path") is None:
            raise ConfigurationError(
                f"--ckpt_path must name the checkpoint to {self.subcommand}, for example "
                f"{self.folder / 'checkpoints' / 'last.ckpt'}."
            )

    def after_test(self) -> None:
        """Certify and attack; the results lie in the folder ``test``."""
        if self._left and not self.trainer.is_global_zero:
            return
        folder = self.folder / "test"
        self._save_config(folder)
        self._evaluate("tested", None)
        self._report(folder)

    def _save_config(self, folder: Path) -> dict[str, Any]:
        """Write config.yaml; the same as plain values is returned."""
        parser, config = self._parser(self.subcommand), self.config[self.subcommand]
        text = parser.dump(config, skip_none=False)
        if self.trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(text)
        plain: dict[str, Any] = yaml.safe_load(text)
        return plain

    def _evaluate(self, name: str, train_seconds: float | None) -> None:
        net = self.model.net.to(self._device)
        test = self.datamodule.test_dataloader()
        synonyms = self.datamodule.synonyms
        found: Found
        if synonyms is None:
            found = evaluate(net, test, self.settings, processes=processes())
        else:
            found = evaluate_words(net, test, synonyms, self._get(self.config_init, "words"))
        self.evaluations[name] = found
        self.models[name] = model_results(found, train_seconds, self._nearest_neighbour)

    @property
    def _nearest_neighbour(self) -> float | None:
        data = self.datamodule
        return data.nearest_neighbour_distance() if isinstance(data, TextData) else None

    def _compare(self) -> None:
        """Train the same network by cross entropy, by the same configuration."""
        epochs = self._get(self.config_init, "standard_epochs")
        if epochs == 0:
            return
        changes = changes_of_twin(self.folder, self.settings, epochs)
        own = {"callbacks", "logger"} | ({"max_epochs"} if epochs is not None else set())
        options = {name: value for name, value in self._trainer_options.items() if name not in own}
        saved = str(self.folder / "config.yaml")
        if self.trainer.is_global_zero:  # of a resumed run
            (self.folder / "standard" / "results.json").unlink(missing_ok=True)
        other = RecipeCLI(["fit", "--config", saved, *changes], **options)
        self.evaluations |= other.evaluations
        self.models |= other.models
        self._report(self.folder)

    def _report(self, folder: Path) -> None:
        """Write everything that is known of the models, once."""
        if not self.trainer.is_global_zero:
            return
        (folder / "radii.csv").unlink(missing_ok=True)
        for name, found in self.evaluations.items():
            for evaluation in found:
                evaluation.write_csv(folder / "radii.csv", name)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        write_results(
            folder,
            self.models,
            name=self.folder.name,
            seed=config["seed_everything"],
            config=config,
            nearest_neighbour=self._nearest_neighbour,
        )
        strongest = {name: found[-1] for name, found in self.evaluations.items()}
        draw(folder, strongest, self.settings)
        (folder / "table.txt").write_text(table(self.models) + "\n")
        print(
            f"\n{table(self.models)}\n\nwritten to {folder}: results.json, table.txt, radii.csv, "
            "certified_accuracy.png, config.yaml"
        )


def _last_checkpoint(folder: Path) -> ModelCheckpoint:
    """The newest weights as ``checkpoints/last.ckpt``, after every epoch."""
    return ModelCheckpoint(
        folder / "checkpoints",
        filename="last",
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )


def run(
    config: str | Path, arguments: Sequence[str] = (), **trainer_options: Any
) -> dict[str, Found]:
    """Run a recipe: train, certify, attack, and write the results.

    Args:
        config: name of a packaged configuration, or a file.
        arguments: changes, as on the command line: ``["--model.net.hidden=64"]``.
        trainer_options: of Lightning's Trainer, before those of the configuration.

    Returns:
        The evaluations of each model, the strongest method last.

    Raises:
        ConfigurationError: of the configuration nothing can be made.
    """
    return RecipeCLI(["fit", "--config", str(config), *arguments], **trainer_options).evaluations


def start(arguments: Sequence[str]) -> int:
    """Run ``fit``, ``validate`` or ``test`` from the command line; the exit status is returned."""
    prepare()
    try:
        RecipeCLI(arguments)
    except ConfigurationError as error:
        print(f"popqorn-train: {error}", file=sys.stderr)
        return 2
    return 0
