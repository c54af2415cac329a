"""Certified robustness radii for recurrent classifiers, computed while they train."""

from importlib.metadata import PackageNotFoundError, version

from popqorn_train.bounds.methods import IBP, CrownIBP, FastPopqorn, Popqorn
from popqorn_train.certificates.bound_model import BoundModel, bound
from popqorn_train.certificates.budget import certified_budget
from popqorn_train.certificates.certificate import Certificate, certify, logit_bounds
from popqorn_train.certificates.empirical import empirical_radius
from popqorn_train.certificates.frames import frame_radii
from popqorn_train.certificates.radius import certified_radius, search_radius
from popqorn_train.certificates.search import RadiusSearch, Start
from popqorn_train.errors import UnsupportedModelError
from popqorn_train.evaluation.loader import certify_loader
from popqorn_train.evaluation.ray_dataset import rows_on_ray
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from popqorn_train.perturbations.box import Box
from popqorn_train.perturbations.lp_ball import LpBall
from popqorn_train.perturbations.peak_box import PeakBox
from popqorn_train.perturbations.region import Bounds
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.training.initialisation import certifiable_init_
from popqorn_train.training.loss import CertifiedLoss
from popqorn_train.training.objective import Objective

__all__ = [
    "IBP",
    "BoundModel",
    "Bounds",
    "Box",
    "Certificate",
    "CertifiedLoss",
    "CrownIBP",
    "FastPopqorn",
    "LpBall",
    "Objective",
    "PeakBox",
    "Popqorn",
    "RadiusSearch",
    "SampleRow",
    "Start",
    "Status",
    "Substitutions",
    "UnsupportedModelError",
    "bound",
    "certifiable_init_",
    "certified_budget",
    "certified_radius",
    "certify",
    "certify_loader",
    "empirical_radius",
    "frame_radii",
    "logit_bounds",
    "rows_on_ray",
    "search_radius",
]

try:
    __version__ = version("popqorn-train")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"


def __dir__() -> list[str]:
    """The public names; packages below are rooms of the code, not part of the interface."""
    return [*__all__, "__all__", "__doc__", "__version__"]
