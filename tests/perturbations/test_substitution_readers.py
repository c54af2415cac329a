"""Tokens that forward reads more than once: allowed where no candidate changes what is read."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import embedding, linear, one_hot
from torch.nn.utils.parametrize import register_parametrization

from popqorn_train import (
    LpBall,
    Substitutions,
    UnsupportedModelError,
    bound,
    certified_budget,
    certify,
    logit_bounds,
)
from tests.problems import F64

WORDS, PAD = 6, 0
SYNONYMS = {1: [2, 5], 3: [4], 4: [1]}
TOKENS = torch.tensor([[1, 3, 4], [3, 2, 0]])


class Reader(nn.Module):
    """An embedding, a GRU, and whatever else a case reads of the tokens."""

    def __init__(self, read):
        super().__init__()
        self.words, self.kinds = nn.Embedding(WORDS, 2), nn.Embedding(WORDS, 2)
        self.rnn, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2)
        self.register_buffer("weights", torch.arange(WORDS) / 3.0)
        self.read = read

    def states(self, vectors):
        return self.rnn(vectors)[0]

    def forward(self, tokens):
        return self.read(self, tokens)


def summed(net, states, weight):
    return net.head((states * weight[..., None]).sum(1))


def averaged(net, tokens, mask):
    return summed(net, net.states(net.words(tokens)), mask / mask.sum(1, keepdim=True))


def spoken(net, tokens, more):
    return net.head(net.states(net.words(tokens))[:, -1]) + more


# What no candidate changes: padding is in no list of synonyms, and is replaced by nothing.
ALLOWED = {
    "nothing else": lambda net, x: spoken(net, x, 0.0),
    "a padding mask": lambda net, x: averaged(net, x, (x != PAD).double()),
    "a mask by bool": lambda net, x: averaged(net, x, x.bool().double()),
    "two comparisons": lambda net, x: averaged(net, x, ((x != PAD) & (x < WORDS)).double()),
    "a mask of moved tokens": lambda net, x: averaged(net, x, x.T.contiguous().gt(PAD).double().T),
    "a mask by clamp": lambda net, x: averaged(net, x, x.clamp(max=1).double()),
    "a maximum under a mask": lambda net, x: net.head(
        net.states(net.words(x)).masked_fill((x == PAD)[..., None], -9.0).amax(1)
    ),
    "lengths": lambda net, x: net.head(
        net.states(net.words(x)).sum(1) / (x != PAD).sum(1, keepdim=True)
    ),
    "its shape": lambda net, x: spoken(net, x, torch.zeros_like(x).double().sum(1, keepdim=True)),
    "a reader without effect": lambda net, x: (net.weights[x], spoken(net, x, 0.0))[1],
    "cut in two and one half read": lambda net, x: spoken(net, x[:, :2].long(), 0.0),
    "other tokens of the argument": lambda net, x: spoken(
        net, x[:, :2], net.weights[x[:, 2]].double()[:, None]
    ),
}
REFUSED = {
    "weights looked up": lambda net, x: summed(net, net.states(net.words(x)), net.weights[x]),
    "another embedding": lambda net, x: net.head(net.states(net.words(x) + net.kinds(x))[:, -1]),
    "the embedding of moved tokens": lambda net, x: spoken(net, x, net.kinds(x.T)[-1]),
    "one hot": lambda net, x: spoken(net, x, one_hot(x, WORDS).double().sum(1)[:, :2]),
    "as numbers": lambda net, x: averaged(net, x, x.double()),
    "their number above a threshold": lambda net, x: averaged(net, x, (x > 1).double()),
    "their neighbours": lambda net, x: summed(
        net, net.states(net.words(x))[:, 1:], (x[:, 1:] == x[:, :-1]).double()
    ),
    "the functional embedding": lambda net, x: spoken(
        net, x, embedding(x, net.kinds.weight).sum(1)
    ),
    "index_select": lambda net, x: spoken(
        net, x, net.weights.index_select(0, x.flatten()).view(x.shape)[:, :2]
    ),
    "gather": lambda net, x: spoken(net, x, net.weights.expand(x.shape[0], -1).gather(1, x)[:, :2]),
    "a count of a word": lambda net, x: spoken(net, x, (x == 4).double().sum(1, keepdim=True)),
    "tokens shifted in forward": lambda net, x: spoken(net, (x + 1) % WORDS, 0.0),
    "tokens repeated in forward": lambda net, x: spoken(net, torch.cat([x, x], 1), 0.0),
    "tokens picked twice": lambda net, x: spoken(net, x[:, [0, 1, 1]], 0.0),
}


def made(read):
    torch.manual_seed(3)
    net = Reader(read).double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.5)
    return net


def sentences(row, budget):
    """Every sentence that a row of tokens may become."""
    for found in itertools.product(*[[token, *SYNONYMS.get(token, [])] for token in row.tolist()]):
        if sum(new != old for new, old in zip(found, row.tolist(), strict=True)) <= budget:
            yield found


@pytest.mark.parametrize("read", ALLOWED.values(), ids=ALLOWED)
def test_readers_that_no_candidate_changes_are_bounded_against_every_sentence(read):
    net = made(read)
    replaced = 2 if read is ALLOWED["other tokens of the argument"] else 3
    lower, upper = logit_bounds(net, TOKENS, Substitutions(SYNONYMS, 2), method="crown-ibp")
    for index, row in enumerate(TOKENS):
        found = torch.tensor([[*s, *row[replaced:]] for s in sentences(row[:replaced], 2)])
        logits = net(found).detach()
        assert (logits >= lower[index] - 1e-12).all()
        assert (logits <= upper[index] + 1e-12).all()


@pytest.mark.parametrize("read", REFUSED.values(), ids=REFUSED)
def test_another_reader_of_the_tokens_is_refused_with_its_line(read):
    net = made(read)
    net(TOKENS)
    with pytest.raises(
        UnsupportedModelError, match=r"(?s)Substitutions.*test_substitution_readers"
    ):
        logit_bounds(bound(net, perturb="words"), TOKENS, Substitutions(SYNONYMS))


def test_a_mask_is_refused_where_a_candidate_changes_it():
    net = made(ALLOWED["a padding mask"])
    with pytest.raises(UnsupportedModelError, match=r"'ne'.*x != PAD"):
        logit_bounds(net, TOKENS, Substitutions({3: [PAD]}))
    with pytest.raises(UnsupportedModelError, match="'ne'"):
        certified_budget(net, TOKENS, net(TOKENS).argmax(1), {PAD: [1]})
    by_place = torch.full((2, 3, 1), -1)
    logit_bounds(net, TOKENS, Substitutions(by_place))
    by_place[1, 0, 0] = PAD
    with pytest.raises(UnsupportedModelError, match="'ne'"):
        logit_bounds(net, TOKENS, Substitutions(by_place))


def test_a_ball_around_the_vectors_leaves_other_readers_of_the_tokens_alone():
    net = made(REFUSED["weights looked up"])
    lower, upper = logit_bounds(net, TOKENS, LpBall(0.0))
    torch.testing.assert_close(lower, net(TOKENS), rtol=0, atol=1e-12)
    lower, upper = logit_bounds(net, TOKENS, LpBall(0.1))
    vectors = net.words(TOKENS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        moved = vectors + 0.2 * torch.rand(vectors.shape, generator=generator, dtype=F64) - 0.1
        logits = summed(net, net.states(moved), net.weights[TOKENS])
        assert (logits >= lower - 1e-12).all()
        assert (logits <= upper + 1e-12).all()


TWICE = {
    "the module": lambda net, x: net.head(net.states(net.words(x) + net.words(x.flip(1)))[:, -1]),
    "the functional embedding": lambda net, x: spoken(net, x, embedding(x[:, 0], net.words.weight)),
    "rows of the weight": lambda net, x: spoken(net, x, net.words.weight[x[:, 0]]),
}


@pytest.mark.parametrize("perturb", [None, "words"])
@pytest.mark.parametrize("read", TWICE.values(), ids=TWICE)
def test_an_embedding_that_is_read_twice_is_refused_with_both_lines(read, perturb):
    layer = bound(made(read), perturb=perturb)
    for ball in (LpBall(0.1), Substitutions(SYNONYMS)):
        line = r"test_substitution_readers.*, line \d+.*"
        with pytest.raises(UnsupportedModelError, match=rf"(?s)words.*{line}{line}perturb="):
            logit_bounds(layer, TOKENS, ball)


def test_embeddings_that_share_a_weight_are_one():
    net = made(REFUSED["another embedding"])
    net.kinds.weight = net.words.weight
    with pytest.raises(UnsupportedModelError, match=r"'words'.*read twice"):
        certify(bound(net, perturb="words"), TOKENS, torch.tensor([0, 1]), LpBall(0.1))


@pytest.mark.parametrize("tied", [False, True])
def test_a_parametrised_table_is_one_however_often_its_weight_is_worked_out(tied):
    def read(net, x):
        other = net.kinds(x) if tied else embedding(x, net.words.weight)
        return net.head(net.states(net.words(x) + other)[:, 0])

    net = made(read)
    register_parametrization(net.words, "weight", nn.Tanh())
    if tied:
        register_parametrization(net.kinds, "weight", nn.Tanh())
        net.kinds.parametrizations.weight.original = net.words.parametrizations.weight.original
    with pytest.raises(UnsupportedModelError, match=r"'words'.*read twice"):
        logit_bounds(bound(net, perturb="words"), TOKENS, LpBall(0.1))


def test_a_table_that_functions_look_up_twice_is_refused():
    net = made(
        lambda net, x: net.head(
            net.states(embedding(x, net.words.weight) + embedding(x.flip(1), net.words.weight))[
                :, 0
            ]
        )
    )
    with pytest.raises(UnsupportedModelError, match=r"'embedding'.*read twice.*'embedding_1'"):
        logit_bounds(bound(net, perturb="embedding"), TOKENS, LpBall(0.1))


def test_a_layer_that_is_called_twice_moves_by_the_name_of_a_step_alone():
    net = made(
        lambda net, x: net.head(net.states(net.words(x))[:, -1]) + net.head(net.weights[x].double())
    )
    with pytest.raises(UnsupportedModelError, match=r"'head'.*read twice.*'head_1'"):
        logit_bounds(bound(net, perturb="head"), TOKENS, LpBall(0.1))
    lower, upper = logit_bounds(bound(net, perturb="head_1"), TOKENS, LpBall(0.1))
    torch.testing.assert_close(upper - lower, torch.full_like(lower, 0.2))


def test_a_weight_that_also_reads_out_is_no_second_call():
    net = made(lambda net, x: linear(net.states(net.words(x))[:, -1, :2], net.words.weight))
    lower, _ = logit_bounds(net, TOKENS, LpBall(0.0))
    torch.testing.assert_close(lower, net(TOKENS), rtol=0, atol=1e-12)
