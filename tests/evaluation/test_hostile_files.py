"""Files that are damaged or made to harm: a sentence or success, and nothing that runs."""

import csv
import gc
import gzip
import io
import json
import pickle
import random
import socket
import struct
import zipfile
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from popqorn_train.cli import main
from popqorn_train.cli.files import read_certification
from popqorn_train.evaluation.blocks import Shard
from popqorn_train.evaluation.certification import (
    Certification,
    append_certification,
    read_certifications,
)
from popqorn_train.evaluation.checkpoint import load_weights
from popqorn_train.evaluation.dataset import Source, opened
from popqorn_train.evaluation.fragile import vocabulary
from popqorn_train.evaluation.ledger import Ledger
from popqorn_train.evaluation.parts import finish_part, part_folder, read_parts
from popqorn_train.evaluation.sample_rows import SampleRow, Status
from popqorn_train.evaluation.stored import with_checksum
from popqorn_train.plots.training import draw_training
from popqorn_train.recipes.data.mnist_frames import MNISTFrames
from popqorn_train.recipes.networks import RecurrentNet, load_net
from tests.problems import build

QUICK, ALL = 15, 10_000
ROWS = (
    SampleRow(0, 1, Status.CERTIFIED, 1, 0.25, empirical=float("inf")),
    SampleRow(1, 0, Status.ERROR, error="=1+1"),
)


def of_weights(folder):
    torch.save(build("gru").state_dict(), folder / "file.pt")
    return folder / "file.pt", lambda path: load_weights(build("gru"), path)


def of_recipes(folder):
    net = RecurrentNet(2, 3, 2)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "net_settings": net.settings}, folder / "file.ckpt")
    return folder / "file.ckpt", load_net


def of_arrays(folder):
    x = np.random.default_rng(0).random((4, 3, 2))
    np.savez_compressed(folder / "file.npz", x=x, y=np.arange(4))
    return folder / "file.npz", lambda path: list(opened(Source(str(path))))


def of_monitors(folder):
    written = [Certification(step, step, ROWS, run="a") for step in range(3)]
    for certification in written:
        append_certification(folder / "file.jsonl", certification)

    def read(path):
        steps = [found.step for found in read_certifications(path) if found in written]
        assert steps == sorted({*steps})
        assert len(steps) == len(read_certifications(path))

    return folder / "file.jsonl", read


def of_commands(folder):
    written = Certification(0, 0, ROWS)
    (folder / "file.json").write_text(json.dumps(with_checksum(written.plain())))

    def read(path):
        assert read_certification(path) == written

    return folder / "file.json", read


def of_ledger(name, folder):
    ledger = Ledger(folder, {"p": "2"})
    ledger.add(ROWS)
    ledger.add_frames(0, [0.1, 0.2])
    whole = {file: file.read_bytes() for file in folder.iterdir()}

    def read(path):
        mutated = path.read_bytes()
        for file, content in whole.items():
            file.write_bytes(content)
        path.write_bytes(mutated)
        found = Ledger(folder, {"p": "2"}, resume=True)
        assert found.known.items() <= {0: ROWS[0]}.items()
        assert found.frames in ({}, {0: [0.1, 0.2]})

    return folder / name, read


def of_rows(folder):
    return of_ledger("samples.jsonl", folder)


def of_frames(folder):
    return of_ledger("frames.jsonl", folder)


def of_settings(folder):
    return of_ledger("settings.json", folder)


def of_parts(folder):
    for number in (1, 2):
        shard = Shard(number, 2)
        part = part_folder(folder, shard)
        ledger = Ledger(part, {"shard": str(shard), "own_samples": "ab"})
        ledger.add([replace(row, index=row.index + 2 * number) for row in ROWS])
        finish_part(part, shard, ["certify"], 1.5)
    whole = part / "part.json"
    (folder / "file.json").write_bytes(whole.read_bytes())
    written = read_parts(folder)

    def read(path):
        whole.write_bytes(path.read_bytes())
        assert read_parts(folder) == written

    return folder / "file.json", read


def of_metrics(folder):
    (folder / "file.csv").write_text(
        "epoch,step,certified_training/epsilon,train_loss\n0,1,0.1,\n0,2,,0.5\n1,3,0.2,0.4\n"
    )
    return folder / "file.csv", lambda path: draw_training(path)


def of_words(folder):
    (folder / "file.txt").write_text("cat\ndog\nhörse\n", encoding="utf-8")
    return folder / "file.txt", lambda path: vocabulary(str(path))([0, 2, 9])


def of_images(folder):
    for name, axes in (("images-idx3", (1, 28, 28)), ("labels-idx1", (1,))):
        for part in ("train", "t10k"):
            content = struct.pack(f">4B{len(axes)}I", 0, 0, 8, len(axes), *axes)
            file = folder / f"{part}-{name}-ubyte.gz"
            file.write_bytes(gzip.compress(content + bytes(int(np.prod(axes)))))
    (folder / "file.gz").write_bytes((folder / "train-images-idx3-ubyte.gz").read_bytes())

    def read(path):
        (folder / "train-images-idx3-ubyte.gz").write_bytes(path.read_bytes())
        MNISTFrames(path=folder, validation=0)

    return folder / "file.gz", read


READERS = (
    of_weights, of_recipes, of_arrays, of_monitors, of_commands, of_rows, of_frames, of_settings,
    of_parts, of_metrics, of_words, of_images,
)  # fmt: skip


# Data may warn of what it holds, but no file may stay open; seen when it is collected.
LEFT_OPEN = ("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")


def mutated(content, source):
    """Bytes flipped, cut off, doubled, or replaced by what numbers and brackets are made of."""
    data = bytearray(content)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) or 1)
        kind = source.randrange(5)
        if kind == 0 and data:
            data[at] = source.randrange(256)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = data[at : at + source.randint(1, 64)]
        elif kind == 3:
            data[at : at + source.randint(1, 4)] = source.choice(
                (b"null", b"-1", b"1e999", b"[]", b"{}", b'"', b"NaN", b"\xff\xfe", b"\0" * 8)
            )
        else:
            del data[at : at + source.randint(1, 16)]
    return bytes(data)


def look(reader, folder, count, seed=0):
    """Read mutated files; a sentence or success. How many were refused."""
    path, read = reader(folder)
    read(path)
    content, source = path.read_bytes(), random.Random(seed)
    refused: list[Exception] = []
    for _ in range(count):
        path.write_bytes(mutated(content, source))
        try:
            read(path)
        except (ValueError, OSError) as error:
            refused.append(error)
        finally:
            plt.close("all")
    assert all(str(error) and not isinstance(error, UnicodeError) for error in refused)
    return len(refused)


@pytest.mark.filterwarnings("ignore", *LEFT_OPEN)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_refused_in_a_sentence(reader, tmp_path):
    gc.freeze()  # then only what is made here is searched for files that stayed open
    assert look(reader, tmp_path, QUICK) or reader in (of_words, of_rows, of_frames)
    gc.collect()
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore", *LEFT_OPEN)
@pytest.mark.parametrize("reader", READERS)
def test_ten_thousand_damaged_files_are_refused_in_a_sentence(reader, tmp_path):
    look(reader, tmp_path, ALL, seed=1)
    gc.collect()


class Evil:
    def __reduce__(self):
        return pytest.fail, ("something in a file ran",)


@pytest.mark.parametrize("read", [lambda path: load_weights(build("gru"), path), load_net])
def test_nothing_that_a_checkpoint_holds_runs(read, tmp_path):
    for content in (Evil(), {"state_dict": {"a": Evil()}, "net_settings": Evil()}):
        torch.save(content, tmp_path / "evil.pt")
        with pytest.raises(ValueError, match=r"evil\.pt"):
            read(tmp_path / "evil.pt")
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"evil\.pt"):
            read(tmp_path / "evil.pt")


def test_objects_in_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Evil()], dtype=object), y=np.arange(1))
    with pytest.raises(ValueError, match="cannot be read as arrays"):
        opened(Source(str(tmp_path / "a.npz")))
    np.savez(tmp_path / "b.npz", x=np.array(["text"]), y=np.arange(1))
    with pytest.raises(ValueError, match="must hold arrays of numbers"):
        opened(Source(str(tmp_path / "b.npz")))


def bomb(path, size):
    """An archive whose directory says that a member is so large."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(10**6))
    content = bytearray(held.getvalue())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(content)


def test_what_would_unpack_to_far_more_is_refused_before_it_is_read(tmp_path):
    bomb(tmp_path / "a.npz", 2**31)
    with pytest.raises(ValueError, match=r"would unpack to 2,147,483,648 bytes"):
        opened(Source(str(tmp_path / "a.npz")))
    bomb(tmp_path / "a.pt", 10**6)
    with pytest.raises(ValueError, match=r"would unpack to 1,000,000 bytes"):
        load_weights(build("gru"), tmp_path / "a.pt")


def test_gzip_is_unpacked_no_further_than_images_are_large(tmp_path):
    path, read = of_images(tmp_path)
    path.write_bytes(gzip.compress(bytes(2**27), 1))
    with pytest.raises(ValueError, match="must hold at most"):
        read(path)


def test_a_cell_that_starts_a_formula_is_written_as_text(tmp_path):
    Ledger(tmp_path, {}).add(ROWS)
    with (tmp_path / "samples.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found[1]["error"] == "'=1+1"
    again = Ledger(tmp_path, {}, resume=True)
    assert again.known[0] == ROWS[0]


def test_certify_opens_no_socket_and_writes_no_secret(tmp_path, monkeypatch):
    secret = "0123456789abcdefsecret"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)

    def refused(*args, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    names = ["tests.subjects:net", "--data", "tests.subjects:pair", "--samples", "2"]
    assert main(["certify", *names, "--folder", str(tmp_path), "--method", "ibp"]) == 0
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 3
    for file in files:
        assert secret.encode() not in file.read_bytes()
