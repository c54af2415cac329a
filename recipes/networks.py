"""One recurrent layer and a linear read-out of its states: the network of every recipe.

B: batch, T: frames, N: features of a frame, D: size of an embedding, C: classes.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from popqorn_train.evaluation.stored import check_unpacked
from popqorn_train.recipes.log_mel import LogMel
from popqorn_train.training.initialisation import Kind, certifiable_init_

Cell = Literal["rnn", "relu-rnn", "lstm", "gru"]
Init = Literal["default"] | Kind
Pool = Literal["last", "mean"]


class RecurrentNet(nn.Module):
    """Frames, or words through a frozen embedding, through one recurrent layer, to logits.

    Args:
        features: of a frame; with ``words`` the size of an embedding.
        hidden: units of the recurrent layer.
        classes: outputs.
        cell: kind of the recurrent layer.
        frame_units: of a linear layer with tanh before it; None leaves it out.
        words: of the vocabulary, where frames are tokens; None where they are vectors.
        init: of the recurrent layer: that of ``torch.nn``, or a kind of ``certifiable_init_``.
        pool: what is read of the states, the last one or their mean.
        bidirectional: whether the recurrent layer runs both ways; for a mean.
        train_words: whether the embedding is trained.

    Raises:
        ValueError: as ``certifiable_init_``, or the last state of a layer that runs both ways.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        classes: int,
        *,
        cell: Cell = "gru",
        frame_units: int | None = None,
        words: int | None = None,
        init: Init = "default",
        pool: Pool = "last",
        bidirectional: bool = False,
        train_words: bool = False,
    ) -> None:
        super().__init__()
        if bidirectional and pool == "last":
            raise ValueError("`pool` must be 'mean' for a layer that runs both ways, got 'last'.")
        self.settings = {
            "features": features,
            "hidden": hidden,
            "classes": classes,
            "cell": cell,
            "frame_units": frame_units,
            "words": words,
            "init": init,
            "pool": pool,
            "bidirectional": bidirectional,
            "train_words": train_words,
        }
        self._mean = pool == "mean"
        self.embedding = None if words is None else nn.Embedding(words, features)
        if self.embedding is not None:
            self.embedding.requires_grad_(train_words)
        self.frame = nn.Identity() if frame_units is None else _frame_layer(features, frame_units)
        self.recurrent = _recurrent(cell, frame_units or features, hidden, bidirectional)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), classes)
        if init != "default":
            certifiable_init_(self.recurrent, init)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits ``(B, C)``.

        Args:
            x: ``(B, T, N)``, or ``(B, T)`` tokens where there is an embedding.
            lengths: ``(B,)`` valid frames of each sample; the state is read after the last one.
        """
        frames = self.frame(x if self.embedding is None else self.embedding(x))
        if lengths is None:
            states, _ = self.recurrent(frames)
            return self._logits(states.mean(1) if self._mean else states[:, -1])
        packed = pack_padded_sequence(frames, lengths.cpu(), True, enforce_sorted=False)
        states, state = self.recurrent(packed)
        if self._mean:
            return self._logits(_mean(states, lengths))
        return self._logits((state[0] if isinstance(self.recurrent, nn.LSTM) else state)[-1])

    def _logits(self, state: Tensor) -> Tensor:
        logits: Tensor = self.head(state)
        return logits

    def use_vectors(self, vectors: Tensor) -> None:
        """Take the word vectors ``(words, D)`` of a data module.

        Raises:
            ValueError: there is no embedding of that shape.
        """
        weight = None if self.embedding is None else self.embedding.weight
        if weight is None or weight.shape != vectors.shape:
            found = "no embedding" if weight is None else f"one of {tuple(weight.shape)}"
            raise ValueError(
                f"`vectors` of shape {tuple(vectors.shape)} need an embedding of that shape, got "
                f"{found}; set words and features of the network."
            )
        with torch.no_grad():
            weight.copy_(vectors)


def _mean(states: PackedSequence, lengths: Tensor) -> Tensor:
    """Mean of the states of every sample, over its own frames."""
    padded, _ = pad_packed_sequence(states, True)
    mean: Tensor = padded.sum(1) / lengths[:, None]
    return mean


class SpeechNet(nn.Module):
    """Raw waves through a ``LogMel``, and its features through a ``RecurrentNet``.

    Args:
        features: of a sample of the wave, 1.
        hidden: see ``RecurrentNet``; so are those up to ``init``, but for ``words``.
        classes: outputs.
        filters: of the front end.
        floor: likewise.
        cell: kind of the recurrent layer.
        frame_units: of a layer before it.
        words: None.
        init: of the recurrent layer.
        pool: see ``RecurrentNet``.
        bidirectional: likewise.

    Attributes:
        front: the front end; it is scaled by the waves that are trained on.
        reader: of the features.

    Raises:
        ValueError: inputs that are no waves, or as ``RecurrentNet`` and ``LogMel``.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        classes: int,
        *,
        filters: int = 10,
        floor: float = -30.0,
        cell: Cell = "gru",
        frame_units: int | None = None,
        words: int | None = None,
        init: Init = "default",
        pool: Pool = "last",
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if features != 1 or words is not None:
            raise ValueError(
                "`features` and `words` must be 1 and None, those of waves, got "
                f"{features} and {words}."
            )
        self.front = LogMel(filters, floor=floor)
        self.reader = RecurrentNet(
            filters,
            hidden,
            classes,
            cell=cell,
            frame_units=frame_units,
            init=init,
            pool=pool,
            bidirectional=bidirectional,
        )
        own = {"features": 1, "filters": filters, "floor": floor}
        self.settings = {**self.reader.settings, **own}
        del self.settings["train_words"]

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits ``(B, C)`` of waves ``(B, L)``, each read up to its length."""
        frames = None if lengths is None else self.front.frames(lengths)
        logits: Tensor = self.reader(self.front(wave), frames)
        return logits


def _frame_layer(features: int, units: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, units), nn.Tanh())


def _recurrent(
    cell: Cell, features: int, hidden: int, bidirectional: bool
) -> nn.RNN | nn.LSTM | nn.GRU:
    both = {"batch_first": True, "bidirectional": bidirectional}
    if cell == "gru":
        return nn.GRU(features, hidden, **both)
    if cell == "lstm":
        return nn.LSTM(features, hidden, **both)
    nonlinearity = "relu" if cell == "relu-rnn" else "tanh"
    return nn.RNN(features, hidden, nonlinearity=nonlinearity, **both)


def made(settings: dict[str, Any]) -> RecurrentNet | SpeechNet:
    """A fresh network of the settings of another one."""
    return SpeechNet(**settings) if "filters" in settings else RecurrentNet(**settings)


def load_recurrent_net(path: str | Path) -> RecurrentNet:
    """As ``load_net``, where a network of waves is refused with a ``ValueError`` too."""
    net = load_net(path)
    if not isinstance(net, RecurrentNet):
        raise ValueError(f"`path` must hold a RecurrentNet, got {str(path)!r}, a SpeechNet.")
    return net


def load_net(path: str | Path) -> RecurrentNet | SpeechNet:
    """The network in a checkpoint of a recipe, in eval mode.

    Args:
        path: a ``.ckpt`` that a ``RobustClassifier`` wrote.

    Raises:
        ValueError: another kind of checkpoint.
    """
    refused = f"`path` must be the checkpoint of a recipe, got {str(path)!r}"
    check_unpacked(Path(path), packed=False)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        net = made(checkpoint["net_settings"])
        weights = checkpoint["state_dict"].items()
        net.load_state_dict(
            {name.removeprefix("net."): value for name, value in weights if name.startswith("net.")}
        )
    except OSError:
        raise
    except KeyError as error:
        raise ValueError(f"{refused}, which lacks {error}.") from error
    except Exception as error:  # a file that is damaged fails in many ways
        raise ValueError(f"{refused}, which cannot be read as one.") from error
    return net.eval()
