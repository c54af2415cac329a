"""Which samples of a batch are bounded by one graph, and which node is which in it.

A graph may hold nodes that count for some samples only (``Select``): frames that a sample does
not have. Whatever looks at a graph's frames from the end would look at those. And frames before
anything moves are bounded in some graphs, in others run as they are. Samples that agree in both
have a graph that is the graph of each of them alone.

B: batch.
"""

import torch
from torch import Tensor

from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.concatenation import Select
from popqorn_train.bounds.node import Logits, Node
from popqorn_train.perturbations.region import Region


def alike(output: Node, samples: Tensor) -> list[Tensor]:
    """Split samples ``(b,)`` of a graph into those that take the same way through it."""
    nodes = ancestors(output)
    masks = {id(node.mask): node.mask[:, None] for node in nodes if isinstance(node, Select)}
    region = output.region
    if isinstance(region, Region):
        masks[id(region)] = region.moved.cumsum(1) > 0
    if not masks:
        return [samples]
    ways = torch.cat([mask[samples] for mask in masks.values()], 1)
    _, way = torch.unique(ways, dim=0, return_inverse=True)
    return [samples[way == number] for number in range(int(way.max()) + 1)]


def twins(output: Logits, picked: Logits) -> dict[Node, Node]:
    """From every node of a graph to the same node of its ``pick``."""
    pairs = dict(zip(ancestors(output), ancestors(picked), strict=True))
    if any(type(one) is not type(two) or one.shape != two.shape for one, two in pairs.items()):
        raise RuntimeError("the graph of some samples has other nodes than that of all of them")
    return pairs
