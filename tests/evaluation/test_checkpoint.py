"""Weights from a file: the right ones, and nothing that runs."""

import pytest
import pytorch_lightning as pl
import torch

from popqorn_train.evaluation.checkpoint import load_weights
from popqorn_train.evaluation.provenance import fingerprint
from tests.fitting import Classifier, fit
from tests.problems import build


class Wrapped(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net


def test_a_state_dict_and_a_lightning_checkpoint_with_a_prefix_give_the_same_weights(tmp_path):
    net, other = build("lstm", seed=1), build("lstm")
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    load_weights(other, tmp_path / "plain.pt")
    assert fingerprint(other) == fingerprint(net)
    torch.save({"state_dict": Wrapped(net).state_dict(), "epoch": 3}, tmp_path / "net.ckpt")
    other = build("lstm")
    load_weights(other, tmp_path / "net.ckpt", "net.")
    assert fingerprint(other) == fingerprint(net)


def test_what_a_trainer_saves_is_read(tmp_path):
    trainer, module = fit(epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fresh = Classifier()
    load_weights(fresh, tmp_path / "last.ckpt")
    assert fingerprint(fresh) == fingerprint(module)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def save(content):
    def write(path):
        torch.save(content() if callable(content) else content, path)

    return write


MISFITS = {
    "runs code": (save(lambda: {"a": Evil()}), "", "weights alone"),
    "no archive": (lambda path: path.write_bytes(b"text"), "", "weights alone"),
    "empty file": (lambda path: path.write_bytes(b""), "", "weights alone"),
    "a list": (save([1, 2]), "", "must hold a state dict"),
    "numbers": (save({"a": 1}), "", "must hold a state dict"),
    "prefix missing": (
        save(lambda: Wrapped(build("gru")).state_dict()),
        "",
        "--prefix net. would fit",
    ),
    "prefix wrong": (save(lambda: build("gru").state_dict()), "net.", "no name in .* begins with"),
    "another model": (save(lambda: torch.nn.Linear(2, 3).state_dict()), "", "it lacks head.bias"),
    "another size": (
        save(lambda: build("gru", hidden=7).state_dict()),
        "",
        "does not fit the model: size mismatch",
    ),
}


@pytest.mark.parametrize(("write", "prefix", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, capsys, write, prefix, message):
    write(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(build("gru"), tmp_path / "a.pt", prefix)
    assert "\n" not in str(caught.value)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_of_a_training_loop_is_read(tmp_path, key):
    source, model = build("gru"), build("gru", seed=1)
    torch.save({key: source.state_dict(), "epoch": 3}, tmp_path / "a.pt")
    load_weights(model, tmp_path / "a.pt")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())


def test_a_pickled_module_is_not_run_and_the_right_line_is_named(tmp_path):
    torch.save(torch.nn.GRU(2, 3), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"weights_only=False\).state_dict\(\), 'weights.pt'"):
        load_weights(build("gru"), tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="`--checkpoint` must be a file"):
        load_weights(build("gru"), tmp_path / "none.pt")
