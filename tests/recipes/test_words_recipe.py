"""SST-2: sentences, synonyms and coupled vectors on tiny files; the evaluation over budgets."""

import itertools
import json

import pytest
import torch
from torch.utils.data import DataLoader

from popqorn_train.certificates.word_attack import attack_words
from popqorn_train.perturbations.substitutions import Substitutions
from popqorn_train.recipes.cli import main
from popqorn_train.recipes.data.sequences import DataNotFoundError, SequenceSet, padded
from popqorn_train.recipes.data.sst2 import SST2
from popqorn_train.recipes.data.synonyms import Coupling, links_of, read_table
from popqorn_train.recipes.networks import RecurrentNet, load_net
from popqorn_train.recipes.results import model_results, table
from popqorn_train.recipes.word_evaluation import WordSettings, evaluate_words

TABLE = {
    "good": ["great", "fine", "splendid"],
    "fine": ["good"],
    "bad": ["awful", "poor"],
    "dire": ["bad", "poor", "dire"],
    "unseen": ["nowhere"],
}
SENTENCES = ["1 a good film", "0 a bad film", "1 great and fine", "0 poor and poor , a film"]


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 6), ("dev", 1), ("test", 2)):
        (tmp_path / f"sst2_{part}.txt").write_text("\n".join(SENTENCES * count) + "\n")
    (tmp_path / "sst2_test.txt").write_text("0 a dire film\n1 good\n1 unseen good film\n")
    (tmp_path / "synonyms.json").write_text(json.dumps(TABLE))
    return tmp_path


def words_of(data, tokens):
    return [data.vocabulary[token] for token in tokens]


def test_candidates_are_words_that_training_has_seen(folder):
    data = SST2(folder)
    found = {
        data.vocabulary[token]: words_of(data, others) for token, others in data.synonyms.items()
    }
    assert found == {
        "good": ["great", "fine"],
        "fine": ["good"],
        "bad": ["poor"],
        "dire": ["bad", "poor"],
    }
    assert SST2(folder, most=1).synonyms[data.vocabulary.index("good")] == [
        data.vocabulary.index("great")
    ]
    assert "splendid" not in data.vocabulary
    assert data.words == len(data.vocabulary) == len(data.vectors)
    assert words_of(data, data.test.sequences[2]) == ["<unknown>", "good", "film"]


def test_batches_have_few_lengths_and_drop_words_in_training_alone(folder):
    data = SST2(folder, batch_size=5, word_dropout=1.0)
    seen = 0
    for (tokens, lengths), labels in data.train_dataloader():
        assert tokens.shape[1] % 8 == 0
        read = torch.arange(tokens.shape[1]) < lengths[:, None]
        assert (tokens == read.long()).all()  # all are unknown, and padding is padding
        seen += len(labels)
    assert seen == len(data.train) == 24
    (tokens, _), _ = next(iter(data.test_dataloader()))
    assert (tokens > 1).any()
    assert [len(one) for one in SST2(folder, longest=2).test.sequences] == [2, 1, 2]


def test_files_of_another_form_are_refused(folder):
    with pytest.raises(ValueError, match="`coupling` must lie in"):
        SST2(folder, coupling=1.5)
    with pytest.raises(ValueError, match="`most` and `longest` must be at least 1"):
        SST2(folder, most=0)
    (folder / "sst2_dev.txt").write_text("2 a film\n")
    with pytest.raises(ValueError, match=r"sst2_dev\.txt, line 1: a line must start with 0 or 1"):
        SST2(folder)
    (folder / "sst2_dev.txt").unlink()
    with pytest.raises(DataNotFoundError, match=r"sst2_train\.txt"):
        SST2(folder)
    for text in ("[1]", "{", '{"a": "b"}'):
        (folder / "synonyms.json").write_text(text)
        with pytest.raises(ValueError, match=r"synonyms\.json must"):
            read_table(folder / "synonyms.json")


@pytest.mark.parametrize("kept", [1.0, torch.tensor([0.0, 2.0, 1.0])])
def test_vectors_are_read_through_their_links_and_so_are_gradients(kept):
    links = links_of({0: [1], 1: [0, 2], 4: [1, 2]}, words=5, known=4, own=0.4)
    vectors = torch.randn(5, 3)
    coupling, weight = Coupling(links, vectors), torch.nn.Parameter(torch.zeros(5, 3))
    mean = torch.zeros(5, 5)
    for word, others in {0: [0, 1], 1: [0, 1, 2], 2: [2], 3: [3], 4: [1, 2]}.items():
        mean[word, others] = 1 / len(others)
    own = torch.tensor([0.4, 0.4, 0.4, 0.4, 0.0])[:, None]
    through = vectors.clone().requires_grad_()
    expected = kept * (own * through + (1 - own) * (mean @ mean @ through))
    coupling.write(weight, kept)
    torch.testing.assert_close(weight.detach(), expected.detach())
    slope = torch.randn(5, 3)
    (expected * slope).sum().backward()
    (weight * slope).sum().backward()
    coupling.take_gradient(weight, kept)
    torch.testing.assert_close(coupling.vectors.grad, through.grad)
    assert weight.grad is None


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_mean_is_over_the_words_of_each_sentence(bidirectional):
    net = RecurrentNet(3, 4, 2, words=9, pool="mean", bidirectional=bidirectional).eval()
    tokens = [torch.randint(1, 9, (length,)) for length in (3, 1, 5)]
    inputs, _ = padded([(one, torch.tensor(0)) for one in tokens])
    for one, logits in zip(tokens, net(*inputs), strict=True):
        states = net.recurrent(net.embedding(one)[None])[0].mean(1)
        torch.testing.assert_close(net.head(states)[0], logits)
        torch.testing.assert_close(net(one[None])[0], logits)
    with pytest.raises(ValueError, match="`pool` must be 'mean' for a layer that runs both ways"):
        RecurrentNet(3, 4, 2, bidirectional=True)


def test_the_evaluation_agrees_with_all_sentences():
    torch.manual_seed(1)
    net = RecurrentNet(4, 3, 2, words=9, pool="mean").eval()
    synonyms = {2: [3, 4], 5: [6], 7: [8, 2]}
    tokens = [torch.randint(1, 9, (length,)) for length in (4, 2, 5, 3, 1, 4, 5, 2)]
    inputs, _ = padded([(one, torch.tensor(0)) for one in tokens])
    labels = net(*inputs).argmax(1)
    labels[0] = 1 - labels[0]
    loader = DataLoader(SequenceSet(tokens, labels), 3, collate_fn=padded)
    intervals, strong = evaluate_words(net, loader, synonyms, WordSettings())
    assert sorted(strong.positions.tolist()) == list(range(8))
    assert (strong.certified >= intervals.certified).all()
    assert strong.accuracy() == 7 / 8
    for at, position in enumerate(strong.positions.tolist()):
        options = [[token, *synonyms.get(token, [])] for token in tokens[position].tolist()]
        every = torch.tensor(list(itertools.product(*options)))
        changed = (every != tokens[position]).sum(1)
        right = net(every).argmax(1) == labels[position]
        for row, budget in enumerate((1, 2, 3, 9)):
            holds = bool(right[changed <= budget].all())
            assert holds or not strong.certified[row, at]
            assert strong.standing[row, at] or not holds
    models = {"certified": model_results([intervals, strong], 1.0, None)}
    assert "cert all" in table(models)
    assert "attack 3" in table(models)
    margins = attack_words(net, inputs, labels, Substitutions(synonyms, None))
    assert margins[0] < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": ()}, "`budgets` must be positive and increasing"),
        ({"budgets": (2, 1)}, "`budgets` must be positive and increasing"),
        ({"samples": 0}, "`samples` must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WordSettings(**options)


def test_one_command_trains_and_certifies(folder, tmp_path):
    out = tmp_path / "out"
    arguments = [
        *("fit", "--config=sst2", f"--folder={out}", f"--data.path={folder}"),
        *("--model.net.hidden=3", "--data.dimension=4", "--trainer.max_epochs=1"),
        *("--standard_epochs=1", "--trainer.accelerator=cpu"),
        *("--trainer.enable_progress_bar=false", "--model.vector_dropout=0.3"),
    ]
    assert main(arguments) == 0
    found = json.loads((out / "results.json").read_text())["models"]
    for entry in found["certified"]["evaluations"] + found["standard"]["evaluations"]:
        assert entry["budgets"] == [1, 2, 3, "all"]
        assert max(entry["certified_accuracy"]) <= entry["clean_accuracy"]
    stored = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    data, net = SST2(folder, dimension=4), load_net(out / "checkpoints" / "last.ckpt")
    coupling = Coupling(data.links, stored["coupling.vectors"])
    weight = torch.zeros_like(net.embedding.weight)
    coupling.write(weight)
    torch.testing.assert_close(weight, net.embedding.weight.detach())  # what was trained last
    assert not torch.equal(stored["coupling.vectors"], data.vectors)
    assert (out / "certified_accuracy.png").exists()
