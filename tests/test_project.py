"""The project's own files: dependencies in step, targets listed, nothing of one machine in them."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {normal(name): release for name, _, release in (line.partition("==") for line in lines)}


def test_constraints_are_exact_and_not_local():
    for name, release in pins().items():
        assert re.fullmatch(r"\d+(\.\d+)*([a-z]+\d+)?(\.post\d+)?", release), f"{name}: {release!r}"
    assert "harvis-utils" not in pins()


@pytest.mark.parametrize("asked", [Requirement(line) for line in ASKED], ids=str)
def test_every_dependency_is_pinned_within_what_pyproject_asks_for(asked):
    assert asked.specifier.contains(pins()[normal(asked.name)])


def test_conda_users_get_the_same_project_with_the_same_constraints():
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda, (pip,) = [d for d in wanted["dependencies"] if isinstance(d, str)], wanted["dependencies"][-1:]
    assert pip["pip"] == ["-c constraints.txt", "-e .[test]"]
    assert sorted(c.partition("=")[0] for c in conda) == ["pip", "python"], "all else comes from pyproject.toml"
    python = next(c for c in conda if c.startswith("python")).partition("=")[2]
    assert PROJECT["requires-python"] == f">={python}"
    assert f"CONDA_DEFAULT_ENV),{wanted['name']})" in (ROOT / "Makefile").read_text()


def make(*words: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, **more)


def test_make_alone_lists_the_targets():
    listed = re.findall(r"^  make (\S+)", make().stdout, flags=re.M)
    wanted = ("reproduce", "sweep", "test", "test-long", "minutes", "lab", "report", "publish", "gpu-bundle", "clean")
    assert set(wanted) <= set(listed)


def test_an_old_python_gets_one_clear_message(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    done = make("-C", str(tmp_path), f"PYTHON={old}", "CONDA_DEFAULT_ENV=", "reproduce")
    assert done.returncode and "Python 3.11 or newer is needed" in done.stderr and "Python 3.9.2" in done.stderr
    assert not (tmp_path / ".venv").exists()


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_file_names_a_folder_of_one_machine():
    home = re.escape(str(Path.home()))
    found = []
    for path in tracked():
        if path.suffix in (".png", ".zip", ".nc", ".npz", ".safetensors"):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":  # images apart
            book = json.loads(text)
            text = json.dumps([[c["source"] for c in book["cells"]], book["metadata"]])
        here = rf"(?<![\w.~-])({re.escape(str(ROOT))}|{home})/\w|(?<![\w.~-])/home/[a-z]"
        found += [f"{path.relative_to(ROOT)}: {m[0]}" for m in re.finditer(here, text)]
    assert not found


def test_package_and_data_files_are_packaged():
    from setuptools import find_packages

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = find_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in (ROOT / "harvis_utils").rglob("*.py")}
    assert folders == set(packages)
    kinds = {pattern.lstrip("*") for pattern in settings["package-data"]["*"]}
    others = [p for p in (ROOT / "harvis_utils").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert {p.suffix for p in others} <= kinds


def test_the_notebooks_do_without_workflow():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert not re.search(r"(?:from|import) workflow\b", path.read_text(encoding="utf-8")), path.name


def test_the_citation_names_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["authors"] == [{"name": "The harvis authors"}]
    assert [a["family-names"] for a in cited["references"][0]["authors"]] == ["Yoshimura", "Maekawa", "Hara"]
