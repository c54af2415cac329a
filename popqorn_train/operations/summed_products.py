"""Sums of products entry by entry, which are means where one factor is a softmax."""

from collections.abc import Sequence

from popqorn_train.bounds.bilinear import Bilinear
from popqorn_train.bounds.node import Node
from popqorn_train.operations.axis_labels import AXES, Labelled
from popqorn_train.operations.lift import Lifter
from popqorn_train.operations.matrix_products import mean_of
from popqorn_train.operations.shapes import affine_of
from popqorn_train.operations.softmax_moves import places_behind, softmax_behind
from popqorn_train.tracing.steps import Step


def summed_product(lifter: Lifter, step: Step, x: Node, dims: Sequence[int]) -> Node | None:
    """The sum over axes of a product of shares and values entry by entry, as one mean.

    Args:
        lifter: makes the graph.
        step: that sums.
        x: what is summed.
        dims: axes of the user's layout.

    Returns:
        None where ``x`` is no product, or none with a softmax over these axes.
    """
    if not isinstance(x, Bilinear):
        return None
    labels = AXES[: len(x.shape) + 1]
    out = "".join(label for at, label in enumerate(labels) if at not in dims)
    for weights, values in (x.inputs, x.inputs[::-1]):
        behind = softmax_behind(weights)
        if behind is not None:
            one = _without_copies(lifter, step, Labelled(weights, labels), behind, dims)
            factors = (one, Labelled(values, labels))
            found = mean_of(lifter, step, factors, labels[x.batch_axis], out)
            if found is not None:
                return found
    return None


def _without_copies(
    lifter: Lifter, step: Step, part: Labelled, behind: Node, dims: Sequence[int]
) -> Labelled:
    """One of all copies along the axes, but for those summed over, on which shares are repeated."""
    node = part.value

    def copied() -> list[int]:
        places = places_behind(lifter, node, behind)
        if places is None:
            return []
        axes = [at for at in range(len(part.labels)) if at not in (*dims, node.batch_axis)]
        places = places.unsqueeze(node.batch_axis)
        return [at for at in axes if (places == places.narrow(at, 0, 1)).all()]

    gone = lifter.choose(step, f"copies of {part.labels}", copied)
    if not gone:
        return part
    left = "".join(label for at, label in enumerate(part.labels) if at not in gone)
    index = tuple(0 if at in gone else slice(None) for at in range(len(part.labels)))
    own = [at - (at > node.batch_axis) for at in gone]
    shape = tuple(size for at, size in enumerate(node.shape) if at not in own)
    axis = node.batch_axis - sum(at < node.batch_axis for at in gone)
    return Labelled(affine_of(lambda x: x[index], (node,), {}, shape=shape, axis=axis), left)
