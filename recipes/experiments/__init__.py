"""The experiments of the POPQORN paper, and objectives side by side."""
