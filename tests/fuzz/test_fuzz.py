"""A short run of the fuzzer, that it finds what is false, and that it writes it down shortly."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.fuzz import checks, setting
from tests.fuzz.__main__ import run
from tests.fuzz.draws import Draw, drawn
from tests.fuzz.shrink import script, shrunk

CHECKS = 20_000


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("seed", "method"), [(3, "popqorn-fast"), (11, "popqorn")])
def test_nothing_is_false_of_a_few_models(seed, method):
    counts = Counter()
    checks.check(replace(drawn(seed), batch=4), counts, (method,))
    assert counts["models"] + counts["refused"] == 1
    assert counts["points"] > 1000
    assert counts["claims"] > 100


@pytest.mark.slow
def test_nothing_is_false_in_twenty_thousand_checks():
    seed, claims = 1000, 0
    while claims < CHECKS:
        counts = run(seed, models=5, minutes=30)
        assert counts["failures"] == 0
        seed, claims = counts["next seed"], claims + counts["claims"]


SHUT = {"cell": "gru", "head": "relu", "gates": "open"}
ZERO = {  # by how much bounds of logits that are 0 are off: squared rounding, a gate next to 1
    "1e-29": (Draw(seed=4200025, layers=2, hidden=4, **SHUT), "popqorn-tight"),
    "1e-26": (Draw(seed=4300030, **SHUT), "popqorn"),
}


@pytest.mark.parametrize(("draw", "method"), ZERO.values(), ids=ZERO)
def test_where_all_logits_are_0_nothing_is_certified_and_nothing_refused(draw, method):
    counts = Counter()
    checks.check(draw, counts, (method,))
    assert counts["models"] == 1


def test_a_margin_that_is_too_high_is_found_and_shrunk(monkeypatch):
    certify = setting.certify

    def wrong(*args, **options):
        proof = certify(*args, **options)
        certified = torch.ones_like(proof.certified)
        return proof._replace(margins=proof.margins + 0.3, certified=certified)

    monkeypatch.setattr(setting, "certify", wrong)
    draw = Draw(seed=6, cell="gru", frames=2, end="softmax", batch=4)
    simple, methods = shrunk(draw, ("ibp", "crown-ibp"))
    assert methods == ("ibp",)
    assert len(repr(simple)) < len(repr(draw))
    text = script(simple, methods, "it is false")
    assert text.count("\n") < 40
    with pytest.raises(setting.FalseClaimError):
        exec(compile(text, "script", "exec"), {})


def test_a_draw_is_written_as_it_is_made():
    for seed in range(50):
        draw = drawn(seed)
        assert eval(repr(draw), {"Draw": type(draw), "float": float}) == draw
        assert all(simple != draw for simple in draw.simpler())
