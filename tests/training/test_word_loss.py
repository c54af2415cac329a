"""Losses over words: those of every sentence that they stand for, and nothing but these."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from popqorn_train import CertifiedLoss, Substitutions, certify, objectives
from popqorn_train.certificates.word_attack import attack_words
from tests.perturbations.test_substitutions import (
    SYNONYMS,
    every_logit,
    sentences,
    words_and_tokens,
)

NAMES = ("pgd", "ibp", "crown-ibp", "mtl", "popqorn")
LABELS = torch.tensor([0, 2])


def loss_of(name, budget=None, epsilon=1.0, **options):
    words = Substitutions(SYNONYMS, budget)
    return objectives.OBJECTIVES[name](epsilon, words=words, **options)


def worst(model, tokens, budget):
    """The greatest cross entropy of any sentence, ``(B,)``."""
    found = every_logit(model, tokens, budget)
    return torch.stack(
        [
            cross_entropy(logits, label.expand(len(logits)), reduction="none").amax()
            for logits, label in zip(found, LABELS, strict=True)
        ]
    )


@pytest.mark.parametrize("budget", [0, 1, 2, None])
@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "popqorn"])
def test_no_sentence_costs_more_than_the_bound(name, budget):
    model, tokens = words_and_tokens()
    loss = loss_of(name, budget)
    found = [float(loss.parts(model, tokens[i : i + 1], LABELS[i : i + 1]).bound) for i in (0, 1)]
    most = worst(model, tokens, 4 if budget is None else budget)
    assert (torch.tensor(found, dtype=most.dtype) >= most - 1e-12).all()
    whole = loss.parts(model, tokens, LABELS).bound
    assert float(whole) == pytest.approx(sum(found) / 2, abs=1e-12)  # whatever else is there
    if budget == 0:
        torch.testing.assert_close(whole, cross_entropy(model(tokens), LABELS).detach())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_way_is_the_clean_loss(name):
    model, tokens = words_and_tokens()
    clean = cross_entropy(model(tokens), LABELS)
    torch.testing.assert_close(loss_of(name, epsilon=0.0)(model, tokens, LABELS), clean)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["ibp", "popqorn"])
def test_losses_grow_with_the_budget_and_with_the_share(name):
    model, tokens = words_and_tokens()
    for ladder in (
        [loss_of(name, budget) for budget in (0, 1, 2, 3, None)],
        [loss_of(name, None, share) for share in (0.0, 0.3, 0.7, 1.0, 1.15)],
    ):
        found = torch.stack([loss(model, tokens, LABELS).detach() for loss in ladder])
        assert (found.diff() >= -1e-12).all()
        assert found[-1] > found[0]


def test_the_share_certified_is_that_of_certify():
    model, tokens = words_and_tokens()
    y = model(tokens).argmax(1)
    for budget in (0, 1, 4):
        words = Substitutions(SYNONYMS, budget)
        loss = CertifiedLoss(1.0, words=words, method="popqorn")
        expected = certify(model, tokens, y, words).certified.double().mean()
        assert float(loss.parts(model, tokens, y).certified) == float(expected)


@pytest.mark.parametrize("budget", [1, None])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_words_that_are_not_in_the_sentence(name, budget):
    model, tokens = words_and_tokens()
    model.words.weight.data *= 3
    loss, weight = loss_of(name, budget), model.words.weight
    loss.probes = 0
    loss(model, tokens, LABELS).backward()
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    others = [token for token in range(len(weight)) if token not in tokens]
    step[0] = 0.0  # padding has no gradient
    assert budget == 1 or (weight.grad[others] != 0).any()
    slope, values = (weight.grad * step).sum(), []
    for size in (1e-6, -1e-6):
        with torch.no_grad():
            moved = nn.Parameter(weight + size * step)
            model.words.weight = moved
            values.append(loss(model, tokens, LABELS))
    torch.testing.assert_close((values[0] - values[1]) / 2e-6, slope, rtol=1e-4, atol=1e-7)


def test_another_batch_after_the_first_trace():
    model, tokens = words_and_tokens()
    loss = loss_of("ibp")
    loss(model, tokens, LABELS)
    longer = torch.tensor([[3, 9, 4, 1, 5], [8, 5, 6, 0, 0], [1, 3, 2, 4, 9]])
    target = torch.tensor([0, 1, 2])
    again, fresh = loss(model, longer, target), loss_of("ibp")(model, longer, target)
    torch.testing.assert_close(again, fresh)


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_an_attack_finds_a_sentence_of_the_set(budget):
    model, tokens = words_and_tokens()
    model.words.weight.data *= 3
    y, words = model(tokens).argmax(1), Substitutions(SYNONYMS, budget)
    found = attack_words(model, tokens, y, words, steps=4, restarts=3)
    assert (found >= certify(model, tokens, y, words).margin - 1e-9).all()
    for index, row in enumerate(tokens):
        logits = model(torch.stack(list(sentences(row, budget)))).detach()
        own = logits[:, y[index]].clone()
        logits[:, y[index]] = -torch.inf
        margins = own - logits.amax(1)
        assert (margins - found[index]).abs().min() < 1e-9  # that of a sentence
        assert found[index] <= margins[0] + 1e-12


def test_embeddings_move_with_the_point_of_an_attack():
    model, tokens = words_and_tokens()
    for objective in (objectives.pgd(0.1), objectives.sabr(0.1)):
        model.zero_grad()
        objective(model, tokens, LABELS).backward()
        assert (model.words.weight.grad != 0).any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"words": {3: [4]}}, TypeError, "`words` must be Substitutions or None, got dict"),
        ({"p": 2}, ValueError, "`words` says what may move: leave out box, p"),
        ({"low": 0.0}, ValueError, "leave out box, p, low"),
        ({"epsilon": -1.0}, ValueError, "must be finite and not negative"),
        ({"epsilon": torch.ones(2)}, ValueError, "`epsilon` must be the share of `words`.*on"),
    ],
)
def test_words_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        CertifiedLoss(**{"epsilon": 1.0, "words": Substitutions(SYNONYMS)} | options)


@pytest.mark.parametrize("name", ["sabr", "radius"])
def test_objectives_without_words_say_so(name):
    loss = objectives.OBJECTIVES[name](1.0)
    loss.words = Substitutions(SYNONYMS)
    with pytest.raises(ValueError, match=r"`words` have no .* use ibp, crown_ibp"):
        loss.ball()


@pytest.mark.parametrize("share", [-0.1, float("nan"), float("inf"), "1"])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="`share` must be a number from 0 on"):
        Substitutions(SYNONYMS, share=share)


def test_nothing_is_certified_of_a_share():
    model, tokens = words_and_tokens()
    with pytest.raises(ValueError, match=r"`share` of Substitutions must be 1 here, got 0\.5"):
        certify(model, tokens, LABELS, Substitutions(SYNONYMS, share=0.5))
    with pytest.raises(ValueError, match=r"`share` of Substitutions must be 1 here, got 2\.0"):
        attack_words(model, tokens, LABELS, Substitutions(SYNONYMS, share=2.0))
