"""Complete training runs, one file each; run them as ``python -m popqorn_train.recipes.<name>``."""
