"""The most fragile samples, frame by frame: on which frame or word does the decision hang?

B: batch, T: frames, N: features.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.frames import frame_radii
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.evaluation.batches import Picked, on_device, unpack_pair, unpacked
from popqorn_train.evaluation.examination import Examination
from popqorn_train.evaluation.resolve import resolved
from popqorn_train.evaluation.sample_rows import SampleRow
from popqorn_train.evaluation.stored import text_of
from popqorn_train.tracing.process_settings import without_cudnn

_OF_MANY = ("frames", "scope")  # what says nothing of a frame that moves alone
Vocabulary = Callable[[list[int]], Sequence[str]]


@dataclass(frozen=True)
class FragileSample:
    """A sample with a small radius.

    Attributes:
        row: what was certified.
        radii: of each frame moving alone; empty where that failed.
        values: ``(T, N)`` what moves, in its own units.
        words: one per frame, where the frames are tokens and a vocabulary names them.
        error: what went wrong.
    """

    row: SampleRow
    radii: tuple[float, ...]
    values: Tensor
    words: tuple[str, ...] = ()
    error: str = ""


def most_fragile(rows: Iterable[SampleRow], count: int) -> list[SampleRow]:
    """The samples with the least positive radii, by radius."""
    proved = [row for row in rows if row.answered and row.radius]
    return sorted(proved, key=lambda row: (row.radius, row.index))[:count]


def chosen_samples(
    model: BoundModel, loader: Iterable[Any], wanted: Sequence[SampleRow]
) -> Iterator[tuple[SampleRow, Picked]]:
    """Take some samples out of a loader, in its order."""
    rows, first = {row.index: row for row in wanted}, 0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for batch in loader:
        inputs, target = unpacked(unpack_pair, batch)
        here = [at for at in range(len(target)) if first + at in rows]
        for at in here:
            one, axis = torch.tensor([at]), model.batch_axis(inputs)
            picked = Picked.of(one + first, inputs, target, one, axis)
            moved = on_device(picked.inputs, device)
            yield rows.pop(first + at), Picked(picked.positions, moved, picked.labels.to(device))
        first += len(target)
        if not rows:
            return


def examined_frames(
    model: BoundModel, picked: Picked, question: Examination
) -> tuple[list[float], str]:
    """The radius of every frame of one sample, and what went wrong."""
    alone = {name: value for name, value in question.moving().items() if name not in _OF_MANY}
    try:
        found = frame_radii(
            model,
            picked.inputs,
            picked.labels,
            method=question.method,
            **alone,
            max_radius=question.max_radius,
            rtol=question.rtol,
            confirm=question.confirm,
        )
    except Exception as error:  # of one sample, which must not cost the report
        return [], f"{type(error).__name__}: {error}"
    return found[0].tolist(), ""


def described(
    model: BoundModel,
    row: SampleRow,
    picked: Picked,
    found: tuple[list[float], str],
    words: Vocabulary | None,
) -> FragileSample:
    """Bring together radii, values and words of one sample; frames it does not read are left out.

    Raises:
        ValueError: another number of words than tokens.
    """
    radii, error = found
    values, stop = _read_frames(model, picked)
    tokens = _tokens(picked.inputs, len(values))
    names: tuple[str, ...] = ()
    if words is not None and tokens:
        names = tuple(str(word) for word in words(tokens[:stop]))
        if len(names) != stop:
            raise ValueError(
                f"`--words` must name each token, got {len(names)} words for {stop} tokens."
            )
    return FragileSample(row, tuple(radii[:stop]), values[:stop], names, error)


def _read_frames(model: BoundModel, picked: Picked) -> tuple[Tensor, int]:
    """What moves ``(T, N)``, and how many frames there are up to the last one that matters.

    Padding behind a sequence has no influence on the logits: their gradient is exactly 0 there.
    """
    with undisturbed(model.model), without_cudnn():
        instance = model.instance(picked.inputs, check=False)
        with torch.enable_grad():
            x = instance.center.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(instance.logits(x).square().sum(), x)
    matter = gradient[0].abs().sum(-1).nonzero()[:, 0]
    frames = instance.center.shape[1]
    return x.detach()[0].cpu(), int(matter.max()) + 1 if len(matter) else frames


def _tokens(inputs: tuple[Any, ...], frames: int) -> list[int]:
    """The tokens of one sample; none where its input is not whole numbers."""
    for given in inputs:
        value = given.data if isinstance(given, PackedSequence) else given
        if isinstance(value, Tensor) and not value.is_floating_point() and value.numel() == frames:
            return value.flatten().tolist()
    return []


def vocabulary(name: str) -> Vocabulary:
    """Words of tokens: a file with one word per line (the first is token 0), or ``module:name``.

    The name is that of a function from a list of tokens to words, or of a sequence of words.

    Raises:
        ValueError: nothing of that name.
        OSError: the file cannot be read.
    """
    if Path(name).is_file():
        return _looked_up(text_of(Path(name)).split("\n"))
    if ":" not in name:
        raise FileNotFoundError(f"`--words` must be a file or module:name, got {name!r}.")
    found = resolved(name, "--words")
    if callable(found):
        return found
    if isinstance(found, Sequence):
        return _looked_up(found)
    raise ValueError(f"`--words` must name words or a function, got {type(found).__name__}.")


def _looked_up(words: Sequence[str]) -> Vocabulary:
    def look(tokens: list[int]) -> list[str]:
        return [words[token] if 0 <= token < len(words) else f"#{token}" for token in tokens]

    return look
