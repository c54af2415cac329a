"""A recurrent classifier with a robust objective, as a LightningModule."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from popqorn_train import CertifiedLoss

Batch = tuple[Tensor, Tensor]


class RecurrentNet(nn.Module):
    """A GRU over the frames and a linear read-out of its last state.

    Args:
        features: of a frame.
        hidden: units.
        classes: outputs.
    """

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, C)`` of sequences ``(B, T, N)``."""
        states, _ = self.gru(x)
        logits: Tensor = self.head(states[:, -1])
        return logits


class RobustClassifier(pl.LightningModule):
    """Train a network by a certified loss, or by cross entropy where there is none.

    Args:
        net: returns logits.
        loss: certified loss; None for standard training.
        learning_rate: of Adam, at the start.
    """

    def __init__(self, net: nn.Module, loss: CertifiedLoss | None, learning_rate: float) -> None:
        super().__init__()
        self.net, self.loss, self.learning_rate = net, loss, learning_rate

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, C)``."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; a certified loss logs its terms."""
        x, target = batch
        if self.loss is None:
            loss = nn.functional.cross_entropy(self(x), target)
        else:
            parts = self.loss.parts(self.net, x, target)
            loss = parts.total
            terms = {f"certified_training/{name}": value for name, value in parts._asdict().items()}
            self.log_dict(terms, on_step=False, on_epoch=True)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean accuracy."""
        x, target = batch
        accuracy = (self(x).argmax(1) == target).float().mean()
        self.log("val_accuracy", accuracy, prog_bar=True, batch_size=len(target))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam; the rate falls to 0.3 and 0.09 of its start after 70 % and 88 % of training."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.learning_rate)
        steps = float(self.trainer.estimated_stepping_batches)
        milestones = [int(0.7 * steps), int(0.88 * steps)]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
