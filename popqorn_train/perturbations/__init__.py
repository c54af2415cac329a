"""What may move, and how far?

Goes in: what a user says of a perturbation (an l_p ball, a range for every coordinate, lists of
synonyms) and a batch of inputs. Comes out: a set around every input that knows the range of each
coordinate and the least value of a linear function. Must not know: networks, graphs, labels.
"""
