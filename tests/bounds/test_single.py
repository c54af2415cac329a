"""An affine function that adds several entries up is told from one that does not."""

import pytest
import torch

from popqorn_train import LpBall
from popqorn_train.bounds.affine import Negative, Sum
from popqorn_train.bounds.backward import Enclosure, lower_bound
from popqorn_train.bounds.node import Root
from popqorn_train.bounds.single import reads_single, same_for_all
from popqorn_train.bounds.single_reads import Affine
from tests.problems import sequences

NOTHING = Enclosure({}, {})
C = torch.tensor([2.0, -3.0, 0.0])
SINGLE = {
    "moved": lambda x, y: x.flip(1).transpose(1, 2),
    "picked": lambda x, y: x[:, [2, 0, 2], 1:],
    "scaled": lambda x, y: 1e9 - x * C / 7,
    "joined": lambda x, y: torch.cat([x, -y, torch.ones_like(x)], 2),
    "chosen": lambda x, y: torch.where(C > 0, x, -2 * y),
    "masked": lambda x, y: x.masked_fill(C > 0, -torch.inf),
    "tiny": lambda x, y: x * 1e-30,
}
SEVERAL = {
    "reversed subtraction": lambda x, y: torch.rsub(x, y),
    "sum of two": lambda x, y: x + y[:, :1],
    "difference": lambda x, y: x.diff(dim=1),
    "twice": lambda x, y: x - x.flip(2),
    "mean": lambda x, y: x.mean(1),
    "cumulative": lambda x, y: x.cumsum(2),
    "mixed": lambda x, y: torch.lerp(x, y, 1e-6),
    "matrix": lambda x, y: x @ torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1e-5, 1]]).to(x),
    "one output of many": lambda x, y: torch.cat([x, y, x[:, :1] - y[:, :1]], 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*SINGLE, *SEVERAL])
def test_functions_that_read_one_entry_are_told_from_others(name, dtype):
    function = (SINGLE | SEVERAL)[name]
    like = torch.zeros(4, 1, dtype=dtype)
    assert reads_single(function, [(3, 3), (3, 3)], like) == (name in SINGLE)


def test_a_node_that_would_add_entries_up_is_not_built():
    x = sequences()
    root = Root(LpBall(0.1).around(x, x, None))
    with pytest.raises(RuntimeError, match="adds up several entries"):
        Affine(lambda x: x.diff(dim=1), [root], (2, 3), 0)


def test_a_difference_of_nodes_has_the_range_of_both_signs():
    x = sequences()
    root = Root(LpBall(0.1).around(x, x, None))
    minus = Negative(root)
    found = Sum([root, minus]).range(root.range(), minus.range(root.range()))
    torch.testing.assert_close(found.upper, torch.full_like(x, 0.2))
    torch.testing.assert_close(found.lower, torch.full_like(x, -0.2))


OWN = torch.tensor([1.0, 2.0, 1.0, 1.0]).view(-1, 1, 1)
PLACES = torch.tensor([[0], [1], [0], [0]]).expand(-1, 3)[:, None]
SAME = {
    "constants of samples": lambda x, y: x * C + OWN,
    "joined with them": lambda x, y: torch.cat([y.flip(1), OWN.expand(-1, -1, 3).to(x)], 1),
    "picked": lambda x, y: x[:, [2, 0, 2], 1:],
    "chosen": lambda x, y: torch.where(C > 0, x, -2 * y),
}
DIFFERENT = {
    "scaled": lambda x, y: x * OWN,
    "masked": lambda x, y: torch.where(OWN > 1, x, y),
    "gathered": lambda x, y: x.gather(1, PLACES),
    "scattered": lambda x, y: x.scatter(1, PLACES, 0.0),
    "nothing of one": lambda x, y: x * (OWN < 2),
}


@pytest.mark.parametrize("name", [*SAME, *DIFFERENT])
def test_linear_parts_that_samples_share_are_told_from_others(name):
    function = (SAME | DIFFERENT)[name]
    assert reads_single(function, [(3, 3), (3, 3)], torch.zeros(4, 1))
    assert same_for_all(function, [(3, 3), (3, 3)], torch.zeros(4, 1)) == (name in SAME)


@pytest.mark.parametrize("name", [*SAME, *DIFFERENT])
def test_rows_go_back_alike_whether_samples_share_them(name):
    """More rows than samples, of a number that samples do not divide."""
    torch.manual_seed(0)
    function, x = (SAME | DIFFERENT)[name], torch.randn(4, 3, 3)
    root = Root(LpBall(0.1).around(x, x, None))
    shape = tuple(function(x, x).shape[1:])
    rows = torch.randn(1, 7, *shape)
    found = [lower_bound([(Affine(lambda v: function(v, v), [root], shape, 0), rows)], NOTHING)]
    found.append(
        lower_bound(
            [(Affine(lambda v: function(v, v), [root], shape, 0), rows.expand(4, -1, -1, -1))],
            NOTHING,
        )
    )
    torch.testing.assert_close(*found)
