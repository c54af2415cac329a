"""Lightning callbacks: certified radii while a model trains."""

from popqorn_train.callbacks.epsilon import EpsilonSchedule
from popqorn_train.callbacks.monitor import CertifiedRadiusMonitor
from popqorn_train.callbacks.stopping import CertifiedEarlyStopping
from popqorn_train.callbacks.training_guard import CertifiedTrainingGuard

__all__ = [
    "CertifiedEarlyStopping",
    "CertifiedRadiusMonitor",
    "CertifiedTrainingGuard",
    "EpsilonSchedule",
]
