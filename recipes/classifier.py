"""Training of a recurrent classifier with a robust objective, as a LightningModule."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from popqorn_train.certificates.inputs import Inputs, as_tuple
from popqorn_train.recipes.networks import RecurrentNet
from popqorn_train.training.objective import Objective

Batch = tuple[Inputs, Tensor]


class RobustClassifier(pl.LightningModule):
    """Train a network by an objective, or by cross entropy where there is none.

    Args:
        net: returns logits.
        loss: objective, see ``popqorn_train.objectives``; None for cross entropy.
        learning_rate: of Adam, at the start.
        weight_decay: of Adam, on all weights that train.
    """

    def __init__(
        self,
        net: RecurrentNet,
        loss: Objective | None = None,
        learning_rate: float = 5e-3,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    def setup(self, stage: str) -> None:
        """Take the word vectors of the data, if there are any; a checkpoint brings its own."""
        vectors = getattr(getattr(self.trainer, "datamodule", None), "vectors", None)
        if vectors is not None:
            self.net.use_vectors(vectors)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits ``(B, C)``."""
        logits: Tensor = self.net(x, lengths)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; a certified loss logs its terms."""
        inputs, target = batch
        if self.loss is None:
            loss = nn.functional.cross_entropy(self(*as_tuple(inputs)), target)
        else:
            parts = self.loss.parts(self.net, inputs, target)
            loss = parts.total
            terms = {f"certified_training/{name}": value for name, value in parts._asdict().items()}
            self.log_dict(terms, on_step=False, on_epoch=True, batch_size=len(target))
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(target))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean accuracy."""
        self._log_accuracy("val_accuracy", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean accuracy."""
        self._log_accuracy("test_accuracy", batch)

    def _log_accuracy(self, name: str, batch: Batch) -> None:
        inputs, target = batch
        accuracy = (self(*as_tuple(inputs)).argmax(1) == target).float().mean()
        self.log(name, accuracy, prog_bar=True, batch_size=len(target))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what ``load_net`` needs to build the network."""
        checkpoint["net_settings"] = self.net.settings

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam; the rate falls to 0.3 and 0.09 of its start after 70 % and 88 % of training."""
        weights = [weight for weight in self.net.parameters() if weight.requires_grad]
        optimizer = torch.optim.Adam(weights, lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = float(self.trainer.estimated_stepping_batches)
        milestones = [int(0.7 * steps), int(0.88 * steps)]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
