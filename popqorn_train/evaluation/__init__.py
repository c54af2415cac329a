"""What is proved of many samples?

Goes in: loaders, data sets, checkpoints. Comes out: one row per sample with a status, kept on the
disk as it comes, and summaries of the rows. Must not know: losses and how a model was trained.
"""
