"""The options of ``popqorn-train certify``, and what they mean."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from popqorn_train.bounds.methods import METHODS
from popqorn_train.certificates.probes import PROBES
from popqorn_train.cli.scale_options import add_scale_options
from popqorn_train.tracing.output_meaning import KINDS


def add_certify_options(
    command: argparse.ArgumentParser, *, device: Callable[[str], str] | None = None
) -> None:
    """Add all of them to the parser of the command.

    Args:
        command: the parser.
        device: reads the name of a device; None refuses those that are not here.
    """
    command.add_argument("model", help="module:Name of a class, a function or an object")
    _add_subject(command.add_argument_group("model and data"), device or _device)
    _add_ball(command.add_argument_group("perturbations"))
    _add_search(command.add_argument_group("method"))
    add_scale_options(command.add_argument_group("several processes"), _count, _positive)
    _add_report(command.add_argument_group("report"))


def _add_subject(group: "argparse._ArgumentGroup", device: Callable[[str], str]) -> None:
    group.add_argument("--checkpoint", type=Path, help="a state dict or a Lightning .ckpt")
    group.add_argument(
        "--prefix", default="", help="prefix of the model's names in the checkpoint, like net."
    )
    group.add_argument(
        "--data",
        required=True,
        help="module:name of a function or an object that returns a loader or (inputs, target), "
        "module:name of a Lightning data module, or an .npz file",
    )
    group.add_argument(
        "--inputs",
        type=_names,
        default=("x",),
        help="arrays of the .npz file to use as inputs, like x,lengths",
    )
    group.add_argument("--target", default="y", help="array of the .npz file that holds the labels")
    group.add_argument(
        "--divide",
        type=_positive,
        help="divide the inputs of the .npz file by this number, like 255",
    )
    add_output(group)
    group.add_argument("--samples", type=_count, help="certify only the first so many samples")
    group.add_argument("--batch-size", type=_count, default=32, help="samples certified at once")
    group.add_argument("--device", type=device, help="default: cuda if there is one, else cpu")


def add_output(command: "argparse._ActionsContainer") -> None:
    """Add the options that say what the model returns."""
    command.add_argument(
        "--select",
        help="the part of the output that holds the logits: an index, a key, a field, or the "
        "module:name of a function",
    )
    command.add_argument(
        "--output-is",
        choices=KINDS,
        help="for a model that returns one number per sample: what that number is",
    )


def _add_ball(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--p", type=_norm, default=math.inf, help="norm, from 1 to inf (default)")
    group.add_argument("--low", type=float, help="smallest value of an input")
    group.add_argument("--high", type=float, help="largest value of an input")
    group.add_argument(
        "--box",
        nargs=2,
        type=_end,
        metavar=("LOWER", "UPPER"),
        help="search the largest share of this box instead of a ball: ends that are numbers, or "
        ".npy files with one for each feature (N,), or for each frame and feature (T, N)",
    )
    group.add_argument(
        "--db",
        nargs="+",
        type=_level,
        metavar="DB",
        help="search how far every entry may move as a share of the peak of its sample, which is "
        "10 ** (DB / 20), and print levels, and the accuracy at these, in dB: -70 -60 -50",
    )
    group.add_argument(
        "--frames", help="frames to perturb, counted from 0, like 0,2,5-9 (default: all)"
    )
    group.add_argument("--features", help="features to perturb, likewise (default: all)")
    group.add_argument(
        "--scope",
        choices=("frame", "sequence"),
        default="frame",
        help="one ball per frame (default), or one for the whole sequence",
    )
    add_moved(group)


def add_moved(group: "argparse._ArgumentGroup | argparse.ArgumentParser") -> None:
    """Add what tells ``bound`` which tensor moves, and where its frames are."""
    group.add_argument(
        "--perturb", help="the tensor to perturb (default: the first floating input)"
    )
    group.add_argument(
        "--frame-axis", type=int, help="the axis of that tensor that holds the frames"
    )


def _add_search(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--method", default="popqorn", help=", ".join(METHODS))
    group.add_argument("--max-radius", type=_positive, help="largest radius to try")
    group.add_argument("--rtol", type=float, default=1e-2, help="relative precision of the radii")
    group.add_argument(
        "--probes",
        type=whole,
        default=PROBES,
        help="points at which each certificate is compared with the model",
    )
    group.add_argument(
        "--no-confirm", action="store_true", help="do not confirm the radii in float64"
    )
    group.add_argument(
        "--deployed",
        action="store_true",
        help="certify the model as it computes in float32, rounding included",
    )
    group.add_argument("--attack", action="store_true", help="also attack every sample")
    group.add_argument("--seconds", type=_positive, help="stop after this time")


def _add_report(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--folder", type=Path, default=Path("runs/certify"), help="where to write the results"
    )
    group.add_argument("--resume", action="store_true", help="continue the run in --folder")
    group.add_argument(
        "--epsilons", type=_numbers, help="where to print the accuracy, like 0.01,0.02"
    )
    group.add_argument(
        "--fragile",
        type=whole,
        help="how many of the most fragile samples to examine frame by frame; 0 skips this. "
        "Default: up to 8, within a quarter of the time that certifying took",
    )
    group.add_argument(
        "--words", help="names of the tokens: a file with one per line, or module:name"
    )
    group.add_argument("--classes", help="names of the classes: a file with one per line, or a,b,c")
    group.add_argument(
        "--image", type=_size, help="height and width of the image that the frames form, like 28,28"
    )


def mask_of(option: str, text: str | None, size: int) -> Tensor | None:
    """The mask ``(size,)`` of frames or features written like ``0,2,5-9``.

    Args:
        option: which they are, ``"frames"`` or ``"features"``.
        text: as given.
        size: how many there are.

    Raises:
        ValueError: there are no such ones.
    """
    if text is None:
        return None
    mask = torch.zeros(size, dtype=torch.bool)
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            chosen = list(range(int(first), int(last if dash else first) + 1))
            if not chosen:
                raise ValueError(part)
            mask[chosen] = True
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"`--{option}` must be {option} from 0 to {size - 1} like 0,2,5-9, got {text!r}."
        ) from error
    return mask


def class_names(text: str | None, classes: int) -> Sequence[str]:
    """Names of classes from a file or from the text itself; none where there is no text.

    Raises:
        ValueError: another number of names than of classes.
    """
    if text is None:
        return ()
    path = Path(text)
    names = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if len(names) != classes:
        raise ValueError(
            f"`--classes` must name the {classes} classes of the model, got {len(names)}: "
            f"{', '.join(names)}."
        )
    return names


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _numbers(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if numbers != sorted(set(numbers)) or not numbers[0] > 0 or numbers[-1] == math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and increasing, got {text}")
    return numbers


def _end(text: str) -> float | Tensor:
    if not text.endswith(".npy"):
        return float(text)
    try:
        with open(text, "rb") as file:
            return torch.from_numpy(np.load(file).astype(np.float64))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be an .npy file of numbers: {error}") from error


def _norm(text: str) -> float:
    p = float(text)
    if not p >= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to inf, got {text}")
    return p


def _level(text: str) -> float:
    level = float(text)
    if not -math.inf < level <= 0:
        raise argparse.ArgumentTypeError(f"must be a number of dB up to 0, got {text}")
    return level


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return number


def _device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise argparse.ArgumentTypeError(f"{text} is not available here: {reason}") from error
    return text


def whole(text: str) -> int:
    """A number that is not negative."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _size(text: str) -> tuple[int, int]:
    height, width = (int(part) for part in text.split(","))
    if height < 1 or width < 1:
        raise argparse.ArgumentTypeError(f"must be a height and a width like 28,28, got {text}")
    return height, width
