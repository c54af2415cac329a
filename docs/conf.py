"""The site: `make site` builds it into build/site, and takes warnings for errors.

The whole repository is the source folder, so that a link from one page to another is the same
here, in an editor, and where the repository is hosted.
"""

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))
if find_spec("popqorn_train.callbacks") is None:  # a checkout without its links
    sys.modules["popqorn_train"].__path__.append(str(_ROOT))

_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]

project = _PROJECT["name"]
author = copyright = _PROJECT["maintainers"][0]["name"]
release = version = _PROJECT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "recipes/RESULTS.md",
    "tests/benchmarks/RESULTS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "TRUST.md",
    "examples/*.ipynb",
]
exclude_patterns = [".*", "build", "dist", "popqorn_train", "callbacks", "runs", "wandb"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"  # tests/test_examples.py runs them; what is shown was kept
copybutton_exclude = ".linenos, .gp"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of dataclasses are in their docstrings already
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = []
templates_path = ["site"]
html_additional_pages = {"index": "redirect.html"}
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
