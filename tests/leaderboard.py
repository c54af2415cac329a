"""The tables of docs/leaderboard.md, from the files of leaderboard/: `make leaderboard`.

A file holds the entries of one source; ``problems`` says what is wrong with it. Figures that others
have published and nobody here has run again stand in a list of their own, in words.
"""

import json
import math
import re
import sys
from pathlib import Path

from popqorn_train.evaluation.confidence import confidence_interval

ROOT = Path(__file__).resolve().parents[1]
FOLDER, PAGE = ROOT / "leaderboard", ROOT / "docs" / "leaderboard.md"
START, END = "<!-- made by `make leaderboard` -->", "<!-- end -->"
KINDS = ("ours", "measured", "published", "submitted")
TEXTS = ("data", "network", "training", "method")
PUBLISHED = ("work", "source", *TEXTS[:3], "perturbation", "quantity", "figure", "note")
QUANTITIES = (
    "certified accuracy, in %",
    "gain of certified accuracy, in %",
    "gain of certified accuracy, in points",
    "mean certified radius",
    "certified radius over that of POPQORN",
)
_SOURCE = re.compile(r"^(arXiv:\d{4}\.\d{4,5}(v\d+)?|doi:10\.\S+), \w+")
HEAD = "epsilon, certified %, clean %, network, training, method, 95 % interval, of, source"


def sources():
    """What each file holds, by its name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}


def problems(source):
    """What is wrong with a file, in sentences; an empty list if nothing is."""
    found = [f"`{key}` is missing" for key in ("name", "kind", "reference") if not source.get(key)]
    if source.get("kind") not in KINDS:
        found.append(f"`kind` must be one of {', '.join(KINDS)}, got {source.get('kind')!r}")
    if source.get("kind") == "measured" and not source.get("differences"):
        found.append("`differences` must say how these numbers differ from the others")
    if not source.get("entries"):
        found.append("`entries` must hold at least one entry")
    for at, entry in enumerate(source.get("entries", ())):
        found += [f"entry {at}: {text}" for text in _wrong_of(entry, source.get("kind"))]
    return found


def _wrong_of(entry, kind):
    return _wrongly_published(entry) if kind == "published" else _wrong(entry, kind)


def _wrongly_published(entry):
    yield from (f"unknown `{key}`" for key in sorted({*entry} - {*PUBLISHED}))
    for key in PUBLISHED:
        if not (isinstance(entry.get(key), str) and entry[key].strip()):
            yield f"`{key}` must be text"
    if not _SOURCE.search(str(entry.get("source"))):
        yield f"`source` must be arXiv:NUMBER or doi:NUMBER, and where in it: {entry.get('source')}"
    if entry.get("quantity") not in QUANTITIES:
        yield f"`quantity` must be one of {'; '.join(QUANTITIES)}, got {entry.get('quantity')!r}"


def _wrong(entry, kind):
    known = {*TEXTS, "p", "epsilon", "domain", "clean", "certified", "samples", "counted"}
    yield from (f"unknown `{key}`" for key in sorted({*entry} - known - {"command", "notes"}))
    yield from (f"`{key}` must be text" for key in TEXTS if not isinstance(entry.get(key), str))
    if not (entry.get("p") == "inf" or 1 <= _number(entry, "p") < math.inf):
        yield f"`p` must be a number from 1 or 'inf', got {entry.get('p')!r}"
    if not 0 < _number(entry, "epsilon") < math.inf:
        yield f"`epsilon` must be positive, got {entry.get('epsilon')!r}"
    if not 0 <= _number(entry, "certified") <= _number(entry, "clean") <= 100:
        yield "`certified` must not exceed `clean`, both in %"
    if not (isinstance(entry.get("samples"), int) and entry["samples"] > 0):
        yield f"`samples` must be a positive number, got {entry.get('samples')!r}"
    if entry.get("counted") not in ("all", "correct"):
        yield "`counted` must be 'all' samples, or 'correct' ones only"
    if "domain" not in entry or not _is_domain(entry["domain"]):
        yield "`domain` must be [low, high], or null"
    if kind in ("ours", "submitted") and not entry.get("command"):
        yield "`command` must reproduce the entry"


def _number(entry, key):
    value = entry.get(key)
    return value if isinstance(value, int | float) else math.nan


def _is_domain(value):
    return value is None or (isinstance(value, list) and len(value) == 2 and value[0] < value[1])


def tables():
    """One table per data set and perturbation, the best certified accuracy first."""
    groups, published = {}, []
    for source in sources().values():
        for entry in source["entries"]:
            if source["kind"] == "published":
                published.append(entry)
            else:
                groups.setdefault(_question(entry), []).append((entry, source))
    found = [_table(question, groups[question]) for question in sorted(groups)]
    return "\n\n".join([*found, _published(published)])


def _published(entries):
    """What others report, in words: nothing of it is held against the rows above."""
    lines = ["## Published, not rerun by us", ""]
    for entry in entries:
        lines += [
            f"* **{entry['figure']}**, {entry['quantity']}: {entry['network']}; training: "
            f"{entry['training']}; data: {entry['data']}; what moves: {entry['perturbation']}.",
            f"  {entry['work']} ({entry['source']}).",
            f"  *Stands apart: {entry['note']}.*",
        ]
    return "\n".join(lines)


def _question(entry):
    domain = "" if entry["domain"] is None else ", clipped to [{:g}, {:g}]".format(*entry["domain"])
    return entry["data"], f"l_{entry['p']} ball around every frame{domain}"


def _table(question, rows):
    lines = [
        f"## {question[0]}",
        "",
        f"{question[1]}.",
        "",
        _line(HEAD.split(", ")),
        "|---" * 9 + "|",
    ]
    for entry, source in sorted(rows, key=lambda row: (row[0]["epsilon"], -row[0]["certified"])):
        low, high = confidence_interval(entry["certified"] / 100, entry["samples"])
        reference = f"[{source['name']}](../{source['reference']})"
        cells = [f"{entry['epsilon']:g}", f"**{entry['certified']:.1f}**", f"{entry['clean']:.1f}"]
        cells += [entry["network"], entry["training"], entry["method"]]
        cells += [f"{100 * low:.1f} to {100 * high:.1f}"]
        correct = " correct" if entry["counted"] == "correct" else ""
        cells += [f"{entry['samples']}{correct}", reference]
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells):
    return f"| {' | '.join(cells)} |"


def renewed(page):
    """The page with the tables of today."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{tables()}\n\n{END}{after}"


def main():
    """Check all files and write the page; the exit status is 1 where a file is refused."""
    wrong = [f"{name}.json: {text}" for name, one in sources().items() for text in problems(one)]
    print("\n".join(wrong) or f"{len(sources())} files", file=sys.stderr if wrong else sys.stdout)
    if not wrong:
        PAGE.write_text(renewed(PAGE.read_text()))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
