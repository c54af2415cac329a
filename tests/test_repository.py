"""What people expect of a repository is there, and says what the code says."""

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = [
    path
    for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    if path.stem != "config"
]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


def targets():
    """What the Makefile can make."""
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([\w-]+):", text, re.MULTILINE))


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["title"] == PROJECT["name"]
    assert "POPQORN" in citation["references"][0]["title"]


def test_the_license_is_said_once():
    assert not [name for name in PROJECT["classifiers"] if name.startswith("License")]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_the_model_and_the_versions(form):
    asked = yaml.safe_load(form.read_text())
    assert {"name", "description", "labels", "body"} <= set(asked)
    fields = {field["id"]: field for field in asked["body"] if "id" in field}
    assert len(fields) == len([field for field in asked["body"] if field["type"] != "markdown"])
    assert "doctor" in form.read_text()
    assert any(field["validations"]["required"] for field in fields.values())


def test_a_false_certificate_has_a_form_that_asks_for_the_contradiction():
    form = read(".github/ISSUE_TEMPLATE/false_certificate.yml")
    required = {
        field["id"] for field in form["body"] if field.get("validations", {}).get("required", False)
    }
    assert {"model", "question", "answer", "contradiction", "versions"} <= required
    assert f'"{form["name"]}"' in (ROOT / "SECURITY.md").read_text()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_this_repository_runs(workflow):
    [job] = yaml.safe_load(workflow.read_text())["jobs"].values()
    names = job.get("strategy", {}).get("matrix", {}).get("target", [])
    for line in [step["run"] for step in job["steps"] if "run" in step]:
        made = names if "matrix.target" in line else [line.removeprefix("make ")]
        assert line == "bash .ci/run" or set(made) <= targets(), line
    [version] = [s["with"]["python-version"] for s in job["steps"] if "setup-python" in str(s)]
    assert PROJECT["requires-python"] == f">={version}"


def test_one_workflow_is_the_run_of_ci():
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_hooks_run_the_pinned_tools_on_files_that_exist():
    [hooks] = [repo["hooks"] for repo in read(".pre-commit-config.yaml")["repos"]]
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for hook in hooks:
        tool, *arguments = hook["entry"].split()
        assert tool.removeprefix(".venv/bin/") in pinned
        assert all((ROOT / name).exists() for name in arguments if name.startswith("tests/"))


def test_every_dependency_is_pinned_for_development():
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    extras = [name for names in PROJECT["optional-dependencies"].values() for name in names]
    named = {re.match(r"[\w-]+", name)[0] for name in [*PROJECT["dependencies"], *extras]}
    assert named - pinned <= {"popqorn-train", "setuptools"}


@pytest.mark.slow
def test_the_distributions_are_built_and_checked(tmp_path):
    """From a copy of what git knows, since a build writes beside the sources; without a network."""
    source = tmp_path / "source"
    source.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    made = tmp_path / "dist"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", made, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel], [archive] = made.glob("*.whl"), made.glob("*.tar.gz")
    check = [sys.executable, "-m", "twine", "check", "--strict", wheel, archive]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(archive) as files:
        inside = {name.split("/", 1)[-1] for name in files.getnames()}
    assert {"README.md", "LICENSE", "callbacks/monitor.py", "recipes/digits.py"} <= inside
