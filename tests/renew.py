"""Run the commands whose results the pages show, and put what they print into the pages.

    make pages                       every block of every page, which takes hours
    make pages ARGS="demo"           the blocks of `make demo`

A block follows a comment that names its command: ``<!-- printed by `make demo` -->``.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "recipes" / "RESULTS.md",
    ROOT / "tests" / "benchmarks" / "RESULTS.md",
)
FILES = {"demo": ROOT / "runs" / "digits" / "table.txt"}  # commands that write what is shown
_BLOCK = re.compile(r"(<!-- printed by `make ([\w-]+)` -->\n```text\n)(.*?)(```)", re.DOTALL)


def blocks(text: str) -> dict[str, str]:
    """What a page shows, by target of make."""
    return {found[2]: found[3] for found in _BLOCK.finditer(text)}


def renewed(text: str, target: str, printed: str) -> str:
    """A page with what a target printed."""

    def put(found: re.Match[str]) -> str:
        return f"{found[1]}{printed.strip()}\n{found[4]}" if found[2] == target else found[0]

    return _BLOCK.sub(put, text)


def printed_by(target: str) -> str:
    """Run a target of make, and return what it prints or writes."""
    done = subprocess.run(["make", target], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return FILES[target].read_text() if target in FILES else done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module; returns the exit status."""
    parser = argparse.ArgumentParser(description="Renew the results that the pages show.")
    known = sorted({target for page in PAGES for target in blocks(page.read_text())})
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: {', '.join(known)}")
    targets = parser.parse_args(arguments).targets or known
    if strange := sorted(set(targets) - set(known)):
        parser.error(f"no page shows what make {', '.join(strange)} prints; known: {known}")
    for target in targets:
        printed = printed_by(target)
        for page in PAGES:
            old = page.read_text()
            new = renewed(old, target, printed)
            if new != old:
                page.write_text(new)
                print(f"{page.relative_to(ROOT)}: make {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
