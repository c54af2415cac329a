"""Samples with numbers that are not finite: no harm in padding, elsewhere an error of that sample.

What is never read may hold anything. Every operation that is bounded hands NaN on, so a sample for
which the model returns the very same logits with NaN in the place of such numbers, and with 0, has
no other logits over the whole of a ball either: it is bounded with 0 there. Infinity alone proves
nothing: a maximum with -inf may be one with 0 at the clean input, and another elsewhere. A sample
that is no such one, or for which the model returns NaN, cannot be asked about; the others can.

Inputs that do not move may be compared and counted, which hands nothing on: ``~y.isnan()``. There,
whatever meets what moves has to be NaN, or the same, with NaN in the place of such numbers.

B: batch, C: classes.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.certificates.inputs import tensors_of
from popqorn_train.errors import BrokenWeightsError, UnsupportedModelError
from popqorn_train.nested import map_nested
from popqorn_train.operations.lift import Lifter
from popqorn_train.tracing.input_path import Plan
from popqorn_train.tracing.steps import pick_samples

Lifted = Callable[[dict[str, Any]], Lifter]
Run = Callable[[dict[str, Any]], Any]


class Screened(NamedTuple):
    """Inputs that may hold numbers which are not finite.

    Attributes:
        finite: the inputs with 0 in the place of such numbers, for tracing.
        names: of the inputs that differ from those given.
        bad: ``(B,)`` boolean, samples for which that makes a difference; None where no input
            differs.
    """

    finite: dict[str, Any]
    names: tuple[str, ...]
    bad: Tensor | None

    def read(self, named: dict[str, Any], batch_axis: int) -> dict[str, Any]:
        """The inputs with 0 where a number that is not finite is never read."""
        if self.bad is None or not self.bad.any():
            return self.finite
        found = dict(self.finite)
        for name in self.names:
            value = named[name]
            axis = min(batch_axis, value.ndim - 1)
            shape = [-1 if at == axis else 1 for at in range(value.ndim)]
            found[name] = torch.where(self.bad.view(shape), value, found[name])
        return found


def screened(
    named: dict[str, Any], perturb: str | None, run: Run, meant: Collection[str] = ()
) -> Screened:
    """Look for numbers that are not finite, and whether the model reads them.

    Args:
        named: inputs by argument.
        perturb: the argument that moves, if it is one that has this name.
        run: what the model returns for inputs.
        meant: arguments that keep such numbers, see ``told``.
    """
    floats = {n: t for n, t in tensors_of(named).items() if t.is_floating_point()}
    wild = [n for n, value in floats.items() if n not in meant and not value.isfinite().all()]
    if not wild:
        return Screened(named, (), None)
    moving = perturb if perturb in named else next(iter(floats))
    output, finite, bad = rows_of_output(run(named), named), dict(named), None
    names: list[str] = []
    for name in wild:
        trial = {**finite, name: _filled(named[name], 0)}
        undefined = {**finite, name: _filled(named[name], torch.nan)}
        found = [rows_of_output(run(filled), named) for filled in (trial, undefined)]
        if output is None or any(rows is None or rows.shape != output.shape for rows in found):
            continue
        kept = [(rows == output).all(1) for rows in found if rows is not None]
        changed = ~torch.stack(kept).all(0)
        if name == moving or not changed.any():  # others may mean it: additive masks
            finite, names = trial, [*names, name]
            bad = changed if bad is None else bad | changed
    return Screened(finite, tuple(names), bad)


def _filled(value: Tensor, number: float) -> Tensor:
    """The same with a number in the place of all that are not finite."""
    return torch.where(value.isfinite(), value, number)


def told(named: dict[str, Any], found: Screened, plan: Plan, lifted: Lifted) -> list[str]:
    """Inputs in which such numbers mean something, as where a mask is made of them.

    Args:
        named: inputs by argument.
        found: what ``screened`` found in them.
        plan: what moves, traced with 0 in the place of such numbers.
        lifted: runs recorded operations on inputs.
    """
    own = plan.source.target if plan.source.kind == "input" else None
    sides = [name for name in found.names if name != own]
    if not sides or found.bad is None or found.bad.all():
        return []
    good = (~found.bad).nonzero()[:, 0]

    def run(named: dict[str, Any]) -> Lifter:
        return lifted({n: pick_samples(v, good, plan.batch_axis) for n, v in named.items()})

    zero = run(found.finite)

    def hands_on(name: str) -> bool:
        fills = named[name], _filled(named[name], torch.nan)
        return _hands_on(plan, zero, [run({**found.finite, name: fill}) for fill in fills])

    return [name for name in sides if not hands_on(name)]


def _hands_on(plan: Plan, zero: Lifter, others: list[Lifter]) -> bool:
    """Whether all that meets what moves is the same in all runs, or NaN in the last."""
    try:
        for name in _beside(plan):
            same, *rest = (_numbers(run.value(name)) for run in (zero, *others))
            for one, *values in zip(same, *rest, strict=True):
                undefined = values[-1].isnan()
                if any(((value != one) & ~undefined).any() for value in values):
                    return False
    except (ValueError, RuntimeError, UnsupportedModelError):  # sizes follow from them
        return False
    return True


def _numbers(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_nested(value, (Tensor, int, float), lambda part: found.append(torch.as_tensor(part)))
    return found


def _beside(plan: Plan) -> list[str]:
    """The steps that do not move and are read beside what does, and what moves before it does."""
    moving = plan.trace.made_from(plan.source.name)
    steps = [step for step in plan.trace.steps if step.name in moving - {plan.source.name}]
    return [plan.source.name, *{n: None for step in steps for n in step.refs if n not in moving}]


def rows_of_output(output: Any, named: dict[str, Any]) -> Tensor | None:
    """What a model returned, a row per sample; None where that cannot be told."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    first = next(iter(tensors_of(named).values()))
    if output.ndim and output.shape[0] in first.shape[:2]:
        return output.reshape(len(output), -1)
    return output.reshape(1, -1) if 1 in first.shape[:2] else None


def faults(
    model: nn.Module, named: dict[str, Any], found: Screened, output: Any
) -> Callable[[int], dict[int, str]] | None:
    """Samples that cannot be asked about.

    Args:
        model: the module.
        named: inputs by argument.
        found: what ``screened`` found in them.
        output: what the model returned for them.

    Returns:
        From the batch axis of the inputs to what is wrong with each; None where nothing is.

    Raises:
        BrokenWeightsError: weights make all logits of all samples NaN.
    """
    rows = rows_of_output(output, named)
    undefined = None if rows is None else rows.isnan().any(1)
    if undefined is not None and found.bad is None and undefined.all():
        _check_weights(model)
    masks = [mask for mask in (undefined, found.bad) if mask is not None]
    samples = sorted({at for mask in masks for at in mask.nonzero()[:, 0].tolist()})
    if not samples:
        return None

    def texts(batch_axis: int) -> dict[int, str]:
        texts = {}
        for sample in samples:
            wild = [_wild(name, named[name], sample, batch_axis) for name in found.names]
            texts[sample] = next(filter(None, wild), "") or "the model returns NaN for it"
        return texts

    return texts


def _check_weights(model: nn.Module) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    broken = [n for n, t in tensors if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise BrokenWeightsError(
            f"`model` returns NaN because weights are not finite: {', '.join(broken[:5])}"
            f"{' ...' if len(broken) > 5 else ''}. Its training has diverged; load weights from "
            "before that."
        )


def _wild(name: str, value: Tensor, sample: int, batch_axis: int) -> str:
    """The first number of a sample that is not finite, in words."""
    own = value.select(min(batch_axis, value.ndim - 1), sample)
    places = (~own.isfinite()).nonzero()
    if not len(places):
        return ""
    place = tuple(places[0].tolist())
    return f"`{name}` holds {own[place].item():g} at {[*place]}, which the model reads"
