"""What a monitor looks at: one of the trainer's loaders, and the module that gives the logits."""

from typing import Any

from torch import nn

from popqorn_train.callbacks.lightning_packages import LightningModule, Trainer


def watched_loader(trainer: Trainer, at: int, *, testing: bool) -> Any:
    """One of the loaders.

    Args:
        trainer: that reads them.
        at: which one.
        testing: among those of ``test``, not of validation.

    Raises:
        ValueError: there are fewer.
    """
    loaders = trainer.test_dataloaders if testing else trainer.val_dataloaders
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if not isinstance(loaders, list | tuple):
        loaders = [loaders]
    if at >= len(loaders):
        raise ValueError(f"`dataloader` must be less than {len(loaders)}, got {at}.")
    return loaders[at]


def watched_module(root: LightningModule, name: str | None) -> nn.Module:
    """The module that gives the logits.

    Args:
        root: that is trained.
        name: of its sub-module; None takes itself.

    Raises:
        ValueError: there is no such sub-module.
    """
    if name is None:
        return root
    try:
        return root.get_submodule(name)
    except AttributeError as error:
        known = ", ".join(child for child, _ in root.named_children())
        raise ValueError(
            f"`model` must name a sub-module of {type(root).__name__} ({known}), got {name!r}."
        ) from error
