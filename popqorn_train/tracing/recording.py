"""Run a tracer over a forward, and say what stopped it."""

from typing import Any

from torch import fx, nn

from popqorn_train.errors import UnsupportedModelError
from popqorn_train.tracing.patches import Patches
from popqorn_train.tracing.preserve import preserved
from popqorn_train.tracing.process_settings import layer_by_layer
from popqorn_train.tracing.selection import Select
from popqorn_train.tracing.tracer import SCRIPTED, Tracer
from popqorn_train.tracing.user_lines import innermost


def run_tracer(
    model: nn.Module, inputs: dict[str, Any], patches: Patches, select: Select | None = None
) -> tuple[fx.Graph, Tracer]:
    """Record a forward on an example, up to what is selected of what it returns.

    Raises:
        UnsupportedModelError: it cannot be recorded, with the user's line.
    """
    tracer = Tracer(inputs, patches, select)
    try:
        with preserved(model), layer_by_layer():
            return tracer.trace(model), tracer
    except UnsupportedModelError:
        raise
    except Exception as error:
        scripted = "Unable to cast Proxy" in str(error)  # what a scripted function says
        why = f"it calls a function that is {SCRIPTED}" if scripted else str(error)
        line = next(iter(getattr(error, "__notes__", [])), None) or innermost(error)
        way_out = (
            "Move what depends on data out of forward, or certify the part of the model after it."
            if error is not tracer.write
            else tracer.way_out
        )
        raise UnsupportedModelError(
            f"The forward of {type(model).__name__} cannot be traced: {why} ({line}). {way_out}"
        ) from error
