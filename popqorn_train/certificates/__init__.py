"""What is proved of one batch?

Goes in: a model, a batch, labels and a perturbation. Comes out: certified margins, radii, budgets
of substitutions, and what attacks find. Must not know: loaders, epochs, losses, files.
"""
