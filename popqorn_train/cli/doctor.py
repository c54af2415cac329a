"""``popqorn-train doctor module:Model --input 1,7,112``: can this model be certified?

Prints the traced graph, what moves, which recurrent layers run over how many frames, what one
certification costs, and, where something has no bound, the user's own line. Without a model it says
what certificates run on here (machine.py).
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn

from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.node import Nonlinear
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.certificate import certify
from popqorn_train.certificates.instance import Instance
from popqorn_train.cli.machine import machine_lines
from popqorn_train.cli.notes import note, say
from popqorn_train.cli.options import add_moved, add_output
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.evaluation.resolve import resolved_model
from popqorn_train.evaluation.subject import select_of
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.tracing.steps import Step, called_name

_DEAR, _FAST = 1.0, "popqorn-fast"  # seconds of a certificate, and what is faster
_DEAR_METHODS = ("popqorn", "popqorn-tight", "popqorn-tightest")
_DTYPES = {"long": torch.int64, "int": torch.int32, "float": torch.float32, "double": torch.float64}


def add_doctor(commands: Any) -> None:
    """Add the command to a parser's sub-commands."""
    doctor = commands.add_parser("doctor", help="say whether a model can be certified, and how")
    doctor.set_defaults(run=run_doctor)
    doctor.add_argument(
        "model",
        nargs="?",
        help="module:Name of a class, a function or an object; without it, versions, devices and "
        "whether compiled loops run are printed",
    )
    doctor.add_argument(
        "--input",
        action="append",
        default=[],
        help="sizes of an argument of forward, batch first: 1,7,112; with a kind and the number of "
        "tokens: 1,20:long:5000; again for further arguments",
    )
    add_moved(doctor)
    add_output(doctor)
    doctor.add_argument("--epsilon", type=float, default=0.01, help="size of the ball (l_inf)")
    doctor.add_argument("--method", default="popqorn", help="bounding method")


def run_doctor(options: argparse.Namespace) -> int:
    """Print what is found; the exit status is 1 where the model cannot be certified."""
    if options.model is None and not options.input:
        print("\n".join(machine_lines()))
        return 0
    if options.model is None or not options.input:
        say(
            "`doctor` needs a model, module:Name, and the sizes of its inputs, --input 1,7,112; "
            "without both it describes this machine."
        )
        return 2
    try:
        model = resolved_model(options.model).eval()
        inputs = tuple(_example(text, model) for text in options.input)
        layer = bound(
            model,
            perturb=options.perturb,
            frame_axis=options.frame_axis,
            output_is=options.output_is,
            select=select_of(options.select),
        )
        instance = layer.instance(inputs)
    except (UnsupportedModelError, ValueError, TypeError) as error:
        say(f"cannot be certified: {error}")
        return 1
    _print_steps(instance)
    print()
    _print_plan(instance)
    _print_cost(layer, inputs, instance, options)
    return 0


def _example(text: str, model: nn.Module) -> Tensor:
    """A tensor for one argument; whole numbers count up from 1, so that they serve as lengths.

    Raises:
        ValueError: not sizes, with a kind and a limit.
    """
    sizes, kind, limit, *_ = [*text.split(":"), "", ""]
    try:
        shape = [int(size) for size in sizes.split(",")]
        most = int(limit or 2)
        own = next((weight.dtype for weight in model.parameters()), torch.float32)
        dtype = _DTYPES[kind] if kind else own
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"`--input` must be sizes like 1,7,112, with a kind ({', '.join(_DTYPES)}) and a "
            f"limit after colons, got {text!r}."
        ) from error
    if dtype.is_floating_point:
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if len(shape) == 1:  # lengths: all frames are there
        return torch.full(shape, most, dtype=dtype)
    return torch.arange(torch.Size(shape).numel()).remainder(most).view(shape).to(dtype)


def _print_steps(instance: Instance) -> None:
    """Every recorded step, marked where what moves reaches it."""
    names = _moving(instance)
    print(f"{'':2}{'step':<22}{'operation':<26}{'shape for 2 samples':<22}where")
    for step in instance.plan.trace.steps:
        mark = "~" if step.name in names else " "
        shape = "" if step.shape is None else str(tuple(step.shape))
        where = "" if step.kind == "input" else step.source
        print(f"{mark:2}{step.name:<22}{_operation(step, instance):<26}{shape:<22}{where}".rstrip())


def _moving(instance: Instance) -> set[str]:
    found = {instance.plan.source.name}
    for step in instance.plan.trace.steps:
        if found & set(step.refs):
            found.add(step.name)
    return found


def _operation(step: Step, instance: Instance) -> str:
    if step.kind == "module":
        return type(instance.lifter.model.get_submodule(step.target)).__name__
    return called_name(step.target) if step.kind in ("function", "method") else step.kind


def _print_plan(instance: Instance) -> None:
    name = instance.plan.source.name
    if instance.plan.frames.doubt:
        print(f"perturbed:  {name!r}, {instance.center[0].numel()} numbers")
        print(f"            frames unknown: {instance.plan.frames.doubt}; see --frame-axis")
    else:
        frames, features = instance.center.shape[1:]
        print(f"perturbed:  {name!r}, {frames} frames of {features} features each")
        axis = instance.plan.frames.axis
        lie = "as the recurrent layer reads them" if axis is None else f"axis {axis} as passed"
        print(f"            frames: {lie}")
    if instance.plan.scales:
        print("            in the units before the normalisation inside the model")
    meaning, single = instance.plan.meaning, ""
    if meaning.single:
        number = "logit" if meaning.threshold == 0 else "probability"
        single = f" (one {number}, class 1 above {meaning.threshold:g})"
    print(f"logits:     {instance.plan.output!r}, {instance.plan.classes} classes{single}")


def _print_cost(
    layer: BoundModel, inputs: tuple[Tensor, ...], instance: Instance, options: argparse.Namespace
) -> None:
    """Nodes, rows, and seconds of one certification on this machine."""
    ball = LpBall(options.epsilon)
    nodes = ancestors(instance.graph(ball))
    curved = [node for node in nodes if isinstance(node, Nonlinear)]
    units = sum(torch.Size(node.shape).numel() for node in curved)
    print(f"graph:      {len(nodes)} nodes, {len(curved)} nonlinear with {units} units a sample")
    target = instance.logits(instance.center).argmax(1)
    certify(layer, inputs, target, ball, method="ibp", confirm=None)  # warms up
    note(f"measuring what a certificate by {options.method} costs")
    started = time.perf_counter()
    proof = certify(layer, inputs, target, ball, method=options.method)
    seconds = time.perf_counter() - started
    print(
        f"cost:       {seconds:.3g} s for {len(target)} sample(s) by {options.method}, float64 "
        "confirmation included; a radius takes about 8 of these"
    )
    if seconds > _DEAR and options.method in _DEAR_METHODS:
        print(f"            much less by {_FAST}: see --method {_FAST}")
    print(f"margin:     {proof.margin.min().item():.4g} at epsilon {options.epsilon:g} (l_inf)")
