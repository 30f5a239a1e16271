"""Names turned into settings, notebook parameters checked, paths anchored at the repository."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import re
import types
from pathlib import Path

import pytest
import torch

from harvis_utils import run
from harvis_utils.data import kinds
from harvis_utils.parallel import progress, threads, torch_device
from harvis_utils.run import begin, check_parameters
from harvis_utils.settings import (
    PROFILES,
    REPOSITORY,
    ModelSettings,
    Settings,
    SettingsError,
    artifact_root,
    as_json,
    data_folders,
    load_settings,
    report_root,
    repository,
)

SECTIONS = tuple(f.name for f in dataclasses.fields(Settings) if dataclasses.is_dataclass(f.default))


# ------------------------------------------------------------------------------------ profiles and data sets


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(SettingsError, match=r"unknown profile 'papper'; valid profiles: quick, desk, paper$"):
        load_settings("papper")
    with pytest.raises(SettingsError, match=r"unknown weights 'stolen'; valid: trained, published$"):
        load_settings(weights="stolen")


@pytest.mark.parametrize("name", ["dsad", "", "DSADS", "synthetic-approximate", "-approximate"])
def test_an_unknown_data_set_lists_the_valid_ones(name):
    with pytest.raises(SettingsError, match=re.escape(f"unknown data set {name!r}; valid data sets: ")) as error:
        kinds.check_name(name)
    assert all(known in str(error.value) for known in (*kinds.registry(), "mhealth-approximate"))


def test_the_paper_profile_has_the_papers_values():
    cfg = load_settings("paper", "dsads")
    assert (cfg.windows.rate_hz, cfg.windows.length, cfg.windows.step) == (30, 30, 15)
    assert (cfg.model.n_units, cfg.model.n_layers, cfg.model.kernel) == (64, 3, 5)
    assert (len(cfg.training.seeds), cfg.training.epochs, cfg.training.learning_rate) == (5, 200, 1e-4)
    m = cfg.maximization
    assert (m.n_steps, m.weight, m.start_amplitude_g, m.th_aap_g) == (5000, 0.1, 0.3, 1.5)
    s = cfg.similarity
    assert (s.piece, s.n_similar, s.fail_amplitude_g) == (10, 50, 10)


def test_no_profile_is_a_toy():
    assert load_settings() == load_settings("quick", "synthetic")
    for profile in PROFILES:
        cfg = load_settings(profile)
        assert cfg.model.n_layers >= 3 and cfg.model.n_units >= 16 and len(cfg.training.seeds) >= 2
    assert load_settings("desk").model == ModelSettings(), "desk trains the paper's network, only shorter"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_value_says_whether_the_paper_fixes_it(section):
    kind = type(getattr(load_settings(), section))
    lines = inspect.getsource(kind).splitlines()
    for field in dataclasses.fields(kind):
        (line,) = [line for line in lines if re.match(rf"    {field.name}: ", line)]
        assert re.search(r"  # (Paper|Choice)\b", line), line.strip()
    assert re.search(r"paper section|notebook \d\d", kind.__doc__)


# ---------------------------------------------------------------------------------------------------- digests


def another(value):
    """Some other value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, 99)
    if dataclasses.is_dataclass(value):
        first = dataclasses.fields(value)[0].name
        return dataclasses.replace(value, **{first: another(getattr(value, first))})
    return value + "x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("section", SECTIONS)
def test_the_digest_changes_with_every_value(section):
    cfg = load_settings("desk", "dsads")
    part = getattr(cfg, section)
    others = {f.name: another(getattr(part, f.name)) for f in dataclasses.fields(part)}
    changed = [dataclasses.replace(cfg, **{section: dataclasses.replace(part, **{n: v})}) for n, v in others.items()]
    assert len({one.digest() for one in (cfg, *changed)}) == 1 + len(others)


def test_the_digest_knows_profile_and_data_set_but_not_the_device():
    cfg = load_settings("desk", "dsads")
    assert cfg.digest() == load_settings("desk", "dsads", "cuda").digest()
    assert cfg.digest() != dataclasses.replace(cfg, profile="paper").digest()
    assert cfg.digest() != dataclasses.replace(cfg, dataset="mhealth").digest()


def test_as_json_is_plain():
    plain = as_json({1: load_settings(), "path": Path("a/b"), "pair": (1, [2.5, None])})
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["path"], plain["pair"]) == ("a/b", [1, [2.5, None]])
    assert plain["1"]["training"]["seeds"] == [0, 1] and plain["1"]["model"]["n_units"] == 16
    assert set(plain["1"]) == {"profile", "dataset", "weights", "device", *SECTIONS}


# ------------------------------------------------------------------------------------------------------ paths


def test_paths_are_anchored_at_the_repository_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).resolve().parents[1]
    assert root == REPOSITORY
    for unset in ("HARVIS_ARTIFACTS", "HARVIS_REPORTS", "HARVIS_DATA"):  # empty is the same as not set
        monkeypatch.setenv(unset, "")
    assert (artifact_root(), report_root()) == (root / "data" / "derived", root / "reports")
    assert load_settings("desk", "dsads").reports == root / "reports" / "desk" / "dsads"
    assert data_folders() == [root / "data" / "raw"]
    for variable, value in (
        ("DATA", "../there/data"),
        ("ARTIFACTS", "elsewhere"),
        ("REPORTS", str(tmp_path / "pages")),
    ):
        monkeypatch.setenv(f"HARVIS_{variable}", value)
    assert data_folders() == [root.parent / "there" / "data", root / "data" / "raw"]
    assert artifact_root() == root / "elsewhere"
    assert load_settings().reports == tmp_path / "pages" / "quick" / "synthetic"
    monkeypatch.setenv("HARVIS_ARTIFACTS", "~/x")
    assert artifact_root() == Path.home() / "x"
    monkeypatch.setenv("HARVIS_ARTIFACTS", "~nobody-of-this-name/x")
    with pytest.raises(
        SettingsError, match="HARVIS_ARTIFACTS=~nobody-of-this-name/x is no usable path .*; name another"
    ):
        artifact_root()


def test_an_installed_package_counts_paths_from_the_current_folder(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "harvis_utils"
    package.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert repository(package) == tmp_path
    (package.parent / "notebooks").mkdir()
    assert repository(package) == tmp_path, "notebooks of something else"
    (package.parent / "pyproject.toml").touch()
    assert repository(package) == package.parent


# ---------------------------------------------------------------------------------- threads and the device


def test_threads_from_the_environment(monkeypatch):
    for text, expected in (("3", 3), ("", len(os.sched_getaffinity(0)))):
        monkeypatch.setenv("HARVIS_THREADS", text)
        assert threads() == expected


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", " 2", "²"])
def test_bad_threads_are_refused(text, monkeypatch):
    monkeypatch.setenv("HARVIS_THREADS", text)
    with pytest.raises(SettingsError, match=re.escape(f"HARVIS_THREADS={text!r} is not a number of threads")):
        threads()


def test_the_device_is_the_one_asked_for_else_cuda_where_there_is_one(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert torch_device().type == ("cuda" if there else "cpu")
        assert torch_device("cpu").type == "cpu"


# -------------------------------------------------------------------------------------- notebook parameters

DECLARED = {"PROFILE": str, "DATASET": str, "UNIT": int, "DEVICE": str | None}


def notebook_globals(**injected) -> dict:
    """What a kernel's globals hold after the parameters cell, imports and papermill's injection."""
    given = {"PROFILE": "quick", "DATASET": "synthetic", "UNIT": 3, "DEVICE": None} | injected
    cells = ["", "import math", *(f"{name} = {value!r}" for name, value in given.items()), "no python"]
    return {"__name__": "__main__", "_": "", "In": cells, "Out": {1: 2}, "math": math, "PRESETS": {}} | given


def test_good_parameters_pass():
    check_parameters(notebook_globals(), **DECLARED)
    check_parameters(notebook_globals(DEVICE="cpu"), **DECLARED)
    check_parameters({"FLAG": True}, FLAG=bool)


@pytest.mark.parametrize("value", ["desk", 3, None, [1], {"a": 1}])
def test_an_unknown_parameter_is_refused_by_name(value):
    message = "unknown notebook parameter 'PROFIEL'; valid parameters: DATASET, DEVICE, PROFILE, UNIT$"
    with pytest.raises(SettingsError, match=message):
        check_parameters(notebook_globals(PROFIEL=value), **DECLARED)
    beside_magic = notebook_globals() | {"PROFIEL": value}
    beside_magic["In"] += [f"%time\nPROFIEL = {value!r}\n!ls"]
    with pytest.raises(SettingsError, match=message):
        check_parameters(beside_magic, **DECLARED)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("PROFILE", 3, "str"),
        ("PROFILE", None, "str"),
        ("UNIT", "3", "int"),
        ("UNIT", 3.0, "int"),
        ("UNIT", True, "int"),  # True is an int to Python, not to a reader
        ("DEVICE", False, "str or None"),
    ],
)
def test_a_wrong_type_is_refused(name, value, wanted):
    with pytest.raises(SettingsError, match=re.escape(f"notebook parameter {name} = {value!r} should be {wanted}")):
        check_parameters(notebook_globals(**{name: value}), **DECLARED)


def test_a_missing_parameter_is_named():
    with pytest.raises(SettingsError, match="notebook parameter 'UNIT' is not set"):
        check_parameters({"PROFILE": "quick", "DATASET": "synthetic", "DEVICE": None}, **DECLARED)


@pytest.fixture
def execute():
    """A function that executes cells in an IPython kernel's shell that is not the singleton."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell(user_module=types.ModuleType("__main__"))
    shell.user_ns["MINE"] = 3  # as a startup file would
    return lambda *cells: [shell.run_cell(cell, store_history=True).raise_error() for cell in cells]


BEGIN = "check_parameters(globals(), PROFILE=str, DATASET=str)"
CELLS = (
    'PROFILE = "quick"\nDATASET = "synthetic"',
    f"from harvis_utils.run import STANDARD, check_parameters\n{BEGIN}\nSTAGES = ['a']",
    "x = 1",
)


def test_a_notebook_can_be_run_again_in_its_kernel(execute):
    execute(*CELLS, *CELLS, 'PROFILE = "desk"', *CELLS[1:])
    with pytest.raises(SettingsError, match="PROFILE = 3 should be str"):
        execute(f"PROFILE = 3\n{BEGIN}")


def test_names_of_startup_files_are_no_parameters_and_mistyped_ones_are_refused_in_a_fresh_kernel(execute):
    execute(CELLS[0], 'PROFIEL = "desk"')
    for _ in range(2):  # refused parameters stay refused
        with pytest.raises(SettingsError, match="unknown notebook parameter 'PROFIEL'; valid parameters: DATASET"):
            execute(CELLS[1])
    execute("del PROFIEL\nMINE = 4")
    with pytest.raises(SettingsError, match="unknown notebook parameter 'MINE'"):  # set anew: not the startup file's
        execute(CELLS[1])
    execute("del MINE", CELLS[1])


def test_what_a_person_can_put_right_is_told_by_the_cell_and_the_message_alone(monkeypatch, capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell(user_module=types.ModuleType("__main__"), colors="nocolor")
    monkeypatch.setattr(run, "get_ipython", lambda: shell)
    with pytest.raises(SettingsError):
        begin(notebook_globals(PROFILE="fast"))
    shell.run_cell("from harvis_utils.data import archive, kinds\nx = 1\narchive.load_recordings('dsad')\ny = 2")
    said = capsys.readouterr().out
    assert re.search(r"-> 3 archive\.load_recordings\('dsad'\)", said) and "unknown data set 'dsad'; valid" in said
    assert "check_name" not in said and "archive.py" not in said and len(said.splitlines()) < 15
    shell.run_cell("def own():\n    1 / 0\nown()")
    assert "in own()" in capsys.readouterr().out, "other errors are told in full"


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "CPU", "tpu"])
def test_an_unknown_device_is_refused_at_once(device):
    with pytest.raises(SettingsError, match=re.escape(f"unknown device {device!r}; valid: cpu, cuda, cuda:1, mps")):
        torch_device(device)
    with pytest.raises(SettingsError, match="unknown device"):
        begin(notebook_globals(DEVICE=device, WEIGHTS="trained"), UNIT=int)


def test_a_device_that_is_not_there_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(SettingsError, match="finds none here; use cpu, or none by name"):
            torch_device(device)


def test_begin_checks_sets_threads_and_loads(one_thread, monkeypatch):
    monkeypatch.setenv("HARVIS_THREADS", "2")
    given = notebook_globals(PROFILE="desk", DATASET="dsads", DEVICE="cpu", WEIGHTS="trained", SECONDS=6)
    assert begin(given, UNIT=int, SECONDS=float).cfg == load_settings("desk", "dsads", "cpu")
    assert torch.get_num_threads() == 2 and isinstance(given["SECONDS"], float)
    with pytest.raises(SettingsError, match="unknown profile"):
        begin(notebook_globals(PROFILE="fast", WEIGHTS="trained"), UNIT=int)


# --------------------------------------------------------------------------------------------------- progress


def test_progress_goes_to_its_file_and_is_silent_where_nobody_watches(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("HARVIS_PROGRESS", raising=False)
    assert math.prod(progress(range(1, 5), desc="networks")) == 24
    monkeypatch.setenv("HARVIS_PROGRESS", str(tmp_path / "progress"))
    assert list(progress(range(3), desc="networks")) == [0, 1, 2]
    assert list(progress(iter("ab"), desc="signals", total=2)) == ["a", "b"]
    text = (tmp_path / "progress").read_text(encoding="utf-8")
    assert re.search(r"networks: 100%.*3/3", text) and re.search(r"signals: 100%.*2/2", text)
    assert text.isascii() and capfd.readouterr() == ("", "")
