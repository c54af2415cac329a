"""Batches that are dicts are told by their keys."""

from collections import UserDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from popqorn_train import certify_loader
from popqorn_train.evaluation.batches import unpack_pair, unpacked

X, Y = torch.rand(4, 3, 2), torch.tensor([0, 1, 1, 0])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(2, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize(
    "batch",
    [
        {"x": X, "y": Y},
        {"label": Y, "image": X},
        {"input_ids": X, "labels": Y},
        UserDict({"Target": Y, "sequence": X}),
    ],
)
def test_two_entries_of_which_one_is_named_as_labels(batch):
    inputs, target = unpacked(unpack_pair, batch)
    assert inputs is X
    assert target is Y


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        (
            {"input_ids": X, "attention_mask": X, "labels": Y},
            r"lambda batch: \(\(batch\['input_ids'\], batch\['attention_mask'\]\), "
            r"batch\['labels'\]\)",
        ),
        ({"rows": X, "digit": Y}, r"lambda batch: \(batch\['rows'\], batch\['digit'\]\)"),
        ({"x": X, "name": "a", "y": Y}, r"lambda batch: \(batch\['x'\], batch\['y'\]\)"),
        ({"y": Y, "label": Y}, r"lambda batch: \(batch\['label'\], batch\['y'\]\)"),
        ({"x": X, "y": [0, 1]}, r"lambda batch: \(batch\['x'\], batch\['y'\]\)"),
    ],
)
def test_other_dicts_are_refused_with_the_line_that_reads_them(batch, line):
    keys = ", ".join(map(repr, batch))
    with pytest.raises(TypeError, match=f"got a dict with the keys {keys}; .*unpack={line}"):
        unpacked(unpack_pair, batch)


def test_the_line_for_a_longer_tuple_is_written_out():
    line = r"unpack=lambda batch: \(\(batch\[0\], batch\[1\]\), batch\[2\]\)"
    with pytest.raises(TypeError, match=f"got a tuple of 3; .*{line}"):
        unpacked(unpack_pair, (X, X, Y))


def test_the_line_of_the_refusal_reads_the_batch():
    batch = {"rows": X, "digit": Y}
    with pytest.raises(TypeError) as refused:
        unpacked(unpack_pair, batch)
    line = str(refused.value).partition("unpack=")[2].removesuffix(".")
    assert unpacked(eval(line), batch) == (X, Y)


def test_a_loader_of_dicts_is_certified():
    data = [{"x": x, "label": y} for x, y in zip(X, Y, strict=True)]
    rows = certify_loader(Net(), DataLoader(data, 2), method="ibp", progress=False)
    assert [row.label for row in rows] == Y.tolist()
    assert all(row.answered for row in rows)
