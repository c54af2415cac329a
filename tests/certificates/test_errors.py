"""Every bad input is refused in one sentence that names the argument and the way out."""

import math

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from popqorn_train import (
    CertifiedLoss,
    LpBall,
    UnsupportedModelError,
    bound,
    certified_radius,
    certify,
    logit_bounds,
)
from popqorn_train.certificates.pgd import attack
from popqorn_train.training.schedule import LinearRamp
from tests.problems import Classifier, build, sequences

BALLS = {
    "negative epsilon": ({"epsilon": -0.1}, "`epsilon`.*-0.1"),
    "NaN epsilon": ({"epsilon": math.nan}, "`epsilon`.*nan"),
    "infinite epsilon": ({"epsilon": math.inf}, "`epsilon`.*inf"),
    "one negative epsilon": ({"epsilon": torch.tensor([0.1, -1.0])}, "`epsilon`"),
    "epsilon of three axes": ({"epsilon": torch.ones(1, 1, 1)}, r"`epsilon`.*\(1, 1, 1\)"),
    "p below 1": ({"epsilon": 0.1, "p": 0.5}, "`p`.*0.5"),
    "NaN p": ({"epsilon": 0.1, "p": math.nan}, "`p`.*nan"),
    "unknown scope": ({"epsilon": 0.1, "scope": "word"}, "`scope`.*'word'"),
    "a mask of numbers": ({"epsilon": 0.1, "frames": torch.ones(3)}, "`frames`.*float32"),
    "a mask of one sample": (
        {"epsilon": 0.1, "frames": torch.ones(1, 1, 1, dtype=torch.bool)},
        r"`frames`.*\(1, 1, 1\)",
    ),
    "a mask that moves nothing": (
        {"epsilon": 0.1, "frames": torch.tensor([[True, False], [False, False]])},
        "`frames` marks nothing",
    ),
    "low above high": ({"epsilon": 0.1, "low": 1.0, "high": 0.0}, "`low`.*`high`"),
    "NaN low": ({"epsilon": 0.1, "low": math.nan, "high": 0.0}, "`low`"),
    "frame epsilons of a sequence": (
        {"epsilon": torch.ones(2, 3), "scope": "sequence"},
        "`epsilon`.*scope='frame'",
    ),
}


@pytest.mark.parametrize(("options", "message"), BALLS.values(), ids=BALLS)
def test_a_ball_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        LpBall(**options)


MISFITS = {
    "epsilon of another batch": (LpBall(torch.ones(5)), r"`epsilon`.*\(2,\).*\(5,\)"),
    "epsilon of other frames": (LpBall(torch.ones(2, 7)), r"`epsilon`.*\(2, 3\).*\(2, 7\)"),
    "a mask of other frames": (
        LpBall(0.1, frames=torch.ones(7, dtype=torch.bool)),
        r"`frames`.*\(3,\).*\(7,\)",
    ),
    "an input below low": (LpBall(0.1, low=5.0), "`inputs`.*low=5.*`low`"),
    "an input above high": (LpBall(0.1, high=-5.0), "`inputs`.*high=-5.*`high`"),
}


@pytest.mark.parametrize(("ball", "message"), MISFITS.values(), ids=MISFITS)
def test_a_ball_that_does_not_fit_the_input_is_refused(ball, message):
    model, x = build("gru"), sequences(2, 3)
    with pytest.raises(ValueError, match=message):
        logit_bounds(model, x, ball)


TARGETS = {
    "label too large": (torch.tensor([0, 3]), ValueError, r"`target`.*0\.\.2.*3"),
    "negative label": (torch.tensor([-1, 0]), ValueError, r"`target`.*-1"),
    "a label too many": (torch.tensor([0, 1, 2]), ValueError, r"`target`.*\(2,\).*\(3,\)"),
    "one-hot labels": (torch.eye(3)[:2].long(), ValueError, r"`target`.*\(2, 3\)"),
    "labels as floats": (torch.tensor([0.0, 1.0]), TypeError, "`target`.*float32"),
    "labels as a list": ([0, 1], TypeError, "`target`.*list"),
}


CALLS = {
    "certify": lambda *problem: certify(*problem, LpBall(0.1)),
    "certified_radius": certified_radius,
    "attack": lambda *problem: attack(*problem, LpBall(0.1)),
    "loss": CertifiedLoss(0.1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("target", "error", "message"), TARGETS.values(), ids=TARGETS)
def test_a_bad_label_is_refused(call, target, error, message):
    with pytest.raises(error, match=message):
        call(build("gru"), sequences(2, 3), target)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_every_term_of_the_loss_refuses_a_bad_label(kappa, alpha):
    loss = CertifiedLoss(0.1, kappa=kappa, alpha=alpha)
    with pytest.raises(ValueError, match="`target`"):
        loss(build("gru"), sequences(2, 3), torch.tensor([0, 3]))


x = sequences(2, 3)
INPUTS = {
    "an empty batch": (x[:0], ValueError, r"`inputs`.*\(0, 3, 3\)"),
    "no frames": (x[:, :0], ValueError, r"`inputs`.*\(2, 0, 3\)"),
    "no features": (x[:, :, :0], ValueError, r"`inputs`.*\(2, 3, 0\)"),
    "a number": (torch.tensor(1.0), ValueError, r"`inputs`.*\(\)"),
    "a missing axis": (x[0], ValueError, r"`inputs`.*\(3, 3\)"),
    "an axis too many": (x[None], ValueError, r"`inputs`.*\(1, 2, 3, 3\)"),
    "other features": (x.repeat(1, 1, 2), ValueError, r"`inputs`.*\(2, 3, 6\)"),
    "another precision": (x.float(), TypeError, "`inputs`.*float64.*float32"),
    "half precision": (x.half(), TypeError, "`inputs`.*float64.*float16"),
    "integers": (x.long(), (TypeError, ValueError), "`inputs`"),
    "a list": (x.tolist(), TypeError, "`inputs`.*list"),
    "nothing": ((), TypeError, "`inputs`"),
    "a packed sequence": (
        pack_sequence([x[0], x[1]]),
        ValueError,
        r"`inputs` must be what .*lengths \(2,\), which it refuses",
    ),
    "too many": ((x, x), (TypeError, ValueError), "`inputs`"),
}


@pytest.mark.parametrize(("inputs", "error", "message"), INPUTS.values(), ids=INPUTS)
def test_a_bad_input_is_refused(inputs, error, message):
    with pytest.raises(error, match=message) as caught:
        certify(build("gru"), inputs, torch.tensor([0, 1]), LpBall(0.1))
    assert not isinstance(caught.value, UnsupportedModelError)


class Pair(Classifier):
    def forward(self, x):
        return super().forward(x), x


class Tagger(Classifier):
    def forward(self, x):
        return self.head(self.rnn(x)[0])


MODELS = {
    "a tuple": (Pair("gru"), r"Pair returns a tuple of 2.*\(B, C\)"),
    "one row per frame": (Tagger("gru"), r"Tagger returns.*3, 3\).*\(B, C\)"),
}


@pytest.mark.parametrize(("model", "message"), MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_be_bounded_is_refused(model, message):
    with pytest.raises(UnsupportedModelError, match=message):
        certify(model, sequences(2, 3).float(), torch.tensor([0, 0]), LpBall(0.1))


def test_labels_for_a_single_logit_are_0_and_1():
    model, inputs = Classifier("gru", classes=1), sequences(2, 3).float()
    proof = certify(model, inputs, (model(inputs)[:, 0] > 0).long(), LpBall(0.0))
    assert proof.certified.all()
    with pytest.raises(ValueError, match=r"`target`.*0\.\.1 for 2 logits.*2"):
        certify(model, inputs, torch.tensor([0, 2]), LpBall(0.0))


SETTINGS = {
    "method": ({"method": "alpha-crown"}, ValueError, "`method`.*'popqorn'.*'alpha-crown'"),
    "method of a wrong kind": ({"method": 3}, TypeError, "`method`.*int"),
    "confirm": ({"confirm": "float16"}, ValueError, "`confirm`.*'float16'"),
}


@pytest.mark.parametrize("call", [certify, certified_radius])
@pytest.mark.parametrize(("options", "error", "message"), SETTINGS.values(), ids=SETTINGS)
def test_an_unknown_setting_is_refused(call, options, error, message):
    arguments = (build("gru"), sequences(2, 3), torch.tensor([0, 1]))
    with pytest.raises(error, match=message):
        call(*arguments, *([LpBall(0.1)] if call is certify else []), **options)


RADII = {
    "rtol of 0": ({"rtol": 0.0}, "`rtol`.*0"),
    "NaN rtol": ({"rtol": math.nan}, "`rtol`.*nan"),
    "no room": ({"max_radius": 0.0}, "`max_radius`.*0"),
    "NaN max_radius": ({"max_radius": math.nan}, "`max_radius`.*nan"),
    "against the label": ({"against": torch.tensor([0, 0])}, "`against`.*`target`"),
    "against nobody": ({"against": torch.tensor([1, 7])}, "`against`"),
    "start of another batch": ({"start": torch.ones(5)}, r"`start`.*\(2,\).*\(5,\)"),
}


@pytest.mark.parametrize(("options", "message"), RADII.values(), ids=RADII)
def test_a_radius_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        certified_radius(build("gru"), sequences(2, 3), torch.tensor([0, 1]), **options)


LOSSES = {
    "kappa": ({"kappa": 1.5}, "`kappa`.*1.5"),
    "alpha": ({"alpha": -0.5}, "`alpha`.*-0.5"),
    "NaN kappa": ({"kappa": math.nan}, "`kappa`.*nan"),
    "attack_steps": ({"attack_steps": 0}, "`attack_steps`.*0"),
    "method": ({"method": "ipb"}, "`method`.*'ipb'"),
    "p": ({"p": 0.1}, "`p`.*0.1"),
}


@pytest.mark.parametrize(("options", "message"), LOSSES.values(), ids=LOSSES)
def test_a_loss_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        CertifiedLoss(0.1, **options)


def test_an_unknown_tensor_to_move_is_refused_with_those_there_are():
    with pytest.raises(UnsupportedModelError, match=r"`perturb`.*'nothing'.*\bx\b"):
        logit_bounds(bound(build("gru"), perturb="nothing"), sequences(2, 3), LpBall(0.1))


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": 0}])
def test_an_attack_without_steps_is_refused(options):
    with pytest.raises(ValueError, match=r"`steps` and `restarts`.*0"):
        attack(build("gru"), sequences(2, 3), torch.tensor([0, 1]), LpBall(0.1), **options)


def test_a_ramp_longer_than_training_is_refused():
    with pytest.raises(ValueError, match=r"`warmup` and `ramp`.*0\.7 and 0\.7"):
        LinearRamp(0.0, 1.0, warmup=0.7, ramp=0.7)
