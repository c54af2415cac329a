"""How is a network trained so that bounds prove something?

Goes in: a model in training and a batch. Comes out: certified losses with gradients, their
schedules, initial weights, and signs of a collapse. Must not know: Lightning, loaders, reports.
"""
