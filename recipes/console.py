"""What every recipe does before it runs from the command line."""

import logging
import os
import warnings

import torch


def prepare() -> None:
    """Keep Lightning's advertisements off the screen, and a busy machine from thrashing."""
    # Its notes on hardware and its advertisements would bury the progress bar.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        # The tensors are small: a second thread gains little, and on a busy machine its spinning
        # costs up to five times the time.
        torch.set_num_threads(1)
