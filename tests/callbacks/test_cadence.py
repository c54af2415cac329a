import pytest
import pytorch_lightning as pl

from popqorn_train.callbacks.cadence import Cadence, is_last_validation, share_trained
from tests.fitting import fit


def simulate(cadence, epochs, *, train, cost, planned=False):
    """Epochs that were certified, and seconds spent on it, on a clock of our own."""
    now, certified = 0.0, []
    cadence.start(now)
    for epoch in range(epochs):
        now += train
        trained = (epoch + 1) / epochs if planned else 1.0
        if cadence.due(epoch, now, final=epoch == epochs - 1, trained=trained):
            certified.append(epoch)
            now += cost
            cadence.done(epoch, cost)
    return certified, cadence.spent


def test_the_first_and_the_last_epoch_are_certified_at_any_cost():
    certified, _ = simulate(Cadence(1, 0.25), 10, train=1.0, cost=100.0)
    assert certified == [0, 9]


@pytest.mark.parametrize("planned", [True, False])
def test_the_share_of_the_rest_of_training_is_kept(planned):
    for cost in (0.1, 0.3, 1.0, 4.0):
        for limit in (0.1, 0.25, 1.0):
            cadence = Cadence(1, limit)
            certified, spent = simulate(cadence, 200, train=1.0, cost=cost, planned=planned)
            assert spent <= max(limit * 200, 2 * cost) + 1e-9
            assert spent > 0.8 * min(limit * 200, 200 * cost) - 2 * cost
            assert certified[-1] == 199


def test_the_end_is_paid_for_by_what_is_left_of_a_fit():
    cadence = Cadence(1, 0.25)
    certified, spent = simulate(cadence, 80, train=1.0, cost=2.0, planned=True)
    assert certified == [0, *range(15, 80, 8)]
    assert spent == 0.25 * 80
    assert simulate(Cadence(1, 0.25), 80, train=1.0, cost=2.0)[1] == 18.0


@pytest.mark.parametrize(
    ("limits", "shares"),
    [
        ({"max_epochs": 4}, [0.25, 0.5, 0.75, 1.0]),
        ({"max_epochs": 4, "max_steps": 6}, [0.5, 1.0]),
        ({"max_epochs": -1, "max_steps": 6}, [0.5, 1.0]),
    ],
)
def test_how_much_of_a_fit_is_behind_it(limits, shares):
    found = []

    class Watch(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            if not trainer.sanity_checking:
                found.append(share_trained(trainer))

    fit(Watch(), **limits)
    assert found == shares


def test_without_a_limit_every_nth_epoch_is_certified():
    assert simulate(Cadence(3, None), 9, train=1.0, cost=50.0)[0] == [0, 3, 6, 8]
    assert simulate(Cadence(1, None), 4, train=1.0, cost=50.0)[0] == [0, 1, 2, 3]


def test_several_validations_of_one_epoch_count_one_by_one():
    cadence = Cadence(1, None)
    cadence.start(0.0)
    for now in (1.0, 2.0, 3.0):
        assert cadence.due(0, now, final=False)
        cadence.done(0, 0.1)


def test_what_was_passed_over_is_counted():
    cadence = Cadence(1, 0.1)
    cadence.start(0.0)
    assert cadence.due(0, 1.0, final=False)
    cadence.done(0, 1.0)
    for epoch in (1, 2, 3):
        assert not cadence.due(epoch, 2.0 + epoch, final=False)
    assert cadence.skipped == 3


def test_a_resumed_fit_keeps_to_the_budget_of_the_whole():
    cadence = Cadence(1, 0.25)
    simulate(cadence, 20, train=1.0, cost=2.0)
    resumed = Cadence(1, 0.25)
    resumed.restore(cadence.state())
    assert resumed.state() == cadence.state()
    resumed.start(0.0)
    assert resumed.due(20, 0.1, final=False)  # whoever watches has no value yet
    resumed.done(20, 2.0)
    assert not resumed.due(21, 3.0, final=False)


def test_time_spent_around_certification_is_no_training():
    cadence = Cadence(1, 0.25)
    cadence.start(0.0)
    cadence.due(0, 10.0, final=False)
    cadence.spend(4.0)
    assert (cadence.spent, cadence.elapsed) == (4.0, 6.0)


@pytest.mark.parametrize(
    ("options", "epochs", "last"),
    [
        ({}, 3, (2, 2)),  # epoch and index of the batch
        ({"val_check_interval": 1}, 2, (1, 2)),
        ({"check_val_every_n_epoch": 2}, 5, (3, 2)),
        ({"check_val_every_n_epoch": None, "val_check_interval": 2}, 3, (2, 1)),
        ({"max_steps": 5, "val_check_interval": 1}, -1, (1, 1)),
    ],
)
def test_the_last_validation_is_known(options, epochs, last):
    found, every = [], []

    class Watching(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            if not trainer.sanity_checking:
                at = trainer.current_epoch, trainer.fit_loop.batch_idx
                every.append(at)
                if is_last_validation(trainer):
                    found.append(at)

    fit(Watching(), epochs=epochs, **options)
    assert found == [last] == every[-1:]


def test_a_cheap_first_certification_of_a_model_that_is_mostly_wrong_is_not_taken_for_granted():
    cadence = Cadence(1, 0.25)
    cadence.start(0.0)
    cadence.due(0, 1.0, final=False)
    cadence.done(0, 1.0, share=0.25)
    assert not cadence.due(1, 18.0, final=False)  # 1 + 2 * 2 > 0.25 * 17
    assert cadence.due(2, 24.0, final=False)


def test_another_fit_starts_from_nothing():
    cadence = Cadence(1, 0.25)
    simulate(cadence, 5, train=1.0, cost=2.0)
    cadence.reset()
    assert cadence.state() == Cadence(1, 0.25).state()
