"""What calling a module means: its forward, and its hooks around it.

What stands in for the code of a module's class is refused: it is not what a layer of that class
computes, and nothing says what it is.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.prune import BasePruningMethod

from popqorn_train.errors import UnsupportedModelError

_CODE = ("forward", "__call__", "_call_impl", "_wrapped_call_impl", "_conv_forward")


def check_own_code(module: nn.Module, path: str, *, whole: bool) -> None:
    """Refuse a module that runs other code than its class's.

    Args:
        module: about to be called.
        path: where it is in the model.
        whole: the modules inside are not looked at when they are called; look at them now.

    Raises:
        UnsupportedModelError: a method replaced on the instance, or hooks for all modules.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise UnsupportedModelError(
            "forward hooks are registered for all modules (register_module_forward_hook), which "
            "are not traced. Remove them while you certify."
        )
    for name, inner in module.named_modules() if whole else [("", module)]:
        where = ".".join(part for part in (path, name) if part)
        for method in _CODE:
            own = vars(inner).get(method)
            if own is not None and not _is_of_class(own, inner, method):
                raise UnsupportedModelError(
                    f"{_where(where, inner)} has a {method} of its own, put on the instance, which "
                    "is not what its class computes. Make it a method of the class."
                )
        if whole and name and (inner._forward_hooks or inner._forward_pre_hooks):
            raise UnsupportedModelError(
                f"{_where(where, inner)} has hooks inside a layer that is bounded as a whole. "
                "Remove them while you certify."
            )


def _where(path: str, module: nn.Module) -> str:
    return f"module {path!r}" if path else type(module).__name__


def _is_of_class(own: Any, module: nn.Module, method: str) -> bool:
    """Whether it is the method of the class after all, compiled, or as Lightning leaves it."""
    if hasattr(own, "_torchdynamo_orig_callable"):
        own = inspect.unwrap(own._torchdynamo_orig_callable)
    code = getattr(own, "__func__", None)
    return code is not None and own.__self__ is module and code is getattr(type(module), method)


def with_hooks(
    module: nn.Module,
    path: str,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    whole: bool = False,
) -> Any:
    """Call a forward as ``nn.Module.__call__`` does, with the hooks before and after it.

    Args:
        module: what is called.
        path: where it is in the model.
        forward: stands for its forward.
        args: of the call.
        kwargs: likewise.
        whole: it is one step, of which hooks that work out weights are a part.

    Raises:
        UnsupportedModelError: such a hook on a module of the user's.
    """
    for key, before in [*module._forward_pre_hooks.items()]:
        if sets_weight(before):
            if not whole:
                raise _sets_weight_of(_where(path, module), before)
            continue
        if key in module._forward_pre_hooks_with_kwargs:
            changed: Any = before(module, args, kwargs)
            args, kwargs = (args, kwargs) if changed is None else changed
        else:
            changed = before(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
    result = forward(*args, **kwargs)
    for key, after in [*module._forward_hooks.items()]:
        rest = (args, kwargs) if key in module._forward_hooks_with_kwargs else (args,)
        changed = after(module, *rest, result)
        result = result if changed is None else changed
    return result


def sets_weight(hook: Any) -> bool:
    """Whether a hook of torch's works out a weight: pruning, and norms of weights of old."""
    own = str(getattr(hook, "__module__", "")).startswith("torch.nn.utils")
    return own or isinstance(hook, BasePruningMethod)


def set_weights(module: nn.Module) -> None:
    """Work out the weights that hooks set before a forward."""
    for hook in module._forward_pre_hooks.values():
        if sets_weight(hook):
            hook(module, ())


def _with_weights(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A module with other tensors in the place of some weights; itself where there are none."""
    if not weights:
        return module
    other: nn.Module = object.__new__(type(module))
    other.__dict__ = {key: value for key, value in vars(module).items() if key not in weights}
    other.__dict__["_parameters"] = {**module._parameters, **weights}
    if isinstance(module, nn.RNNBase):
        flat = [getattr(other, name) for name in module._flat_weights_names]
        other.__dict__["_flat_weights"] = flat
    return other


def tied(model: nn.Module, path: str, weights: dict[tuple[str, str], str]) -> nn.Module:
    """A module of a model with the weights that forward gives it.

    Args:
        model: holds it.
        path: where.
        weights: from a path and the name of a weight to the path of the parameter it is.
    """
    own = {name: at for (place, name), at in weights.items() if place == path}
    given = {name: operator.attrgetter(at)(model) for name, at in own.items()}
    return _with_weights(model.get_submodule(path), given)


def _sets_weight_of(where: str, hook: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{where} computes its weights in a forward pre-hook ({type(hook).__name__}), which is "
        "not traced. Use torch.nn.utils.parametrizations for weight or spectral norm; "
        "torch.nn.utils.prune.remove(module, name) makes pruning permanent."
    )
