"""The data that a command names: the same samples, whatever gives them."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from popqorn_train.evaluation.dataset import Source, opened
from tests import subjects


def whole(loader):
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(list(inputs)), torch.cat(list(targets))


@pytest.mark.parametrize("name", ["pair", "loader", "generator", "dataset", "Module"])
def test_every_way_to_name_data_gives_the_same_samples_again_and_again(name):
    found = opened(Source(f"tests.subjects:{name}", batch_size=5))
    x, y = subjects.pair()
    for _ in range(2):
        inputs, target = whole(found)
        torch.testing.assert_close(inputs, x)
        assert target.equal(y)


class Fresh(IterableDataset):
    """Gives other samples whenever it is read, without end."""

    def __iter__(self):
        while True:
            yield torch.randn(4, 3), 0


def endless():
    return DataLoader(Fresh(), 5)


def by_workers():
    return DataLoader(Fresh(), 5, num_workers=2)


def test_as_much_of_a_stream_is_kept_as_will_be_asked_about():
    for name in (f"{__name__}:endless", f"{__name__}:Fresh"):
        found = opened(Source(name, batch_size=5, samples=7))
        (first, target), (again, _) = whole(found), whole(found)
        assert len(target) == 10
        assert first.equal(again)
    with pytest.raises(ValueError, match=r"`--data` .* reads an IterableDataset with several"):
        opened(Source(f"{__name__}:by_workers", samples=7))


def test_arrays_of_a_file_become_floats_only_where_they_are_divided(tmp_path):
    path = str(tmp_path / "a.npz")
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(path, pixels=images, lengths=np.array([3, 2]), labels=np.array([1, 0], np.uint8))
    [(x, y)] = opened(Source(path, ("pixels",), "labels", divide=23.0))
    assert x.dtype == torch.float32
    assert x.max() == 1
    assert y.tolist() == [1, 0]
    [(inputs, _)] = opened(Source(path, ("pixels", "lengths"), "labels"))
    assert [value.dtype for value in inputs] == [torch.int64] * 2
    [(inputs, _)] = opened(Source(path, ("pixels", "lengths"), "labels", divide=2.0))
    assert inputs[1].tolist() == [3, 2]  # lengths are no inputs to divide


def test_floats_of_a_file_have_the_precision_of_the_weights(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, x=np.zeros((2, 3, 4)), y=np.zeros(2, np.int32))
    for dtype in (torch.float32, torch.float64):
        [(x, y)] = opened(Source(path, dtype=dtype))
        assert (x.dtype, y.dtype) == (dtype, torch.int64)


REFUSED = {
    "failed": ("tests.subjects:broken", r"`--data` tests.subjects:broken\(\) failed: KeyError"),
    "nothing": ("tests.subjects:number", "must give a loader or"),
    "no name": ("tests.subjects:none", "`--data` must be module:Name"),
    "no module": ("tests.nowhere:data", "`--data` must be module:Name"),
}


@pytest.mark.parametrize(("name", "message"), REFUSED.values(), ids=REFUSED)
def test_what_gives_no_samples_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        opened(Source(name))


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a file"):
        opened(Source(str(tmp_path / "none.npz")))
    path = str(tmp_path / "a.npz")
    np.savez(path, x=np.zeros((3, 2, 2)), y=np.zeros(2), o=np.array([{}], dtype=object))
    with pytest.raises(
        ValueError, match=r"as many inputs as labels, got shapes \(3, 2, 2\), \(2,\)"
    ):
        opened(Source(path))
    with pytest.raises(ValueError, match=r"`--inputs` names 'z', but .* holds x, y"):
        opened(Source(path, ("z",)))
    with pytest.raises(ValueError, match="`--target` names 'labels'"):
        opened(Source(path, target="labels"))
    with pytest.raises(ValueError, match="cannot be read as arrays"):
        opened(Source(path, ("o",)))
