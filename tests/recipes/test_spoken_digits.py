"""Spoken digits: the data as they are split, and the experiment from file to numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from popqorn_train.recipes.data.sequences import DataNotFoundError
from popqorn_train.recipes.data.spoken_digits import SpokenDigits, changed
from popqorn_train.recipes.experiments import speakers
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


def test_utterances_change_in_training_alone(folder):
    data = SpokenDigits(folder, validation=4, batch_size=5, speed=0.2, cut=50, tilt=0.3, colour=1.0)
    known = {tuple(wave.tolist()) for wave, _ in data.train}
    for (waves, lengths), _ in data.train_dataloader():
        assert waves.abs().amax(1).allclose(torch.ones(len(waves)))
        assert not {tuple(w[:n].tolist()) for w, n in zip(waves, lengths, strict=True)} & known
    (waves, lengths), _ = next(iter(data.val_dataloader()))
    assert torch.equal(waves[0, : lengths[0]], data.validation[0][0])


def test_a_change_cuts_the_ends_then_tilts_and_stretches():
    wave = torch.arange(1.0, 601)
    torch.manual_seed(0)
    kept = changed(wave, 50, 0.0, 0.0) * 600
    assert 500 <= len(kept) <= 600
    assert kept.diff().allclose(kept.diff()[:1], rtol=1e-2)  # nothing but the ends is lost
    assert {len(changed(wave, 0, 0.2, 0.0)) for _ in range(20)} <= set(range(480, 721))
    assert torch.equal(changed(wave, 200, 0.0, 0.0), wave / 600)  # too short to be cut
    tilted = changed(wave, 0, 0.0, 0.5)
    assert len(tilted) == 600
    assert not tilted.allclose(wave / 600)


def test_a_spectrum_is_coloured_by_smooth_waves_over_the_mel_scale():
    torch.manual_seed(0)
    wave = torch.zeros(1024)
    wave[512] = 1.0  # all of its spectrum is 1
    gains = []
    for _ in range(200):
        coloured = changed(wave, 0, 0.0, 0.0, 3.0)
        assert coloured.abs().max() == 1
        gain = 20 * torch.fft.rfft(coloured).abs().log10()
        gains.append(gain - gain.mean())  # the peak is taken off
    assert torch.stack(gains).diff(dim=1).abs().max() < 0.5  # from one bin to the next
    ends = torch.stack(gains)[:, [0, -1]].diff()  # of the slope alone: 6 dB for each 3 dB
    assert 5 < ends.std() < 7
    assert torch.equal(changed(wave, 0, 0.0, 0.0, 0.0), wave)


@pytest.mark.parametrize(
    "wrong", [{"cut": -1}, {"speed": 1.0}, {"tilt": -0.1}, {"colour": -1.0}, {"most": 0}]
)
def test_changes_out_of_range_are_refused(folder, wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        SpokenDigits(folder, **wrong)


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
    arguments += [
        "--decibels",
        -140,
        -10,
        "--folder",
        folder / "out",
        "--methods",
        "ibp",
        "crown-ibp",
    ]
    experiment.main([str(argument) for argument in arguments])
    numbers = json.loads((folder / "out" / "spoken_digits.json").read_text())
    assert numbers["samples"] == 2
    net, chosen = experiment.read_network(folder / "network.npz")
    assert chosen == [0, 1, 2]
    waves, labels, *_ = experiment.read_utterances(folder)
    right = sum(int(net(waves[k].double()[None]).argmax()) == labels[k] for k in range(2))
    intervals, both = (numbers["proved"][method] for method in ("ibp", "crown-ibp"))
    assert intervals["-140"] <= both["-140"] <= right
    assert both["-10"] <= both["-140"]
    assert "crown-ibp, -140 dB" in capsys.readouterr().out


def test_what_is_proved_at_a_level_is_not_asked_again_below_it(folder, monkeypatch):
    asked = []

    def certify(net, wave, label, ball, method):
        asked.append((round(ball.epsilon / wave.abs().max().item(), 6), method))
        return SimpleNamespace(certified=asked[-1] == (0.01, "popqorn"))

    monkeypatch.setattr(experiment, "certify", certify)
    config = experiment.Config(
        network(folder), folder, (-60.0, -40.0, -20.0), samples=1, folder=folder / "out"
    )
    numbers = experiment.run(config)
    levels = [0.1, 0.1, 0.01, 0.01]
    assert asked == list(zip(levels, ["popqorn-fast", "popqorn"] * 2, strict=True))
    assert numbers["proved"]["popqorn-fast"] == {"-60": 0, "-40": 0, "-20": 0}
    assert numbers["proved"]["popqorn"] == {"-60": 1, "-40": 1, "-20": 0}


def recipe_of(shares):
    """A stand-in for the recipe, which reaches these shares on each speaker."""

    def recipe(config, arguments):
        given = dict(argument.removeprefix("--").split("=") for argument in arguments)
        share = shares[given["data.speaker"]]
        found = {"clean_accuracy": share, "certified_accuracy": [share / 2, 0.0]}
        found["pgd_accuracy"] = [share, share / 4]
        models = {"certified": {"evaluations": [found], "train_seconds": 10.0}}
        out = Path(given["folder"])
        out.mkdir(parents=True)
        (out / "results.json").write_text(json.dumps({"models": models, "given": given}))

    return recipe


def test_every_speaker_is_left_out_once_and_their_mean_is_taken(folder, monkeypatch, capsys):
    monkeypatch.setattr(speakers, "run_recipe", recipe_of({"ann": 0.8, "bob": 0.6}))
    arguments = ["--data", folder, "--folder", folder / "out", "--", "--trainer.max_epochs=3"]
    speakers.main([str(argument) for argument in arguments])
    numbers = json.loads((folder / "out" / "speakers.json").read_text())
    assert [*numbers["speakers"]] == ["ann", "bob"]
    mean = numbers["mean"]["certified"]
    assert mean["clean"] == pytest.approx(0.7)
    assert mean["certified"] == pytest.approx([0.35, 0.0])
    assert mean["pgd"] == pytest.approx([0.7, 0.175])
    given = json.loads((folder / "out" / "bob" / "results.json").read_text())["given"]
    assert given["trainer.max_epochs"] == "3"
    assert given["evaluation.decibels"] == "[-70.0, -60.0]"
    assert "mean      certified       70.0      35.0       0.0      70.0      17.5" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_speaker_is_left_out_of_the_recipe(folder):
    arguments = ["--data", folder, "--folder", folder / "out", "--attacked", 2]
    arguments += ["--speakers", "bob", "--", "--data.validation=4", "--trainer.max_epochs=1"]
    arguments += ["--model.net.hidden=4", "--standard_epochs=1", "--evaluation.attack_steps=1"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    speakers.main([str(argument) for argument in arguments])
    numbers = json.loads((folder / "out" / "speakers.json").read_text())
    assert [*numbers["speakers"]] == ["bob"]
    assert [*numbers["mean"]] == ["certified", "standard"]
    used = json.loads((folder / "out" / "bob" / "results.json").read_text())["config"]
    assert used["data"]["init_args"]["speaker"] == "bob"
