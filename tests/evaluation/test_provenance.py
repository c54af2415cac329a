"""Fingerprints: the same for the same weights and samples, another for any other."""

import torch

from popqorn_train.evaluation.provenance import data_fingerprint, fingerprint, versions
from tests.problems import build, sequences


def batches(x, y, size):
    return [((one,), two) for one, two in zip(x.split(size), y.split(size), strict=True)]


def test_a_weight_a_name_or_a_precision_changes_the_fingerprint_and_nothing_else():
    net = build("gru")
    before = fingerprint(net)
    assert fingerprint(build("gru")) == before
    assert len({before, fingerprint(build("lstm")), fingerprint(build("gru", seed=1))}) == 3
    assert fingerprint(build("gru").float()) != before
    with torch.no_grad():
        net.head.bias[0] += 1e-12
    assert fingerprint(net) != before


def test_samples_count_and_not_how_they_come():
    x, y = sequences(7, 4), torch.arange(7) % 3
    found = {data_fingerprint(batches(x, y, size), 7, 0) for size in (1, 3, 7)}
    assert len(found) == 1
    assert data_fingerprint(batches(x, y, 2), 5, 0) == data_fingerprint(
        batches(x[:5], y[:5], 5), 100, 0
    )
    major = [((x.transpose(0, 1),), y)]
    assert data_fingerprint(major, 7, 1) in found
    other = y.clone()
    other[6] = 2 - other[6]
    assert data_fingerprint(batches(x, other, 7), 7, 0) not in found
    assert data_fingerprint(batches(x + 1e-9, y, 7), 7, 0) not in found


def test_versions_name_what_is_not_installed():
    assert versions("torch", "no-such-thing") == {
        "python": versions()["python"],
        "torch": torch.__version__,
        "no-such-thing": "not installed",
    }
