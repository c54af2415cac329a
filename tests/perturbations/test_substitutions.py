"""Substitutions: exact on linear functions, sound on networks, against enumeration of them all."""

import itertools

import pytest
import torch
from torch import nn

from popqorn_train import (
    LpBall,
    Substitutions,
    UnsupportedModelError,
    certified_budget,
    certified_radius,
    certify,
    logit_bounds,
)
from popqorn_train.certificates.pgd import attack
from popqorn_train.perturbations.substitutions import Choices
from tests.problems import F64, METHODS, build, sequences
from tests.zoo import zoo

SYNONYMS = {3: [4, 5], 9: [10], 4: [3, 6, 7], 8: [2], 1: [18, 19], 5: [6], 6: [5, 7]}
MODELS = ("SentimentPacked", "BiLSTMText")


class Words(nn.Module):
    """Tokens to a scaled embedding, a GRU, and a mean over time."""

    def __init__(self, time_first=False):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 3, padding_idx=0), nn.Linear(4, 3)
        self.rnn = nn.GRU(3, 4, batch_first=not time_first)
        self.axis = 0 if time_first else 1

    def forward(self, tokens):
        return self.head(self.rnn(self.words(tokens) * 2.0 + 0.1)[0].mean(self.axis))


def words_and_tokens(**options):
    torch.manual_seed(2)
    return Words(**options).double().eval(), torch.tensor([[3, 9, 4, 1], [8, 5, 6, 0]])


def sentences(tokens, budget, synonyms=SYNONYMS):
    """Every sentence that a row of tokens may become."""
    choices = [[token, *synonyms.get(token, [])] for token in tokens.tolist()]
    for sentence in itertools.product(*choices):
        changed = sum(new != old for new, old in zip(sentence, tokens.tolist(), strict=True))
        if changed <= budget:
            yield torch.tensor(sentence)


def every_logit(model, tokens, budget, *rest):
    """Logits ``(P, C)`` of every sentence of each row."""
    for index, row in enumerate(tokens):
        found = torch.stack(list(sentences(row, budget)))
        others = [value[index : index + 1].expand(len(found)) for value in rest]
        with torch.no_grad():
            yield model(found, *others)


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 9])
def test_the_least_value_of_a_linear_function_is_exact(budget):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 4, 3, generator=generator, dtype=F64)
    changes = torch.randn(2, 4, 2, 3, generator=generator, dtype=F64)
    changes[1, 2] = 0
    slope = torch.randn(1, 5, 4, 3, generator=generator, dtype=F64)
    choices = Choices(value, changes, torch.tensor([budget, budget]))
    options = torch.cat([torch.zeros_like(changes[:, :, :1]), changes], 2)
    least = torch.full((2, 5), torch.inf, dtype=F64)
    for picks in itertools.product(range(3), repeat=4):
        if sum(pick > 0 for pick in picks) <= budget:
            moved = torch.stack([options[:, t, pick] for t, pick in enumerate(picks)], 1)
            values = ((value + moved)[:, None] * slope).sum((2, 3))
            least = torch.minimum(least, values)
    torch.testing.assert_close(choices.minimum(slope), least)
    first = Choices(value[:, :2], changes[:, :2], choices.budget).minimum(slope[:, :, :2])
    torch.testing.assert_close(choices.minimum(slope[:, :, :2]), first)


def test_intervals_are_the_hull_of_the_candidates():
    model, tokens = words_and_tokens()
    vectors = 2 * model.words.weight + 0.1
    lower, upper = logit_bounds(model_of_frames(model), tokens, Substitutions(SYNONYMS))
    for row, low, high in zip(tokens, lower, upper, strict=True):
        choices = vectors[torch.tensor([row[0].item(), *SYNONYMS[row[0].item()]])]
        torch.testing.assert_close(low, choices.amin(0))
        torch.testing.assert_close(high, choices.amax(0))


def model_of_frames(model):
    """Logits that are the first embedding."""

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = model.words

        def forward(self, tokens):
            return (self.words(tokens) * 2.0 + 0.1)[:, 0]

    return First()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [0, 1, 2, 4])
@pytest.mark.parametrize("time_first", [False, True])
def test_no_sentence_leaves_the_bounds(method, budget, time_first):
    model, tokens = words_and_tokens(time_first=time_first)
    given = tokens.T.contiguous() if time_first else tokens
    lower, upper = logit_bounds(model, given, Substitutions(SYNONYMS, budget), method=method)
    plain = (lambda found: model(found.T)) if time_first else model
    for index, logits in enumerate(every_logit(plain, tokens, budget)):
        assert (logits >= lower[index] - 1e-12).all()
        assert (logits <= upper[index] + 1e-12).all()
    if budget == 0:
        torch.testing.assert_close(lower, model(given), rtol=0, atol=1e-12)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", MODELS)
def test_packed_text_is_bounded_against_all_sentences(name):
    model, (tokens, lengths) = zoo()[name]
    inputs = (tokens, lengths)
    for budget in (1, 3):
        lower, upper = logit_bounds(model, inputs, Substitutions(SYNONYMS, budget))
        for index, logits in enumerate(every_logit(model, tokens, budget, lengths)):
            if logits.ndim == 1:
                logits = torch.stack([torch.zeros_like(logits), logits], 1)
            assert (logits >= lower[index] - 1e-12).all()
            assert (logits <= upper[index] + 1e-12).all()


def test_bounds_widen_with_the_budget_and_hold_alone():
    model, tokens = words_and_tokens()
    widths = []
    for budget in range(5):
        lower, upper = logit_bounds(model, tokens, Substitutions(SYNONYMS, budget))
        widths.append((upper - lower).sum())
        alone = logit_bounds(model, tokens[1:], Substitutions(SYNONYMS, budget))
        torch.testing.assert_close(alone.lower, lower[1:], rtol=0, atol=1e-12)
    assert (torch.stack(widths).diff() >= 0).all()
    mixed = logit_bounds(model, tokens, Substitutions(SYNONYMS, torch.tensor([1, 3])))
    for index, budget in enumerate((1, 3)):
        own = logit_bounds(model, tokens, Substitutions(SYNONYMS, budget)).lower[index]
        torch.testing.assert_close(mixed.lower[index], own, rtol=0, atol=1e-12)


def test_candidates_by_place_are_those_of_the_mapping():
    model, tokens = words_and_tokens()
    table = Substitutions(SYNONYMS).of(tokens)
    one = logit_bounds(model, tokens, Substitutions(table, 2))
    other = logit_bounds(model, tokens, Substitutions(SYNONYMS, 2))
    torch.testing.assert_close(one, other)
    none = torch.full((2, 4, 2), -1)
    still = logit_bounds(model, tokens, Substitutions(none, 4))
    torch.testing.assert_close(still.lower, model(tokens), rtol=0, atol=1e-12)


def test_a_certified_budget_is_at_most_the_number_of_tokens():
    model, tokens = words_and_tokens()
    with torch.no_grad():
        model.head.weight.zero_()
    found = certified_budget(model, tokens, model(tokens).argmax(1), SYNONYMS)
    assert (found == 4).all()


def test_the_certified_budget_is_the_largest_that_is_proved():
    model, tokens = words_and_tokens()
    with torch.no_grad():
        model.words.weight.mul_(0.1)
    target = model(tokens).argmax(1)
    found = certified_budget(model, tokens, target, SYNONYMS)
    for budget in range(1, 5):
        proof = certify(model, tokens, target, Substitutions(SYNONYMS, budget))
        assert (proof.certified == (budget <= found)).all()
    for index, row in enumerate(tokens):
        for sentence in sentences(row, int(found[index])):
            assert model(sentence[None]).argmax(1) == target[index]
    assert (certified_budget(model, tokens, (target + 1) % 3, SYNONYMS) == 0).all()
    assert found.max() > 0


REFUSED = {
    "a list": (lambda: Substitutions([1]), TypeError, "`candidates`.*list"),
    "floats": (lambda: Substitutions(torch.ones(1, 2, 3)), ValueError, "`candidates`"),
    "two axes": (lambda: Substitutions(torch.ones(2, 3).long()), ValueError, r"`candidates`.*2, 3"),
    "a negative budget": (lambda: Substitutions({}, -1), ValueError, "`budget`.*-1"),
    "half a word": (lambda: Substitutions({}, 0.5), ValueError, "`budget`.*0.5"),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_substitutions_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_substitutions_that_do_not_fit_are_refused():
    model, tokens = words_and_tokens()
    with pytest.raises(ValueError, match=r"`candidates` must be \(2, 4, 'C'\)"):
        logit_bounds(model, tokens, Substitutions(torch.zeros(2, 5, 1).long()))
    with pytest.raises(ValueError, match=r"`budget`.*\(2,\)"):
        logit_bounds(model, tokens, Substitutions({}, torch.tensor([1, 1, 1])))
    with pytest.raises(UnsupportedModelError, match=r"Substitutions.*nn.Embedding"):
        logit_bounds(build("gru"), sequences(2, 3), Substitutions({}))
    with pytest.raises(ValueError, match=r"`candidates`.*0\.\.19.*20"):
        logit_bounds(model, tokens, Substitutions({3: [20]}))
    with pytest.raises(TypeError, match="`ball` must be an LpBall"):
        attack(model, tokens, model(tokens).argmax(1), Substitutions({}))


def test_padding_has_its_own_embedding_in_a_ball():
    model, tokens = words_and_tokens()
    y = model(tokens).argmax(1)
    assert (certified_radius(model, tokens, y) > 0).all()
    lower, upper = logit_bounds(model, tokens, LpBall(0.1))
    assert (upper > lower).all()
