"""Which node stands for which torch operation?

Goes in: recorded steps, and the value of everything that does not move. Comes out: the graph of
nodes. One handler per operation or layer; a new one is registered in a table. Must not know: which
method bounds the graph, or what is asked of it.
"""
