"""The identity of a margin, in which linear functions take the place of nonlinearities.

B: batch, R: rows, U: units.
"""

import torch
from torch import Tensor

from popqorn_train.bounds.affine import full
from popqorn_train.bounds.backward import Enclosure, sizes_of, visits
from popqorn_train.bounds.joint_rows import F64, flat
from popqorn_train.bounds.node import Logits, Node, Root
from popqorn_train.bounds.roundoff import rounding_error


def linear_part(
    output: Logits, row: Tensor, found: Enclosure
) -> tuple[Tensor, Tensor, dict[Node, Tensor]]:
    """The identity of one row ``(B, C)`` of the output.

    Args:
        output: what is bounded.
        row: weights of its entries.
        found: ranges of all nodes, and the linear function in place of every nonlinearity.

    Returns:
        The constant ``(B,)``, lowered by the rounding of all, slopes ``(B, n)`` on the input, and
        slopes ``(B, U)`` on every node.
    """
    sizes, slopes = sizes_of(output, found), {}
    constant, on_input = row.new_zeros(len(row), 1), row.new_zeros(())
    for node, slope, tape in visits([(output, row[:, None])], len(row)):
        whole = full(slope, node.shape)[:, 0]
        slopes[node] = flat(whole.expand(len(row), *node.shape))
        if not node.moves:
            constant = constant - rounding_error(slope, sizes[node])
        if isinstance(node, Root):
            on_input = slopes[node]
        else:
            left = node.backward(slope, tape, found.relaxations.get(node))
            constant = constant if left is None else constant + left
    constant = constant - torch.finfo(row.dtype).tiny ** 0.5
    return constant[:, 0].to(F64), on_input.to(F64), slopes
