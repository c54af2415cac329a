"""The packages, their layers and what is shipped stay as they are drawn."""

import ast
import functools
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import popqorn_train

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "popqorn_train"
TOPS = (PACKAGE, ROOT / "callbacks", ROOT / "recipes")
FRAMEWORKS = {
    "pytorch_lightning",
    "lightning",
    "torchmetrics",
    "wandb",
    "matplotlib",
    "ray",
    "pyarrow",
}
# From the top down: an import goes to a later row, or stays inside its package.
LAYERS = (
    {"recipes"},
    {"callbacks"},
    {"cli"},
    {"metrics"},
    {"plots"},
    {"objectives"},
    {"evaluation", "training"},
    {"certificates"},
    {"operations"},
    {"bounds"},
    {"tracing"},
    {"relaxations"},
    {"perturbations"},
    {"kernels"},
    {"errors", "nested", "display"},
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}
ALONE = {"metrics", "errors", "nested", "display"}  # modules, not packages


def sources():
    """Every module by its dotted name; links on a developer's machine do not count."""
    found = {}
    for top in TOPS:
        for file in top.rglob("*.py"):
            if not any(part.is_symlink() for part in file.parents):
                parts = file.relative_to(ROOT).with_suffix("").parts
                parts = parts if parts[0] == PACKAGE.name else (PACKAGE.name, *parts)
                found[".".join(parts).removesuffix(".__init__")] = file
    return found


SOURCES = sources()
NESTED = sorted(name for name in SOURCES if name.count(".") > 1)


@functools.cache
def tree_of(file):
    return ast.parse(file.read_text())


def imported(file, ours):
    """Modules of the package that a file imports, wherever in it, but for types alone."""
    return {name for name in imports_of(file) if name in ours}


@functools.cache
def imports_of(file):
    found, nodes = set(), [*ast.walk(tree_of(file))]
    typing = {
        node
        for branch in nodes
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in nodes:
        if node in typing:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def layer_of(module):
    """The package right below ``popqorn_train`` that a module is in."""
    return module.split(".")[1] if "." in module else "popqorn_train"


def test_everything_is_in_a_layer():
    assert {layer_of(name) for name in SOURCES} == {*ROW, "popqorn_train"}


@pytest.mark.parametrize("package", sorted(ROW))
def test_an_import_goes_down_or_stays(package):
    seen = 0
    for name, file in SOURCES.items():
        if layer_of(name) != package:
            continue
        seen += 1
        for other in imported(file, SOURCES):
            below = ROW.get(layer_of(other))
            if other == "popqorn_train":
                # The public names come from every layer below the figures.
                assert ROW[package] < ROW["objectives"], f"{name} imports the top of the package"
            elif layer_of(other) != package:
                assert below is not None, f"{name} imports {other}"
                assert below > ROW[package], f"{name} imports {other}, which is above or beside it"
    assert seen


def test_the_picture_shows_every_package_above_what_it_imports(tmp_path):
    pytest.importorskip("matplotlib")
    from tests import draw_layout

    draw_layout.draw(tmp_path / "layout.svg")
    assert (tmp_path / "layout.svg").stat().st_size > 10_000
    at = draw_layout.places()
    assert set(at) == {*ROW} - ALONE
    assert all(at[one][1] > at[two][1] for one, two in draw_layout.imports() if {one, two} <= {*at})


def test_modules_of_a_package_import_each_other_in_no_circle():
    ours = {name: imported(file, SOURCES) - {"popqorn_train"} for name, file in SOURCES.items()}
    # A package's own __init__ gathers its modules; they do not need it.
    packages = {name for name in SOURCES if SOURCES[name].name == "__init__.py"}
    state = {}

    def visit(name, way):
        assert state.get(name) != "open", f"a circle: {' -> '.join([*way, name])}"
        if name not in state:
            state[name] = "open"
            for other in ours[name] - packages:
                visit(other, [*way, name])
            state[name] = "done"

    for name in ours:
        visit(name, [])


def test_importing_the_core_and_every_figure_needs_no_framework():
    above = ("recipes", "callbacks", "metrics")
    names = [name for name in SOURCES if layer_of(name) not in above and "__main__" not in name]
    assert {layer_of(name) for name in names} == {*ROW, "popqorn_train"} - {*above}
    imports = "\n".join(f"import {name}" for name in sorted(names))
    code = f"{imports}\nimport sys; print({FRAMEWORKS} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_certificate_does_not_wait_for_the_compiler_of_torch():
    code = """
import sys, torch
from popqorn_train import CertifiedLoss, LpBall, certified_radius, certify
from tests.problems import build, predicted, sequences
model, x = build("gru"), sequences(2, 2)
y = predicted(model, x)
assert certify(model, x, y, LpBall(0.0)).certified.all()
assert certified_radius(model, x, y, method="ibp").max() > 0
CertifiedLoss(0.1, method="crown-ibp")(model, x, y).backward()
print("torch._dynamo" in sys.modules)  # two seconds
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def defined(file):
    """Names of functions and classes that a module defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree_of(file).body if isinstance(node, kinds)}


def test_no_module_has_the_name_of_something_it_exports():
    for name, file in SOURCES.items():
        assert name.rsplit(".", 1)[-1] not in defined(file), name


@pytest.mark.parametrize("package", sorted(set(ROW) - ALONE))
def test_every_package_says_what_it_answers(package):
    text = ast.get_docstring(ast.parse(SOURCES[f"popqorn_train.{package}"].read_text()))
    assert text.split("\n")[0].endswith("?")
    said = " ".join(text.split())
    assert all(part in said for part in ("Goes in:", "Comes out:", "Must not know:"))


def test_every_package_is_shipped():
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name for name, file in SOURCES.items() if file.name == "__init__.py"}
    assert set(shipped["packages"]) == packages


def shipped_files():
    """What lies in the three folders, without links and what running left there."""
    for top in TOPS:
        for file in top.rglob("*"):
            plain = file.is_file() and "__pycache__" not in file.parts
            if plain and not any(part.is_symlink() for part in file.parents):
                yield file.relative_to(ROOT)


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_each_can_be_imported(tmp_path):
    """Built without a network, laid in an empty folder, imported from there."""
    source = tmp_path / "source"
    for file in ("pyproject.toml", "README.md", "LICENSE", *map(str, shipped_files())):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, source / file)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*build, "-w", tmp_path, source], check=True, capture_output=True, text=True)
    [wheel] = tmp_path.glob("popqorn_train-*.whl")
    folder = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    assert {path.name.split("-")[0] for path in folder.iterdir()} == {"popqorn_train"}
    names = sorted(name for name in SOURCES if not name.endswith("__main__"))
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        f"import importlib\nfor name in {names}: module = importlib.import_module(name); "
        f"assert (module.__file__ or '').startswith({str(folder)!r}), module.__file__"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_documented():
    assert sorted(popqorn_train.__all__) == sorted(set(popqorn_train.__all__))
    for name in popqorn_train.__all__:
        assert getattr(popqorn_train, name).__doc__, name


def test_dir_shows_the_public_names_only():
    shown = {name for name in dir(popqorn_train) if not name.startswith("__")}
    assert shown == set(popqorn_train.__all__)
    assert popqorn_train.__version__
