"""Complete trainings: ``digits.py`` in one file, all others by a configuration (training.py)."""
