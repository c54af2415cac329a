"""Lightning callbacks: certified radii while a model trains."""

from popqorn_train.callbacks.epsilon import EpsilonSchedule
from popqorn_train.callbacks.monitor import CertifiedRadiusMonitor
from popqorn_train.callbacks.stopping import CertifiedEarlyStopping

__all__ = ["CertifiedEarlyStopping", "CertifiedRadiusMonitor", "EpsilonSchedule"]
