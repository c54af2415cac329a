"""Certified robustness radii for recurrent classifiers, computed while they train."""

from popqorn_train.bound import BoundModel, bound
from popqorn_train.certificate import Certificate, certify, logit_bounds
from popqorn_train.methods import IBP, CrownIBP, Popqorn
from popqorn_train.perturbation import Bounds, LpBall
from popqorn_train.trace import UnsupportedModelError

__all__ = [
    "IBP",
    "BoundModel",
    "Bounds",
    "Certificate",
    "CrownIBP",
    "LpBall",
    "Popqorn",
    "UnsupportedModelError",
    "bound",
    "certify",
    "logit_bounds",
]
