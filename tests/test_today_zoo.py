"""Today's models of the zoo are certified at radii that an attack comes close to."""

import pytest

from popqorn_train import bound, certified_radius, empirical_radius
from tests.zoo import zoo

ZOO = zoo()
QUICK = ("MinGRU", "Cosine", "LRU", "S4D")
NAMES = (
    "CRNN", "ConvLSTM", "DeepSpeech2", "DeepSpeech1d", "StatisticsPooling", "MeanVarianceNormed",
    "MinLSTMLoop", "QRNN", "ExponentialGate", "LayerNormLSTM", "RMSNormLSTM",
)  # fmt: skip
FACTOR = 10


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "name", [*QUICK, *[pytest.param(name, marks=pytest.mark.slow) for name in NAMES]]
)
def test_radii_are_of_the_size_of_the_attacked_ones(name):
    model, x = ZOO[name]
    case = bound(model).instance(x)
    y = case.logits(case.center).argmax(1)
    radius, attacked = certified_radius(model, x, y), empirical_radius(model, x, y)
    assert (radius > 1e-4).all()
    assert (radius <= attacked).all()
    share = radius / attacked
    print(f"{name}: {radius.tolist()} of {attacked.tolist()}, median share {share.median():.2f}")
    assert share.median() >= 1 / FACTOR
