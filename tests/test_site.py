"""The site is built without a warning, every link in it leads somewhere, and mistakes are found."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def build(source, folder):
    """As `make site` does, with the files of the build elsewhere."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", ROOT / "docs"]
    command += ["-d", folder / "doctrees", source, folder / "html"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


class Page(HTMLParser):
    """Names and links of one page."""

    def __init__(self, path):
        super().__init__()
        self.names, self.links, self.shown = set(), [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key)]

    def handle_data(self, data):
        self.shown += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages by path."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in (folder / "html").rglob("*.html")}


def test_every_link_of_the_site_leads_somewhere(site):
    seen = 0
    for path, page in site.items():
        for link in page.links:
            address, _, name = link.partition("#")
            if "://" in address or address.startswith(("mailto:", "data:")):
                continue
            target = (path.parent / unquote(address.partition("?")[0])).resolve()
            assert target.is_file() or not address, f"{path}: {link}"
            there = site[target] if address and target in site else page
            if name and target.suffix == ".html":
                assert unquote(name) in there.names, f"{path}: {link}"
            seen += 1
    assert seen > 1000


def test_every_public_name_is_in_the_reference(site):
    import popqorn_train
    from popqorn_train import callbacks, metrics, objectives, plots

    [api] = [page for path, page in site.items() if path.name == "api.html"]
    modules = (popqorn_train, callbacks, objectives, plots)
    public = {f"{module.__name__}.{name}" for module in modules for name in module.__all__}
    public -= {"popqorn_train.objectives.OBJECTIVES"}  # a table of those above it
    kinds = (item for item in vars(metrics).items() if isinstance(item[1], type))
    public |= {
        f"popqorn_train.metrics.{name}"
        for name, kind in kinds
        if kind.__module__ == metrics.__name__ and not name.startswith("_")
    }
    assert public <= api.names, public - api.names


def test_the_front_page_leads_to_the_start(site):
    [front] = [page for path, page in site.items() if str(path).endswith("html/index.html")]
    assert "docs/index.html" in front.links


@pytest.mark.parametrize(
    "mistake", ["[nowhere](nowhere.md)", "[no heading](#none)", "![none](none.png)"]
)
def test_a_broken_link_fails_the_build(tmp_path, mistake):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{mistake}\n")
    done = build(tmp_path, tmp_path / "built")
    assert done.returncode != 0
    assert "index.md" in done.stderr
