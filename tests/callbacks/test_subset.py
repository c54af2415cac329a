import random

import pytest
import torch
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

from popqorn_train.callbacks.isolation import isolated_random
from popqorn_train.callbacks.reading_order import Order
from popqorn_train.callbacks.subset import choose, stratified
from popqorn_train.evaluation.batches import unpack_pair
from tests.fitting import samples, val_loader

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
    order = Order.of(val_loader(), 2)
    assert order.identity == [16]
    assert torch.equal(order.labels(unpack_pair), val_loader().dataset.tensors[1][:16])
    assert Order.of(val_loader(), 99).identity == [20]


def test_all_samples_are_taken_without_reading_labels():
    def unreadable(batch):
        raise AssertionError("labels were read")

    order = Order.of(val_loader(), 99)
    assert choose(order, 20, 0, unreadable) == list(range(20))


def test_a_loader_that_draws_random_numbers_leaves_none_behind():
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            torch.rand(1), random.random()
            return super().__getitem__(index)

    loader = DataLoader(Noisy(*val_loader().dataset.tensors), 8)
    before = torch.random.get_rng_state(), random.getstate()
    Order.of(loader, 9).labels(unpack_pair)
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


def orders(loaders, batches=99):
    """The order of every process."""
    gathered = [Order.of(loader, batches).batches for loader in loaders]
    return [Order.of(one, batches, rank, lambda own: gathered) for rank, one in enumerate(loaders)]


def check_shares(found):
    """Every sample that is read belongs to one process, which reads it."""
    owned = [index for order in found for index in order.own]
    assert sorted(owned) == list(found[0].indices)
    for order in found:
        assert order.own <= {index for batch in order.batches for index in batch}
        assert order.identity == found[0].identity


@pytest.mark.parametrize(("size", "world"), [(7, 2), (16, 3), (2, 3), (20, 1)])
def test_every_sample_belongs_to_one_process_that_reads_it(size, world):
    data = TensorDataset(torch.zeros(size))
    samplers = [DistributedSampler(data, world, rank, shuffle=False) for rank in range(world)]
    found = orders([DataLoader(data, 2, sampler=sampler) for sampler in samplers])
    check_shares(found)
    assert found[0].identity == [size]


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
    check_shares(orders(loaders, batches))


def test_a_batch_sampler_in_order_is_read_as_it_is():
    data = val_loader().dataset
    loader = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 8, False))
    order = Order.of(loader, 2)
    assert order.identity == [16]
    assert torch.equal(order.labels(unpack_pair), data.tensors[1][:16])


def test_processes_that_all_read_everything_share_the_work():
    found = orders([val_loader()] * 3)
    check_shares(found)
    assert [len(order.own) for order in found] == [7, 7, 6]


BUCKETS = [[5, 2, 9], [1, 0], [7, 3, 4, 8], [2, 6]]  # 2 is read twice


class Buckets(Sampler):
    """Batches by length, as users write them."""

    def __init__(self, lists, generator=None):
        self.lists, self.generator, self.read = lists, generator, 0

    def __len__(self):
        return len(self.lists)

    def __iter__(self):
        self.read += 1
        yield from self.lists


class Sorted(Buckets):
    def __iter__(self):
        yield from sorted(super().__iter__(), key=len)


@pytest.mark.parametrize(
    "batched", [BUCKETS, tuple(map(tuple, BUCKETS)), Buckets(BUCKETS), Sorted(BUCKETS)]
)
def test_fixed_batches_are_known_by_their_indices(batched):
    x, y = samples(10).tensors
    order = Order.of(DataLoader(TensorDataset(x, y), batch_sampler=batched), 99)
    assert sorted(map(len, order.batches)) == [2, 2, 3, 4]
    assert order.indices == list(range(10))
    assert order.own == set(range(10))
    assert torch.equal(order.labels(unpack_pair), y)
    assert getattr(batched, "read", 0) == 0  # the loader's own sampler is left alone


def test_a_part_of_the_data_is_told_from_another():
    data = val_loader().dataset
    parts = [[[4, 5], [6]], [[7, 5], [6]], [[0, 1], [2]]]
    found = [Order.of(DataLoader(data, batch_sampler=part), 99) for part in parts]
    assert len({tuple(order.identity) for order in found}) == 3
    assert found[2].identity == [3]
    assert torch.equal(found[1].labels(unpack_pair), data.tensors[1][5:8])
    assert choose(found[0], 2, 0, unpack_pair) == choose(found[0], 2, 0, unpack_pair)
    assert set(choose(found[0], 2, 0, unpack_pair)) < {4, 5, 6}


def test_buckets_may_be_shared_out_among_processes():
    data = val_loader().dataset
    loaders = [DataLoader(data, batch_sampler=BUCKETS[rank::2]) for rank in range(2)]
    found = orders(loaders)
    check_shares(found)
    assert all(torch.equal(one.labels(unpack_pair), data.tensors[1][:10]) for one in found)


class Shuffled(Buckets):
    def __iter__(self):
        yield from (self.lists[at] for at in torch.randperm(len(self.lists)))


class Own(Buckets):
    def __iter__(self):
        yield from (
            self.lists[at] for at in torch.randperm(len(self.lists), generator=self.generator)
        )


class EveryEpoch(Buckets):
    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        random.Random(self.epoch).shuffle(lists := list(self.lists))
        yield from lists


class Python(Buckets):
    def __iter__(self):
        yield from random.sample(self.lists, 4)


class Pairs(Buckets):
    def __iter__(self):
        yield from [[(0, "flip"), (1, "turn")]]


@pytest.mark.parametrize("kind", [Shuffled, Own, EveryEpoch, Python, Pairs])
def test_batches_that_change_are_refused_and_no_generator_moves(kind):
    generator = torch.Generator().manual_seed(0)
    batched = kind(BUCKETS, generator)
    before = torch.random.get_rng_state(), random.getstate(), generator.get_state()
    with pytest.raises(ValueError, match=f"got {kind.__name__}. .* whose lists never change"):
        Order.of(DataLoader(samples(10), batch_sampler=batched), 99)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.equal(generator.get_state(), before[2])


class Endless(IterableDataset):
    def __iter__(self):
        yield from range(4)


@pytest.mark.parametrize(
    "loader",
    [
        val_loader(shuffle=True),
        DataLoader(
            range(4), sampler=DistributedSampler(range(4), num_replicas=1, rank=0, shuffle=True)
        ),
        DataLoader(range(4), batch_sampler=iter([[0, 1], [2, 3]])),
        DataLoader(range(4), batch_sampler=BatchSampler(RandomSampler(range(4)), 2, False)),
        DataLoader(range(4), batch_size=None),
        [1, 2],
    ],
)
def test_a_loader_in_another_order_every_time_is_refused(loader):
    with pytest.raises(ValueError, match="must be a DataLoader that reads the same batches"):
        Order.of(loader, 1)


def test_a_refusal_in_one_process_is_one_in_all():
    refusal = ValueError("in another process")
    with pytest.raises(ValueError, match="in another process"):
        Order.of(val_loader(), 1, 0, lambda own: [own, refusal])


def test_batches_with_other_samples_than_the_sampler_names_are_refused():
    def doubled(items):
        x, y = torch.utils.data.default_collate(items)
        return x.repeat(2, 1, 1), y.repeat(2)

    order = Order.of(DataLoader(samples(6), 2, collate_fn=doubled), 99)
    with pytest.raises(ValueError, match="reads 6 samples, but its batches hold 12 labels"):
        order.labels(unpack_pair)


def test_streams_and_empty_loaders_are_named():
    with pytest.raises(ValueError, match=r"got the IterableDataset Endless\. Read it into a list"):
        Order.of(DataLoader(Endless(), 2), 99)
    with pytest.raises(ValueError, match="`val_dataloaders` is empty: there is no sample"):
        Order.of(DataLoader([], 2, shuffle=False), 0)
