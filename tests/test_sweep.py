"""Sweeps: files checked, jobs and keys, the same results from many processes as from one, and what they cost."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from harvis_utils.maximization import paper_methods
from harvis_utils.metrics import similarity
from harvis_utils.paper.stages import Stages
from harvis_utils.settings import (
    PRESETS,
    REPOSITORY,
    MaximizationSettings,
    ModelSettings,
    SimilaritySettings,
    WindowSettings,
    artifact_root,
    load_settings,
)
from harvis_utils.store import results
from harvis_utils.store.files import read_json, write_text
from harvis_utils.training import supervised
from workflow import sweep
from workflow.sweep import SweepError

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = """
profile = "quick"
datasets = ["synthetic"]
seeds = 2
presets = ["calibrated"]
device = "cpu"

[architectures]
default = {}
narrow = { model.n_units = 2, training.batch_size = 32 }

[settings]
windows.step = 240
model = { n_units = 3, n_dense = 4 }
training = { epochs = 1, learning_rate = 1 }
maximization.n_steps = 5
similarity.n_similar = 5
"""


def write(folder: Path, text: str = TINY, name: str = "tiny") -> Path:
    return write_text(folder / f"{name}.toml", text)


#: what is computed of it: half
HALF = TINY.replace("default = {}\n", "")


def run_all(found: sweep.Sweep) -> None:
    for kind in sweep.KINDS:
        for part in sweep.parts(found).itertuples():
            sweep.run(found, kind, part.dataset, part.architecture, part.seeds)


def refuse(stage: str, key: str):
    raise AssertionError(f"no {stage} may be computed here")


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Half of the sweep, all its jobs in this process; the folder that holds its store and its reports."""
    folder = tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(folder / "derived"))
        patched.setenv("HARVIS_REPORTS", str(folder / "reports"))
        patched.setenv("HARVIS_THREADS", "1")
        found = sweep.load(write(folder, HALF))
        run_all(found)
        sweep.collect(found)
    return folder


@pytest.fixture
def at_single(single, monkeypatch):
    """That half, with artifacts and reports of the fixture above."""
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(single / "derived"))
    monkeypatch.setenv("HARVIS_REPORTS", str(single / "reports"))
    return sweep.load(single / "tiny.toml")


# ------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (TINY, "profile = ", "tiny.toml: Invalid value"),
        (TINY, 'datasets = ["synthetic"]', "profile: Field required"),
        ("[settings]", "[seads]", r"unknown: seads; valid keys: profile, datasets, seeds"),
        ("quick", "quack", "profile: Input should be 'quick', 'desk' or 'paper'"),
        ('"synthetic"', '"synthetik"', "unknown data set 'synthetik'; valid data sets"),
        ('"synthetic"', '"synthetic", "synthetic"', "datasets: a value stands here twice"),
        ("seeds = 2", "seeds = 0", "seeds: List should have at least 1 item"),
        ("seeds = 2", "seeds = [1, 1]", "seeds: a value stands here twice"),
        ("seeds = 2", "seeds_per_job = 0.5", "seeds_per_job: Input should be a valid integer"),
        ('["calibrated"]', '["guessed"]', "presets.0: Input should be 'literal' or 'calibrated'"),
        ('"cpu"', '"tpu"', "device: Input should be 'cpu' or 'cuda'"),
        ("narrow =", '"n w" =', "architectures.n w.*String should match pattern"),
        ("model.n_units = 2", "model.units = 2", "architectures.narrow.model: unknown: units; valid keys: n_units"),
        ("model.n_units = 2", "model.n_units = true", "narrow.model.n_units: Input should be a valid integer"),
        ("model.n_units = 2", "maximization.n_steps = 1", "narrow: unknown: maximization; valid keys: model, training"),
        ("model.n_units = 2", "training.seeds = [1]", "architectures.narrow.training: unknown: seeds"),
        ("model.n_units = 2", 'model.pool = "max9"', "architectures.narrow: pool 'max9' must be one of"),
        ("model.n_units = 2, training.batch_size = 32", "", "narrow is the same as architectures.default"),
        ("epochs = 1", 'schedule = "cos"', "settings.training.schedule: Input should be 'constant' or 'cosine'"),
        ("epochs = 1", "weight_decay = inf", "settings.training.weight_decay: Input should be a finite number"),
        ("n_dense = 4", "dropout = 1.5", "settings.model.dropout: Input should be less than 1"),
        ("windows.step = 240", "windows.rate_hz = 0", "settings.windows.rate_hz: Input should be greater than 0"),
        ("n_steps = 5", 'reduction = "avg"', "settings.maximization.reduction: Input should be 'sum' or 'mean'"),
        ("n_steps = 5", "lowpass_hz = 0", "settings.maximization.lowpass_hz: Input should be greater than 0"),
        ("n_steps = 5", "lowpass_hz = 15", r"maximization.lowpass_hz should be below half of windows.rate_hz \(30\)"),
        ("seeds = 2", "seeds = true", "seeds: Input should be a valid list"),
        ("epochs = 1", "epochs = 0", "settings.training.epochs: Input should be greater than 0"),
    ],
)
def test_a_wrong_file_is_one_error_that_names_it_and_the_key(tmp_path, old, new, said):
    with pytest.raises(SweepError, match=said) as error:
        sweep.load(write(tmp_path, TINY.replace(old, new)))
    assert str(error.value).startswith(str(tmp_path / "tiny.toml"))


def test_a_short_file_has_the_profiles_seeds_and_all_presets(tmp_path):
    found = sweep.load(write(tmp_path, 'profile = "desk"\ndatasets = ["dsads", "mhealth-approximate"]'))
    assert found.seeds == load_settings("desk").training.seeds and found.presets == tuple(PRESETS)
    for dataset in found.datasets:
        assert found.cfg(dataset, "default") == load_settings("desk", dataset)


def test_an_architecture_changes_what_it_says_and_a_whole_number_is_that_real_one(tmp_path):
    found = sweep.load(write(tmp_path))
    default, narrow = (found.cfg("synthetic", name) for name in ("default", "narrow"))
    assert narrow.model == dataclasses.replace(default.model, n_units=2) and default.model.n_units == 3
    assert narrow.training == dataclasses.replace(default.training, batch_size=32)
    assert isinstance(default.training.learning_rate, float)


# ------------------------------------------------------------------------------------------- jobs and their keys


def test_the_parts_of_a_sweep(tmp_path):
    text = 'profile = "desk"\ndatasets = ["synthetic"]\nseeds = 5\nseeds_per_job = 2'
    found = sweep.load(write(tmp_path, text))
    assert found.groups() == {"0-1": (0, 1), "2-3": (2, 3), "4-4": (4,)}
    table, longer = sweep.parts(found), sweep.parts(sweep.load(write(tmp_path, text.replace("seeds = 5", "seeds = 6"))))
    assert len(table) == len(set(table["digest"])) == 3
    assert table[:2].equals(longer[:2]), "a grown sweep calls its parts the same"


def test_a_part_changes_with_what_it_is_computed_from_and_with_nothing_else(tmp_path):
    def digests(text: str) -> list[str]:
        return sweep.parts(sweep.load(write(tmp_path, text)))["digest"].tolist()

    before = digests(TINY)
    assert digests(TINY + "# a comment") == digests(TINY.replace("learning_rate = 1", "learning_rate = 1.0")) == before
    after = digests(TINY.replace("n_units = 2", "n_units = 1"))
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, False]
    assert not set(digests(TINY.replace("n_steps = 5", "n_steps = 6"))) & set(before)


def test_notebooks_find_what_a_sweep_of_the_default_architecture_has_made(tmp_path, monkeypatch):
    text = TINY.replace("seeds = 2", "seeds = 1").replace('presets = ["calibrated"]\n', "")
    found = sweep.load(write(tmp_path, text[: text.index("narrow")] + text[text.index("[settings]") :]))
    run_all(found)
    # from here on as notebooks 02 to 04 do it, with settings that no sweep has touched
    cfg = load_settings("quick", "synthetic", "cpu")
    cfg = dataclasses.replace(
        cfg,
        windows=WindowSettings(step=240),
        model=ModelSettings(n_units=3, n_dense=4),
        training=dataclasses.replace(cfg.training, seeds=(0,), epochs=1, learning_rate=1.0),
        maximization=MaximizationSettings(n_steps=5),
        similarity=SimilaritySettings(n_similar=5),
    )
    monkeypatch.setenv("HARVIS_JOURNAL", str(tmp_path / "asked"))
    run = Stages(cfg)
    with results.around_builds(refuse):
        assert run.scores.sizes["seed"] == run.controls.sizes["seed"] == 1
    store = artifact_root() / "store"
    stored = {p.parent.relative_to(store).as_posix() for p in store.glob("*/*/manifest.json")}
    assert set((tmp_path / "asked").read_text().split()) == stored


def test_scores_of_some_presets_are_never_taken_for_those_of_all(at_single):
    run = Stages(at_single.cfg("synthetic", "narrow"))
    with results.around_builds(refuse), pytest.raises(AssertionError, match="no signals"):
        assert run.scores is not None


# --------------------------------------------------------------------------- many processes give what one gives


@pytest.fixture(scope="module")
def fanned(tmp_path_factory):
    """Half of the sweep through the cluster-generic executor; its submit command starts job scripts and comes back."""
    folder = tmp_path_factory.mktemp("fanned")
    submit = write_text(
        folder / "submit.sh",
        '#!/bin/sh\necho "$1" >> "$(dirname "$0")/submitted"\nsh "$1" > "$1.said" 2>&1 &\necho $!\n',
    )
    submit.chmod(0o755)
    profile = {
        "executor": "cluster-generic",
        "cluster-generic-submit-cmd": shlex.quote(str(submit)),
        "jobs": 2,
        "seconds-between-status-checks": 1,
        "max-status-checks-per-second": 20,
        "quiet": "all",
    }
    write_text(folder / "profile" / "config.yaml", yaml.safe_dump(profile))
    place = {"HARVIS_ARTIFACTS": str(folder / "derived"), "HARVIS_REPORTS": str(folder / "reports")}
    command = [sys.executable, "-m", "workflow.sweep", "start", str(write(folder, HALF))]
    done = subprocess.run(
        [*command, "--workflow-profile", str(folder / "profile")],
        cwd=REPOSITORY,
        env={**os.environ, **place, "HARVIS_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_many_processes_store_what_a_single_one_does_bit_by_bit(fanned, single):
    assert len(set((fanned / "submitted").read_text().split())) == 2 * 3, "seed groups, kinds: each by itself"

    def content(folder: Path) -> dict[str, dict]:
        store = folder / "derived" / "store"
        return {p.parent.relative_to(store).as_posix(): read_json(p)["files"] for p in store.glob("*/*/*t.json")}

    many, one = content(fanned), content(single)
    assert {place.partition("/")[0] for place in many} >= {"networks", "statistics", "signals", "scores"}
    assert many == one
    many, one = (pd.read_csv(f / "reports/sweep/tiny/sweep.csv", dtype=str) for f in (fanned, single))
    assert many.equals(one)


def test_only_what_is_missing_is_computed_again_also_where_the_project_was_moved(fanned, tmp_path, monkeypatch, capfd):
    for name in ("derived", "reports"):
        shutil.copytree(fanned / name, tmp_path / name)
        monkeypatch.setenv({"derived": "HARVIS_ARTIFACTS", "reports": "HARVIS_REPORTS"}[name], str(tmp_path / name))
    found = sweep.load(write(tmp_path, HALF))

    def wanted() -> list[str]:
        sweep.start(found, "local", "--dry-run", "--cores", "1", "--quiet", "progress")
        said = capfd.readouterr().out
        return sorted(re.findall(r"^ +output: (\S+)", said, flags=re.M))

    assert wanted() == []
    part = "dataset~synthetic.architecture~narrow.seeds~1-1"
    stored = (found.place.reports / f"stamps/networks/{part}.txt").read_text().split()
    shutil.rmtree(artifact_root() / "store" / next(s for s in stored if s.startswith("networks/")))
    after = [f"stamps/{kind}.txt" for kind in (f"networks/{part}", f"scores/{part}", f"signals/{part}.calibrated")]
    assert wanted() == sorted(["sweep.csv", *after])


def test_a_table_changed_by_hand_and_a_damaged_network_are_made_anew(fanned, tmp_path, monkeypatch, capfd):
    for name in ("derived", "reports"):
        shutil.copytree(fanned / name, tmp_path / name)
        monkeypatch.setenv({"derived": "HARVIS_ARTIFACTS", "reports": "HARVIS_REPORTS"}[name], str(tmp_path / name))
    found = sweep.load(write(tmp_path, HALF))
    table, stamps = found.place.reports / "sweep.csv", found.place.reports / "stamps/networks"
    table.write_text(table.read_text().replace("narrow", "wide", 1))
    stored = next(s for s in next(iter(stamps.iterdir())).read_text().split() if s.startswith("networks/"))
    network = artifact_root() / "store" / stored / "result.safetensors"
    network.write_bytes(network.read_bytes()[:-1] + b"x")
    sweep.start(found, "local", "--dry-run", "--cores", "1", "--quiet", "progress")
    assert not table.exists() and len(list(stamps.iterdir())) == 1
    again = write(tmp_path / "elsewhere", HALF)
    with pytest.raises(SweepError, match=f"{again}: .* is of {tmp_path}/tiny.toml; give one of them another name"):
        sweep.start(sweep.load(again), "local", "--dry-run")


# ---------------------------------------------------------------------------------------------------- the table


def test_the_table_holds_what_the_report_says_of_each_network(at_single):
    table = pd.read_csv(at_single.place.reports / "sweep.csv").fillna({"preset": ""})
    assert len(table) == 2 * 3 * (len(paper_methods.METHODS) + len(similarity.CONTROLS))
    assert set(table["caveat"]) == {"made-up data"} and set(table["preset"]) == {"calibrated", ""}
    run = Stages(at_single.cfg("synthetic", "narrow", (1,)))
    with results.around_builds(refuse):
        scores = sweep.scored(run, at_single.presets)["technique"]
    mine = table.query("architecture == 'narrow' and seed == 1")
    assert np.allclose(mine["macro_f1"], supervised.macro_f1(run.data.test, run.networks[0].predicted["test"]))
    (row,) = mine[(mine["name"] == "lowpass") & (mine["layer"] == "conv2")].itertuples()
    said = similarity.summarize(scores.sel(preset="calibrated", technique="lowpass", layer="conv2"))
    assert (row.dead_units, row.failed_units) == (said["dead_units"], said["failed_units"])
    assert row.ssim == said["ssim"]["mean"] or (np.isnan(row.ssim) and said["ssim"]["mean"] is None)


def test_an_unfinished_sweep_leaves_the_table_as_it_was(tmp_path, single, monkeypatch):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(single / "derived"))
    found = sweep.load(write(tmp_path, HALF.replace("seeds = 2", "seeds = 3")))
    table = write_text(found.place.reports / "sweep.csv", "before")
    with pytest.raises(SweepError, match="synthetic, architecture narrow, seed 2 is not finished: no networks; start"):
        sweep.collect(found)
    assert table.read_text() == "before" and [p.name for p in table.parent.iterdir()] == ["sweep.csv"]


# ------------------------------------------------------------------------------------------------ starting


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("start", "--workflow-profile", "slrm"), "unknown workflow profile 'slrm'; valid: local, slurm"),
        (("start", "--dry-run", "--cores", "none"), "Snakemake ended with status"),
        (("run", "network", "synthetic", "narrow", "0-0"), "no kind 'network'; there are networks, signals"),
        (("run", "networks", "synthetic", "narrow", "0-1"), "no seeds '0-1'; there are 0-0, 1-1"),
        (("cost",), "no measured time of profile quick on synthetic: compute a first part"),
        (("collect", "--cores", "2"), "only start passes options on to Snakemake: --cores 2"),
    ],
)
def test_wrong_words_are_said(tmp_path, capsys, words, said):
    command, *rest = words
    try:
        assert sweep.main([command, str(write(tmp_path)), *rest]) == 1
    except SystemExit:
        assert command == "collect"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_profiles_name_options_and_rules_that_exist(name):
    from snakemake.cli import get_argument_parser

    profile = yaml.safe_load((sweep.HERE / "profiles" / name / "config.yaml").read_text())
    assert {f"--{key}" for key in profile} <= set(get_argument_parser()._option_string_actions)
    assert set(profile.get("set-threads", {})) <= set(sweep.KINDS)


# --------------------------------------------------------------------------------------------------- the cost


def test_a_larger_sweep_costs_in_proportion_to_the_part_that_was_computed(fanned, tmp_path, monkeypatch):
    monkeypatch.setenv("HARVIS_REPORTS", str(fanned / "reports"))
    took = [pd.read_csv(p, sep="\t") for p in (fanned / "reports/sweep/tiny/benchmarks").glob("*/*.tsv")]
    seconds = sum(table["cpu_time"].sum() for table in took)
    assert len(took) == 2 * 3 and seconds > 0
    for n, jobs in ((2, 6), (200, 600)):
        said = sweep.cost(sweep.load(write(tmp_path, HALF.replace("seeds = 2", f"seeds = {n}"))))
        assert f"about {n / 2 * seconds / 3600:.3g} core-hours, in {jobs} jobs" in said
        assert said.count("from this sweep") == 1


def test_without_a_part_it_is_projected_from_a_published_run(capsys):
    assert sweep.main(["cost", str(REPOSITORY / "workflow" / "two_hundred.toml")]) == 0
    said = capsys.readouterr().out
    assert "200 networks of `two_hundred.toml` (data sets: 2, architectures: 2, seeds: 50; presets: 2)" in said
    published = read_json(REPOSITORY / "reports/published/desk/dsads/results.json")
    each = sum(published["timings_s"][s] for s in sweep.STAGES) * published["provenance"]["threads"]
    assert f"- dsads, narrow: {each / published['n_seeds'] * 50 / 3600:.3g} core-hours" in said
