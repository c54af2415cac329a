"""Spoken digits: the data as they are split, and the experiment from file to numbers."""

import json

import numpy as np
import pytest
import torch

from popqorn_train.recipes.data.sequences import DataNotFoundError
from popqorn_train.recipes.data.spoken_digits import SpokenDigits
from popqorn_train.recipes.experiments import spoken_digits as experiment


@pytest.fixture
def folder(tmp_path):
    """Twelve takes of two digits by two speakers."""
    generator = np.random.default_rng(0)
    takes = [(d, s, t) for d in (3, 7) for s in ("ann", "bob") for t in range(12)]
    lengths = generator.integers(700, 900, len(takes))
    signal = generator.normal(0, 300, lengths.sum()).astype(np.int16)
    label, speaker, take = (np.array(column) for column in zip(*takes, strict=True))
    columns = {"lengths": lengths, "label": label, "speaker": speaker, "take": take}
    np.savez(tmp_path / "spoken_digits.npz", signal=signal, **columns)
    return tmp_path


def test_the_first_takes_are_the_test_set(folder):
    data = SpokenDigits(folder, validation=4)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [24, 4, 20]
    assert all(wave.abs().max() == 1 for wave, _ in data.test)
    (waves, lengths), labels = next(iter(data.test_dataloader()))
    assert waves.shape == (20, lengths.max())
    assert set(labels.tolist()) == {3, 7}


def test_a_speaker_is_left_out_of_training(folder):
    data = SpokenDigits(folder, validation=0, speaker="bob")
    assert [len(part) for part in (data.train, data.test)] == [24, 24]
    with pytest.raises(ValueError, match="`speaker` must be one of ann, bob, got 'eve'"):
        SpokenDigits(folder, speaker="eve")


def test_long_waves_keep_their_middle(folder):
    data = SpokenDigits(folder, validation=0, most=500)
    assert max(len(wave) for wave, _ in data.train) == 500


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"spoken_digits\.npz"):
        SpokenDigits(tmp_path)


def network(folder):
    torch.manual_seed(0)
    front, mel = torch.randn(256, 8) / 256, torch.rand(8, 4)
    net = experiment.SpokenDigitNet(front, mel, hidden=4, features=5)
    weights = {
        f"w.{name}": value.detach().numpy()
        for name, value in net.state_dict().items()
        if name not in ("front", "mel")
    }
    file = folder / "network.npz"
    np.savez(file, mtx1=front.numpy(), mtx2=mel.numpy(), index=np.arange(3), **weights)
    return file


def test_the_experiment_counts_what_is_proved(folder, capsys):
    arguments = ["--network", network(folder), "--data", folder, "--samples", 2]
    arguments += ["--decibels", -140, -10, "--folder", folder / "out", "--method", "crown-ibp"]
    experiment.main([str(argument) for argument in arguments])
    numbers = json.loads((folder / "out" / "spoken_digits.json").read_text())
    assert numbers["samples"] == 2
    net, chosen = experiment.read_network(folder / "network.npz")
    assert chosen == [0, 1, 2]
    waves, labels, *_ = experiment.read_utterances(folder)
    right = sum(int(net(waves[k].double()[None]).argmax()) == labels[k] for k in range(2))
    assert numbers["proved"]["-140"] <= right
    assert numbers["proved"]["-10"] <= numbers["proved"]["-140"]
    assert "-140 dB" in capsys.readouterr().out
