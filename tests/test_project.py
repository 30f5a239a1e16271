"""The project's own files: dependencies in step, targets listed, nothing of one machine in them."""

import json
import os
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


STUB = """#!/bin/sh
case "$*" in
"-c "*) ;;
"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
*) echo "called: $*"; case "$*" in *chain*) exit "${CHAIN_CODE:-0}";; esac ;;
esac
"""


@pytest.fixture
def elsewhere(tmp_path):
    """The project's Makefile in a folder of any name, and a function that calls it with a Python that only says so."""
    folder = tmp_path / 'it\'s a "b" $c #d, (e) 日本'
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "python-stub").write_text(STUB)
    (folder / "python-stub").chmod(0o755)

    def call(*words: str, at: Path = folder, **more) -> subprocess.CompletedProcess:
        env = {"PATH": "/usr/bin:/bin"} | more  # without uv, whatever is installed
        return make("-C", str(at), "PYTHON=./python-stub", "CONDA_DEFAULT_ENV=", *words, env=env)

    return folder, call


def test_an_environment_is_built_once_in_a_folder_of_any_name_and_anew_where_it_was_moved(elsewhere):
    folder, call = elsewhere
    said = [call("clean") for _ in range(2)]
    assert [("building .venv" in one.stdout, one.returncode) for one in said] == [(True, 0), (False, 0)], said
    assert "called: -m harvis_utils.chain clean" in said[1].stdout
    moved = folder.rename(folder.with_name("it's moved"))
    assert ["building .venv" in call("clean", at=moved).stdout for _ in range(2)] == [True, False]


@pytest.mark.parametrize(("code", "pages"), [("0", True), ("3", True), ("1", False), ("130", False)])
def test_pages_are_made_also_where_a_notebook_failed(elsewhere, code, pages):
    done = elsewhere[1]("reproduce", CHAIN_CODE=code)
    assert bool(done.returncode) == (code != "0") and "called: -m harvis_utils.chain reproduce" in done.stdout
    assert ("called: -m workflow.pages --profile quick --dataset synthetic" in done.stdout) == pages


def test_root_is_told_of_and_let_into_jupyterlab(elsewhere):
    done = elsewhere[1]("lab")
    root = os.getuid() == 0
    assert ("--allow-root" in done.stdout) == root == ("you are root" in done.stderr) and not done.returncode


def test_the_yardstick_runs_in_a_folder_of_any_name(elsewhere):
    """Git aside, which is told by a stub."""
    folder, call = elsewhere
    stub = folder / "bin" / "git"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\ncase "$*" in *add*) mkdir -p "$5";; esac\n')
    stub.chmod(0o755)
    done = call("yardstick", "BASE=abc", PATH=f"{stub.parent}:/usr/bin:/bin")
    assert not done.returncode and done.stdout.count("harvis_utils.chain reproduce") == 2, done
    assert "called: -m workflow.yardstick data/derived/yardstick/abc/reports/quick/synthetic" in done.stdout


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
