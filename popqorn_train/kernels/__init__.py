"""Which loops run compiled, and with what result?

Goes in: plain CPU tensors, float32 or float64: the ends of boxes and octagons, slopes and the sides
of a nonlinearity, a box, a weight, the parts of affine forms. Comes out: planes, lines, strips,
slopes and constants, least values, ranges, bands and sums, as the operations of torch that do the
same give them, with their gradient where training needs it; or None, where torch has to do it. Must
not know: products, nodes, regions; it is told numbers only.

The C++ in ``source`` is compiled at first use by the compiler of the machine (compiler.py) and
loaded by ctypes, which releases the interpreter lock during a call. ``POPQORN_KERNELS=0`` switches
it off.
"""
