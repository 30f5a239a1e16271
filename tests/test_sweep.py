"""Sweeps: files checked, jobs and keys, the same results from many processes as from one, and what they cost."""

import dataclasses
import json
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

from harvis_utils.data import archive, windowing
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.metrics import similarity
from harvis_utils.settings import (
    PRESETS,
    REPOSITORY,
    MaximizationSettings,
    ModelSettings,
    Settings,
    SimilaritySettings,
    WindowSettings,
    artifact_root,
    as_json,
    load_settings,
)
from harvis_utils.store import stages
from harvis_utils.store.files import ArtifactError, read_json, write_json, write_text
from harvis_utils.training import supervised
from workflow import sweep, sweep_cost, sweep_plan
from workflow.sweep_plan import SweepError

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


def run_all(found: sweep_plan.Sweep) -> None:
    for job in sweep.jobs(found):
        sweep.run(found, job.name)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The tiny sweep, all its jobs in this process; the folder that holds its store and its reports."""
    folder = tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(folder / "derived"))
        patched.setenv("HARVIS_REPORTS", str(folder / "reports"))
        patched.setenv("HARVIS_THREADS", "1")
        found = sweep.load(write(folder))
        run_all(found)
        sweep.collect(found)
    return folder


@pytest.fixture
def at_single(single, monkeypatch):
    """The tiny sweep, with artifacts and reports of the fixture above."""
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(single / "derived"))
    monkeypatch.setenv("HARVIS_REPORTS", str(single / "reports"))
    return sweep.load(single / "tiny.toml")


# ------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("profile = ", "tiny.toml: Invalid value"),
        ('datasets = ["synthetic"]', "the file must contain .*profile"),
        (TINY + "[seads]", r"the file must not contain \{'seads'\} properties; valid keys: profile, datasets, seeds"),
        (TINY.replace("quick", "quack"), "profile must be one of .*'quick', 'desk', 'paper'"),
        (TINY.replace('"synthetic"', '"synthetik"'), "unknown data set 'synthetik'; valid data sets"),
        (TINY.replace('"synthetic"', '"synthetic", "synthetic"'), "datasets must contain unique"),
        (TINY.replace("seeds = 2", "seeds = 0"), "seeds .*; a number of networks, or a list of different seeds"),
        (TINY.replace("seeds = 2", "seeds = [1, 1]"), "seeds .*; a number of networks, or a list of different seeds"),
        (TINY.replace("seeds = 2", 'seeds = "two"'), "seeds .*; a number of networks, or a list of different seeds"),
        (TINY.replace("seeds = 2", "seeds_per_job = 0.5"), "seeds_per_job must be integer"),
        (TINY.replace('["calibrated"]', '["guessed"]'), r"presets\[0\] must be one of .*'literal', 'calibrated'"),
        (TINY.replace('"cpu"', '"tpu"'), "device must be one of"),
        (TINY.replace("narrow =", '"n w" ='), "architectures must be .*; names of letters, digits, - and _"),
        (
            TINY.replace("model.n_units = 2", "model.units = 2"),
            "architectures.narrow.model .*'units'.*valid keys: n_units",
        ),
        (
            TINY.replace("model.n_units = 2", "model.n_units = true"),
            "architectures.narrow.model.n_units must be integer",
        ),
        (TINY.replace("model.n_units = 2", "maximization.n_steps = 1"), "architectures.narrow must not contain"),
        (TINY.replace("model.n_units = 2", "training.seeds = [1]"), "architectures.narrow.training .*'seeds'"),
        (TINY.replace("model.n_units = 2", 'model.pool = "max9"'), "architectures.narrow: pool 'max9' must be one of"),
        (
            TINY.replace("model.n_units = 2, training.batch_size = 32", ""),
            "narrow is the same as architectures.default",
        ),
        (TINY.replace("epochs = 1", "epochs = 0"), "settings.training.epochs must be bigger than or equal to 1"),
    ],
)
def test_a_wrong_file_is_one_error_that_names_it_and_the_key(tmp_path, text, said):
    with pytest.raises(SweepError, match=said) as error:
        sweep.load(write(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "tiny.toml"))


def test_a_missing_file_is_said(tmp_path, capsys):
    assert sweep.main(["cost", str(tmp_path / "none.toml")]) == 1
    assert "none.toml: the sweep file cannot be read (No such file" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((REPOSITORY / "workflow").glob("*.toml")), ids=lambda p: p.name)
def test_the_shipped_sweeps_are_valid(path):
    assert sweep.jobs(sweep.load(path))


def test_a_short_file_has_the_profiles_seeds_and_all_presets(tmp_path):
    found = sweep.load(write(tmp_path, 'profile = "desk"\ndatasets = ["dsads", "mhealth-approximate"]'))
    assert found.seeds == load_settings("desk").training.seeds and found.presets == tuple(PRESETS)
    for dataset in found.datasets:
        assert sweep.settings(found, dataset, "default") == load_settings("desk", dataset)


def test_an_architecture_changes_what_it_says_and_a_whole_number_is_that_real_one(tmp_path):
    found = sweep.load(write(tmp_path))
    default, narrow = (sweep.settings(found, "synthetic", name) for name in ("default", "narrow"))
    assert narrow.model == dataclasses.replace(default.model, n_units=2) and default.model.n_units == 3
    assert narrow.training == dataclasses.replace(default.training, batch_size=32)
    assert isinstance(default.training.learning_rate, float)


# ------------------------------------------------------------------------------------------- jobs and their keys


def test_the_jobs_of_a_sweep(tmp_path):
    text = 'profile = "desk"\ndatasets = ["dsads", "mhealth"]\nseeds = 5\nseeds_per_job = 2'
    found = sweep.jobs(sweep.load(write(tmp_path, text)))
    assert [j.name for j in found[:8]] == [
        "networks.dsads.default.s0-1",
        "signals.dsads.default.s0-1.literal",
        "signals.dsads.default.s0-1.calibrated",
        "scores.dsads.default.s0-1",
        "networks.dsads.default.s2-3",
        "signals.dsads.default.s2-3.literal",
        "signals.dsads.default.s2-3.calibrated",
        "scores.dsads.default.s2-3",
    ]
    assert len({j.name for j in found}) == len(found) == 2 * 3 * 4
    assert found[11].seeds == (4,) and found[11].name == "scores.dsads.default.s4-4"
    assert found[1].after == ("networks.dsads.default.s0-1",) and found[3].after == (found[1].name, found[2].name)
    longer = {j.name for j in sweep.jobs(sweep.load(write(tmp_path, text.replace("seeds = 5", "seeds = 6"))))}
    assert {j.name for j in found if len(j.seeds) == 2} <= longer, "a grown sweep calls its parts the same"


def test_what_decides_a_result_is_in_the_plan_and_nothing_else(tmp_path):
    def digests(text: str) -> dict[str, str]:
        return {j["kind"]: j["digest"] for j in sweep_plan.plan(sweep.load(write(tmp_path, text)))["jobs"]}

    before = digests(TINY)
    assert digests(TINY + "# a comment") == before

    def changed(old: str, new: str) -> set[str]:
        after = digests(TINY.replace(old, new))
        return {kind for kind in before if before[kind] != after[kind]}

    assert changed("epochs = 1", "epochs = 2") == {"networks", "signals", "scores"}
    assert changed("n_steps = 5", "n_steps = 6") == {"signals", "scores"}
    assert changed("n_similar = 5", "n_similar = 6") == {"scores"}
    assert changed('["calibrated"]', '["literal", "calibrated"]') == {"scores"}


def test_notebooks_find_what_a_sweep_of_the_default_architecture_has_made(tmp_path, monkeypatch):
    text = TINY.replace("seeds = 2\n", "").replace('presets = ["calibrated"]\n', "")
    found = sweep.load(write(tmp_path, text[: text.index("narrow")] + text[text.index("[settings]") :]))
    run_all(found)
    # from here on as notebooks 02 to 04 do it, with settings that no sweep has touched
    cfg = load_settings("quick", "synthetic", "cpu")
    cfg = dataclasses.replace(
        cfg,
        windows=WindowSettings(step=240),
        model=ModelSettings(n_units=3, n_dense=4),
        training=dataclasses.replace(cfg.training, epochs=1, learning_rate=1.0),
        maximization=MaximizationSettings(n_steps=5),
        similarity=SimilaritySettings(n_similar=5),
    )
    data = windowing.cut(archive.load_recordings("synthetic"), cfg.windows)
    asked = []

    def look_up(stage, key, build, about):
        asked.append(f"{stage.name}/{key}")
        return stage.require(key)  # an error where it would have to be computed

    monkeypatch.setattr(stages.Stage, "obtain", look_up)
    nets, random = supervised.networks(cfg, data), supervised.untrained(cfg, data)
    statistics, random_statistics = (unit_statistics.statistics(cfg, data, n) for n in (nets, random))
    made = paper_methods.signals(cfg, nets, statistics)
    of_random = paper_methods.signals(cfg, random, random_statistics, paper_methods.CONTROL_METHODS, ("calibrated",))
    similarity.scores(cfg, data, nets, statistics, made)
    proposed = of_random.sel(preset="calibrated", technique=paper_methods.CONTROL_METHODS[0], drop=True)
    similarity.controls(cfg, data, nets, statistics, random, random_statistics, proposed)
    store = artifact_root() / "store"
    assert sorted(asked) == sorted(p.parent.relative_to(store).as_posix() for p in store.glob("*/*/manifest.json"))
    stamps = [read_json(p)["stored"] for p in (found.place.reports / "stamps").glob("*.json")]
    assert sorted(s for stored in stamps for s in stored) == sorted(asked)


def test_scores_of_some_presets_are_never_taken_for_those_of_all(at_single):
    cfg = sweep.settings(at_single, "synthetic", "default")
    data = windowing.cut(archive.load_recordings("synthetic"), cfg.windows)
    with pytest.raises(ArtifactError, match="run notebook 04_similarity first"):
        similarity.load_scores(cfg, data, supervised.load_networks(cfg, data))


# --------------------------------------------------------------------------- many processes give what one gives


@pytest.fixture(scope="module")
def fanned(tmp_path_factory):
    """The tiny sweep through the cluster-generic executor; its submit command starts job scripts and comes back."""
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
    command = [sys.executable, "-m", "workflow.sweep", "start", str(write(folder))]
    done = subprocess.run(
        [*command, "--workflow-profile", str(folder / "profile")],
        cwd=REPOSITORY,
        env={**os.environ, **place, "HARVIS_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_job_was_submitted_by_itself(fanned):
    assert len(set((fanned / "submitted").read_text().split())) == 2 * 2 * 3  # architectures, seed groups, kinds
    assert len(list((fanned / "reports/sweep/tiny/stamps").glob("*.json"))) == 2 * 2 * 3


def test_the_store_is_that_of_a_single_process_bit_by_bit(fanned, single):
    def content(folder: Path) -> dict[str, dict]:
        store = folder / "derived" / "store"
        return {p.parent.relative_to(store).as_posix(): read_json(p)["files"] for p in store.glob("*/*/*t.json")}

    many, one = content(fanned), content(single)
    assert set(many) == set(one) and len(one) == 2 * 2 * (1 + 2 + 6 + 2)  # networks, statistics, signals, scores
    for place, files in one.items():
        assert many[place] == files, place


def test_the_table_is_that_of_a_single_process(fanned, single):
    many, one = (pd.read_csv(f / "reports/sweep/tiny/sweep.csv", dtype=str) for f in (fanned, single))
    seconds = ["network_s", "signals_s"]
    assert many.drop(columns=seconds).equals(one.drop(columns=seconds)) and many[seconds].notna().any().all()


def test_only_what_is_missing_is_computed_again_also_where_the_project_was_moved(fanned, tmp_path, monkeypatch, capfd):
    for name in ("derived", "reports"):
        shutil.copytree(fanned / name, tmp_path / name)
        monkeypatch.setenv({"derived": "HARVIS_ARTIFACTS", "reports": "HARVIS_REPORTS"}[name], str(tmp_path / name))
    found = sweep.load(write(tmp_path))

    def wanted() -> list[str]:
        sweep.start(found, "local", "--dry-run", "--cores", "1", "--quiet", "progress")
        said = capfd.readouterr().out
        return sorted(re.findall(r"^ +output: (\S+)", said, flags=re.M))

    assert wanted() == []
    stamp = sweep._stamp(found, "networks.synthetic.narrow.s1-1")
    (network,) = (s for s in read_json(stamp)["stored"] if s.startswith("networks/"))
    shutil.rmtree(artifact_root() / "store" / network)
    after = [f"stamps/{kind}.synthetic.narrow.s1-1" for kind in ("networks", "scores", "signals")]
    assert wanted() == sorted(["sweep.csv", f"{after[0]}.json", f"{after[1]}.json", f"{after[2]}.calibrated.json"])


# ---------------------------------------------------------------------------------------------------- the table


def test_the_table_holds_what_the_report_says_of_each_network(at_single):
    table = pd.read_csv(at_single.place.reports / "sweep.csv").fillna({"preset": ""})
    assert len(table) == 2 * 2 * 3 * (len(paper_methods.METHODS) + len(similarity.CONTROLS))
    assert set(table["caveat"]) == {"made-up data"}
    cfg = sweep.settings(at_single, "synthetic", "narrow", (1,))
    data = windowing.cut(archive.load_recordings("synthetic"), cfg.windows)
    nets = supervised.load_networks(cfg, data)
    mine = table[(table["architecture"] == "narrow") & (table["seed"] == 1)]
    assert np.allclose(mine["macro_f1"], supervised.macro_f1(data.test, nets[0].predicted["test"]))
    assert np.allclose(mine["network_s"], nets[0].wall_s)
    scores = similarity.load_scores(cfg, data, sweep._addressed(at_single, nets)).sel(preset="calibrated")
    controls = similarity.load_scores(cfg, data, nets, "controls")
    for row in mine.itertuples():
        of = scores if row.kind == "technique" else controls
        said = similarity.summarize(of.sel({row.kind: row.name, "layer": row.layer}))
        assert row.preset == ("calibrated" if row.kind == "technique" else "")
        for name in ("ssim", "activation_ratio"):
            assert np.isclose(
                getattr(row, name), said[name]["mean"] if said[name]["mean"] is not None else np.nan, equal_nan=True
            )
        assert (row.failed_units, row.dead_units) == (said["failed_units"], said["dead_units"])


def test_an_unfinished_sweep_leaves_the_table_as_it_was(tmp_path, single, monkeypatch):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(single / "derived"))
    found = sweep.load(write(tmp_path, TINY.replace("seeds = 2", "seeds = 3")))
    table = write_text(found.place.reports / "sweep.csv", "before")
    with pytest.raises(
        SweepError, match="synthetic, architecture default, seed 2 is not finished; start the sweep again"
    ):
        sweep.collect(found)
    assert table.read_text() == "before" and [p.name for p in table.parent.iterdir()] == ["sweep.csv"]


# ------------------------------------------------------------------------------------------------ starting


class Called:
    """Stands for Snakemake: keeps its command line and ends with a given status."""

    def __init__(self, status: int = 0):
        self.status = status

    def __call__(self, command, **more):
        self.command, self.cwd = command, more["cwd"]
        return subprocess.CompletedProcess(command, self.status)


def test_a_stamp_whose_results_are_gone_is_forgotten(tmp_path, monkeypatch):
    called = Called()
    monkeypatch.setattr(sweep.subprocess, "run", called)
    found = sweep.load(write(tmp_path))
    there, gone = (write_json(sweep._stamp(found, n), {"job": n, "stored": [f"networks/{n}"]}) for n in "ab")
    write_json(artifact_root() / "store/networks/a/manifest.json", {})
    assert sweep.start(found, "local", "--cores", "1") == called.cwd / "sweep.csv"
    assert there.exists() and not gone.exists()
    assert called.command[-1] == f"sweep={json.dumps(os.path.relpath(found.path, called.cwd))}"
    assert read_json(called.cwd / "plan.json")["jobs"][0]["name"] == "networks.synthetic.default.s0-0"


def test_a_sweep_may_lie_in_a_folder_of_any_letters(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HARVIS_REPORTS", str(tmp_path / "reports"))
    sweep.start(sweep.load(write(tmp_path / "日本 é")), "local", "--dry-run", "--cores", "1", "--printshellcmds")
    assert "日本 é/tiny.toml" in capfd.readouterr().out


def test_a_failed_sweep_quotes_the_ends_of_its_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep.subprocess, "run", Called(1))
    path = write(tmp_path)
    place = sweep.load(path).place.reports
    write_text(place / "logs" / "networks.synthetic.narrow.s1-1.txt", "much\nbefore\nthe\ndisk is full\n")
    assert sweep.main(["start", str(path)]) == 1
    said = capsys.readouterr().err
    assert "Snakemake ended with status 1" in said and "narrow.s1-1.txt\n  before\n  the\n  disk is full" in said


def test_wrong_names_of_profiles_and_jobs_are_said(tmp_path, capsys):
    path = str(write(tmp_path))
    assert sweep.main(["start", path, "--workflow-profile", "slrm"]) == 1
    assert "unknown workflow profile 'slrm'; valid: local, slurm" in capsys.readouterr().err
    assert sweep.main(["run", path, "networks.synthetic"]) == 1
    assert "no job 'networks.synthetic'; its jobs are called like 'networks.synthetic.default.s0-0'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_profiles_name_options_and_rules_that_exist(name):
    from snakemake.cli import get_argument_parser

    profile = yaml.safe_load((sweep.WORKFLOW / "profiles" / name / "config.yaml").read_text())
    assert {f"--{key}" for key in profile} <= set(get_argument_parser()._option_string_actions)
    assert set(profile.get("set-threads", {})) <= set(sweep_plan.KINDS)


def test_a_job_leaves_what_other_machines_are_writing(own_folders):
    place = supervised.STAGE.folder("k").parent
    other, mine = (place / f".k.4194305@{node}.x1.part" for node in ("another-node", stages._node()))
    for folder in (other, mine):  # no process has so high a number
        write_text(folder / "half.txt", "")
    supervised.STAGE.obtain("new", lambda part: write_text(part / "a.txt", ""), {})
    assert other.exists() and not mine.exists()


# --------------------------------------------------------------------------------------------------- the cost


def test_the_projection_of_a_measured_sweep_is_what_it_took(at_single):
    spent = {m.stage: 0.0 for m in sweep_cost.from_store()}
    for manifest in (artifact_root() / "store").glob("*/*/manifest.json"):
        found = read_json(manifest)
        spent[found["stage"]] += found["wall_s"]
    known = list(sweep_cost.from_store())
    for stage, seconds in spent.items():
        projected = 0.0
        for architecture in at_single.architectures:
            cfg = sweep.settings(at_single, "synthetic", architecture)
            per_work, source = sweep_cost.rate(stage, cfg, known)
            assert source == "the store"
            projected += per_work * sweep_cost.work(cfg, 1)[stage] * 2
        assert np.isclose(projected, seconds)
    said = sweep_cost.describe(at_single)
    assert said.startswith("**A projection, not a measurement**: the 4 networks of `tiny.toml`")
    assert f"about {sum(spent.values()) / 3600:.3g} core-hours, in 12 jobs" in said


def test_the_projection_for_a_cluster_is_made_from_published_times(capsys):
    path = REPOSITORY / "workflow" / "two_hundred.toml"
    assert sweep.main(["cost", str(path)]) == 0
    said = capsys.readouterr().out
    assert "200 networks of `two_hundred.toml` (data sets: 2, architectures: 2, seeds: 50; presets: 2)" in said
    published = read_json(REPOSITORY / "reports/published/desk/dsads/results.json")
    each = published["timings_s"]["networks"] * published["provenance"]["threads"] / published["n_seeds"]
    epochs = load_settings("desk").training.epochs / published["provenance"]["settings"]["training"]["epochs"]
    assert f"networks {each * epochs * 50 / 3600:.3g}," in said
    assert "- dsads, narrow:" in said and "results.json (a larger network)" in said


def test_without_a_measured_time_there_is_no_projection(tmp_path, capsys):
    assert sweep.main(["cost", str(write(tmp_path))]) == 1
    assert "no measured time of stage 'networks' on synthetic: compute a first part" in capsys.readouterr().err


def test_larger_networks_cost_more_by_their_multiply_adds_and_smaller_ones_the_same():
    def sized(n_units: int) -> Settings:
        cfg = load_settings("desk", "mhealth-approximate")
        return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, n_units=n_units))

    about = as_json(sized(8))
    known = [sweep_cost.Measured("networks", "mhealth", about["windows"], about["model"], 100.0, 10.0, "a run")]
    assert sweep_cost.rate("networks", sized(8), known) == (10.0, "a run")
    growth = 16 * (1 + 2 * 16) / (8 * (1 + 2 * 8))
    per_epoch, source = sweep_cost.rate("networks", sized(16), known)
    assert np.isclose(per_epoch, 10 * growth) and source == f"a run (times {growth:.2g}, by multiply-adds)"
    assert sweep_cost.rate("networks", sized(4), known) == (10.0, "a run (a larger network)")
