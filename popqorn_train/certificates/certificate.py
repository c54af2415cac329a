"""Bounds on logits, and certificates: proofs that no input of a ball changes the class.

B: batch, C: classes.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import Method, method_named
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.deployed import as_deployed
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.kept import kept_of
from popqorn_train.certificates.margins import (
    check_target,
    chunked_margins,
    clean_margins,
    least,
    proved,
)
from popqorn_train.certificates.module_probe import Claim
from popqorn_train.certificates.probes import PROBES, Probes, check_probes
from popqorn_train.certificates.unread import fitted
from popqorn_train.display import SHOWN, html_table
from popqorn_train.perturbations.box import Perturbation
from popqorn_train.perturbations.region import Bounds
from popqorn_train.perturbations.substitutions import Substitutions, check_replaced

Confirm = Literal["float64", "deployed"] | None
_DEPLOYED = "deployed float32"
_NEAR = 1e-4  # margins this little below 0 are worth a second look in float64


class Certificate(NamedTuple):
    """What was proved.

    Attributes:
        margins: ``(B, C)`` lower bounds of the label's logit minus each other one; ``+inf`` at
            the label itself.
        margin: ``(B,)`` the least of them.
        certified: ``(B,)`` whether ``margin > 0``; a wrong prediction or a NaN never is.
        numerics: precision of what is certified: ``"float64"`` or that of the weights; for a
            model in half precision ``"float64 of bfloat16 weights"``: its float32 or float64
            copy is certified, not its arithmetic. Sound for
            the network over the real numbers up to the rounding of that precision; tested
            against, but not proved for, the deployed kernel. ``", not probed"`` follows where
            ``probes=0`` was asked for. ``"deployed float32"``: what the model computes in
            float32 is certified, whatever the order of its sums, see ``confirm``.
        errors: samples that cannot be asked about (NaN or infinity in what the model reads, or a
            NaN logit), and what is wrong with each; their margins are NaN.
    """

    margins: Tensor
    margin: Tensor
    certified: Tensor
    numerics: str
    errors: Mapping[int, str] = MappingProxyType({})

    def __repr__(self) -> str:
        count, samples = int(self.certified.sum()), len(self.certified)
        wrong = f", {len(self.errors)} in error" if self.errors else ""
        return f"Certificate({count} of {samples} certified{wrong}, {self.numerics})"

    def _repr_html_(self) -> str:
        columns = self.margin.tolist(), self.certified.tolist()
        rows = [
            (at, "certified" if certified else self.errors.get(at, "not certified"), margin)
            for at, (margin, certified) in enumerate(zip(*columns, strict=True))
        ]
        return html_table(("sample", "status", "margin"), rows[:SHOWN], repr(self))

    def __reduce__(self) -> tuple[Any, ...]:  # errors are read-only, which pickle cannot keep
        return Certificate, (*self[:-1], dict(self.errors))


# What torch.save keeps of a certificate, torch.load reads without being told to trust it.
torch.serialization.add_safe_globals([Certificate, Bounds])


def logit_bounds(
    model: nn.Module,
    inputs: Inputs,
    ball: Perturbation | Substitutions,
    *,
    method: str | Method = "popqorn",
    probes: int = PROBES,
) -> Bounds:
    """Bound every logit over the ball; differentiable in the weights.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        ball: the perturbation, an ``LpBall``, a ``Box`` or ``Substitutions``.
        method: a name, see methods.py, or an object.
        probes: see ``certify``.

    Returns:
        ``Bounds(lower, upper)``, ``(B, C)`` each, in the precision of the weights (at least
        float32); NaN for samples that cannot be asked about, of which a warning tells.

    Raises:
        ValueError, TypeError: see ``LpBall``, ``Box``, ``BoundModel.instance``, ``method_named``.
        UnsupportedModelError: the model cannot be bounded.
    """
    check_probes(probes)
    check_replaced(ball)
    method = method_named(method)
    layer = bound(model)
    with undisturbed(layer.model):
        kept = kept_of(layer, inputs)
        if kept is None:
            return _bounded(layer, inputs, ball, method, probes)
        kept.warn()
        if not len(kept.chosen):
            empty = layer.instance(inputs).value.new_full((kept.size, kept.classes), torch.nan)
            return Bounds(empty, empty)
        part = _bounded(layer, kept.inputs, kept.ball(ball), method, probes)
        return Bounds(*map(kept.spread, part))


def _bounded(
    layer: BoundModel,
    inputs: Inputs,
    ball: Perturbation | Substitutions,
    method: Method,
    probes: int,
) -> Bounds:
    instance = fitted(layer.instance(inputs), ball)
    output = instance.graph(ball)
    unit = torch.eye(output.shape[0], dtype=instance.value.dtype, device=instance.value.device)
    rows = torch.cat([unit, -unit])[None]
    bounds, found = method.bounded(output, rows)
    lower, negative = bounds.chunk(2, dim=1)
    probe = Probes(layer, instance, None, probes)
    probe.nodes(torch.arange(len(lower)), output, found)
    probe.certificate(ball, Claim(lower=lower.detach(), upper=-negative.detach()))
    return Bounds(lower, -negative)


def certify(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    ball: Perturbation | Substitutions,
    *,
    method: str | Method = "popqorn",
    confirm: Confirm = "float64",
    max_bytes: int | None = None,
    probes: int = PROBES,
) -> Certificate:
    """Try to prove that no input of the ball changes the class.

    Args:
        model: a classifier, or ``bound(model)``.
        inputs: what its forward takes.
        target: ``(B,)`` integer labels.
        ball: the perturbation, an ``LpBall``, a ``Box`` or ``Substitutions``.
        method: a name, see methods.py, or an object.
        confirm: ``"float64"`` bounds every sample that would be certified again in float64 (on a
            CPU all at once, which costs less), and reports that; None leaves the precision of the
            weights (at least float32). ``"deployed"`` certifies the model as it computes in
            float32: sums in any order, tanh, sigmoid and exp within 4 units in the last place, no
            TF32 or half precision (docs/truth.md); needs float32 weights, and refuses steps of
            forward that have no rounding rule.
        max_bytes: memory aimed at; samples are bounded in chunks that fit, with equal results.
            None takes half of what a GPU has free, or 1 GiB on a CPU.
        probes: points of the ball, or replaced sentences, at which the model itself, its trace,
            every node of its graph and what was proved are compared; 0 compares clean logits only.

    Raises:
        ValueError, TypeError: see ``LpBall``, ``Box``, ``BoundModel.instance``, ``method_named``,
            ``check_target``.
        UnsupportedModelError: the model cannot be bounded, or a probe contradicts the certificate.

    Source:
        Ko et al., "POPQORN", ICML 2019, section 3; Wong and Kolter, ICML 2018, for the folded
        margin.
    """
    check_confirm(confirm)
    check_probes(probes)
    check_replaced(ball)
    layer, method, chunks = bound(model), method_named(method), Chunks(max_bytes)
    with torch.no_grad(), undisturbed(layer.model):
        kept = kept_of(layer, inputs)
        if kept is None:
            return _certified(layer, inputs, target, ball, method, confirm, chunks, probes)
        check_target(target, kept.size, kept.classes)
        if not len(kept.chosen):
            margins = layer.instance(inputs).value.new_full((kept.size, kept.classes), torch.nan)
            numerics = _numerics(margins.dtype, layer)
        else:
            some = kept.inputs, kept.some(target), kept.ball(ball)
            part = _certified(layer, *some, method, confirm, chunks, probes)
            margins, numerics = kept.spread(part.margins), part.numerics
        margin = least(margins)
        return Certificate(margins, margin, proved(margin), numerics, kept.errors)


def _certified(
    layer: BoundModel,
    inputs: Inputs,
    target: Tensor,
    ball: Perturbation | Substitutions,
    method: Method,
    confirm: Confirm,
    chunks: Chunks,
    probes: int,
) -> Certificate:
    """``certify`` for samples all of which can be asked about."""
    instance = layer.instance(inputs)
    if confirm == "deployed":
        instance = as_deployed(layer.instance(inputs, torch.float64), layer)
    elif confirm == "float64" and instance.value.device.type == "cpu":
        # There, float64 alone costs less than float32 and a confirmation.
        instance = layer.instance(inputs, torch.float64)
    instance = fitted(instance, ball)
    check_target(target, len(instance.center), instance.plan.classes)
    target = target.to(instance.center.device)
    instance.placed(ball)
    probe = Probes(layer, instance, target, probes)
    every = torch.arange(len(target), device=target.device)
    margins = chunked_margins(instance, target, ball, method, chunks, every, probe.nodes)
    if confirm == "float64" and instance.value.dtype != torch.float64:
        # Margins that are or may be certified are replaced by float64 ones.
        chosen = proved(least(margins) + _NEAR).nonzero()[:, 0]
        margins = margins.double()
        if len(chosen):
            exact = layer.instance(inputs, torch.float64)
            instance = exact._replace(free=instance.free)
            margins[chosen] = chunked_margins(instance, target, ball, method, chunks, chosen)
    clean = chunks.map(lambda some: clean_margins(instance.pick(some), target[some]), every)
    margins = margins.minimum(clean.to(margins))
    margin = least(margins)
    probe.certificate(ball, Claim(proved(margin), margins))
    numerics = _DEPLOYED if confirm == "deployed" else _numerics(margins.dtype, layer)
    numerics += "" if probes else ", not probed"
    return Certificate(margins, margin, proved(margin), numerics)


def _numerics(dtype: torch.dtype, layer: BoundModel) -> str:
    name, own = (str(kind).removeprefix("torch.") for kind in (dtype, layer.weights_dtype))
    return f"{name} of {own} weights" if own in ("float16", "bfloat16") else name


def check_confirm(confirm: str | None) -> None:
    """Refuse an unknown way of confirming."""
    if confirm not in ("float64", "deployed", None):
        raise ValueError(f"`confirm` must be 'float64', 'deployed' or None, got {confirm!r}.")
