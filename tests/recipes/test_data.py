"""Data modules on tiny files of every format, made by the test; the real files where they are."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from popqorn_train.recipes.data.generated import Generated
from popqorn_train.recipes.data.japanese_vowels import JapaneseVowels, changed
from popqorn_train.recipes.data.mnist_frames import MNISTFrames
from popqorn_train.recipes.data.news_titles import NewsTitles
from popqorn_train.recipes.data.sequences import DataNotFoundError, SequenceSet, padded
from popqorn_train.recipes.data.text import Vocabulary
from popqorn_train.recipes.data.trec import TREC
from popqorn_train.recipes.data.vectors import VectorSettings, nearest_neighbour_distance

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {"cut": 1, "warp": 0.4, "offset": 0.1}
SHORT = VectorSettings(dimension=6, identity=0.6, identity_dimension=2, epochs=1, hidden=3)


@pytest.fixture
def real():
    folder = ROOT / os.environ.get("POPQORN_DATA", "../shared/data")
    if not folder.is_dir():
        pytest.skip(f"no data files in {folder}; set POPQORN_DATA to their folder")
    return folder


def digits(count, seed):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, generator.integers(0, 10, count, dtype=np.uint8)


def idx(values):
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


@pytest.fixture(params=["npz", "idx", "idx.gz"])
def mnist(request, tmp_path):
    """A folder with 20 images to train on and 6 to test, in one of the formats."""
    (x, y), (x_test, y_test) = digits(20, 0), digits(6, 1)
    if request.param == "npz":
        parts = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
        np.savez(tmp_path / "mnist.npz", **parts)
        return tmp_path
    files = {"train-images-idx3": x, "train-labels-idx1": y}
    files |= {"t10k-images-idx3": x_test, "t10k-labels-idx1": y_test}
    for name, values in files.items():
        zipped = request.param == "idx.gz"
        content = gzip.compress(idx(values)) if zipped else idx(values)
        (tmp_path / f"{name}-ubyte{'.gz' if zipped else ''}").write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("frames", [4, 7, 14, 28])
def test_images_are_cut_into_frames_of_whole_rows(mnist, frames):
    data = MNISTFrames(frames, mnist, validation=5)
    x, y = data.test.tensors
    images, labels = digits(6, 1)
    assert x.shape == (6, frames, 784 // frames)
    assert data.features == 784 // frames
    assert torch.equal(x.flatten(1), torch.tensor(images).flatten(1) / 255)
    assert y.tolist() == labels.tolist()
    assert (len(data.train), len(data.validation)) == (15, 5)


def test_what_is_held_out_comes_from_training_and_depends_on_the_seed(mnist):
    def rows(part):
        return {tuple(x.flatten().tolist()) for x in part.tensors[0]}

    data = MNISTFrames(4, mnist, validation=5)
    known = torch.tensor(digits(20, 0)[0]).flatten(1) / 255
    assert rows(data.train) | rows(data.validation) == {tuple(row.tolist()) for row in known}
    assert rows(data.train).isdisjoint(rows(data.validation))
    again, other = (MNISTFrames(4, mnist, validation=5, seed=seed) for seed in (0, 1))
    assert rows(again.validation) == rows(data.validation) != rows(other.validation)


def test_a_missing_file_is_said_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("POPQORN_DATA", str(tmp_path))
    for kind in (MNISTFrames, TREC, NewsTitles):
        with pytest.raises(DataNotFoundError, match=r"put .* there, or name its folder") as caught:
            kind()
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataNotFoundError, match=r"JapaneseVowels_TRAIN\.ts"):
        JapaneseVowels(tmp_path)


def test_files_of_another_form_are_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"no digits at all")
    for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match="must be an IDX file"):
        MNISTFrames(4, tmp_path)
    images = idx(np.zeros((3, 28, 28), np.uint8))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images[:-1])
    with pytest.raises(ValueError, match="cut off"):
        MNISTFrames(4, tmp_path)
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros(3))
    with pytest.raises(ValueError, match="lacks"):
        MNISTFrames(4, tmp_path)
    with pytest.raises(ValueError, match="`frames` must be 4, 7, 14 or 28, got 5"):
        MNISTFrames(5, tmp_path)


def utterances(count):
    generator = np.random.default_rng(count)
    lines = ["@problemName JapaneseVowels", "@data"]
    for number in range(count):
        values = generator.normal(3, 2, (12, 7 + number % 4))
        features = [",".join(f"{value:.4f}" for value in row) for row in values]
        lines.append(":".join([*features, str(number % 9 + 1)]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def vowels(tmp_path):
    (tmp_path / "JapaneseVowels_TRAIN.ts").write_text(utterances(18))
    (tmp_path / "JapaneseVowels_TEST.ts").write_text(utterances(9))
    return tmp_path


def test_utterances_keep_their_lengths_and_are_measured_in_deviations_of_training(vowels):
    data = JapaneseVowels(vowels, validation=4)
    assert sorted({len(x) for x in data.test.sequences}) == [7, 8, 9, 10]
    frames = torch.cat(list(data.train.sequences))
    assert frames.shape[1] == data.features == 12
    assert torch.allclose(frames.mean(0), torch.zeros(12), atol=1e-5)
    assert torch.allclose(frames.std(0), torch.ones(12), atol=1e-5)
    (x, lengths), y = next(iter(data.test_dataloader()))
    assert x.shape == (9, 10, 12)
    assert lengths.tolist() == [7, 8, 9, 10, 7, 8, 9, 10, 7]
    assert y.tolist() == list(range(9))
    assert x[0, 7:].abs().max() == 0


def test_utterances_change_in_training_alone(vowels):
    plain, data = (JapaneseVowels(vowels, validation=4, **kw) for kw in ({}, CHANGES))
    for left, right in zip(plain.test_dataloader(), data.test_dataloader(), strict=True):
        torch.testing.assert_close(left, right)
    torch.manual_seed(0)
    (_, lengths), _ = next(iter(data.train_dataloader()))
    assert len(set(lengths.tolist())) > 4  # 7 to 10 frames before


def test_a_change_cuts_the_ends_then_warps_and_shifts():
    x = torch.arange(20.0)[:, None].expand(-1, 12)
    torch.manual_seed(0)
    takes = [changed(x, 2, 0.0, 0.0) for _ in range(40)]
    assert {(int(take[0, 0]), int(take[-1, 0])) for take in takes} == {
        (start, 19 - stop) for start in range(3) for stop in range(3)
    }
    warped = [changed(x, 0, 0.5, 0.0) for _ in range(400)]
    assert {len(take) for take in warped} == set(range(10, 31))
    assert all(take[0, 0] == 0 and take[-1, 0] == 19 for take in warped)
    shifts = torch.stack([changed(x, 0, 0.0, 0.3) - x for _ in range(400)])
    torch.testing.assert_close(shifts, shifts[:, :1].expand_as(shifts))
    assert shifts[:, 0].std().item() == pytest.approx(0.3, rel=0.05)
    assert torch.equal(changed(x, 0, 0.0, 0.0), x)


@pytest.mark.parametrize("wrong", [{"cut": -1}, {"warp": 1.0}, {"offset": -0.1}])
def test_changes_out_of_range_are_refused(vowels, wrong):
    with pytest.raises(ValueError, match="`cut` and `offset` must be at least 0"):
        JapaneseVowels(vowels, validation=4, **wrong)


def test_a_broken_utterance_is_said_with_its_line(vowels):
    (vowels / "JapaneseVowels_TEST.ts").write_text("@data\n1,2:x,4:3\n")
    with pytest.raises(ValueError, match="line 2"):
        JapaneseVowels(vowels)


def test_the_wheel_of_an_extra_holds_the_vowels():
    pytest.importorskip("sktime", reason="needs the extra speech")
    data = JapaneseVowels()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [225, 45, 370]
    lengths = [len(x) for x in data.test.sequences]
    assert (min(lengths), max(lengths)) == (7, 29)


QUESTIONS = (
    "DESC:def What is a café ?",
    "HUM:ind Who wrote Moby Dick ?",
    "NUM:date When was 1984 written ?",
    "LOC:city What city is Rome ?",
)


@pytest.fixture
def trec(tmp_path):
    text = "\n".join(QUESTIONS * 5) + "\n"
    (tmp_path / "trec_train.txt").write_bytes(text.encode("iso-8859-1"))
    (tmp_path / "trec_test.txt").write_bytes("HUM:ind Who is \x85 Ahab ?\n".encode("iso-8859-1"))
    return tmp_path


def test_questions_are_read_in_their_encoding_and_by_their_coarse_class(trec):
    data = TREC(trec, validation=4, vectors=SHORT)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 4, 1]
    assert "café" in data.vocabulary.words
    tokens, label = data.test[0]
    assert data.vocabulary.sentence(tokens)[:2] == ["who", "is"]
    assert data.names[label] == "HUM"
    assert data.words == len(data.vocabulary)


def test_unknown_words_are_told_apart_by_how_they_look():
    vocabulary = Vocabulary([["The", "cat"], ["the", "dog"]], at_least=2)
    tokens = vocabulary.tokens(["THE", "cat", "Paris", "1984", "x2"])
    found = ["the", "<unknown>", "<Unknown>", "<unknown 1>", "<unknown 1>"]
    assert vocabulary.sentence(tokens) == found
    assert len(vocabulary.tokens([])) == 1


def test_words_of_the_held_out_questions_are_no_vocabulary(tmp_path):
    lines = [f"HUM:ind word{number} word{number} ?" for number in range(12)]
    for name in ("trec_train.txt", "trec_test.txt"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    data = TREC(tmp_path, validation=5, vectors=SHORT)
    assert sum(word.startswith("word") for word in data.vocabulary.words) == 7


def test_another_format_of_questions_is_refused(trec):
    (trec / "trec_test.txt").write_text("Who is Ahab ?\n")
    with pytest.raises(ValueError, match="line 1: a line must start with one of ABBR"):
        TREC(trec, validation=4)


def test_vectors_have_norm_1_are_kept_and_follow_the_seed(trec, tmp_path):
    def vectors(seed, file):
        settings = VectorSettings(6, 0.6, 2, epochs=1, hidden=3, seed=seed)
        data = TREC(trec, validation=4, vectors=settings, vectors_file=file)
        state = torch.get_rng_state()
        data.setup("fit")
        assert torch.equal(torch.get_rng_state(), state)
        assert data.nearest_neighbour_distance() > 0
        return data.vectors

    kept = tmp_path / "made" / "vectors.pt"
    first, other = vectors(0, kept), vectors(1, None)
    assert torch.allclose(first.norm(dim=1), torch.ones(len(first)), atol=1e-6)
    assert torch.allclose(first[:, -2:].norm(dim=1), torch.full((len(first),), 0.6))
    assert torch.equal(first, vectors(0, None))
    assert not torch.equal(first, other)
    stored = torch.load(kept, weights_only=True)
    torch.save({**stored, "vectors": first + 1}, kept)  # is read, not learned again
    assert torch.equal(vectors(0, kept), first + 1)
    assert torch.equal(vectors(1, kept), other)  # not those of other settings


def test_the_nearest_neighbour_is_another_word():
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 3.0]])
    assert nearest_neighbour_distance(vectors) == pytest.approx(1.0)


def test_words_are_dropped_in_training_alone(trec):
    data = TREC(trec, validation=4, word_dropout=0.9, vectors=SHORT, batch_size=16)
    (tokens, lengths), _ = next(iter(data.train_dataloader()))
    there = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    assert (tokens[there] == 1).float().mean() > 0.6
    assert (tokens[~there] == 0).all()
    (tokens, _), _ = next(iter(data.val_dataloader()))
    assert (tokens == 1).float().mean() < 0.2


def test_titles_are_read_with_their_quotes_and_none_is_in_two_sets(tmp_path):
    rows = [f'{n},"title {n}, with ""quotes""","what, it says",{n % 7}' for n in range(20)]
    (tmp_path / "tagmynews.csv").write_text("\n".join([*rows, *rows]) + "\n")
    data = NewsTitles(tmp_path, test=5, validation=3, at_least=1, vectors=SHORT)
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [12, 3, 5]
    assert '"quotes"' in " ".join(data.vocabulary.words)
    other = NewsTitles(tmp_path, test=5, validation=3, at_least=1, vectors=SHORT, seed=1)
    assert data.test.labels.tolist() != other.test.labels.tolist()
    (tmp_path / "tagmynews.csv").write_text('0,"a title",1\n')
    with pytest.raises(ValueError, match="row 1"):
        NewsTitles(tmp_path)


def test_generated_curves_lie_in_the_domain_and_follow_the_seed():
    one, same, other = Generated(seed=3), Generated(seed=3), Generated(seed=4)
    assert [len(part) for part in (one.train, one.validation, one.test)] == [128, 64, 128]
    x = torch.cat([part.tensors[0] for part in (one.train, one.validation, one.test)])
    assert x.shape == (320, 5, 3)
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.equal(one.test.tensors[0], same.test.tensors[0])
    assert not torch.equal(one.test.tensors[0], other.test.tensors[0])


def test_padding_stands_behind_each_sequence():
    part = SequenceSet([torch.ones(2, 1), torch.ones(3, 1)], torch.tensor([1, 0]))
    (x, lengths), y = padded([part[0], part[1]])
    assert x[..., 0].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (lengths.tolist(), y.tolist()) == ([2, 3], [1, 0])


def test_the_real_files_can_be_read(real):
    mnist = MNISTFrames(4, real, train_images=1000)
    assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (1000, 5000, 10000)
    trec = TREC(real)
    assert (len(trec.train), len(trec.validation), len(trec.test)) == (4952, 500, 500)
    news = NewsTitles(real)
    assert len(news.train) + len(news.validation) + len(news.test) == 9660
