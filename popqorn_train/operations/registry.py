"""How operations and modules act on nodes: two tables, and the error for what is in neither."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from popqorn_train.errors import UnboundedStepError
from popqorn_train.nested import map_nested
from popqorn_train.operations.spectrum import Spectrum
from popqorn_train.operations.ways_out import way_out_of
from popqorn_train.tracing.steps import Step, called_name, casts_to_half

Handler = Callable[..., Any]
OPERATIONS: dict[str, Handler] = {}
MODULES: dict[type[nn.Module], Handler] = {}
SPECTRA: dict[str, Handler] = {}
_RECURRENT = ("gru", "lstm", "rnn_relu", "rnn_tanh")


def operation(*names: str) -> Callable[[Handler], Handler]:
    """Register how an operation, called by any of these names, acts on nodes."""

    def register(handler: Handler) -> Handler:
        OPERATIONS.update(dict.fromkeys(names, handler))
        return handler

    return register


def spectral(*names: str) -> Callable[[Handler], Handler]:
    """Register how an operation acts on the complex numbers of a spectrum."""

    def register(handler: Handler) -> Handler:
        SPECTRA.update(dict.fromkeys(names, handler))
        return handler

    return register


def module(*kinds: type[nn.Module]) -> Callable[[Handler], Handler]:
    """Register how a module acts on nodes."""

    def register(handler: Handler) -> Handler:
        MODULES.update(dict.fromkeys(kinds, handler))
        return handler

    return register


def operation_handler(step: Step) -> Handler:
    """How the operation of a step acts on nodes.

    Raises:
        UnboundedStepError: it is not registered.
    """
    name = called_name(step.target)
    if name in _RECURRENT:
        way_out = "Call the module itself, self.rnn(x), and not self.rnn.forward(x)."
        raise unsupported(step, f"a recurrent layer by its operation {name!r}", way_out)
    if name not in OPERATIONS:
        raise unsupported(step, f"the operation {name!r}", way_out_of(name))
    return OPERATIONS[name]


def module_handler(step: Step, called: nn.Module) -> Handler:
    """How a module acts on nodes: the one registered for the nearest of its classes.

    A class of the user's with a forward of its own is none of those it derives from.

    Raises:
        UnboundedStepError: none is registered.
    """
    kind = type(called)
    for known in kind.__mro__:
        if known in MODULES and kind.forward is known.forward:
            return MODULES[known]
    raise unsupported(step, f"a {kind.__module__}.{kind.__qualname__}")


def refuse_complex(step: Step, values: Any) -> None:
    """Refuse complex numbers beside what moves."""
    found: list[Tensor] = []
    map_nested(values, Tensor, found.append)
    if any(value.is_complex() for value in found):
        raise unsupported(step, "an operation with complex numbers", way_out_of("complex"))


def spectral_handler(step: Step, values: Any) -> Handler | None:
    """What acts on the complex numbers among the arguments of a step; None without these.

    Raises:
        UnboundedStepError: nothing does.
    """
    found: list[Spectrum] = []
    map_nested(values, Spectrum, found.append)
    if not found:
        return None
    handler = None if step.kind == "module" else SPECTRA.get(called_name(step.target))
    if handler is None:
        raise unsupported(step, "an operation with complex numbers", way_out_of("spectrum"))
    return handler


def refuse_half(step: Step, model: nn.Module) -> None:
    """Refuse a result in half precision, of what moves, in a model of another precision."""
    if casts_to_half(step) and not any(w.dtype.itemsize == 2 for w in model.parameters()):
        raise unsupported(step, "a cast to half precision", "Leave the cast out.")


def unsupported(step: Step, what: str, way_out: str = "") -> UnboundedStepError:
    """The error for a step that cannot be bounded."""
    where = f"module {step.target!r}" if step.kind == "module" else f"node {step.name!r}"
    way_out = way_out or (
        "Use operations that `popqorn-train supported` lists; compute the rest outside forward, or "
        "certify the part of the model after it with bound(model, perturb=...)."
    )
    what = f"{where} is {what}, which has no bound ({step.source})."
    return UnboundedStepError(what, way_out)
