"""Between which linear functions does one nonlinearity lie?

Goes in: an activation or a product of a gated cell, and the interval, box or octagon its arguments
lie in. Comes out: slopes, and intercepts that are exact extrema, so that every slope is sound.
Must not know: nodes, graphs, time.
"""
