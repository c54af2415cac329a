"""Experiments 2 and 3: which word of a question, or of a news title, does the decision hang on?

python -m popqorn_train.recipes.experiments.words trec --data FOLDER
python -m popqorn_train.recipes.experiments.words news --data FOLDER

An RNN, an LSTM and a GRU read the same frozen word vectors. Every word moves alone, untargeted, in
an l2 ball around its vector; the most fragile one is underlined. ``--checkpoint`` adds a network
that ``popqorn-train fit`` trained.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from popqorn_train import frame_radii
from popqorn_train.evaluation.progress import shown
from popqorn_train.recipes.console import prepare
from popqorn_train.recipes.data.news_titles import NewsTitles
from popqorn_train.recipes.data.text import TextData
from popqorn_train.recipes.data.trec import TREC
from popqorn_train.recipes.experiments.common import (
    Training,
    provenance,
    rounded,
    trained,
    write_numbers,
)
from popqorn_train.recipes.experiments.word_tables import draw, said, summary
from popqorn_train.recipes.networks import RecurrentNet, load_recurrent_net

Kind = Literal["trec", "news"]
GIVEN: dict[Kind, tuple[str, ...]] = {
    "trec": (
        "What is the name of Roy Roger 's dog ?",
        "What is the fourth highest mountain in the world ?",
        "How many dogs pull a sled in the Iditarod ?",
    ),
    "news": (
        "samsung to launch galaxy s sequel in south korea in late april",
        "3 journalists kidnapped in afghanistan are set free",
        "actress evan rachel wood dates both men and women",
    ),
}


@dataclass(frozen=True)
class Config:
    """Every number of the experiment.

    Attributes:
        kind: ``"trec"`` or ``"news"``.
        data: folder of the files.
        given: sentences that are drawn.
        cells: of the networks.
        samples: of the test set whose words are looked at, spread over the classes.
        epochs: of training.
        hidden: units.
        checkpoints: networks of recipes, looked at besides.
        vectors_file: where word vectors are kept.
        seed: of training.
        folder: of the results.
    """

    kind: Kind
    data: Path | None = None
    given: tuple[str, ...] = ()
    cells: tuple[str, ...] = ("rnn", "lstm", "gru")
    samples: int = 40
    epochs: int = 6
    hidden: int = 48
    checkpoints: tuple[Path, ...] = ()
    vectors_file: Path | None = None
    seed: int = 0
    folder: Path = Path("runs/experiments/words")


def opened(config: Config) -> TextData:
    """The data set, with its word vectors."""
    kept = config.vectors_file or config.folder / "vectors.pt"
    kind = TREC if config.kind == "trec" else NewsTitles
    data = kind(config.data, vectors_file=kept, seed=config.seed)
    data.setup("fit")
    return data


def networks(config: Config, data: TextData) -> dict[str, RecurrentNet]:
    """One network a cell, and those of the checkpoints, by name.

    Raises:
        ValueError: a checkpoint of another vocabulary.
    """
    found = {}
    for cell in config.cells:
        settings = {
            "features": data.features,
            "hidden": config.hidden,
            "classes": data.classes,
            "words": data.words,
            "cell": cell,
        }
        training = Training(config.epochs, seed=config.seed)
        found[cell] = trained(settings, data, training, config.folder / f"{cell}.ckpt")
    for path in config.checkpoints:
        net = load_recurrent_net(path)
        if net.settings["words"] != data.words:
            raise ValueError(
                f"`checkpoints` must know the {data.words} words of the data, {path} knows "
                f"{net.settings['words']}; train it with the same seed and settings."
            )
        found[str(path.parent.parent.name or path.stem)] = net
    return found


def word_radii(net: RecurrentNet, tokens: Tensor, label: int | None) -> tuple[int, Tensor]:
    """Prediction and the radius of every word; all 0 where the prediction is not the label.

    Args:
        net: the network.
        tokens: ``(T,)``.
        label: true class; None takes the prediction.
    """
    inputs = tokens[None], torch.tensor([len(tokens)])
    with torch.no_grad():
        prediction = int(net(*inputs).argmax())
    target = torch.tensor([prediction if label is None else label])
    return prediction, frame_radii(net, inputs, target, p=2, rtol=1e-2)[0]


def run(config: Config) -> dict[str, Any]:
    """Train, find the radius of every word, draw, and return the numbers that are written."""
    data = opened(config)
    nets = networks(config, data)
    given = [_given(text, data) for text in config.given or GIVEN[config.kind]]
    models, drawn = {}, {}
    for name, net in nets.items():
        started = time.process_time()
        drawn[name] = [_looked(net, data, words, label) for words, label in given]
        samples = [_looked(net, data, *_test(data, at)) for at in _watched(config, data, name)]
        models[name] = {
            **provenance(net, data.test_dataloader()),
            "seconds_of_radii": round(time.process_time() - started, 1),
            **summary(samples, data),
            "given": drawn[name],
            "samples": samples,
        }
    numbers = {
        "experiment": f"{config.kind}, untargeted radius of every word, l_2",
        "nearest_neighbour_distance": round(data.nearest_neighbour_distance(), 4),
        "models": models,
    }
    write_numbers(config.folder, f"{config.kind}.json", numbers)
    draw(config.folder, config.kind, data, models)
    print(said(numbers))
    return numbers


def _given(text: str, data: TextData) -> tuple[list[str], int | None]:
    """Words of a sentence, and its label where the test set has it."""
    words = text.split()
    tokens = data.vocabulary.tokens(words)
    for part in (data.test, data.train, data.validation):
        for at in range(len(part)):
            known, label = part[at]
            if known.equal(tokens):
                return words, int(label)
    return words, None


def _test(data: TextData, at: int) -> tuple[list[str], int]:
    tokens, label = data.test[at]
    return data.vocabulary.sentence(tokens), int(label)


def spread(labels: Sequence[int], count: int) -> list[int]:
    """So many positions, spread evenly over the samples in the order of their labels."""
    order = sorted(range(len(labels)), key=labels.__getitem__)
    count = min(count, len(order))
    return [order[(2 * at + 1) * len(order) // (2 * count)] for at in range(count)]


def _watched(config: Config, data: TextData, name: str) -> Iterator[int]:
    """Positions in the test set, all classes among them, with a progress bar."""
    labels = [int(data.test[at][1]) for at in range(len(data.test))]
    chosen = spread(labels, config.samples)
    bar = shown(f"words for {name}", len(chosen))
    for at in chosen:
        yield at
        bar.advance(1)
    bar.close()


def _looked(
    net: RecurrentNet, data: TextData, words: Sequence[str], label: int | None
) -> dict[str, Any]:
    """One sentence with all that is known of it."""
    tokens = data.vocabulary.tokens(words)
    prediction, radii = word_radii(net, tokens, label)
    return {
        "words": list(words),
        "label": None if label is None else data.names[label],
        "prediction": data.names[prediction],
        "radii": rounded(radii),
        "words_within": words_within(data, tokens, radii),
    }


def words_within(data: TextData, tokens: Tensor, radii: Tensor) -> int:
    """How many replacements of one word by another known one are proved not to matter."""
    assert data.vectors is not None
    distances = torch.cdist(data.vectors[tokens].double(), data.vectors.double())
    # One is the word itself; four entries are no words (padding and the unknown ones).
    return int(((distances <= radii.double()[:, None]) & (distances > 0))[:, 4:].sum())


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Radius of every word of a sentence.")
    parser.add_argument("kind", choices=("trec", "news"))
    parser.add_argument("--data", type=Path, help="folder of the files")
    parser.add_argument("--given", nargs="*", default=(), help="sentences, words between blanks")
    parser.add_argument("--cells", nargs="*", default=Config.cells)
    for name in ("samples", "epochs", "hidden", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Config, name))
    parser.add_argument("--checkpoints", nargs="*", type=Path, default=())
    parser.add_argument("--vectors-file", type=Path)
    parser.add_argument("--folder", type=Path, default=Config.folder)
    prepare()
    given = vars(parser.parse_args())
    several = {name: tuple(given[name]) for name in ("given", "cells", "checkpoints")}
    run(Config(**{**given, **several}))


if __name__ == "__main__":
    main()
