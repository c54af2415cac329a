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
