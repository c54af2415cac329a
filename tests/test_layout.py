"""The layers and the packaging stay as they are drawn."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("popqorn_train", "callbacks", "recipes")
PACKAGE = ROOT / "popqorn_train"
FIGURES = {"plots", *(file.stem for file in PACKAGE.glob("plot_*.py"))}
ABOVE = {"metrics"} | FIGURES  # the layer above the core
COMMANDS = {file.stem for name in ("cli", "report") for file in PACKAGE.glob(f"{name}*.py")}


def package_folders():
    """Folders with an ``__init__.py``; links on a developer's machine do not count."""
    found = {init.parent for top in TOPS for init in (ROOT / top).rglob("__init__.py")}
    return {
        folder
        for folder in found
        if not any((ROOT / part).is_symlink() for part in (folder, *folder.parents))
    }


def test_the_core_imports_no_framework():
    modules = sorted({file.stem for file in PACKAGE.glob("*.py")} - ABOVE)
    assert {"graph", "trace", "radius"} < set(modules)
    imports = "\n".join(f"import popqorn_train.{module}" for module in modules)
    banned = "{'pytorch_lightning', 'lightning', 'torchmetrics', 'wandb', 'matplotlib'}"
    code = f"{imports}\nimport sys; print({banned} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def imported(file):
    """Modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name.split(".")[1] for name in found if name.startswith("popqorn_train.")}


def test_arrows_between_the_layers_point_down():
    for file in PACKAGE.glob("*.py"):
        if file.stem in COMMANDS | {"__init__"}:
            continue
        above = COMMANDS if file.stem in ABOVE else COMMANDS | ABOVE
        assert not imported(file) & (above | {"callbacks", "recipes"}), file.name


def test_every_package_is_shipped():
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(shipped["packages"]) == set(shipped["package-dir"])
    assert {ROOT / folder for folder in shipped["package-dir"].values()} == package_folders()


def test_every_public_name_is_there_and_documented():
    import popqorn_train

    assert sorted(popqorn_train.__all__) == sorted(set(popqorn_train.__all__))
    for name in popqorn_train.__all__:
        assert getattr(popqorn_train, name).__doc__, name
