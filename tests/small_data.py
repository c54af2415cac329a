"""Files in the form of MNIST, TREC, news titles and pen strokes, small enough for tests."""

import csv

import numpy as np

NAMES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
ASKED = ("what stands", "why does", "which thing", "who is", "where is", "how many")


def write_mnist(folder):
    """40 images to train on, 5000 held out, 12 to test; the brightest row tells the digit."""
    draw = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 5040), ("test", 12)):
        labels = draw.integers(0, 10, count).astype(np.uint8)
        images = draw.integers(0, 40, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 2 + 2 * labels] = 255
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    np.savez(folder / "mnist.npz", **arrays)


def write_trec(folder):
    """40 questions to train on, 500 held out, 6 to test."""
    lines = [
        f"{NAMES[at % 6]}:kind {ASKED[at % 6].capitalize()} the word{at % 7} ?" for at in range(540)
    ]
    (folder / "trec_train.txt").write_text("\n".join(lines) + "\n", encoding="iso-8859-1")
    (folder / "trec_test.txt").write_text("\n".join(lines[:6]) + "\n", encoding="iso-8859-1")


def write_news(folder):
    """40 titles to train on, 700 held out, 1500 to test."""
    with (folder / "tagmynews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        for at in range(2240):
            writer.writerow([at, f"topic{at % 7} in the news {at}", "text", at % 7])


def write_strokes(folder, digits=10):
    """Ones and sevens: a stroke down, or one across and one down; ``labels.txt`` beside them."""
    for at in range(digits):
        steps = [(5, 8, 0, 0)]
        if at % 2:
            steps += [(1, 0, 0, 0)] * 3 + [(1, 0, 1, 0)]
        steps += [(0, 1, 0, 0)] * (3 + at % 3) + [(0, 1, 1, 1)]
        text = "\n".join(" ".join(map(str, step)) for step in steps)
        (folder / f"trainimg-{at}-inputdata.txt").write_text(text + "\n")
    labels = "\n".join(str(at % 2) for at in range(digits))
    (folder / "labels.txt").write_text(labels + "\n")
