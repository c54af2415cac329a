"""Networks that the recipes have trained, each with a card and ten samples.

``load("digits")`` gives the network, ``card("digits")`` says what it was trained on and what is
proved of it, ``samples("digits")`` are the first ten samples of its test set. From a shell,
``popqorn-train certify zoo:digits`` certifies these ten, and
``python -m popqorn_train.recipes.zoo`` lists all networks. zoo_keep.py adds one.
"""

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popqorn_train.certificates.inputs import Inputs
from popqorn_train.evaluation.provenance import fingerprint
from popqorn_train.evaluation.stored import check_unpacked
from popqorn_train.evaluation.summaries import aligned
from popqorn_train.recipes.networks import RecurrentNet, SpeechNet, made

FOLDER = Path(__file__).parent / "trained"
PREFIX = "zoo:"


@dataclass(frozen=True)
class Card:
    """What is known of a network.

    Attributes:
        name: of the network, and of the recipe that trained it.
        data: the data set, in words.
        recipe: the command that trained it.
        trained_epsilon: epsilon of the training.
        p: norm of the ball around every frame.
        low: least value of an input; None where there is none.
        high: greatest value of an input.
        epsilons: where certified accuracy was counted.
        clean: accuracy on the test set.
        certified: certified accuracy at each of ``epsilons``.
        method: that certified the test set.
        samples: size of the test set.
        radii: certified radii of the ten samples.
        radii_method: that certified these.
        seed: of the training.
        fingerprint: of the weights.
        versions: of the packages that trained it.
        seconds: of CPU that training took.
    """

    name: str
    data: str
    recipe: str
    trained_epsilon: float
    p: float
    low: float | None
    high: float | None
    epsilons: tuple[float, ...]
    clean: float
    certified: tuple[float, ...]
    method: str
    samples: int
    radii: tuple[float, ...]
    radii_method: str
    seed: int
    fingerprint: str
    versions: dict[str, str]
    seconds: float | None

    def options(self) -> dict[str, str]:
        """Options of ``popqorn-train certify`` that ask what the network was trained for."""
        ends = {"--low": self.low, "--high": self.high}
        found = {name: f"{end:g}" for name, end in ends.items() if end is not None}
        found["--method"] = self.radii_method
        found["--epsilons"] = ",".join(f"{epsilon:g}" for epsilon in self.epsilons)
        return found if self.p == math.inf else {**found, "--p": f"{self.p:g}"}


def names() -> list[str]:
    """The networks of the zoo."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def card(name: str) -> Card:
    """The card of a network.

    Raises:
        ValueError: there is no such network.
    """
    stored: dict[str, Any] = json.loads((FOLDER / f"{_known(name)}.json").read_text())
    lists = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
    return Card(**{**stored, **lists, "p": float(stored["p"])})


def load(name: str) -> RecurrentNet | SpeechNet:
    """A trained network, in eval mode.

    Raises:
        ValueError: there is no such network, or its file holds other weights than its card says.
    """
    stored = _stored(name)
    net = made(stored["net_settings"])
    net.load_state_dict({key: value.float() for key, value in stored["state_dict"].items()})
    found, wanted = fingerprint(net), card(name).fingerprint
    if found != wanted:
        raise ValueError(
            f"The weights of {name!r} have the fingerprint {found}, its card says {wanted}. "
            "Install popqorn-train again."
        )
    return net.eval()


def samples(name: str) -> tuple[Inputs, Tensor]:
    """The first ten samples of its test set: what its forward takes, and the labels.

    Raises:
        ValueError: there is no such network.
    """
    stored = _stored(name)
    inputs = tuple(_as_read(value) for value in stored["inputs"])
    return inputs[0] if len(inputs) == 1 else inputs, stored["labels"]


def _as_read(value: Tensor) -> Tensor:
    """Images are kept as bytes."""
    return value.float() / 255 if value.dtype == torch.uint8 else value


def _stored(name: str) -> dict[str, Any]:
    path = FOLDER / f"{_known(name)}.pt"
    check_unpacked(path, packed=False)
    stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return stored


def _known(name: str) -> str:
    if name in (known := names()):
        return name
    near = difflib.get_close_matches(name, known, 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"There is no network {name!r} in the zoo.{meant} Networks: {', '.join(known)}."
    )


def with_defaults(arguments: list[str]) -> list[str]:
    """Arguments of ``certify zoo:NAME`` with the ten samples and the question of the card.

    What the command says itself stays. Other arguments are returned as they are.

    Raises:
        ValueError: there is no such network.
    """
    named = [one.removeprefix(PREFIX) for one in arguments if one.startswith(PREFIX)]
    if arguments[:1] != ["certify"] or not named:
        return arguments
    given = {one.partition("=")[0] for one in arguments}
    options = {"--data": f"{PREFIX}ten_samples.{named[0]}", **card(named[0]).options()}
    if "--box" in given:
        options = {name: options[name] for name in ("--data", "--method")}
    found = [f"{key}={value}" for key, value in options.items() if key not in given]
    return ["certify", *found, *arguments[1:]]  # what comes later counts, also shortened


class _ByName:
    """What a command finds as ``zoo:ten_samples.NAME``."""

    def __getattr__(self, name: str) -> Any:
        return _found(samples, name)


ten_samples = _ByName()


def __getattr__(name: str) -> Any:
    """What a command finds as ``zoo:NAME``."""
    return _found(load, name)


def _found(get: Any, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return get(name)
    except ValueError as error:
        raise AttributeError(str(error)) from error


def table() -> str:
    """One line per network, and below it what each was trained on."""
    rows = [["network", "clean %", "certified %", "at epsilon"]]
    cards = [card(name) for name in names()]
    for one in cards:
        shares = [f"{100 * share:.1f}" for share in (one.clean, *one.certified)]
        sizes = " / ".join(f"{epsilon:g}" for epsilon in one.epsilons)
        rows.append([one.name, shares[0], " / ".join(shares[1:]), sizes])
    width = max(len(one.name) for one in cards)
    data = [f"{one.name:{width}}  {one.data}" for one in cards]
    return "\n".join([aligned(rows), "", *data])


if __name__ == "__main__":
    print(table())
