"""The callback of a Hugging Face Trainer; all but the refusal needs transformers."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from popqorn_train.callbacks import hugging_face
from popqorn_train.callbacks.hugging_face import CertifiedRadiusCallback

INSTALLED = importlib.util.find_spec("transformers") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="transformers is not installed")


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(hugging_face, "_BASE", object)
    with pytest.raises(ImportError, match=r"popqorn-train\[transformers\]"):
        CertifiedRadiusCallback()


class Rows(Dataset):
    def __init__(self, count):
        self.x = torch.rand(count, 4, 3, generator=torch.Generator().manual_seed(0))
        self.y = (self.x.mean((1, 2)) > 0.5).long()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, at):
        return {"x": self.x[at], "labels": self.y[at]}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, labels=None):
        logits = self.head(self.rnn(x)[0][:, -1])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


@needed
def test_metrics_join_those_of_the_evaluation(tmp_path):
    from transformers import Trainer, TrainingArguments

    callback = CertifiedRadiusCallback(
        lambda batch: (batch["x"], batch["labels"]),
        samples=6,
        epsilons=(0.001, 0.05),
        select="logits",
        method="ibp",
    )
    logged = []
    trainer = Trainer(
        Net(),
        TrainingArguments(
            str(tmp_path),
            num_train_epochs=1,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="certified_radius_median",
            greater_is_better=True,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Rows(16),
        eval_dataset=Rows(12),
        callbacks=[callback],
    )
    callback.log = logged.append
    trainer.train()
    [found] = logged
    assert set(found) == {
        "eval_certified_radius_median",
        "eval_certified_radius_mean",
        "eval_clean_accuracy",
        "eval_certified_accuracy_0p001",
        "eval_certified_accuracy_0p05",
    }
    assert len(callback.last) == 6
    assert trainer.state.best_metric == pytest.approx(found["eval_certified_radius_median"])
    assert found["eval_certified_accuracy_0p001"] <= found["eval_clean_accuracy"]
