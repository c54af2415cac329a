import random

import pytest
import torch
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from popqorn_train.callbacks.subset import Order, choose, isolated_random, stratified
from popqorn_train.evaluation.batches import unpack_pair
from tests.fitting import val_loader

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 19 + [3])


@pytest.mark.parametrize("samples", [1, 2, 7, 20, 64, 99, 100])
def test_every_class_keeps_its_share_within_one_sample(samples):
    drawn = stratified(LABELS, samples, seed=0)
    assert len(drawn) == len(set(drawn)) == samples
    assert drawn == sorted(drawn)
    for label in range(4):
        exact = samples * (label == LABELS).sum().item() / 100
        assert abs((LABELS[drawn] == label).sum().item() - exact) < 1


def test_the_seed_alone_decides_which_samples():
    state = torch.random.get_rng_state()
    assert stratified(LABELS, 20, seed=3) == stratified(LABELS, 20, seed=3)
    assert stratified(LABELS, 20, seed=3) != stratified(LABELS, 20, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_sample_of_a_class_may_lie_anywhere_in_the_data():
    drawn = [stratified(torch.zeros(100), 10, seed) for seed in range(200)]
    mean = torch.tensor(drawn, dtype=torch.float64).mean()
    assert abs(mean - 49.5) < 3


def test_labels_are_read_as_far_as_the_loader_is_read():
    order = Order.of(val_loader(), 2, 0, 1)
    assert order.total == 16
    assert torch.equal(order.labels(unpack_pair), val_loader().dataset.tensors[1][:16])
    assert Order.of(val_loader(), 99, 0, 1).total == 20


def test_all_samples_are_taken_without_reading_labels():
    def unreadable(batch):
        raise AssertionError("labels were read")

    order = Order.of(val_loader(), 99, 0, 1)
    assert choose(order, 20, 0, unreadable) == list(range(20))


def test_a_loader_that_draws_random_numbers_leaves_none_behind():
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            torch.rand(1), random.random()
            return super().__getitem__(index)

    loader = DataLoader(Noisy(*val_loader().dataset.tensors), 8)
    before = torch.random.get_rng_state(), random.getstate()
    Order.of(loader, 9, 0, 1).labels(unpack_pair)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_random_states_come_back_after_an_error():
    before = torch.random.get_rng_state()

    @isolated_random()
    def fail():
        torch.rand(3)
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("size", "world"), [(7, 2), (16, 3), (2, 3), (20, 1)])
def test_every_position_belongs_to_the_one_process_that_reads_it_first(size, world):
    data = TensorDataset(torch.zeros(size))
    owned = []
    for rank in range(world):
        sampler = DistributedSampler(data, world, rank, shuffle=False)
        loader = DataLoader(data, 2, sampler=sampler)
        order = Order.of(loader, 99, rank, world, lambda read: read * world)
        assert order.total == size
        read = order.positions(0, len(list(sampler)))
        assert [position % size for position in read] == list(sampler)
        owned += [position for position in read if order.own(position)]
    assert sorted(owned) == list(range(size))


@pytest.mark.parametrize("batches", [1, 2, 99])
@pytest.mark.parametrize(("size", "world"), [(9, 2), (7, 3), (5, 2), (13, 3)])
@pytest.mark.parametrize("kind", ["repeated", "unrepeated", "drop_last"])
def test_processes_agree_on_what_they_read_together(size, world, kind, batches):
    data, loaders = TensorDataset(torch.zeros(size)), []
    for rank in range(world):
        sampler = DistributedSampler(
            data, world, rank, shuffle=False, drop_last=kind == "drop_last"
        )
        if kind == "unrepeated":
            sampler = UnrepeatedDistributedSampler(data, world, rank, shuffle=False)
        loaders.append(DataLoader(data, 2, sampler=sampler))
    counts = [min(len(loader.sampler), 2 * batches) for loader in loaders]
    orders = [
        Order.of(loader, batches, rank, world, lambda read: sum(counts))
        for rank, loader in enumerate(loaders)
    ]
    assert len({order.total for order in orders}) == 1
    read = [
        position
        for order, count in zip(orders, counts, strict=True)
        for position in order.positions(0, count)
        if order.own(position)
    ]
    assert sorted(read) == list(range(orders[0].total))


def test_a_batch_sampler_in_order_is_read_as_it_is():
    data = val_loader().dataset
    loader = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 8, False))
    order = Order.of(loader, 2)
    assert order.total == 16
    assert torch.equal(order.labels(unpack_pair), data.tensors[1][:16])


def test_processes_that_all_read_everything_share_the_work():
    orders = [Order.of(val_loader(), 99, rank, 3) for rank in range(3)]
    owned = [{at for at in order.positions(0, 20) if order.own(at)} for order in orders]
    assert [len(part) for part in owned] == [7, 7, 6]
    assert set.union(*owned) == set(range(20))


@pytest.mark.parametrize(
    "loader",
    [
        val_loader(shuffle=True),
        DataLoader(
            range(4), sampler=DistributedSampler(range(4), num_replicas=1, rank=0, shuffle=True)
        ),
        DataLoader(range(4), batch_sampler=[[0, 1], [2, 3]]),
        DataLoader(range(4), batch_sampler=BatchSampler(RandomSampler(range(4)), 2, False)),
        DataLoader(range(4), batch_size=None),
        [1, 2],
    ],
)
def test_a_loader_in_another_order_every_time_is_refused(loader):
    with pytest.raises(ValueError, match="must be a DataLoader that reads batches"):
        Order.of(loader, 1, 0, 1)
