"""Lightning callbacks: certified radii while a model trains."""

from popqorn_train.callbacks.epsilon import EpsilonSchedule
from popqorn_train.callbacks.monitor import CertifiedRadiusMonitor

__all__ = ["CertifiedRadiusMonitor", "EpsilonSchedule"]
