"""Draw the packages, and the imports between them, as docs/layout.svg: `make layout`."""

from collections import Counter
from pathlib import Path

from popqorn_train.plots.style import new_figure, settings
from tests.test_layout import LAYERS, SOURCES, imported, layer_of

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "layout.svg"
_QUESTIONS = {
    "recipes": "what does a complete training reach?",
    "callbacks": "how are radii watched in Lightning?",
    "cli": "what can be asked from a shell?",
    "plots": "what do radii look like?",
    "objectives": "which loss has which name?",
    "evaluation": "what is proved of many samples?",
    "training": "how is a network trained for it?",
    "certificates": "what is proved of one batch?",
    "operations": "which node is which torch operation?",
    "bounds": "how is a graph of nodes bounded?",
    "tracing": "what does the user's forward do?",
    "relaxations": "which lines enclose a nonlinearity?",
    "perturbations": "what may be perturbed, and how far?",
    "kernels": "which loops run compiled?",
}


def imports() -> Counter[tuple[str, str]]:
    """How many modules of one package import from another."""
    found: Counter[tuple[str, str]] = Counter()
    for name, file in SOURCES.items():
        others = {layer_of(other) for other in imported(file, SOURCES)} - {layer_of(name)}
        found.update((layer_of(name), other) for other in others)
    return found


def places() -> dict[str, tuple[float, float]]:
    """Where every package is drawn: a floor a row, the top one first."""
    rows = [[name for name in sorted(names) if name in _QUESTIONS] for names in LAYERS]
    floors = [row for row in rows if row]
    return {
        name: (at - (len(row) - 1) / 2, -float(floor))
        for floor, row in enumerate(floors)
        for at, name in enumerate(row)
    }


def draw(path: Path) -> None:
    """Write the picture."""
    found, at = imports(), places()
    with settings({"svg.hashsalt": "layout", "font.size": 11}):
        figure = new_figure(8.0, 8.6)
        ax = figure.add_subplot()
        for (one, two), count in found.items():
            if one in at and two in at:
                bend = 0.18 * (at[one][1] - at[two][1] - 1) * (1 if len(two) % 2 else -1)
                ax.annotate(
                    "",
                    (at[two][0], at[two][1] + 0.28),
                    (at[one][0], at[one][1] - 0.28),
                    arrowprops={
                        "arrowstyle": "->",
                        "lw": 0.4 + 0.1 * min(count, 12),
                        "color": "#0072B2",
                        "alpha": 0.45,
                        "connectionstyle": f"arc3,rad={max(-0.5, min(0.5, bend)):.2f}",
                    },
                )
        box = {"boxstyle": "round,pad=0.45", "fc": "white", "ec": "#1c2430"}
        for name, place in at.items():
            text = f"{name}\n{_QUESTIONS[name]}"
            ax.text(*place, text, ha="center", va="center", bbox=box, zorder=3)
        ax.set(xlim=(-1.4, 1.4), ylim=(min(y for _, y in at.values()) - 0.6, 0.6))
        ax.axis("off")
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(PICTURE)
