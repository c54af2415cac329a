"""Which forms are never made apart, and that sums which take them in lose nothing."""

import torch
from torch import nn

from popqorn_train import LpBall, bound
from popqorn_train.bounds.backward import ancestors
from popqorn_train.bounds.form_readers import FormReaders
from popqorn_train.bounds.forward import ForwardPass
from popqorn_train.bounds.gated import Gated
from popqorn_train.bounds.relaxer import Relaxation
from popqorn_train.bounds.slices import Span
from popqorn_train.relaxations.gap_search import least_gap
from tests.problems import F64


class Net(nn.Module):
    """The last state of an LSTM of three frames."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def graph():
    torch.manual_seed(0)
    return bound(Net().to(F64)).instance(torch.rand(2, 3, 2, dtype=F64)).graph(LpBall(0.2))


def test_the_products_of_a_cell_state_are_worked_out_in_its_sum():
    """Two in the second and third frame; in the first, the product of i and g is the state."""
    nodes = ancestors(graph())
    reads = FormReaders(nodes)
    products = [node for node in nodes if isinstance(node, Gated) and node in reads.products]
    assert len(products) == 4
    assert all(reads.readers[node] == [] for node in products)
    assert all(reads.products[node] in reads.readers[node.inputs[1]] for node in products)


def test_spans_are_cut_while_the_whole_is_measured_where_nobody_else_reads_it():
    output = graph()
    forms = ForwardPass(output, least_gap, Relaxation("tilted"))
    spans = [node for node in ancestors(output) if isinstance(node, Span)]
    whole = next(span.inputs[0] for span in reversed(spans) if not span.affine)
    readers = forms._reads.readers[whole]
    assert sorted(span.place for span in forms._reads.spans(whole)) == [0, 1, 2, 3]
    for other in (Span(whole, (5, 7), 0), output):
        readers.append(other)
        assert forms._reads.spans(whole) == []
        readers.remove(other)
    readers.clear()
    assert forms._reads.spans(whole) == []


class Apart(ForwardPass):
    """A pass in which every product has a form."""

    _takes_products = False


def test_ranges_are_those_of_products_with_forms_of_their_own():
    output, found = graph(), []
    for kind in (ForwardPass, Apart):
        with torch.no_grad():
            ranges = kind(output, least_gap, Relaxation("tilted")).run().ranges
        found.append([ranges[node] for node in ancestors(output) if node in ranges])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.lower, other.lower, rtol=0, atol=1e-12)
        torch.testing.assert_close(one.upper, other.upper, rtol=0, atol=1e-12)
