"""How is a graph of nodes bounded?

Goes in: nodes over a perturbed root, and rows of linear combinations of its output. Comes out:
ranges of every node, relaxations of the nonlinear ones, and a lower bound of every row, by
intervals, by back-substitution, or by a proof by contradiction. Must not know: torch modules,
labels, epochs. ``node``, ``tape``, ``slices`` and ``relaxer`` name each other's types (a node adds
slopes to the tape, the tape puts slices of nodes together, a relaxer encloses nodes); only ``node``
is imported by the others when they run, so there is no circle of imports.
"""
