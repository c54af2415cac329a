"""What the experiments with words say of their radii: summaries, figures, tables."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popqorn_train.evaluation.certification import lower_quantile
from popqorn_train.plots import Sentence, draw_radii_by_class, draw_sentences, sentences_html
from popqorn_train.recipes.data.text import TextData
from popqorn_train.recipes.experiments.common import mean_of, plain, rank_trend

UNIT = "certified radius of the word alone (l_2, word vectors of norm 1)"
_OFTEN = 10  # words that are named as most fragile


def summary(samples: list[dict[str, Any]], data: TextData) -> dict[str, Any]:
    """What is known of all sentences of a network together, as JSON values."""
    right = [one for one in samples if one["label"] == one["prediction"]]
    radii = [torch.tensor(one["radii"], dtype=torch.float64) for one in right]
    every = torch.cat(radii) if radii else torch.zeros(1, dtype=torch.float64)
    fragile = Counter(
        one["words"][int(row.argmin())] for one, row in zip(right, radii, strict=True)
    )
    return {
        "sentences": len(samples),
        "right": len(right),
        "median_word_radius": plain(lower_quantile(every, 0.5).item()),
        "mean_word_radius": plain(every.mean().item()),
        "median_least_radius": plain(
            lower_quantile(torch.stack([row.min() for row in radii]), 0.5).item() if radii else 0.0
        ),
        "words_within": sum(one["words_within"] for one in right),
        "mean_rank_correlation_of_radius_and_position": plain(
            mean_of([rank_trend(row) for row in radii])
        ),
        "most_fragile_words": dict(fragile.most_common(_OFTEN)),
        "by_class": _classes(right, radii, data),
    }


def _classes(
    right: list[dict[str, Any]], radii: list[Tensor], data: TextData
) -> dict[str, dict[str, Any]]:
    """What is most fragile in each class."""
    found = {}
    for name in data.names:
        own = [at for at, one in enumerate(right) if one["label"] == name]
        if not own:
            continue
        least = torch.stack([radii[at].min() for at in own])
        words = Counter(right[at]["words"][int(radii[at].argmin())] for at in own)
        found[name] = {
            "sentences": len(own),
            "median_least_radius": plain(lower_quantile(least, 0.5).item()),
            "median_word_radius": plain(
                lower_quantile(torch.cat([radii[at] for at in own]), 0.5).item()
            ),
            "most_fragile_words": dict(words.most_common(3)),
        }
    return found


def draw(folder: Path, kind: str, data: TextData, models: dict[str, Any]) -> None:
    """Given sentences under one another for all networks; all test sentences as HTML."""
    ordered = [
        _sentence(name, model["given"][at])
        for at in range(len(next(iter(models.values()))["given"]))
        for name, model in models.items()
    ]
    figure, _ = draw_sentences(ordered, unit=UNIT)
    figure.savefig(folder / f"{kind}_words.png", dpi=100)
    pages = [_sentence(name, one) for name, model in models.items() for one in model["samples"]]
    page = sentences_html([*ordered, *pages], unit=UNIT)
    (folder / f"{kind}_words.html").write_text(
        f"<!DOCTYPE html>\n<meta charset='utf-8'>\n{page}\n", encoding="utf-8"
    )
    for name, model in models.items():
        right = [one for one in model["samples"] if one["label"] == one["prediction"]]
        if right:
            least = torch.tensor([min(one["radii"]) for one in right])
            labels = [data.names.index(one["label"]) for one in right]
            title = f"{name}: radius of the most fragile word of a sentence"
            chart, _ = draw_radii_by_class(
                least, labels, names=data.names, xlabel="certified radius (l_2)", title=title
            )
            chart.savefig(folder / f"{kind}_classes_{name}.png", dpi=100)


def _sentence(name: str, one: dict[str, Any]) -> Sentence:
    verdict = f"{name}: {one['prediction']}"
    if one["label"] not in (None, one["prediction"]):
        verdict += f" (wrong, it is {one['label']}: nothing is proved)"
    return Sentence(one["words"], one["radii"], verdict)


def said(numbers: dict[str, Any]) -> str:
    """The table of the networks, and the radii of the given sentences."""
    titles = ("network", "accuracy %", "right", "median", "mean", "least", "within", "CPU s")
    lines = ["  ".join(f"{title:>10}" for title in titles)]
    for name, model in numbers["models"].items():
        cells = (
            name,
            f"{100 * model['test_accuracy']:.1f}",
            f"{model['right']}/{model['sentences']}",
            *(
                f"{model[key]:.4g}"
                for key in ("median_word_radius", "mean_word_radius", "median_least_radius")
            ),
            str(model["words_within"]),
            str(model["seconds_of_radii"]),
        )
        lines.append("  ".join(f"{cell:>10}" for cell in cells))
    lines.append(f"distance to the nearest word: {numbers['nearest_neighbour_distance']}")
    for name, model in numbers["models"].items():
        for one in model["given"]:
            least = min(range(len(one["radii"])), key=one["radii"].__getitem__)
            pairs = zip(one["words"], one["radii"], strict=True)
            words = [
                f"{'_' * (at == least)}{word}{'_' * (at == least)} {radius:.3g}"
                for at, (word, radius) in enumerate(pairs)
            ]
            lines.append(f"{name} ({one['prediction']}): {', '.join(words)}")
    return "\n".join(lines)
