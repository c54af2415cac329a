"""Certificates and searches show themselves, and are what they were after torch.save."""

import copy
import html

import pytest
import torch

from popqorn_train import Bounds, LpBall, certify, logit_bounds, search_radius
from popqorn_train.certificates.search import Start
from tests.problems import build, predicted, sequences

MODEL = build("gru")
X = sequences(5, 4)
Y = predicted(MODEL, X)
X[1, 2, 0] = torch.nan
Y[2] = (Y[2] + 1) % 3
BALL = LpBall(0.01)


def answers():
    certificate = certify(MODEL, X, Y, BALL, method="ibp")
    found = search_radius(MODEL, X, Y, BALL, method="ibp")
    bounds = logit_bounds(MODEL, X[3:], BALL, method="ibp")
    return [certificate, found, found.start, Bounds(*[part.detach() for part in bounds])]


@pytest.mark.parametrize("at", range(4))
def test_what_was_saved_is_read_back_without_trust(tmp_path, at):
    answer = answers()[at]
    torch.save(answer, tmp_path / "answer.pt")
    for again in (torch.load(tmp_path / "answer.pt"), copy.deepcopy(answer)):
        assert type(again) is type(answer)
        for name in answer._fields:
            old, new = getattr(answer, name), getattr(again, name)
            if isinstance(old, torch.Tensor):
                assert torch.equal(old.nan_to_num(-1), new.nan_to_num(-1))
            else:
                assert dict(new) == dict(old) if name == "errors" else new == old


def test_they_show_what_was_found():
    certificate, found, start, _ = answers()
    text = "Certificate(3 of 5 certified, 1 in error, float64)"
    assert repr(certificate) == text
    assert text in certificate._repr_html_()
    assert html.escape(certificate.errors[1]) in certificate._repr_html_()
    assert repr(found).startswith("RadiusSearch(3 of 5 predicted right, median radius of these 0.")
    assert found._repr_html_().count("<tr>") == 6
    assert isinstance(start, Start)


def test_searches_tell_how_far_they_are():
    told = []
    search_radius(MODEL, X, Y, BALL, method="ibp", decided=told.append)
    assert told == sorted(told)
    assert told[0] >= 1  # the wrong prediction
