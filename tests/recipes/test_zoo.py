"""Networks of the zoo: what their cards say is what they are, and what is proved of them."""

import json

import pytest
import torch
import yaml

from popqorn_train import LpBall, certified_radius, certify
from popqorn_train.evaluation.provenance import fingerprint
from popqorn_train.recipes import zoo, zoo_keep
from popqorn_train.recipes.cli import main
from popqorn_train.recipes.configurations import configs
from popqorn_train.recipes.data.sequences import padded
from popqorn_train.recipes.networks import RecurrentNet, SpeechNet
from popqorn_train.recipes.zoo_keep import LARGEST, keep

NAMES = zoo.names()
LONG = ("spoken_digits",)  # ten utterances take a minute


def asked(card):
    return {"p": card.p, "low": card.low, "high": card.high, "epsilons": card.epsilons}


@pytest.mark.one_in(12)
@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one in LONG)) for one in NAMES]
)
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
    epsilons = "--epsilons=" + ",".join(f"{epsilon:g}" for epsilon in card.epsilons)
    given = ["certify", "zoo:digits", "--low", "-1", "--data=mine:data"]
    mine = [f"--high={card.high:g}", "--method=popqorn-fast", epsilons]
    assert zoo.with_defaults(given) == ["certify", *mine, *given[1:]]
    mine.remove("--method=popqorn-fast")
    assert zoo.with_defaults([*given, "--method", "ibp"])[: len(mine) + 1] == ["certify", *mine]
    assert zoo.with_defaults([*given, "--meth", "ibp"])[-2:] == ["--meth", "ibp"]
    assert zoo.with_defaults(["doctor", "zoo:digits"]) == ["doctor", "zoo:digits"]
    boxed = zoo.with_defaults(["certify", "zoo:digits", "--box", "0", "1"])
    mine = ["--data=zoo:ten_samples.digits", "--method=popqorn-fast"]
    assert boxed == ["certify", *mine, "zoo:digits", "--box", "0", "1"]


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


@pytest.fixture
def run(tmp_path, monkeypatch):
    """What the recipe of generated sequences leaves, with a network that is not trained."""
    folder = tmp_path / "run" / "generated"
    (folder / "checkpoints").mkdir(parents=True)
    net = RecurrentNet(3, 4, 3)
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    checkpoint = {"net_settings": net.settings, "state_dict": weights}
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    config = yaml.safe_load(configs()["generated"].read_text())
    config["data"]["class_path"] = "popqorn_train.recipes.data.generated.Generated"
    config["model"]["learning_rate"] = 0.125
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    results = {"seed": 0, "versions": {}, "models": {"certified": {"train_seconds": 1.0}}}
    (folder / "results.json").write_text(json.dumps(results))
    for module in (zoo, zoo_keep):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "zoo")
    return folder, net


def test_a_run_is_kept_with_what_it_was_trained_with(run):
    folder, net = run
    assert keep(folder).stat().st_size < LARGEST
    kept, card = zoo.load("generated"), zoo.card("generated")
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), net.parameters(), strict=True))
    assert card.recipe == "popqorn-train fit --config generated --model.learning_rate=0.125"
    inputs, labels = zoo.samples("generated")
    assert len(labels) == len(card.radii) == 10
    right = net(inputs).argmax(1) == labels
    assert [radius > 0 for radius in card.radii] == right.tolist()


def test_a_network_that_is_too_large_is_refused_with_a_way_out(run, monkeypatch):
    folder, _ = run
    monkeypatch.setattr(zoo_keep, "LARGEST", 100)
    with pytest.raises(ValueError, match=r"the zoo keeps up to 100\. Train a smaller .* --round"):
        keep(folder)
    assert not zoo_keep.FOLDER.joinpath("generated.pt").exists()


class Sentences:
    """Twelve sentences of two to thirteen words, as a data module hands them out."""

    def test_dataloader(self):
        rows = [(torch.ones(n, dtype=torch.long), torch.tensor(0)) for n in range(2, 14)]
        return [padded(rows)]


@pytest.mark.parametrize("rounded", [False, True])
def test_word_vectors_are_rounded_only_where_asked_and_then_in_the_network_too(rounded):
    net = RecurrentNet(3, 4, 2, words=5)
    before = net.embedding.weight.clone()
    stored = zoo_keep._stored(net, Sentences(), rounded)
    assert torch.equal(stored["state_dict"]["embedding.weight"].float(), net.embedding.weight)
    assert torch.equal(net.embedding.weight, before) != rounded
    words, lengths = stored["inputs"]
    assert words.shape == (10, 11)  # not padded to the thirteen words of the last one
    assert lengths.tolist() == list(range(2, 12))


def test_a_network_of_waves_is_built_again_from_its_settings():
    net = SpeechNet(1, 4, 2, filters=6)
    again = zoo.made(net.settings)
    again.load_state_dict(net.state_dict())
    assert fingerprint(again) == fingerprint(net)
