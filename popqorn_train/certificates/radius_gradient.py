"""The gradient of a certified radius in the weights: that of the implicit function margin(r) = 0.

B: batch.
"""

import torch
from torch import Tensor

from popqorn_train.bounds.memory import Chunks
from popqorn_train.bounds.methods import Method
from popqorn_train.certificates.bound_model import BoundModel
from popqorn_train.certificates.inputs import Inputs
from popqorn_train.certificates.isolation import undisturbed
from popqorn_train.certificates.query import Query, make_query
from popqorn_train.certificates.search import RadiusSearch
from popqorn_train.perturbations.box import Perturbation


def differentiable_radius(
    layer: BoundModel,
    inputs: Inputs,
    target: Tensor,
    against: Tensor | None,
    ball: Perturbation,
    method: Method,
    max_bytes: int | None,
    found: RadiusSearch,
) -> Tensor:
    """Radii that were found, with their gradients."""
    chunks = Chunks(max_bytes)
    with torch.enable_grad(), undisturbed(layer.model):
        query = make_query(
            layer, inputs, target, against=against, ball=ball, method=method, chunks=chunks
        )
        return with_gradient(query, found)


def with_gradient(query: Query, found: RadiusSearch) -> Tensor:
    """The radii, with the gradient of the implicit function margin(radius) = 0."""
    chosen = ((found.radius > 0) & ~found.capped).nonzero()[:, 0]
    radius = found.radius.clone()
    if not len(chosen):
        return radius
    epsilon = radius[chosen].requires_grad_()
    margin = query.margin_with_gradient(chosen, epsilon)
    (slope,) = torch.autograd.grad(margin.sum(), epsilon, retain_graph=True)
    falls = (slope < 0) & slope.isfinite()
    share = torch.where(falls, -1 / slope, torch.zeros_like(slope))
    # Worth 0: it only carries the gradient.
    return radius.index_add(0, chosen, share * (margin - margin.detach()))
