"""Everything that can be bounded: importing this fills the tables of lift.py."""

from popqorn_train import (  # noqa: F401
    elementwise,
    layers,
    maps,
    norms,
    operations,
    padding,
    shapes,
)
