"""Training of a recurrent classifier with a robust objective, as a LightningModule."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from popqorn_train.certificates.inputs import Inputs, as_tuple
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.recipes.data.synonyms import Coupling
from popqorn_train.recipes.networks import RecurrentNet, SpeechNet
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.objective import Objective

Batch = tuple[Inputs, Tensor]


class RobustClassifier(pl.LightningModule):
    """Train a network by an objective, or by cross entropy where there is none.

    Args:
        net: returns logits.
        loss: objective, see ``popqorn_train.objectives``; None for cross entropy.
        learning_rate: of Adam, at the start.
        weight_decay: of Adam, on all weights that train.
        vector_dropout: share of the dimensions of all words' vectors that a batch does not see,
            where the data link words; bounds see the same.
    """

    def __init__(
        self,
        net: RecurrentNet | SpeechNet,
        loss: Objective | None = None,
        learning_rate: float = 5e-3,
        *,
        weight_decay: float = 0.0,
        vector_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= vector_dropout < 1:
            raise ValueError(f"`vector_dropout` must lie in [0, 1), got {vector_dropout}.")
        self.net, self.loss = net, loss
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.coupling: Coupling | None = None
        self._vector_dropout, self._kept = vector_dropout, torch.ones(())

    def setup(self, stage: str) -> None:
        """Take what the data know: vectors and links of words, or the scale of features.

        A checkpoint brings its own vectors.
        """
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(self.net, SpeechNet):
            if data is not None:
                self.net.front.standardise(data.train.sequences)
            return
        vectors, links = getattr(data, "vectors", None), getattr(data, "links", None)
        kept = self.net.settings["train_words"] and stage != "fit"
        if vectors is not None and not kept:
            self.net.use_vectors(vectors)
        if links is not None and vectors is not None and self.coupling is None:
            self.coupling = Coupling(links, vectors)
            self._couple()
        for loss in () if self.loss is None else self.loss.modules():
            if isinstance(loss, CertifiedLoss) and loss.words is not None:
                loss.words = _named(loss.words, getattr(data, "synonyms", None))

    @property
    def _word_vectors(self) -> Tensor:
        return self.net.get_parameter("embedding.weight")

    def _couple(self, dropout: float = 0.0) -> None:
        if self.coupling is not None:
            vectors = self._word_vectors
            kept = torch.rand(vectors.shape[1], device=vectors.device) >= dropout
            self._kept = kept / (1 - dropout)
            self.coupling.write(vectors, self._kept)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Vectors of words are read through their links, also those of a checkpoint."""
        self._couple(self._vector_dropout)

    def on_after_backward(self) -> None:
        """Hand the gradient of vectors of words on to what they are read from."""
        if self.coupling is not None:
            self.coupling.take_gradient(self._word_vectors, self._kept)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Read the vectors anew, so that a checkpoint holds what was trained."""
        self._couple()

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
        if self.coupling is not None:
            weights = [weight for weight in weights if weight is not self._word_vectors]
            weights.append(self.coupling.vectors)
        optimizer = torch.optim.Adam(weights, lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = float(self.trainer.estimated_stepping_batches)
        milestones = [int(0.7 * steps), int(0.88 * steps)]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _named(words: Substitutions, synonyms: Mapping[int, Sequence[int]] | None) -> Substitutions:
    """The words that a loss replaces: those that the data name, unless it names some itself."""
    if not isinstance(words.candidates, Mapping) or words.candidates:
        return words
    if synonyms is None:
        raise ValueError("`words` of the loss must have candidates: the data have no synonyms.")
    return replace(words, candidates=synonyms)
