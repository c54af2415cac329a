"""What does a complete training look like, and what does it reach?

Goes in: a configuration and data. Comes out: a certified network beside a standard one, tables,
pictures, results. ``digits.py`` is one file to read; all others run by a configuration
(``training.py``). Must not know: anything private that a user could not call.
"""
