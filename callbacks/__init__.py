"""How are radii watched, and bounds trained, inside a Lightning training?

Goes in: a Trainer's hooks, its loaders and loggers. Comes out: logged radii, curves, a file of
certifications, ramped objectives, rescued and stopped trainings. Must not know: how anything is
bounded; everything that works without Lightning is in the layers below.
"""

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
