"""A part of the samples at a time."""

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from popqorn_train.callbacks import CertifiedEarlyStopping, CertifiedRadiusMonitor
from popqorn_train.callbacks.cadence import Cadence
from popqorn_train.callbacks.logged_scalars import best
from popqorn_train.callbacks.subset import divided
from popqorn_train.cli.files import read_certification
from popqorn_train.evaluation.certification import read_certifications
from popqorn_train.evaluation.confidence import confidence_interval
from popqorn_train.plots import draw_certifications
from tests.fitting import QUIET, Classifier, fit, train_loader, val_loader


def spread(folder, **options):
    options = {"samples": 10, "spread": 3, "method": "ibp", "max_overhead": None, **options}
    return CertifiedRadiusMonitor(folder=folder, **options)


def indices(entry):
    return [row.index for row in entry.rows]


class Logged(pl.Callback):
    """What is logged after every validation."""

    def __init__(self):
        self.values = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.values.append({k: v.item() for k, v in trainer.callback_metrics.items()})
            trainer.callback_metrics.clear()


@pytest.mark.parametrize(("total", "parts"), [(10, 3), (9, 3), (2, 5), (7, 1)])
def test_parts_are_fixed_disjoint_and_together_everything(total, parts):
    positions = [3 * at for at in range(total)]
    found = divided(positions, parts, 0)
    assert found == divided(positions, parts, 0)
    assert sorted(at for part in found for at in part) == positions
    assert len(found) == min(parts, total)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert all(part == sorted(part) for part in found)


def test_parts_take_turns_and_everything_comes_last(tmp_path):
    monitor, seen = spread(tmp_path), Logged()
    fit(monitor, seen, epochs=6)
    found = read_certifications(monitor.path)
    assert [entry.part for entry in found] == [0, 1, 2, 0, 1, None]
    assert indices(found[0]) == indices(found[3])
    whole = sorted(indices(found[0]) + indices(found[1]) + indices(found[2]))
    assert indices(found[5]) == whole
    for entry, values in zip(found, seen.values, strict=True):
        part = "" if entry.part is None else "part/"
        assert values[f"{part}certified_radius/mean"] == pytest.approx(entry.radii.mean().item())
        low, high = confidence_interval(entry.certified_accuracy([0.05])[0], len(entry.rows))
        assert values[f"{part}certified_accuracy_low/0p05"] == pytest.approx(low)
        assert values[f"{part}certified_accuracy_high/0p05"] == pytest.approx(high)
        assert values["certification/share"] == pytest.approx(len(entry.rows) / 10)
        assert ("certified_radius/mean" in values) == (entry.part is None)
    _, ax = draw_certifications(found)
    assert [line.get_label() for line in ax.lines][-2:] == ["epoch 4, part 2", "epoch 5"]
    assert read_certification(monitor.path).part is None


def test_the_best_of_parts_is_no_summary():
    assert best("l2/part/certified_radius/median") == "last"


def test_a_resumed_run_goes_on_with_the_next_part(tmp_path):
    first = spread(tmp_path, every_n_epochs=1)
    trainer, _ = fit(first, epochs=3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = spread(tmp_path)
    options = {**QUIET, "logger": False, "max_epochs": 6}
    trainer = pl.Trainer(callbacks=[second], **options)
    trainer.fit(Classifier(), train_loader(), val_loader(), ckpt_path=tmp_path / "last.ckpt")
    found = read_certifications(second.path)
    assert [entry.part for entry in found] == [0, 1, None, 2, 0, None]
    assert set(second._certifier._known) == set(indices(found[-1]))
    fit(second, epochs=2)
    assert [entry.part for entry in read_certifications(second.path)] == [0, None]


def test_the_search_of_a_part_begins_where_that_part_ended(tmp_path, monkeypatch):
    starts = []
    monitor = spread(tmp_path)
    rows = type(monitor._certifier.question).rows

    def spied(self, model, picked, start, decided):
        radii = [None] * len(picked.labels) if start is None else start.radius
        starts.append(dict(zip(picked.positions.tolist(), radii, strict=True)))
        return rows(self, model, picked, start, decided)

    monkeypatch.setattr(type(monitor._certifier.question), "rows", spied)
    fit(monitor, epochs=5)
    found = read_certifications(monitor.path)
    known = {row.index: row.radius for row in found[0].rows}
    assert starts[-2] == known  # part 0 for the second time
    assert any(radius > 0 for radius in known.values())


def test_it_is_spread_in_validate_no_more(tmp_path):
    monitor = spread(tmp_path)
    trainer = pl.Trainer(callbacks=[monitor], logger=False, **QUIET)
    trainer.validate(Classifier(), val_loader(), verbose=False)
    assert monitor.last.part is None
    assert len(monitor.last.rows) == 10


def test_the_budget_leaves_time_for_everything_at_the_end():
    for parts, epochs in ((1, [0, 1, 2]), (9, [0, 2])):
        cadence, certified, now = Cadence(1, 1.0, parts), [], 0.0
        cadence.start(now)
        for epoch in range(3):
            now += 5.0
            if cadence.due(epoch, now, final=False):
                certified.append(epoch)
                now += 1.0
                cadence.done(epoch, 1.0)
        assert certified == epochs


@pytest.mark.parametrize(
    "callback",
    [
        lambda: CertifiedEarlyStopping("part/certified_radius/median"),
        lambda: ModelCheckpoint(monitor="certified_radius/median"),
    ],
)
def test_who_compares_certifications_is_refused(callback, tmp_path):
    with pytest.raises(ValueError, match=r"compares certifications, but with .*spread=.* `spread`"):
        fit(spread(tmp_path), callback(), enable_checkpointing=True)


@pytest.mark.parametrize(
    ("value", "said"), [(0, "`spread` must be at least 1"), (11, "at most `samples`, 10, got 11")]
)
def test_a_bad_spread_is_refused(value, said):
    with pytest.raises(ValueError, match=said):
        CertifiedRadiusMonitor(samples=10, spread=value)
