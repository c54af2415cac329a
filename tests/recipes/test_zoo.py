"""Networks of the zoo: what their cards say is what they are, and what is proved of them."""

import json

import pytest
import torch

from popqorn_train import LpBall, certified_radius, certify
from popqorn_train.evaluation.provenance import fingerprint
from popqorn_train.recipes import zoo
from popqorn_train.recipes.cli import main
from popqorn_train.recipes.zoo_keep import LARGEST

NAMES = zoo.names()


def asked(card):
    return {"p": card.p, "low": card.low, "high": card.high, "epsilons": card.epsilons}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", NAMES)
def test_ten_samples_have_the_radii_of_the_card(name):
    net, card, (inputs, labels) = zoo.load(name), zoo.card(name), zoo.samples(name)
    radii = certified_radius(net, inputs, labels, method=card.radii_method, **asked(card))
    stored = torch.tensor(card.radii)
    assert torch.allclose(radii.float(), stored, rtol=2e-2, atol=1e-6)
    ball = LpBall(0.9 * stored, card.p, low=card.low, high=card.high)
    proof = certify(net, inputs, labels, ball, method=card.radii_method)
    assert proof.certified[stored > 0].all()


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_of_the_file_beside_it(name):
    card = zoo.card(name)
    assert card.name == name
    assert fingerprint(zoo.load(name)) == card.fingerprint
    assert (zoo.FOLDER / f"{name}.pt").stat().st_size <= LARGEST
    assert len(card.radii) == 10
    assert len(card.certified) == len(card.epsilons)
    assert list(card.certified) == sorted(card.certified, reverse=True)
    assert card.clean >= card.certified[0]
    assert card.trained_epsilon > 0


def test_every_file_has_a_card():
    assert {file.stem for file in zoo.FOLDER.glob("*.pt")} == set(NAMES)
    assert len(NAMES) >= 1


def test_an_unknown_network_is_named_with_the_nearest_one():
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        zoo.load("digit")
    with pytest.raises(ValueError, match=r"Networks: .*digits"):
        zoo.card("nothing of the kind")


def test_other_weights_than_those_of_the_card_are_refused(tmp_path, monkeypatch):
    for end in (".pt", ".json"):
        content = (zoo.FOLDER / f"digits{end}").read_bytes()
        (tmp_path / f"digits{end}").write_bytes(content)
    card = json.loads((tmp_path / "digits.json").read_text())
    (tmp_path / "digits.json").write_text(json.dumps({**card, "fingerprint": "0" * 16}))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="fingerprint"):
        zoo.load("digits")


def test_the_command_certifies_the_ten_samples_at_once(tmp_path, capsys):
    folder = tmp_path / "out"
    command = ["certify", "zoo:digits", "--method=ibp", "--fragile=0", f"--folder={folder}"]
    assert main(command) == 0
    assert "10 samples of zoo:ten_samples.digits" in capsys.readouterr().out
    settings = json.loads((folder / "certification.json").read_text())["settings"]
    assert settings["low"] == 0.0
    assert settings["high"] == 1.0


def test_a_command_keeps_what_it_says_itself():
    card = zoo.card("digits")
    given = ["certify", "zoo:digits", "--low", "-1", "--data=mine:data"]
    found = zoo.with_defaults(given)
    assert found[: len(given)] == given
    assert found[len(given) :] == [f"--high={card.high:g}", f"--epsilons={found[-1][11:]}"]
    assert zoo.with_defaults(["doctor", "zoo:digits"]) == ["doctor", "zoo:digits"]
    boxed = zoo.with_defaults(["certify", "zoo:digits", "--box", "0", "1"])
    assert boxed[5:] == ["--data=zoo:ten_samples.digits"]


def test_a_misspelt_network_of_a_command_is_refused_at_once(capsys):
    assert main(["certify", "zoo:digts"]) == 2
    assert "Did you mean 'digits'?" in capsys.readouterr().err


def test_a_module_of_the_user_comes_first(tmp_path, monkeypatch):
    from popqorn_train.evaluation.resolve import resolved

    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.py").write_text("digits = 3\n")
    assert resolved("zoo:digits", "model") == 3


def test_the_table_names_every_network():
    assert all(name in zoo.table() for name in NAMES)
